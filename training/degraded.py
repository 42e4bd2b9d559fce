"""What an enhancer learns from: images and what real encoders make of them, at all rates, made while it trains.

Images that were JPEGs are reduced in size before they serve as truth at high rates, else an enhancer would learn their artefacts.
Three bands of a multi-band file are brought to the scale of an image of 8 bits, as the ground does it (``bitstream.conditions.BandScale``).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

import perigee
from perigee.bitstream.arrays import FloatArray, Samples
from perigee.bitstream.conditions import BandScale
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import find_profile
from perigee.engines.coding import JPEG, JPEG2000, Coding, coding_of_stream
from perigee.engines.jpeg2000_step import step_of
from perigee.engines.jpeg_cells import cells_of
from perigee.training.bands import Raster
from perigee.training.data import CropSampler, ImageSet, Pixels

SIDE = 256  # of the images that are coded
JPEG_SHARE, STREAM_SHARE, BANDS_SHARE = 0.2, 0.1, 0.1  # of the pairs; JPEG 2000 in colour makes the others
RATES = (0.08, 3.0)  # bits per pixel of JPEG 2000, log-uniformly
JPEG_QUALITIES = (15, 96)
STREAM_QUALITIES = (5.0, 85.0)
BANDS_DB = (22.0, 52.0)  # of OpenJPEG, over the range that the bands use
REDUCED = (1.5, 2.5)
TRUSTED = 1.0  # bits per pixel: up to there most images may serve at their own scale
REDUCED_SHARE = 0.4  # of the images below that
BPP, COLOURS = 24.0, 3


@dataclass(frozen=True)
class Pair:
    """An image and what was decoded of it in grey levels [row, col, 3], uint8 or float32, with the condition of an enhancer."""

    original: Pixels | FloatArray
    decoded: Pixels | FloatArray
    condition: list[float]


@dataclass(frozen=True)
class Coded:
    """What is decoded of an image, and how it was coded."""

    decoded: Pixels
    coding: Coding


def by_jpeg2000(pixels: Pixels, bits_per_pixel: float) -> Coded:
    """Code an image with OpenJPEG 9/7 in rate mode with the colour transform."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(
        out,
        "JPEG2000",
        quality_mode="rates",
        quality_layers=[BPP / bits_per_pixel],
        irreversible=True,
        mct=1,
        no_jp2=True,
    )
    return _coded(out, JPEG2000, step_of(out.getvalue()))


