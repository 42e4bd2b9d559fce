"""Training imagery: folders of 8-bit RGB images in memory, and random crops balanced by source.

The source of an image is the ``source`` column of an ``index.csv`` in its folder where there is one, else the name of the
folder. A source is drawn with a probability proportional to the square root of its megapixels times an optional weight, so
that one long flight does not outweigh everything else; images within a source are drawn by their area.
"""

from __future__ import annotations

import csv
import errno
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from perigee.bitstream.errors import Fault, RasterError
from perigee.training.held_out import is_held_out

Pixels = npt.NDArray[np.uint8]
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
SIDE_MIN = 64  # pixels; smaller images are left out
# shares of the crops that are varied
FLAT_SHARE = 0.03  # almost no contrast, at any level: like water, snow, saturation or filled nodata
COLOUR_SHARE = 0.06  # bands exchanged, contrast and saturation changed: like bands other than red, green and blue
SATURATED_SHARE = 0.01  # each band black or full: colours that no landscape has, with hard edges
NOISE_SHARE = 0.2  # noise added: real images have the sensor's noise, which JPEG has removed from the training images
SHRUNK_SHARE = 0.25  # reduced in size
NEAREST_SHARE = 0.25  # of the shrunk crops: resampled without a filter, as many map products are


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [row, col, 3], and the source and the file name of each."""

    images: list[Pixels]
    sources: list[str]
    names: list[str]

    def joined(self, other: ImageSet) -> ImageSet:
        """These images and the other ones."""
        return ImageSet(self.images + other.images, self.sources + other.sources, self.names + other.names)


def _sources_of(folder: Path) -> dict[str, str]:
    """Return the source of each file that the folder's index names."""
    index = folder / "index.csv"
    if not index.is_file():
        return {}
    with index.open(newline="", encoding="utf-8") as handle:
        return {row["file"]: row["source"] for row in csv.DictReader(handle) if row.get("source")}


def _read(path: Path) -> Pixels:
    """Return an image as uint8 [row, col, 3]. Raises RasterError where it cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise RasterError(f"{path}: cannot be read as an image ({error})", Fault.UNREADABLE, field=str(path)) from error


def load_folders(folders: Iterable[Path], exclude: Iterable[str] = ()) -> ImageSet:
    """Return all images of at least 64x64 pixels below the folders, without the excluded sources.

    Raises FileNotFoundError where there is no such folder, RasterError where a file cannot be read or no image is left.
    """
    excluded = set(exclude)
    paths: list[tuple[Path, str]] = []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
        sources = _sources_of(folder)
        for path in sorted(folder.rglob("*")):
            source = sources.get(path.name, folder.name)
            if path.suffix.lower() in SUFFIXES and source not in excluded:
                paths.append((path, source))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda item: _read(item[0]), paths))
    kept = [i for i, image in enumerate(images) if min(image.shape[:2]) >= SIDE_MIN]
    if not kept:
        accepted = ", ".join(sorted(SUFFIXES))
        raise RasterError(
            f"no image of at least {SIDE_MIN}x{SIDE_MIN} pixels was found; accepted are the suffixes {accepted}",
            Fault.MISSING,
            expected=accepted,
        )
    return ImageSet([images[i] for i in kept], [paths[i][1] for i in kept], [paths[i][0].name for i in kept])


def split(images: ImageSet, share: float) -> tuple[ImageSet, ImageSet]:
    """Divide images into a training part and a validation part, which takes about ``share`` (0..1) of them.

    The division depends only on the file names, so that it is the same in every run.
    """
    held_out = [is_held_out(name, share) for name in images.names]

    def part(flag: bool) -> ImageSet:
        index = [i for i, out in enumerate(held_out) if out is flag]
        return ImageSet(
            [images.images[i] for i in index], [images.sources[i] for i in index], [images.names[i] for i in index]
        )

    return part(False), part(True)


def guessed_lambda(rate: float, activity: Any) -> Any:
    """Return the Lagrangian at which an image takes about ``rate`` bits per pixel; the rate is right to a factor of 1.4.

    ``activity`` is a number, array or tensor: the mean absolute difference of neighbouring pixels in grey levels, plus 0.5.
    The result has its type.
    """
    return math.exp(1.06 + 1.864 * math.log(rate)) * activity**-1.82


def varied(crop: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a crop uint8 [row, col, 3], now and then changed to what another sensor or other ground would show."""
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
    """Draws random crops, varied by :func:`varied` and randomly flipped and transposed.

    Three of four crops have the scale of their image; the others are shrunk by a factor of 0.5 to 0.9. One in four of these is
    resampled without a filter.
    """

    def __init__(self, images: ImageSet, weights: Mapping[str, float] | None = None) -> None:
        """``weights`` multiply the probabilities of sources by name; a source without one has weight 1."""
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

    def crop(self, side: int, rng: np.random.Generator) -> Pixels:
        """Return one crop, uint8 [side, side, 3]."""
        source = rng.choice(len(self.members), p=self.source_shares)
        image = self.images[rng.choice(self.members[source], p=self.shares[source])]
        scale = rng.uniform(0.5, 0.9) if rng.random() < SHRUNK_SHARE else 1.0
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
        """Return ``count`` crops, uint8 [count, side, side, 3]."""
        return np.stack([self.crop(side, rng) for _ in range(count)])
