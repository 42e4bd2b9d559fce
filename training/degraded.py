"""What an enhancer learns from: images and what real encoders make of them, at all rates, made while it trains.

Images that were JPEGs are reduced in size before they serve as truth at high rates, else an enhancer would learn their artefacts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from perigee.engines.coding import JPEG, JPEG2000, Coding
from perigee.engines.jpeg2000_step import step_of
from perigee.engines.jpeg_cells import cells_of
from perigee.training.data import CropSampler, ImageSet, Pixels

SIDE = 256  # of the images that are coded
JPEG_SHARE = 0.25
RATES = (0.08, 3.0)  # bits per pixel of JPEG 2000, log-uniformly
JPEG_QUALITIES = (15, 96)
REDUCED = (1.5, 2.5)
TRUSTED = 1.0  # bits per pixel: up to there most images may serve at their own scale
REDUCED_SHARE = 0.4  # of the images below that
BPP = 24.0


@dataclass(frozen=True)
class Pair:
    """An image and what was decoded of it, uint8 [row, col, 3], with the condition of an enhancer."""

    original: Pixels
    decoded: Pixels
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


def _coded(file: io.BytesIO, codec: str, step: float | None) -> Coded:
    file.seek(0)
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    return Coded(pixels, Coding(codec, 8 * len(file.getvalue()) / (pixels.shape[0] * pixels.shape[1]), step=step))


class Pairs:
    """A pool of pairs, some of which are replaced at every draw."""

    def __init__(self, images: ImageSet, size: int, seed: int, renewed: int = 1) -> None:
        """``size`` pairs are kept; every batch renews so many of them."""
        self._sampler, self._rng = CropSampler(images), np.random.default_rng(seed)
        # A kind of land counts by the number of its images, not by their size.
        shares = np.sqrt([len(members) for members in self._sampler.members])
        self._source_shares = shares / shares.sum()
        self._size, self._renewed = size, renewed
        self._pool: list[Pair] = []

    def make(self) -> Pair:
        """Code one more image."""
        rng = self._rng
        jpeg = rng.random() < JPEG_SHARE
        rate = float(np.exp(rng.uniform(*np.log(RATES))))
        quality = int(rng.integers(*JPEG_QUALITIES))
        good = quality > 75 if jpeg else rate > TRUSTED
        factor = rng.uniform(*REDUCED) if good or rng.random() < REDUCED_SHARE else 1.0
        original = self._crop(factor)
        coded = by_jpeg(original, quality, int(rng.choice([0, 2]))) if jpeg else by_jpeg2000(original, rate)
        return Pair(original, coded.decoded, coded.coding.condition)

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

    def batch(
        self, count: int, side: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Originals and decoded images uint8 [count, 3, side, side], and their conditions float32 [count, n]."""
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
        return np.stack(originals), np.stack(decoded), np.array(conditions, np.float32)
