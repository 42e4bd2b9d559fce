"""Training imagery: folders of 8-bit RGB images in memory, random crops balanced by source.

A source is the ``source`` column of an ``index.csv`` beside the images where there is one, else the name of the folder
given. Sources are drawn with probability proportional to the square root of their megapixels times an optional weight,
so that one long flight does not drown the rest; images within a source by their area.
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from perigee.bitstream.errors import RasterError

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
Pixels = npt.NDArray[np.uint8]
FLAT_SHARE = 0.03  # crops of hardly any contrast at any level: water, snow, saturation, filled-in nodata
COLOUR_SHARE = 0.06  # other bands than red, green and blue: bands exchanged, contrast and saturation changed
SATURATED_SHARE = 0.01  # each band black or full: colours that no landscape has, with hard edges
NEAREST_SHARE = 0.25  # of the shrunk crops
NOISE_SHARE = 0.2  # JPEG has taken the sensor's noise from the training images; real ones have it


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [row, col, 3] and the source of each."""

    images: list[Pixels]
    sources: list[str]
    names: list[str]


def _sources_of(folder: Path) -> dict[str, str]:
    index = folder / "index.csv"
    if not index.is_file():
        return {}
    with index.open(newline="", encoding="utf-8") as handle:
        return {row["file"]: row["source"] for row in csv.DictReader(handle) if row.get("source")}


def _read(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise RasterError(f"{path}: cannot be read as an image ({error})") from error


def load_folders(folders: Iterable[Path], exclude: Iterable[str] = ()) -> ImageSet:
    """All images of at least 64x64 below the folders, without the excluded sources. Raises RasterError if none is left."""
    excluded = set(exclude)
    paths: list[tuple[Path, str]] = []
    for folder in folders:
        sources = _sources_of(folder)
        for path in sorted(folder.rglob("*")):
            source = sources.get(path.name, folder.name)
            if path.suffix.lower() in SUFFIXES and source not in excluded:
                paths.append((path, source))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda item: _read(item[0]), paths))
    kept = [i for i, image in enumerate(images) if min(image.shape[:2]) >= 64]
    if not kept:
        raise RasterError("no image of at least 64x64 pixels found; accepted: " + ", ".join(sorted(SUFFIXES)))
    return ImageSet([images[i] for i in kept], [paths[i][1] for i in kept], [paths[i][0].name for i in kept])


def split(images: ImageSet, share: float) -> tuple[ImageSet, ImageSet]:
    """Training and validation part, by a hash of the file name (stable between runs)."""
    held = [zlib.crc32(name.encode()) % 1000 < share * 1000 for name in images.names]

    def part(flag: bool) -> ImageSet:
        index = [i for i, h in enumerate(held) if h is flag]
        return ImageSet(
            [images.images[i] for i in index], [images.sources[i] for i in index], [images.names[i] for i in index]
        )

    return part(False), part(True)


def guessed_lambda(rate: float, activity: Any) -> Any:
    """Lagrangian at which an image takes about ``rate`` bits per pixel, to a factor of 1.4, from its mean absolute difference of
    neighbouring pixels in grey levels plus 0.5: a number, array or tensor."""
    return math.exp(1.06 + 1.864 * math.log(rate)) * activity**-1.82


def varied(crop: Pixels, rng: np.random.Generator) -> Pixels:
    """The crop, or now and then one as other sensors and other ground would show it."""
    kind = rng.random()
    noisy = rng.random() < NOISE_SHARE
    if kind >= FLAT_SHARE + COLOUR_SHARE + SATURATED_SHARE and not noisy:
        return crop
    out = crop.astype(np.float32)
    if kind < FLAT_SHARE:
        contrast, colour = rng.uniform(0, 0.15), rng.uniform(-20, 275, 3)
        out = colour + contrast * (out - out.mean())
    elif kind < FLAT_SHARE + COLOUR_SHARE:
        grey = out.mean(2, keepdims=True)
        out = grey + rng.uniform(0, 2.5) * (out[..., rng.permutation(3)] - grey)
        out = (out - 128) * rng.uniform(0.5, 1.5, 3) + 128 + rng.uniform(-30, 30, 3)
    elif kind < FLAT_SHARE + COLOUR_SHARE + SATURATED_SHARE:
        out = 255.0 * (out > rng.uniform(out.min(), out.max() + 1, 3))
    if noisy:
        bands = 3 if rng.random() < 0.5 else 1
        out = out + rng.uniform(0.3, 3) * rng.standard_normal((*crop.shape[:2], bands), np.float32)
    return np.asarray(np.clip(np.rint(out), 0, 255), np.uint8)


class CropSampler:
    """Random crops: native scale three times of four, else shrunk by 0.5 to 0.9; :func:`varied`; flips, transposition.

    One in four of the shrunk is not filtered: nearest-neighbour resampling is what many map products come from.
    """

    def __init__(self, images: ImageSet, weights: Mapping[str, float] | None = None) -> None:
        self.images = images.images
        by_source: dict[str, list[int]] = {}
        for i, source in enumerate(images.sources):
            by_source.setdefault(source, []).append(i)
        self.members = [np.array(members) for members in by_source.values()]
        areas = [np.array([float(np.prod(self.images[i].shape[:2])) for i in members]) for members in self.members]
        self.shares = [a / a.sum() for a in areas]
        source_weights = np.array(
            [np.sqrt(a.sum()) * (weights or {}).get(name, 1.0) for name, a in zip(by_source, areas, strict=True)]
        )
        self.source_shares = source_weights / source_weights.sum()
        self.summary = {name: round(float(s), 4) for name, s in zip(by_source, self.source_shares, strict=True)}

    def crop(self, side: int, rng: np.random.Generator) -> Pixels:
        """One crop uint8 [side, side, 3]."""
        source = rng.choice(len(self.members), p=self.source_shares)
        image = self.images[rng.choice(self.members[source], p=self.shares[source])]
        scale = rng.uniform(0.5, 0.9) if rng.random() < 0.25 else 1.0
        wanted = min(int(np.ceil(side / scale)), *image.shape[:2])
        top, left = (rng.integers(0, n - wanted + 1) for n in image.shape[:2])
        out = image[top : top + wanted, left : left + wanted]
        if wanted != side:
            method = Image.Resampling.NEAREST if rng.random() < NEAREST_SHARE else Image.Resampling.LANCZOS
            out = np.asarray(Image.fromarray(np.ascontiguousarray(out)).resize((side, side), method))
        out = varied(out, rng)
        if rng.random() < 0.5:
            out = out[::-1]
        if rng.random() < 0.5:
            out = out[:, ::-1]
        if rng.random() < 0.5:
            out = out.transpose(1, 0, 2)
        return np.asarray(out)

    def batch(self, count: int, side: int, rng: np.random.Generator) -> Pixels:
        """``count`` crops [count, side, side, 3]."""
        return np.stack([self.crop(side, rng) for _ in range(count)])
