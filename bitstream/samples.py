"""Pixel values and quality as the codec sees them: ranges of types, the map to 0..1 and back, quality and its step."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray, IntArray, Samples
from perigee.bitstream.prior import QUALITY_STEPS

DTYPE_RANGE = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}


def quality_step_of(quality: float) -> int:
    """Quality 0..100 as the quality step Q = 0..250 that a segment carries."""
    return round(quality * QUALITY_STEPS / 100)


def quality_of(quality_step: int) -> float:
    """Inverse of :func:`quality_step_of`: Q = 0..250 as quality 0..100."""
    return quality_step * 100 / QUALITY_STEPS


def is_value_of(value: float, dtype: str) -> bool:
    """Whether a sample of ``dtype`` can have this value: it is whole and in the type's range, or any number of 32 bits."""
    if dtype == "float32":
        with np.errstate(over="ignore"):
            return np.isnan(value) or float(np.float32(value)) == value
    low, high = DTYPE_RANGE[dtype]
    return low <= value <= high and value == int(value)


def differ_from(samples: Samples, nodata: float) -> BoolArray:
    """Which samples have another value than ``nodata``, which may be NaN."""
    return np.asarray(~np.isnan(samples) if np.isnan(nodata) else samples != nodata)


def sample_range(dtype: str, nbits: int | None) -> tuple[int, int]:
    """Smallest and largest value of a sample: those of its type, or of the ``nbits`` bits that the source used of it."""
    low, high = DTYPE_RANGE[dtype]
    return low, high if nbits is None else min(high, (1 << nbits) - 1)


def keep_from_nodata(samples: Samples, valid: BoolArray, nodata: int, high: int) -> None:
    """Move valid samples that look like nodata by one, in place; ``high`` is the largest value that a sample may have."""
    samples[valid & (samples == nodata)] = nodata + 1 if nodata < high else nodata - 1


def normalise(samples: Samples, ranges: IntArray | None) -> FloatArray:
    """Samples [band, row, col] as float32, where 0 and 1 are the ends of each band's coding range.

    ``ranges`` int32 [bands, 2] holds those ends; None stands for 0 and 255 in every band.
    """
    if ranges is None:
        return samples.astype(np.float32) * np.float32(1 / 255)
    low = ranges[:, 0].astype(np.float32)[:, None, None]
    span = (ranges[:, 1].astype(np.int64) - ranges[:, 0]).astype(np.float32)[:, None, None]
    return np.asarray((samples.astype(np.float32) - low) / span, np.float32)


def denormalise(
    image: FloatArray, ranges: IntArray | None, dtype: str, limits: tuple[int, int] | None = None
) -> Samples:
    """Inverse of :func:`normalise`: float32 [band, row, col] as samples of ``dtype``, rounded and clamped.

    ``limits`` are the smallest and largest sample; None stands for those of the type.
    """
    if ranges is None:
        values = image * 255
    else:
        ends = ranges.astype(np.float32)
        values = image * (ends[:, 1] - ends[:, 0])[:, None, None] + ends[:, 0][:, None, None]
    low, high = limits or DTYPE_RANGE[dtype]
    out: Samples = np.clip(np.rint(np.nan_to_num(values)), low, high).astype(dtype)
    return out
