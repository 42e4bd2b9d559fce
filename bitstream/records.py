"""Records of lines: what a camera sends with each line, bit by bit. ``docs/format2.md``, section 18.3."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import Fault, FormatError
from perigee.bitstream.format import write_chunk, write_varint
from perigee.bitstream.parsing import leading_varint

RECORDS = 0x81  # type of the chunk
RECORD_BYTES_MAX, SCENE_BYTES_MAX = 4096, 1 << 26
REPETITIONS_MAX = 4  # of each line, in the mean


def size_fits(size: int, height: int) -> bool:
    """Whether a scene of so many lines may have records of so many bytes."""
    return 1 <= size <= RECORD_BYTES_MAX and size * height <= SCENE_BYTES_MAX


Bytes = npt.NDArray[np.uint8]


class Records(NamedTuple):
    """The records uint8 [lines, bytes] of the lines from ``first`` on."""

    first: int
    data: Bytes


def write_records(records: Records) -> bytes:
    """The chunk of some records; there is at least one, of 1 to 4096 bytes."""
    lines, size = records.data.shape
    steps = np.diff(records.data, axis=0, prepend=np.zeros((1, size), np.uint8)).astype(np.uint8)
    payload = write_varint(records.first) + write_varint(lines) + write_varint(size)
    return write_chunk(RECORDS, payload + zlib.compress(np.ascontiguousarray(steps.T).tobytes(), 9))


def read_records(payload: memoryview, height: int, start: int) -> Records:
    """Inverse of :func:`write_records`, for a scene of so many lines. Raises FormatError."""
    numbers, at = [], 0
    for _ in range(3):
        number, at = leading_varint(payload, start, at)
        numbers.append(number)
    first, lines, size = numbers
    if not lines or first + lines > height or not size_fits(size, height):
        raise _wrong(f"{lines} of {size} bytes from line {first} of {height}", start)
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(payload[at:], lines * size + 1)
    except zlib.error as error:
        raise _wrong(f"they cannot be inflated ({error})", start) from error
    if len(raw) != lines * size or not engine.eof or engine.unused_data:
        raise _wrong(f"they do not inflate to {lines * size} bytes", start)
    steps = np.frombuffer(raw, np.uint8).reshape(size, lines)
    return Records(first, np.ascontiguousarray(np.add.accumulate(steps, axis=1, dtype=np.uint8).T))


class RecordsOfScene:
    """The records of a scene, put together. ``known`` bool [height] says which lines have theirs."""

    def __init__(self, height: int) -> None:
        self._taken = 0
        self.known = np.zeros(height, bool)
        self.data: Bytes = np.zeros((height, 0), np.uint8)

    def add(self, records: Records, start: int) -> None:
        """Take in some records. Raises FormatError where they differ from what is there."""
        lines, size = records.data.shape
        self._taken += records.data.size
        if self._taken > REPETITIONS_MAX * len(self.known) * size:
            raise FormatError(
                f"records of lines come more than {REPETITIONS_MAX} times",
                Fault.LIMIT,
                field="records",
                offset_bytes=start,
            )
        if not self.data.shape[1]:
            self.data = np.zeros((len(self.known), size), np.uint8)
        place = np.s_[records.first : records.first + lines]
        again = self.known[place]
        if size != self.data.shape[1] or (self.data[place][again] != records.data[again]).any():
            raise FormatError(
                f"records of lines from {records.first} on come again, or have another size, and differ",
                Fault.REPEATED,
                field="records",
                offset_bytes=start,
            )
        self.data[place], self.known[place] = records.data, True


def _wrong(text: str, start: int) -> FormatError:
    return FormatError(f"records of lines: {text}", Fault.RANGE, field="records", offset_bytes=start)
