"""Mosaics of tiles with maps: large enough for the lowest rates, with the map as GeoJSON, whole or spoiled."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image
from rasterio.features import shapes
from scipy import ndimage

from perigee.bitstream.arrays import BoolArray, IntArray, Pixels
from perigee.bitstream.metadata import Metadata
from perigee.models.segmenter import SEEN
from perigee.training.map_tiles import BITS

SIDE = 256
PLACE = Metadata(
    transform=(1.0, 0.0, 500_000.0, 0.0, -1.0, 5_000_000.0), epsg=32633
)  # the mosaics have none of their own


@dataclass(frozen=True)
class Mosaic:
    """Pixels uint8 [row, col, 3] and the classes of the map, bool [len(SEEN), row, col]."""

    name: str
    pixels: Pixels
    classes: BoolArray

    @property
    def buildings(self) -> BoolArray:
        """Where the map has buildings, bool [row, col]."""
        found: BoolArray = self.classes[SEEN.index("building")]
        return found

    def others(self) -> dict[str, BoolArray]:
        """Where the map has each other class that it has, bool [row, col]."""
        return {name: mask for name, mask in zip(SEEN, self.classes, strict=True) if name != "building" and mask.any()}


def mosaic_of(folder: Path, name: str, pattern: str, width: int) -> Mosaic:
    """The tiles of a folder whose names fit a pattern, in the order of their upper left corners, or of their names where these are not known, as a
    rectangle of so many tiles in a row; tiles beyond the last full row are left out."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if fnmatch(row["file"], pattern)]

    def corner(row: dict[str, str]) -> tuple[float, float, str]:
        left, _, _, top = map(float, row["bounds"].replace(",", " ").split()) if row["bounds"] else (0, 0, 0, 0)
        return -top, left, row["file"]

    rows.sort(key=corner)
    count = len(rows) // width * width
    tiles = []
    for row in rows[:count]:
        with Image.open(folder / row["file"]) as image, Image.open(folder / row["layers"]) as layers:
            raster = np.asarray(layers)
            tiles.append((np.asarray(image.convert("RGB")), np.stack([(raster & BITS[n]) > 0 for n in SEEN], 2)))
    lines = [tiles[at : at + width] for at in range(0, count, width)]
    pixels, classes = (
        np.concatenate([np.concatenate([tile[part] for tile in line], 1) for line in lines]) for part in (0, 1)
    )
    return Mosaic(name, np.ascontiguousarray(pixels), np.ascontiguousarray(classes.transpose(2, 0, 1)))


def split_objects(buildings: BoolArray, withheld: float, seed: int = 1) -> tuple[IntArray, BoolArray]:
    """Numbers of the buildings [rows, cols], 0 where there is none, and which numbers are withheld from the map."""
    numbers, count = ndimage.label(buildings)
    return np.asarray(numbers, np.int32), np.random.default_rng(seed).random(count + 1) < withheld


def invented(buildings: BoolArray, wanted: int, seed: int = 2) -> IntArray:
    """Numbers of so many buildings that are not there: shapes of the mosaic, moved to places where none stands."""
    rng, out = np.random.default_rng(seed), np.zeros(buildings.shape, np.int32)
    taken = ndimage.binary_dilation(buildings, iterations=4)
    numbers, count = ndimage.label(buildings)
    places = ndimage.find_objects(numbers)
    for _ in range(200 * wanted):
        if out.max() == wanted:
            break
        number = int(rng.integers(1, count + 1))
        shape = numbers[places[number - 1]] == number
        rows, cols = shape.shape
        if rows * cols < 64 or rows >= buildings.shape[0] or cols >= buildings.shape[1]:
            continue
        top, left = (
            int(rng.integers(0, whole - part)) for whole, part in zip(buildings.shape, shape.shape, strict=True)
        )
        window = np.s_[top : top + rows, left : left + cols]
        if not (taken[window] & shape).any():
            out[window][shape] = out.max() + 1
            taken[window] |= ndimage.binary_dilation(shape, iterations=2)
    return out


def map_of(
    buildings: Sequence[BoolArray], path: Path, move: int = 0, others: Mapping[str, BoolArray] | None = None
) -> Path:
    """Write the buildings of masks [rows, cols], and the masks of other classes by name, as GeoJSON in the mosaic's CRS, ``move`` pixels down and to
    the right."""
    a, _, left, _, e, top = PLACE.transform or (1.0, 0, 0, 0, 1, 0)
    features = []
    named = [("building", mask) for mask in buildings] + list((others or {}).items())
    for name, mask in named:
        for geometry, _ in shapes(mask.astype(np.uint8), mask):
            rings = [
                [[left + a * (x + move), top + e * (y + move)] for x, y in ring] for ring in geometry["coordinates"]
            ]
            features.append(
                {
                    "type": "Feature",
                    "properties": {"class": name},
                    "geometry": {"type": "Polygon", "coordinates": rings},
                }
            )
    crs = {"type": "name", "properties": {"name": f"EPSG:{PLACE.epsg}"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path
