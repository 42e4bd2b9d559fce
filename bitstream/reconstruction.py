"""From latents of components to samples, in integers: what every reader has at least, and what a satellite can know of it.

Three steps, each exact on every machine: the centroid of each latent in its cell and the step size; the inverse lapped
transform of each component; the inverse spectral transform. Components are in units of 2**-20 of the range.
``docs/format2.md``, section 21, is the specification.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray, Samples
from perigee.bitstream.component_contract import CENTROID_BUCKETS, ComponentContract
from perigee.bitstream.lapped import BLOCK, MATRIX_BITS, REACH
from perigee.bitstream.prior import SCALE_COUNT
from perigee.bitstream.samples import DTYPE_RANGE
from perigee.bitstream.spectral import SCALE_BITS, SPECTRAL_BITS, Spectral

CELL_BITS = 7  # a latent's cell is divided into 128 parts
STEP_BITS = 28
UNIT_BITS = 20  # components are in 2**-20 of the range
COMPONENT_MAX = 1 << 34
EXACT = 1 << 53  # float64 holds every whole number below
Wide = npt.NDArray[np.int64]


def rounded_shift(values: Wide, bits: int) -> Wide:
    """values / 2**bits, rounded to the nearest whole number, halves up."""
    return np.asarray(values + (1 << bits - 1) >> bits)


def centroids_of(contract: ComponentContract, q: IntArray, mean: IntArray, index: IntArray) -> Wide:
    """Where latents [latents, H, W] of one component, in half steps, are expected in their cells, int64 in 1/128 step."""
    distance = 8 * q.astype(np.int64) - mean
    bucket = np.minimum(np.abs(distance) + 2 >> 2, CENTROID_BUCKETS - 1)
    inward = contract.centroids.astype(np.int64)[np.minimum(index, SCALE_COUNT - 1), bucket]
    inward = np.where(index < SCALE_COUNT, inward, 0)
    return np.asarray((q.astype(np.int64) << CELL_BITS - 1) - np.sign(distance) * inward)


def coefficients_of(contract: ComponentContract, within: Wide, quality_step: int) -> Wide:
    """Coefficients int64 [latents, H, W] of centroids in 1/128 step, in units of 2**-20 and within +-2**34."""
    whole = rounded_shift(within * int(contract.steps[quality_step]), CELL_BITS + STEP_BITS - UNIT_BITS)
    return np.clip(whole, -COMPONENT_MAX, COMPONENT_MAX)


def _product(matrix: IntArray, values: Wide) -> Wide:
    """matrix.T @ values over the last axis but one, exact: int16 [n, n] and int64 [..., n, m]."""
    most = int(np.abs(values).max(initial=0)) * int(np.abs(matrix.astype(np.int64)).sum(0).max())
    if most < EXACT:
        return np.asarray(np.matmul(matrix.T.astype(np.float64), values.astype(np.float64)), np.int64)
    return np.asarray(np.matmul(matrix.T.astype(np.int64), values))


def _inverse(contract: ComponentContract, values: Wide) -> Wide:
    """The inverse transform along the first axis: int64 [16 n, m] of coefficients, block after block, to samples."""
    length, width = values.shape
    out = rounded_shift(_product(contract.cosine, values.reshape(-1, BLOCK, width)), MATRIX_BITS).reshape(length, width)
    inner = out[REACH : length - REACH]
    if len(inner):
        mixed = rounded_shift(_product(contract.lap, inner.reshape(-1, BLOCK, width)), MATRIX_BITS)
        out[REACH : length - REACH] = mixed.reshape(-1, width)
    return out


def plane_of(contract: ComponentContract, coefficients: Wide) -> Wide:
    """One component int64 [16 H, 16 W] of its coefficients [latents, H, W], within 32 bits."""
    _, rows, cols = coefficients.shape
    blocks = np.empty_like(coefficients)
    blocks[contract.order] = coefficients
    values = blocks.reshape(BLOCK, BLOCK, rows, cols).transpose(2, 0, 3, 1).reshape(rows * BLOCK, cols * BLOCK)
    columns = _inverse(contract, values)
    plane = _inverse(contract, np.ascontiguousarray(columns.T)).T
    return np.clip(plane, -(1 << 31), (1 << 31) - 1)


def samples_of(spectral: Spectral, planes: Wide, dtype: str, limits: tuple[int, int] | None = None) -> Samples:
    """Samples [bands, rows, cols] of the components int64 [components, rows, cols], clamped to the type's range or ``limits``."""
    flat = planes.reshape(len(planes), -1)
    mixed = rounded_shift(_product(np.ascontiguousarray(spectral.matrix.T), flat), SPECTRAL_BITS)
    mixed = np.clip(mixed, -COMPONENT_MAX, COMPONENT_MAX)
    counts = rounded_shift(mixed * spectral.scale.astype(np.int64)[:, None], UNIT_BITS + SCALE_BITS)
    low, high = limits or DTYPE_RANGE[dtype]
    values = np.clip(counts + spectral.mean.astype(np.int64)[:, None], low, high)
    return np.asarray(values.astype(dtype).reshape(planes.shape))
