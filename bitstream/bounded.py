"""Segments that keep a promise about every sample: its code in whole numbers, which the predictive coder carries. ``docs/format2.md``, section 23.

A whole number is coded as the number of a level that is at most the promised error away, in counts or as a share of the sample. With a bound of 0
the levels are the samples themselves. A float sample is coded as the number of a value in a table (``values.py``).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray, Samples
from perigee.bitstream.errors import Fault, FormatError
from perigee.bitstream.format import write_varint
from perigee.bitstream.parsing import leading_varint
from perigee.bitstream.predictive import BEFORE_MAX, TOP_MAX, WEIGHTS_SUM_MAX, BandModel, taps_of
from perigee.bitstream.values import keys_of, read_values, write_values

SHARE_BITS = 16
BEFORE_FLAGS, REPEATS_FLAG, RELATIVE_FLAG = 0x03, 0x04, 0x08
MAGNITUDE_MAX = 65535  # of samples
FLOAT_BITS_MAX = 0x7F7FFFFF  # of the largest finite float32


@dataclass(frozen=True)
class Bound:
    """The largest error of a band: ``counts``, or where ``relative`` that share of the sample in 2^-16, rounded down to whole counts. For float
    samples ``counts`` are the bits of a float32, and a share is not rounded."""

    counts: int = 0
    relative: bool = False

    @property
    def share(self) -> float:
        """What a relative bound allows of a sample of 1."""
        return self.counts / (1 << SHARE_BITS)

    @property
    def amount(self) -> float:
        """What an absolute bound of float samples allows."""
        return float(np.uint32(self.counts).view(np.float32))

    def allowed(self, samples: IntArray) -> IntArray:
        """The largest error of each sample, int64."""
        if self.relative:
            return np.asarray(np.abs(samples.astype(np.int64)) * self.counts >> SHARE_BITS)
        return np.full(samples.shape, self.counts, np.int64)


LOSSLESS = Bound()


@dataclass(frozen=True)
class BandCode:
    """How a band of a patch is coded: its bound, the sample or the number of the level that the code 0 stands for, and the model that predicts
    the codes. Of float samples ``values`` float32 [top + 1] are what the codes stand for."""

    bound: Bound
    low: int
    model: BandModel
    values: FloatArray | None = None

    def samples_of(self, codes: IntArray, limits: tuple[int, int]) -> Samples:
        """The samples of codes: float32 of a table, or int64 within ``limits``."""
        return samples_of(codes, self.bound, self.low, limits) if self.values is None else self.values[codes]


class Levels(NamedTuple):
    """Levels of a relative bound from 0 up, and the largest sample that each stands for, int64."""

    values: IntArray
    last: IntArray


@lru_cache(maxsize=8)
def levels_of(share: int) -> Levels:
    """The levels for errors of ``share`` 2^-16 of the sample: the first sample that has none yet is the lowest that the next level stands
    for."""
    values, last = [0], [0]
    while last[-1] < MAGNITUDE_MAX:
        first = last[-1] + 1
        level = first + (first * share >> SHARE_BITS)
        end = ((level + 1) << SHARE_BITS) // ((1 << SHARE_BITS) - share) + 2
        while end - (end * share >> SHARE_BITS) > level:
            end -= 1
        values.append(level)
        last.append(end)
    return Levels(np.array(values, np.int64), np.array(last, np.int64))


def codes_of(samples: IntArray, bound: Bound) -> tuple[IntArray, int]:
    """Codes int32 from 0 on of samples int [rows, cols], and what the code 0 stands for."""
    if bound.relative:
        wide = samples.astype(np.int64)
        numbers = np.sign(wide) * np.searchsorted(levels_of(bound.counts).last, np.abs(wide))
        low = int(numbers.min())
        return (numbers - low).astype(np.int32), low
    low = int(samples.min())
    codes = samples.astype(np.int32) - low
    return ((codes + bound.counts) // (2 * bound.counts + 1) if bound.counts else codes), low


def samples_of(codes: IntArray, bound: Bound, low: int, limits: tuple[int, int]) -> IntArray:
    """Samples int64 of codes, within ``limits``; ``low`` is what the code 0 stands for."""
    wide = codes.astype(np.int64)
    if bound.relative:
        wide = wide + low
        values = levels_of(bound.counts).values
        found = np.sign(wide) * values[np.minimum(np.abs(wide), len(values) - 1)]
    else:
        found = low + wide * (2 * bound.counts + 1)
    return np.asarray(np.clip(found, *limits))


def checksum_of_codes(planes: Sequence[IntArray]) -> int:
    """The low 16 bits of the CRC-32 of the codes as little-endian int32 [row, col], band by band."""
    crc = 0
    for plane in planes:
        crc = zlib.crc32(np.ascontiguousarray(plane, "<i4").data, crc)
    return crc & 0xFFFF


def write_band_codes(codes: Sequence[BandCode]) -> bytes:
    """What a segment says of its bands before its words."""
    out = b""
    for code in codes:
        model = code.model
        flags = len(model.before) | (REPEATS_FLAG if model.repeats else 0)
        flags |= RELATIVE_FLAG if code.bound.relative else 0
        out += bytes([flags]) + write_varint(code.bound.counts)
        out += write_varint(2 * code.low if code.low >= 0 else -2 * code.low - 1)
        out += write_varint(model.top) + write_varint(model.start)
        out += bytes(model.before) + model.weights.astype("<i2").tobytes()
        out += b"" if code.values is None else write_values(keys_of(code.values))
    return out


def read_band_codes(
    payload: memoryview, at: int, bands: int, floats: bool, start: int
) -> tuple[tuple[BandCode, ...], int]:
    """Inverse of :func:`write_band_codes`: the codes, and where the words begin. ``floats`` says that samples are floats. Raises FormatError."""
    found: list[BandCode] = []
    for number in range(bands):
        if at >= len(payload):
            raise _wrong("it ends early", number, start)
        flags = payload[at]
        if flags & ~(BEFORE_FLAGS | REPEATS_FLAG | RELATIVE_FLAG):
            raise _wrong(f"flags {flags:#04x}, this reader knows 0x0f", number, start)
        at += 1
        numbers = []
        for _ in range(4):
            read, at = leading_varint(payload, start, at)
            numbers.append(read)
        counts, folded, top, first = numbers
        relative = bool(flags & RELATIVE_FLAG)
        low = folded >> 1 ^ -(folded & 1)
        allowed = counts <= (FLOAT_BITS_MAX if floats and not relative else TOP_MAX) and (counts or not relative)
        if not allowed or abs(low) > (0 if floats else MAGNITUDE_MAX) or top > TOP_MAX or first > top:
            raise _wrong(f"bound {counts}, lowest {low}, top {top}, start {first}", number, start)
        count = flags & BEFORE_FLAGS
        taps = taps_of(count)
        if len(payload) < at + count + 2 * taps:
            raise _wrong("it ends early", number, start)
        before = tuple(payload[at : at + count])
        if any(b >= number for b in before) or len(set(before)) < count or count > BEFORE_MAX:
            raise _wrong(f"it is predicted from the bands {before}", number, start)
        at += count
        weights = np.frombuffer(payload[at : at + 2 * taps], "<i2").astype(np.int16)
        at += 2 * taps
        if int(np.abs(weights.astype(np.int64)).sum()) > WEIGHTS_SUM_MAX:
            raise _wrong(f"its weights sum to more than {WEIGHTS_SUM_MAX}", number, start)
        model = BandModel(before, weights, top, first, bool(flags & REPEATS_FLAG))
        values = None
        if floats:
            values, at = read_values(payload, at, top + 1, start)
        found.append(BandCode(Bound(counts, relative), low, model, values))
    return tuple(found), at


def _wrong(text: str, number: int, start: int) -> FormatError:
    return FormatError(f"band {number} of a predicted segment: {text}", Fault.RANGE, field="band", offset_bytes=start)
