"""From latents of components to samples, in integers: what every reader has at least, and what a satellite can know of it.

Three steps, each exact on every machine: the centroid of each latent in its cell and the step size; the inverse lapped
transform of each component; the inverse spectral transform. Components are in units of 2**-20 of the range.
``docs/format2.md``, section 21, is the specification.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray, Samples
from perigee.bitstream.compiled import NativeTransform, address, library
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


def mixed_of(spectral: Spectral, planes: Wide, low: int, high: int) -> Wide:
    """Bands int64 [bands, rows, cols] of the components int64 [components, rows, cols], within ``low`` and ``high``."""
    flat = planes.reshape(len(planes), -1)
    mixed = rounded_shift(_product(np.ascontiguousarray(spectral.matrix.T), flat), SPECTRAL_BITS)
    mixed = np.clip(mixed, -COMPONENT_MAX, COMPONENT_MAX)
    counts = rounded_shift(mixed * spectral.scale.astype(np.int64)[:, None], UNIT_BITS + SCALE_BITS)
    return np.asarray(np.clip(counts + spectral.mean.astype(np.int64)[:, None], low, high).reshape(planes.shape))


class Reconstruction:
    """The way from latents to samples by one contract: compiled, or in numpy where there is no compiled library."""

    def __init__(self, contract: ComponentContract, compiled: bool = library is not None) -> None:
        self._contract, self._compiled = contract, compiled
        self._arrays = [
            np.ascontiguousarray(a) for a in (contract.order, contract.lap, contract.cosine, contract.centroids)
        ]
        self._native = NativeTransform(*(address(a) for a in self._arrays))

    def plane(self, q: IntArray, mean: IntArray, index: IntArray, quality_step: int) -> IntArray:
        """One component int32 [16 H, 16 W], in 2**-20 of the range, of its latents ``q`` [latents, H, W], in half steps, their means in
        1/16 step and scale indices."""
        if not self._compiled:
            within = centroids_of(self._contract, q, mean, index)
            return plane_of(self._contract, coefficients_of(self._contract, within, quality_step)).astype(np.int32)
        _, rows, cols = q.shape
        latents = [np.ascontiguousarray(part, np.int32) for part in (q, mean, index)]
        work, out = np.empty((2, q.size), np.int64), np.empty((BLOCK * rows, BLOCK * cols), np.int32)
        library.perigee_plane(
            ctypes.byref(self._native), *(ctypes.c_uint32(n) for n in (rows, cols)),
            *(ctypes.c_void_p(address(part)) for part in latents), ctypes.c_uint32(int(self._contract.steps[quality_step])),
            *(ctypes.c_void_p(address(part)) for part in (work, out)),
        )  # fmt: skip
        return out

    def samples(
        self, spectral: Spectral, planes: IntArray, dtype: str, limits: tuple[int, int] | None = None
    ) -> Samples:
        """Samples [bands, rows, cols] of the components int32 [components, rows, cols], clamped to the type's range or ``limits``."""
        low, high = limits or DTYPE_RANGE[dtype]
        if not self._compiled:
            return np.asarray(mixed_of(spectral, planes.astype(np.int64), low, high).astype(dtype))
        matrix, planes = np.ascontiguousarray(spectral.matrix, np.int16), np.ascontiguousarray(planes, np.int32)
        mean, scale = np.ascontiguousarray(spectral.mean, np.int32), np.ascontiguousarray(spectral.scale, np.uint32)
        out = np.empty(planes.shape, np.int32)
        library.perigee_samples(
            ctypes.c_uint32(len(planes)), ctypes.c_uint32(planes[0].size),
            *(ctypes.c_void_p(address(part)) for part in (matrix, mean, scale)), ctypes.c_int64(low), ctypes.c_int64(high),
            *(ctypes.c_void_p(address(part)) for part in (planes, out)),
        )  # fmt: skip
        return np.asarray(out.astype(dtype))
