"""Training imagery for components: multi-band files and RGB images, and random crops turned into components.

A crop takes some or all bands of a file, puts each on its range and applies the KLT of the crop or of the whole file. RGB
images are used as triplets and as single bands.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from perigee.bitstream.arrays import FloatArray, IntArray, Samples
from perigee.bitstream.conditions import BandScale
from perigee.bitstream.lapped import analyse
from perigee.bitstream.spectral import klt
from perigee.training.data import ImageSet
from perigee.training.held_out import is_held_out

PERCENTILES = (0.05, 99.95)
NODATA_TAG = 42113  # GDAL_NODATA
RGB_SHARE = 0.2  # of the crops
REDUCED = (1.6, 3.0)  # how much an RGB image is reduced: JPEG has left a grid of 8 pixels and no noise in it
NOISE_SHARE = 0.5  # of the RGB crops that get sensor noise
VALIDATION_SHARE = 0.12
SIDE_MIN = 64  # pixels


@dataclass(frozen=True)
class Raster:
    """A multi-band file: samples [band, row, col], low ends and widths of the ranges [band]."""

    name: str
    samples: Samples
    low: FloatArray
    width: FloatArray


def load_rasters(folder: Path) -> tuple[list[Raster], list[Raster]]:
    """The files of a folder whose ``index.csv`` allows training, and those of them that are held out for validation."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as handle:
        names = [row["file"] for row in csv.DictReader(handle) if row["train_ok"] == "yes"]
    training: list[Raster] = []
    validation: list[Raster] = []
    for name in names:
        raster = _read(folder / name)
        if min(raster.samples.shape[1:]) >= SIDE_MIN:
            (validation if is_held_out(name, VALIDATION_SHARE) else training).append(raster)
    return training, validation


def triplets(folder: Path, side: int) -> ImageSet:
    """Three bands at a time of the files of a folder, next to each other, as images of 8 bits with at least ``side`` pixels a side.

    The ground brings bands to grey levels in the same way. Their source is ``bands``.
    """
    training, validation = load_rasters(folder)
    images, names = [], []
    for raster in [*training, *validation]:
        if min(raster.samples.shape[1:]) < side:
            continue
        for first in range(0, len(raster.samples) - 2, 3):
            chosen = raster.samples[first : first + 3]
            grey = np.clip(np.rint(BandScale.of(chosen).grey(chosen)), 0, 255).astype(np.uint8)
            images.append(np.ascontiguousarray(grey.transpose(1, 2, 0)))
            names.append(raster.name)
    return ImageSet(images, ["bands"] * len(images), names)