def by_jpeg(pixels: Pixels, quality: int, subsampling: int) -> Coded:
    """Code an image with libjpeg; ``subsampling`` is 0 for 4:4:4 and 2 for 4:2:0."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=subsampling)
    cells = cells_of(out.getvalue())
    return _coded(out, JPEG, cells.step if cells else None)


def by_stream(pixels: Pixels, quality: float) -> Coded:
    """Code an image as a stream of the shipped profile of 8-bit colour."""
    data = perigee.encode(np.ascontiguousarray(pixels.transpose(2, 0, 1)), quality, threads=1)
    decoded = perigee.decode(data, threads=1).samples.transpose(1, 2, 0)
    return Coded(
        np.ascontiguousarray(decoded), coding_of_stream(parse_stream(data), len(data), find_profile("flight3"))
    )


def by_jpeg2000_bands(samples: Samples, scale: BandScale, decibels: float) -> tuple[FloatArray, FloatArray, Coding]:
    """Code bands [band, row, col] with OpenJPEG 9/7 without colour transform, with so many dB of the range that they use.

    Returns the bands and what is decoded of them in grey levels, float32 [row, col, band], and how they were coded.
    """
    level = decibels + 20 * float(np.log10(2.0 ** (8 * samples.dtype.itemsize) * scale.gain / 255))
    planes = np.ascontiguousarray(samples.transpose(1, 2, 0))
    encode: Any = imagecodecs.jpeg2k_encode  # its annotation says int, it takes any number
    data = bytes(encode(planes, level=level, reversible=False, mct=False, codecformat="j2k"))
    decoded = np.asarray(imagecodecs.jpeg2k_decode(data)).reshape(planes.shape).transpose(2, 0, 1)
    bits = 8 * len(data) / planes[..., 0].size
    coding = Coding(JPEG2000, bits, step=step_of(data), depth=8 * samples.dtype.itemsize).of_bands(scale, 3, 3)
    original, found = (scale.grey(x).transpose(1, 2, 0) for x in (samples, decoded))
    return original, found, coding


def _coded(file: io.BytesIO, codec: str, step: float | None) -> Coded:
    file.seek(0)
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    return Coded(pixels, Coding(codec, 8 * len(file.getvalue()) / (pixels.shape[0] * pixels.shape[1]), step=step))


class Pairs:
    """A pool of pairs, some of which are replaced at every draw."""

    def __init__(
        self, images: ImageSet, size: int, seed: int, renewed: int = 1, rasters: Sequence[Raster] = ()
    ) -> None:
        """``size`` pairs are kept; every batch renews so many of them. Of ``rasters``, those of three and more bands serve."""
        self._sampler, self._rng = CropSampler(images), np.random.default_rng(seed)
        # A kind of land counts by the number of its images, not by their size.
        shares = np.sqrt([len(members) for members in self._sampler.members])
        self._source_shares = shares / shares.sum()
        self._rasters = [r for r in rasters if len(r.samples) >= COLOURS and min(r.samples.shape[1:]) >= SIDE // 2]
        areas = np.sqrt([float(r.samples[0].size) for r in self._rasters])
        self._raster_shares = areas / max(areas.sum(), 1)
        self._size, self._renewed = size, renewed
        self._pool: list[Pair] = []

    def make(self) -> Pair:
        """Code one more image."""
        kind = self._rng.random()
        if kind < BANDS_SHARE and self._rasters:
            return self._of_bands()
        if kind < BANDS_SHARE + STREAM_SHARE:
            return self._of_stream()
        return self._of_file(kind > 1 - JPEG_SHARE)

    def _of_file(self, jpeg: bool) -> Pair:
        rng = self._rng
        rate = float(np.exp(rng.uniform(*np.log(RATES))))
        quality = int(rng.integers(*JPEG_QUALITIES))
        good = quality > 75 if jpeg else rate > TRUSTED
        factor = rng.uniform(*REDUCED) if good or rng.random() < REDUCED_SHARE else 1.0
        original = self._crop(factor)
        coded = by_jpeg(original, quality, int(rng.choice([0, 2]))) if jpeg else by_jpeg2000(original, rate)
        return Pair(original, coded.decoded, coded.coding.condition)

    def _of_stream(self) -> Pair:
        rng = self._rng
        original = self._crop(rng.uniform(*REDUCED) if rng.random() < REDUCED_SHARE else 1.0)
        coded = by_stream(original, float(rng.uniform(*STREAM_QUALITIES)))
        return Pair(original, coded.decoded, coded.coding.condition)

    def _of_bands(self) -> Pair:
        rng = self._rng
        raster = self._rasters[rng.choice(len(self._rasters), p=self._raster_shares)]
        count, rows, cols = raster.samples.shape
        side = SIDE if min(rows, cols) >= SIDE else SIDE // 2
        chosen = rng.choice(count, COLOURS, replace=False)
        top, left = (int(rng.integers(0, n - side + 1)) for n in (rows, cols))
        window = np.ascontiguousarray(raster.samples[chosen, top : top + side, left : left + side])
        scale = BandScale.of(raster.samples[chosen])
        original, decoded, coding = by_jpeg2000_bands(window, scale, float(rng.uniform(*BANDS_DB)))
        return Pair(original, decoded, coding.condition)

    def _crop(self, factor: float) -> Pixels:
        """A crop [SIDE, SIDE, 3], or [SIDE / 2, SIDE / 2, 3] of an image that is too small for the reduction."""
        images, rng = self._sampler.images, self._rng
        source = rng.choice(len(self._sampler.members), p=self._source_shares)
        image = images[rng.choice(self._sampler.members[source], p=self._sampler.shares[source])]
        side = SIDE if min(image.shape[:2]) >= factor * SIDE - 1 else SIDE // 2
        wanted = min(round(side * factor), *image.shape[:2])
        top, left = (rng.integers(0, n - wanted + 1) for n in image.shape[:2])
        out = image[top : top + wanted, left : left + wanted]
        if wanted != side:
            resized = Image.fromarray(np.ascontiguousarray(out)).resize((side, side), Image.Resampling.LANCZOS)
            out = np.asarray(resized)
        if rng.random() < 0.5:
            out = out[::-1]
        if rng.random() < 0.5:
            out = out[:, ::-1]
        if rng.random() < 0.5:
            out = out.transpose(1, 0, 2)
        return np.ascontiguousarray(out)

    def batch(self, count: int, side: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Originals and decoded images in grey levels, float32 [count, 3, side, side], and their conditions float32 [count, n]."""
        while len(self._pool) < self._size:
            self._pool.append(self.make())
        for _ in range(self._renewed):
            self._pool[self._rng.integers(self._size)] = self.make()
        originals, decoded, conditions = [], [], []
        for _ in range(count):
            pair = self._pool[self._rng.integers(self._size)]
            rows, cols, _ = pair.original.shape
            top, left = (8 * int(self._rng.integers(0, (n - side) // 8 + 1)) for n in (rows, cols))
            window = np.s_[top : top + side, left : left + side]
            originals.append(pair.original[window].transpose(2, 0, 1))
            decoded.append(pair.decoded[window].transpose(2, 0, 1))
            conditions.append(pair.condition)
        first, second = (np.stack(x).astype(np.float32) for x in (originals, decoded))
        return first, second, np.array(conditions, np.float32)
