"""What the spectral transform of a scene is made from: its valid samples, counted and sampled in one pass."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import FloatArray, Samples
from perigee.bitstream.spectral import PERCENTILES, SCALE_BITS, SPECTRAL_BITS, Spectral, identity, klt
from perigee.onboard.source import Block

PIXELS = 40_000  # that the covariance is estimated from
VALUES = 1 << 16


class BandStatistics:
    """Counts the valid samples of each band, and keeps some pixels whose bands are all valid."""

    def __init__(self, bands: int, dtype: str, pixels: int) -> None:
        """``pixels`` is how many the scene or strip will have."""
        self._shift = 32768 if dtype == "int16" else 0
        self._counts = np.zeros((bands, VALUES), np.int64)
        self._every = max(1, pixels // PIXELS)
        self._kept: list[Samples] = []

    def add(self, window: Block) -> None:
        """Take in a window of the source."""
        for band, (samples, valid) in enumerate(zip(window.samples, window.valid, strict=True)):
            values = samples[valid].astype(np.int64) + self._shift
            self._counts[band] += np.bincount(values, minlength=VALUES)
        whole = window.valid.all(0)
        self._kept.append(window.samples[:, whole][:, :: self._every].copy())

    @property
    def pixels(self) -> Samples:
        """The pixels that were kept, [bands, n]."""
        return np.concatenate(self._kept, axis=1)

    def means_and_ranges(self) -> tuple[FloatArray, FloatArray]:
        """Mean and width of the percentile range of each band, in counts; 0 and 1 for a band without valid samples."""
        values = np.arange(VALUES) - self._shift
        total = self._counts.sum(1)
        mean = (self._counts @ values) / np.maximum(total, 1)
        width = np.ones(len(total))
        for band, count in enumerate(self._counts):
            if total[band]:
                reached = np.searchsorted(np.cumsum(count), total[band] * np.array(PERCENTILES) / 100)
                width[band] = max(int(reached[1] - reached[0]), 1)
        return np.asarray(mean, np.float32), np.asarray(width, np.float32)


def spectral_of(
    statistics: BandStatistics, mean: FloatArray, width: FloatArray, fixed: FloatArray | None = None
) -> Spectral:
    """The spectral transform by a ``fixed`` matrix [components, bands], or the KLT of the statistics; ``mean`` and ``width`` [bands] are
    what bands are centred and scaled by."""
    pixels = statistics.pixels
    bands = len(mean)
    rows = fixed
    if rows is None and bands > 1 and pixels.shape[1] > bands:
        rows = klt(np.asarray((pixels - mean[:, None]) / width[:, None], np.float32)).astype(np.float32)
    matrix = identity(bands)
    if rows is not None:
        matrix = np.clip(np.rint(rows.T * (1 << SPECTRAL_BITS)), -32768, 32767).astype(np.int16)
    return Spectral(np.rint(mean).astype(np.int32), np.rint(width * (1 << SCALE_BITS)).astype(np.uint32), matrix)
