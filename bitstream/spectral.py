"""The spectral transform: from bands to components that share one step size, and the integers that lead back.

Bands are first put on a common scale (each over its range, or over the step in counts that was asked for), then an orthonormal
matrix turns them into components, the strongest first. The squared error of the components is that of the scaled bands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import FloatArray, IntArray, Samples

SPECTRAL_BITS = 14  # the matrix is in 2**-14
SCALE_BITS = 8  # scales are in 1/256 count
SCALE_MAX = (1 << 25) - 1
PERCENTILES = (0.05, 99.95)


@dataclass(frozen=True)
class Spectral:
    """The way back from components to bands, as a stream carries it.

    ``mean`` int32 [bands]: the counts where the components are 0; ``scale`` uint32 [bands]: the range in 1/256 count; ``matrix``
    int16 [bands, components] in 2**-14, from components to bands.
    """

    mean: IntArray
    scale: IntArray
    matrix: IntArray

    @property
    def bands(self) -> int:
        """Number of bands, and of components."""
        return len(self.mean)

    @property
    def is_identity(self) -> bool:
        """Whether each component is a band."""
        return bool((self.matrix == np.eye(self.bands, dtype=np.int16) << SPECTRAL_BITS).all())

    def components_of(self, samples: Samples) -> FloatArray:
        """Components float32 [components, rows, cols] of samples [bands, rows, cols], as shares of the range."""
        scaled = (samples - self.mean.astype(np.float32)[:, None, None]) * (
            np.float32(1 << SCALE_BITS) / self.scale.astype(np.float32)
        )[:, None, None]
        if self.is_identity:
            return np.asarray(scaled, np.float32)
        inverse = np.linalg.inv(self.matrix.astype(np.float64) / (1 << SPECTRAL_BITS)).astype(np.float32)
        return np.asarray(inverse @ scaled.reshape(self.bands, -1)).reshape(scaled.shape)


def identity(bands: int) -> IntArray:
    """The matrix that leaves bands as they are, int16 [bands, bands]."""
    return np.eye(bands, dtype=np.int16) << SPECTRAL_BITS


def klt(scaled: FloatArray) -> npt.NDArray[np.float64]:
    """The Karhunen-Loève transform of samples [bands, n], float64 [components, bands] with orthonormal rows.

    The components are in falling order of variance. The largest entry of each row is positive, so that equal statistics give
    an equal matrix.
    """
    bands = len(scaled)
    if bands == 1:
        return np.ones((1, 1), np.float64)
    _, vectors = np.linalg.eigh(np.cov(scaled))
    matrix = vectors.T[::-1]
    signs = np.sign(matrix[np.arange(bands), np.abs(matrix).argmax(1)])
    return np.asarray(matrix * np.where(signs == 0, 1, signs)[:, None])