def _read(path: Path) -> Raster:
    """A file with its invalid pixels filled by the mean of the valid ones."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        samples = file.series[0].asarray()
        bands_last = samples.ndim == 3 and page.planarconfig == 1 and page.samplesperpixel > 1
        nodata = float(page.tags[NODATA_TAG].value) if NODATA_TAG in page.tags else None
    samples = samples[None] if samples.ndim == 2 else samples.transpose(2, 0, 1) if bands_last else samples
    valid = np.ones(samples.shape[1:], bool) if nodata is None else (samples != nodata).all(0)
    low, high = np.percentile(samples[:, valid], PERCENTILES, axis=1)
    if not valid.all():
        samples = np.where(valid, samples, samples[:, valid].mean(1)[:, None, None]).astype(samples.dtype)
    return Raster(path.name, samples, low, np.maximum(high - low, 1))


def components_of(scaled: FloatArray, statistics: FloatArray, order: IntArray) -> FloatArray:
    """Coefficients [component, channel, rows / 16, cols / 16] of bands over their ranges [band, row, col].

    The transform is the KLT of ``statistics`` [band, n].
    """
    matrix = klt(statistics[:, :: max(1, statistics.shape[1] // 20000)])
    flat = scaled.reshape(len(scaled), -1)
    planes = (matrix @ (flat - flat.mean(1, keepdims=True))).reshape(scaled.shape).astype(np.float32)
    return analyse(planes, order)


class ComponentSampler:
    """Draws crops as the coefficients of their components, as shares of the range."""

    def __init__(self, rasters: list[Raster], images: ImageSet | None, order: IntArray) -> None:
        self.rasters, self.order = rasters, order
        weights = np.array([np.sqrt(r.samples.size) for r in rasters])
        self.shares = weights / weights.sum()
        self.images = images.images if images else None

    def _reduced(self, side: int, rng: np.random.Generator) -> FloatArray:
        """A crop of an RGB image, reduced in size and over its range, float32 [3, side, side] or with a smaller side."""
        assert self.images is not None
        factor = rng.uniform(*REDUCED)
        image = self.images[rng.integers(len(self.images))]
        fits = int(min(image.shape[:2]) / factor) // 64 * 64
        side = min(side, max(fits, 64))
        wanted = min(int(side * factor), min(image.shape[:2]))
        top, left = (rng.integers(0, n - wanted + 1) for n in image.shape[:2])
        window = Image.fromarray(np.ascontiguousarray(image[top : top + wanted, left : left + wanted]))
        scaled = np.asarray(window.resize((side, side), Image.Resampling.LANCZOS), np.float32).transpose(2, 0, 1) / 255
        if rng.random() < NOISE_SHARE:
            scaled = scaled + np.exp(rng.uniform(-7, -3)) * rng.standard_normal(scaled.shape, np.float32)
        low, high = np.percentile(scaled, PERCENTILES)
        return np.asarray((scaled - low) / max(high - low, 1e-3), np.float32)

    def crop(self, side: int, rng: np.random.Generator) -> FloatArray:
        """Coefficients float32 [component, 256, side / 16, side / 16] of one crop."""
        if self.images is not None and rng.random() < RGB_SHARE:
            scaled = self._reduced(side, rng)
            if rng.random() < 0.3:
                scaled = scaled[[rng.integers(3)]]
            return components_of(scaled, scaled.reshape(len(scaled), -1), self.order)
        raster = self.rasters[rng.choice(len(self.rasters), p=self.shares)]
        bands = len(raster.samples)
        kind = rng.random()
        if kind < 0.15:
            chosen = np.array([rng.integers(bands)])
        elif kind < 0.5 and bands > 3:
            chosen = np.sort(rng.choice(bands, rng.integers(3, bands + 1), replace=False))
        else:
            chosen = np.arange(bands)
        _, rows, cols = raster.samples.shape
        high, wide = min(side, rows // 32 * 32), min(side, cols // 32 * 32)
        high = wide = min(high, wide) // 64 * 64
        top, left = rng.integers(0, rows - high + 1), rng.integers(0, cols - wide + 1)
        low, width = raster.low[chosen, None, None], raster.width[chosen, None, None]
        if rng.random() < 0.3:
            width = width * np.exp(rng.uniform(-0.7, 0.7))
        window = raster.samples[chosen, top : top + high, left : left + wide]
        scaled = ((window - low) / width).astype(np.float32)
        if rng.random() < 0.5:
            scaled = scaled[:, ::-1]
        if rng.random() < 0.5:
            scaled = scaled[:, :, ::-1]
        if rng.random() < 0.5:
            scaled = scaled.transpose(0, 2, 1)
        scaled = np.ascontiguousarray(scaled)
        statistics = scaled.reshape(len(chosen), -1)
        if rng.random() < 0.5:
            flat = raster.samples[chosen].reshape(len(chosen), -1)
            statistics = (flat[:, :: max(1, flat.shape[1] // 20000)] - low[:, 0]) / width[:, 0]
        return components_of(scaled, statistics, self.order)


def validation_crops(rasters: list[Raster], order: IntArray, side: int) -> list[FloatArray]:
    """The coefficients of the upper left corner of each file, as :meth:`ComponentSampler.crop` gives them."""
    crops = []
    for raster in rasters:
        size = min(side, *raster.samples.shape[1:]) // 64 * 64
        window = raster.samples[:, :size, :size]
        scaled = ((window - raster.low[:, None, None]) / raster.width[:, None, None]).astype(np.float32)
        crops.append(components_of(scaled, scaled.reshape(len(scaled), -1), order))
    return crops
