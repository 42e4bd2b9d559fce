"""Images with their maps: a folder of pairs of an image and a raster of classes, with an ``index.csv``.

The raster has a bit for each class. The columns of the index are ``file``, ``layers`` (the raster), ``place``, ``layers_present`` (names of
classes, joined by a plus sign) and ``train_ok``.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

from perigee.bitstream.arrays import BoolArray, Pixels
from perigee.bitstream.errors import Fault, RasterError
from perigee.models.segmenter import SEEN

BITS = {"building": 1, "road": 2, "water": 4, "wood": 8, "field": 16}
NAMES = {"field_grass": "field"}  # what an index calls a class otherwise
ALLOWED = "yes"


@dataclass(frozen=True)
class MapTile:
    """An image uint8 [row, col, 3], the masks bool [class, row, col] of the classes in ``SEEN``, and which of them its map has."""

    name: str
    place: str
    pixels: Pixels
    masks: BoolArray
    known: tuple[bool, ...]


def load_map_tiles(folder: Path, held_out: Collection[str] = ()) -> tuple[list[MapTile], list[MapTile]]:
    """The tiles of a folder that may be trained on, and those that are held out: the files that fit one of the patterns ``held_out``.

    Raises RasterError where the index or a file cannot be read, or nothing is left.
    """
    tiles: list[MapTile] = []
    others: list[MapTile] = []
    try:
        with (folder / "index.csv").open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        for row in rows:
            apart = any(fnmatch(row["file"], pattern) for pattern in held_out)
            if row["train_ok"] != ALLOWED and not apart:
                continue
            with Image.open(folder / row["file"]) as image, Image.open(folder / row["layers"]) as layers:
                pixels, raster = np.asarray(image.convert("RGB")), np.asarray(layers)
            present = {NAMES.get(name, name) for name in row["layers_present"].split("+")}
            masks = np.stack([(raster & BITS[name]) > 0 for name in SEEN])
            tile = MapTile(row["file"], row["place"], pixels, masks, tuple(name in present for name in SEEN))
            (others if apart else tiles).append(tile)
    except (OSError, KeyError, ValueError) as error:
        raise RasterError(f"{folder}: no folder of maps ({error})", Fault.UNREADABLE, field=str(folder)) from error
    if not tiles:
        raise RasterError(
            f"{folder}: no tile may be trained on", Fault.MISSING, field=str(folder), expected="train_ok: yes"
        )
    return tiles, others
