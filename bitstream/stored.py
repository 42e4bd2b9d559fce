"""Stored segments: each band of a patch in a coding that others have defined, Deflate or JPEG-LS. ``docs/format2.md``, section 24."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from perigee.bitstream.arrays import IntArray, Samples
from perigee.bitstream.errors import Fault, FormatError
from perigee.bitstream.format import write_varint
from perigee.bitstream.parsing import leading_varint

DEFLATE, JPEG_LS = 0, 1
NEAR_MAX = 255  # of JPEG-LS
LOW_MAX = 65535

DecodeJpegLs = Callable[[bytes, tuple[int, int]], IntArray]


class StoredBand(NamedTuple):
    """A band of a patch: how it is coded, the largest error of a sample in counts, what is added to what was coded, and the bytes."""

    coding: int
    counts: int
    low: int
    data: bytes


def deflated(samples: Samples) -> StoredBand:
    """A band [rows, cols] of whole samples as it is."""
    raw = np.ascontiguousarray(samples, samples.dtype.newbyteorder("<"))
    return StoredBand(DEFLATE, 0, 0, zlib.compress(raw.tobytes(), 9))


def samples_of_stored(
    band: StoredBand, shape: tuple[int, int], dtype: str, limits: tuple[int, int], jpeg_ls: DecodeJpegLs
) -> IntArray:
    """The samples int64 [rows, cols] of a band, within ``limits``. ``jpeg_ls`` decodes a JPEG-LS image of a known shape. Raises FormatError."""
    if band.coding == JPEG_LS:
        return np.clip(jpeg_ls(band.data, shape).astype(np.int64) + band.low, *limits)
    kind = np.dtype(dtype).newbyteorder("<")
    size = shape[0] * shape[1] * kind.itemsize
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(band.data, size + 1)
    except zlib.error as error:
        raise FormatError(f"a stored band cannot be inflated ({error})", field="band") from error
    if len(raw) != size or not engine.eof or engine.unused_data:
        raise FormatError(f"a stored band does not inflate to {size} bytes", Fault.SIZE, field="band", expected=size)
    return np.clip(np.frombuffer(raw, kind).reshape(shape).astype(np.int64), *limits)


def write_stored_bands(bands: tuple[StoredBand, ...]) -> bytes:
    """The bands behind the mode of a segment."""
    out = b""
    for band in bands:
        low = 2 * band.low if band.low >= 0 else -2 * band.low - 1
        out += bytes([band.coding]) + write_varint(band.counts) + write_varint(low)
        out += write_varint(len(band.data)) + band.data
    return out


def read_stored_bands(payload: memoryview, at: int, bands: int, start: int) -> tuple[StoredBand, ...]:
    """Inverse of :func:`write_stored_bands`, to the end of the payload. Raises FormatError."""
    found = []
    for number in range(bands):
        coding = payload[at] if at < len(payload) else -1
        if coding not in (DEFLATE, JPEG_LS):
            raise _wrong(f"coding {coding}; accepted are 0 and 1", number, start)
        values = []
        at += 1
        for _ in range(3):
            value, at = leading_varint(payload, start, at)
            values.append(value)
        counts, folded, size = values
        low = folded >> 1 ^ -(folded & 1)
        most = (0, 0) if coding == DEFLATE else (NEAR_MAX, LOW_MAX)
        if counts > most[0] or abs(low) > most[1] or at + size > len(payload):
            raise _wrong(f"bound {counts}, lowest {low}, {size} bytes", number, start)
        found.append(StoredBand(coding, counts, low, bytes(payload[at : at + size])))
        at += size
    if at != len(payload):
        raise _wrong(f"{len(payload) - at} bytes follow", bands - 1, start)
    return tuple(found)


def _wrong(text: str, number: int, start: int) -> FormatError:
    return FormatError(f"band {number} of a stored segment: {text}", Fault.RANGE, field="band", offset_bytes=start)
