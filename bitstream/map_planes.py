"""The planes of a map that a network sees: a share of each class for each pixel, where the map knows anything, and the distance to edges."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray

MAP_CLASSES = ("building", "road", "rail", "water", "wood", "field", "land")
MAP_PLANES = (*MAP_CLASSES, "known", "edge")
SOLID = ("building", "road")  # the classes whose edges count
EDGE_REACH = 8  # pixels: edges farther away are all the same


def edge_distance(solid: BoolArray) -> FloatArray:
    """The distance of each pixel of a mask [rows, cols] to the nearest edge, along rows and columns: float32, from 0 at an edge to 1 at
    ``EDGE_REACH`` pixels inside and -1 at as many outside."""
    out = np.zeros(solid.shape, np.float32)
    for sign, inside in ((1, solid), (-1, ~solid)):
        left = inside
        for _ in range(EDGE_REACH):
            out += sign * left / np.float32(EDGE_REACH)
            padded = np.pad(left, 1, mode="edge")
            left = left & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return out


def planes_of(shares: FloatArray, known: BoolArray) -> FloatArray:
    """Planes float32 [len(MAP_PLANES), rows, cols] of shares [len(MAP_CLASSES), rows, cols] and of where the map knows the ground [rows, cols]."""
    solid = shares[[MAP_CLASSES.index(name) for name in SOLID]].max(0) >= 0.5
    edge = np.where(known, edge_distance(solid), 0)
    return np.concatenate([shares, known[None], edge[None]]).astype(np.float32)
