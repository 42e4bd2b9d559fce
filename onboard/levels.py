"""Float samples within a bound: each becomes a value that many share, or stays as it is where that would be too far away."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray, IntArray
from perigee.bitstream.bounded import Bound
from perigee.bitstream.samples import differ_from
from perigee.bitstream.values import floats_of, keys_of
from perigee.onboard.encoder import fill_invalid


def numbered(
    samples: FloatArray, valid: BoolArray, bound: Bound, nodata: float | None
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Codes int32 [rows, cols] of float32 samples, the values float32 [n] that they stand for, and the samples that come back.

    Valid samples stay within the bound, NaNs and infinities exactly what they are, and none becomes ``nodata``. Invalid samples get codes of their
    surroundings.
    """
    kinds, numbers = np.unique(keys_of(samples)[valid], return_inverse=True)
    if bound.counts:
        fewer, near = np.unique(keys_of(_near(samples, bound, nodata))[valid], return_inverse=True)
        if len(fewer) < len(kinds):
            kinds, numbers = fewer, near
    if not len(kinds):
        return np.zeros(samples.shape, np.int32), np.zeros(1, np.float32), samples
    codes = np.zeros(samples.shape, np.float32)
    codes[valid] = numbers
    codes = np.rint(fill_invalid(codes[None], valid[None])[0]).astype(np.int32)
    values = floats_of(kinds)
    return codes, values, values[codes]


def _near(samples: FloatArray, bound: Bound, nodata: float | None) -> FloatArray:
    """The samples, each replaced by the value of its level where that is within the bound."""
    with np.errstate(all="ignore"):
        wide = samples.astype(np.float64)
        if bound.relative:
            ratio = np.log1p(bound.share) - np.log1p(-bound.share)
            level = np.floor(np.log(np.abs(wide)) / ratio)
            near = np.sign(wide) * np.exp(level * ratio) * (1 + bound.share)
            allowed = bound.share * np.abs(wide)
        else:
            width = 2 * bound.amount
            near = np.rint(wide / width) * width
            allowed = np.full(wide.shape, bound.amount)
        near = near.astype(np.float32)
        kept = np.isfinite(near) & (np.abs(near.astype(np.float64) - wide) <= allowed)
    if nodata is not None:
        kept &= differ_from(near, nodata)
    return np.where(kept, near, samples)
