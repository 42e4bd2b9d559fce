"""Tables of the values that a band of float samples has, so that its samples can be coded as numbers of values. ``docs/format2.md``, section 23.5.

A float32 has a *key*, a whole number from 0 to 2^32 - 1 in the order of the numbers. The keys of all values of a band of a patch are sent in rising
order, as differences. Every float32 comes back bit by bit, infinities and signed zeros too.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.errors import Fault, FormatError
from perigee.bitstream.format import write_varint
from perigee.bitstream.parsing import leading_varint

SIGN = 1 << 31
VARINT_BYTES = 5  # of a number of 32 bits
NOT_A_NUMBER = np.uint32(0x7FC00000)  # the bits of the one NaN that encoders send

Keys = npt.NDArray[np.uint32]


def keys_of(values: FloatArray) -> Keys:
    """Keys uint32 of float32 values of any shape; all NaNs have one key."""
    bits = np.where(np.isnan(values), NOT_A_NUMBER, np.ascontiguousarray(values, np.float32).view(np.uint32))
    return np.asarray(np.where(bits >> 31, ~bits, bits ^ SIGN), np.uint32)


def floats_of(keys: Keys) -> FloatArray:
    """Inverse of :func:`keys_of`: float32."""
    bits = np.where(keys & SIGN, keys ^ SIGN, ~keys).astype(np.uint32)
    return np.asarray(bits.view(np.float32))


def write_values(keys: Keys) -> bytes:
    """The table of keys [n], n >= 1, which rise: a length, and a zlib stream of the first key and the differences."""
    steps: IntArray = np.diff(keys.astype(np.int64), prepend=np.int64(0))
    parts = [(steps >> 7 * k & 0x7F | (0x80 if k + 1 < VARINT_BYTES else 0)) for k in range(VARINT_BYTES)]
    raw = np.stack(parts, 1).astype(np.uint8)
    sizes = 1 + np.searchsorted(1 << 7 * np.arange(1, VARINT_BYTES), steps, side="right")
    raw[np.arange(len(keys)), sizes - 1] &= 0x7F
    packed = zlib.compress(raw[np.arange(VARINT_BYTES) < sizes[:, None]].tobytes(), 9)
    return write_varint(len(packed)) + packed


def read_values(payload: memoryview, at: int, count: int, start: int) -> tuple[FloatArray, int]:
    """Inverse of :func:`write_values`: float32 [count] and where the table ends. Raises FormatError."""
    size, at = leading_varint(payload, start, at)
    if at + size > len(payload):
        raise _wrong(f"it announces {size} bytes, {len(payload) - at} are left", start)
    engine = zlib.decompressobj()
    try:
        data = engine.decompress(payload[at : at + size], VARINT_BYTES * count + 1)
    except zlib.error as error:
        raise _wrong(f"it cannot be inflated ({error})", start) from error
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    sizes = np.diff(ends, prepend=-1)
    if (
        not engine.eof
        or engine.unused_data
        or len(ends) != count
        or ends[-1] != len(raw) - 1
        or sizes.max() > VARINT_BYTES
    ):
        raise _wrong(f"it does not hold {count} numbers", start)
    number = np.repeat(np.arange(count), sizes)
    shifts = 7 * (np.arange(len(raw)) - (ends - sizes + 1)[number])
    steps = np.zeros(count, np.int64)
    np.add.at(steps, number, (raw & 0x7F).astype(np.int64) << shifts)
    keys: IntArray = np.cumsum(steps)
    if not steps[1:].all() or keys[-1] >= 1 << 32 or (raw[ends[sizes > 1]] == 0).any():
        raise _wrong("its numbers do not rise, are longer than needed, or exceed 32 bits", start)
    return floats_of(keys.astype(np.uint32)), at + size


def _wrong(text: str, start: int) -> FormatError:
    return FormatError(
        f"the values of a band of float samples: {text}", Fault.RANGE, field="values", offset_bytes=start
    )
