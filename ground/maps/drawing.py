"""Shapes in pixels of a scene drawn over a region, with GDAL's rule: what covers the middle of a drawn pixel covers it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.features import rasterize
from rasterio.transform import Affine

from perigee.bitstream.errors import LimitError
from perigee.ground.regions import Region

Numbers = npt.NDArray[np.float64]
CLIPPED_FROM = 2_000  # vertices: polygons with more are clipped to the region before they are drawn
FAR = 1e6  # pixels: polygons that reach farther are clipped too, since GDAL draws nothing of what overflows
VERTICES_MAX = 200_000  # in one region
MARGIN = 4.0  # pixels around a region that are kept of a clipped polygon


def rectangles(start: Numbers, end: Numbers, half: Numbers) -> Numbers:
    """Closed rings [n, 5, 2] around segments [n, 2] that are twice ``half`` [n] wide; they overlap where a line bends, so that no gap is left."""
    along = end - start
    along = along / np.hypot(*along.T)[:, None] * half[:, None]
    across = along[:, ::-1] * (-1, 1)
    corners = (start - along + across, end + along + across, end + along - across, start - along - across)
    return np.stack([*corners, corners[0]], 1)


def clipped(ring: Numbers, region: Region) -> Numbers:
    """A closed ring [n, 2] of x and y within a region and its margin (Sutherland and Hodgman 1974); what leaves it runs along its border."""
    sides = (
        (0, region.left - MARGIN, 1),
        (0, region.right + MARGIN, -1),
        (1, region.top - MARGIN, 1),
        (1, region.bottom + MARGIN, -1),
    )
    for axis, limit, sign in sides:
        if len(ring) < 4:
            break
        here, ahead = ring[:-1], ring[1:]
        inside, next_inside = (sign * (points[:, axis] - limit) >= 0 for points in (here, ahead))
        crossing = inside != next_inside
        step = ahead[:, axis] - here[:, axis]
        share = np.divide(limit - here[:, axis], step, out=np.zeros_like(step), where=crossing)
        met = here + share[:, None] * (ahead - here)
        met[:, axis] = limit
        both = np.stack([met, ahead], 1).reshape(-1, 2)
        ring = both[np.stack([crossing, next_inside], 1).ravel()]
        ring = np.concatenate([ring, ring[:1]])
    return ring


def polygon(rings: tuple[Numbers, ...], region: Region) -> dict[str, Any] | None:
    """A polygon with its holes as a GeoJSON geometry, clipped to a region where it is large; None where nothing is left."""
    far = max(float(np.abs(ring).max()) for ring in rings) > FAR
    if far or sum(map(len, rings)) > CLIPPED_FROM:
        rings = tuple(ring for ring in (clipped(ring, region) for ring in rings) if len(ring) > 3)
    return {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]} if rings else None


def drawn(shapes: list[tuple[dict[str, Any], int]], region: Region, finer: int, dtype: npt.DTypeLike) -> Any:
    """Shapes with their values drawn over a region with so many drawn pixels to a pixel; later ones lie over earlier ones.

    Raises LimitError where the shapes have too many vertices.
    """
    size = (region.rows * finer, region.cols * finer)
    if not shapes:
        return np.zeros(size, dtype)
    vertices = sum(len(ring) for shape, _ in shapes for ring in shape["coordinates"])
    if vertices > VERTICES_MAX:
        raise LimitError(
            f"the map has {vertices} vertices within {region.rows} x {region.cols} pixels of the scene: simplify it",
            field="map",
            expected=f"at most {VERTICES_MAX} vertices",
            found=vertices,
        )
    to_scene = Affine(1 / finer, 0, region.left, 0, 1 / finer, region.top)
    return rasterize(shapes, size, transform=to_scene, dtype=np.dtype(dtype).name, skip_invalid=True)
