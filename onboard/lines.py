"""Lines as they come from a detector: raw samples in a file, a file that grows, or a pipe, described by a JSON file.

Members of the description: ``width`` (pixels of a line), ``bands``, ``dtype`` (uint8, uint16, int16 or float32) and ``interleave``: ``bil`` (a
line band after band), ``bip`` (a line pixel after pixel) or ``bsq`` (one whole band after the other; from files alone). Optional are
``byte_order`` (little or big), ``height`` (lines; without it the input's end is the scene's), ``skip_bytes`` before the first line,
``prefix_bytes`` and ``suffix_bytes`` around the samples of each line, which are its record, ``bits`` that samples use, ``nodata``, and
``calibration_lines``, pairs of a first and a last line that are kept exactly.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perigee.bitstream.arrays import Samples
from perigee.bitstream.errors import Fault, MetadataError, RasterError
from perigee.bitstream.format import DEFAULT_LIMITS
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.records import RECORD_BYTES_MAX, SCENE_BYTES_MAX, Bytes, size_fits
from perigee.bitstream.samples import differ_from, is_value_of
from perigee.bitstream.version2 import PLACES_MAX, SAMPLE_TYPE_CODES
from perigee.onboard.arrival import Arrival
from perigee.onboard.source import BANDS_MAX, Block, SourceInfo, WholeScene, check_bits
from perigee.support.files import check_regular, read_bounded

BIL, BIP, BSQ = "bil", "bip", "bsq"
ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
DESCRIPTION_MAX_BYTES = 1 << 20
NEEDED = ("width", "bands", "dtype", "interleave")
OPTIONAL = ("byte_order", "height", "skip_bytes", "prefix_bytes", "suffix_bytes", "bits", "nodata", "calibration_lines")


@dataclass(frozen=True)
class LineFormat:
    """How samples lie in the input; the module says what the members mean."""

    width: int
    bands: int
    dtype: str
    interleave: str
    byte_order: str = "little"
    height: int | None = None
    skip_bytes: int = 0
    prefix_bytes: int = 0
    suffix_bytes: int = 0
    bits: int | None = None
    nodata: float | None = None
    calibration_lines: tuple[tuple[int, int], ...] = ()

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of a sample in the input."""
        return np.dtype(self.dtype).newbyteorder(ORDERS[self.byte_order])

    @property
    def record_bytes(self) -> int:
        """Bytes of a line's record."""
        return self.prefix_bytes + self.suffix_bytes

    @property
    def line_bytes(self) -> int:
        """Bytes of a line in the input, its record among them."""
        return self.width * self.bands * self.kind.itemsize + self.record_bytes

    @property
    def lines_max(self) -> int:
        """The most lines that a scene of open height may have, in whatever places the bands lie."""
        most = min(DEFAULT_LIMITS.side_px, DEFAULT_LIMITS.samples // ((self.width + PLACES_MAX) * self.bands))
        return max(min(most - PLACES_MAX, SCENE_BYTES_MAX // max(self.record_bytes, 1)), 1)

    def behind(self, lines: int) -> LineFormat:
        """What is left of the input behind so many lines."""
        ranges = tuple((max(a - lines, 0), b - lines) for a, b in self.calibration_lines if b >= lines)
        height = None if self.height is None else self.height - lines
        return replace(self, height=height, calibration_lines=ranges)

    def info(self, height: int) -> SourceInfo:
        """A scene of so many lines."""
        return SourceInfo(self.width, height, self.bands, self.dtype, exact=self.calibration_lines)

    @property
    def metadata(self) -> Metadata:
        """What the description says beside the layout."""
        whole = 8 * self.kind.itemsize
        nbits = None if self.bits in (None, whole) else self.bits
        return Metadata(nodata=self.nodata, nbits=nbits, colour=False if self.bands == 3 else None)

    def block(self, samples: Samples) -> Block:
        """Samples [band, row, col] with their validity."""
        valid = np.ones(samples.shape, bool) if self.nodata is None else differ_from(samples, self.nodata)
        check_bits(samples, valid, self.bits)
        return Block(samples, valid, None)


class LineSource:
    """Lines that arrive one after the other. Those of the last strip are kept, no more."""

    def __init__(self, form: LineFormat, arrival: Arrival, most: int | None = None) -> None:
        """``most`` bounds the lines of the scene; those behind them are left to the next one."""
        self.form, self.metadata, self._arrival, self._most = form, form.metadata, arrival, most
        height = form.lines_max if form.height is None else form.height
        self._height: int = height if most is None else min(height, most)
        if form.record_bytes and not size_fits(form.record_bytes, self._height):
            raise _wrong(
                "prefix_bytes", form.record_bytes, f"records that take at most {SCENE_BYTES_MAX} bytes in a scene"
            )
        self._kept = self._before = self._first = 0
        self._samples: Samples = np.zeros((form.bands, 0, form.width), form.dtype)
        self._records: Bytes = np.zeros((0, form.record_bytes), np.uint8)
        self.left_behind: list[str] = []

    @property
    def info(self) -> SourceInfo:
        """The scene; until its end has come, its height is the largest that it can have."""
        return self.form.info(self._height)

    @property
    def fullness(self) -> float:
        """How full the buffer of lines that have arrived is, 0 to 1."""
        return self._arrival.fullness

    def keep(self, lines: int) -> None:
        """Keep so many lines above the last ones."""
        self._kept = lines

    def lines_until(self, bottom: int) -> int:
        """Wait for the lines above ``bottom``; how many lines the scene has then, fewer where it has ended. Raises RasterError without any line."""
        wanted, form = min(bottom, self._height), self.form
        parts = []
        there: int = self._first + self._samples.shape[1]
        while there < wanted and (raw := self._arrival.take(wanted - there)):
            parts.append(np.frombuffer(raw, np.uint8).reshape(-1, form.line_bytes))
            there += len(parts[-1])
        if there < wanted:
            self._end(there)
        elif parts and there == self._height:
            self._look_behind(there)
        self._append(parts)
        self._before = there
        return there

    def _look_behind(self, lines: int) -> None:
        """Report what follows the scene and will not be carried, or what should follow and does not."""
        if lines == self.form.height:
            if self._arrival.has_more:  # a pipe is not waited for
                self.left_behind.append(
                    f"what follows the first {lines} lines, which are all that the description names"
                )
        elif lines == self._most:
            if not self._arrival.wait():
                self._report_end(lines)
        elif self._arrival.wait():
            self.left_behind.append(f"what follows the first {lines} lines, which are all that a stream can hold")

    def _end(self, lines: int) -> None:
        self._report_end(lines)
        if not lines:
            raise RasterError("the input ended before its first line", Fault.ENDS_EARLY, field="lines", expected=1)
        self._height = lines

    def _report_end(self, lines: int) -> None:
        """Report what the end of the input left incomplete."""
        if self._arrival.left:
            self.left_behind.append(f"{self._arrival.left} bytes of a line that the input ends in")
        if self.form.height is not None:
            self.left_behind.append(f"{self.form.height - lines} lines that did not come before the input ended")

    def _append(self, parts: list[Bytes]) -> None:
        """Take in lines, and let go of those that no strip needs any more."""
        gone = max(self._before - self._kept - self._first, 0)
        samples, records = [self._samples[:, gone:]], [self._records[gone:]]
        for part in parts:
            samples.append(self._unpacked(part))
            ends = part[:, : self.form.prefix_bytes], part[:, self.form.line_bytes - self.form.suffix_bytes :]
            records.append(np.concatenate(ends, 1))
        self._first += gone
        self._samples, self._records = np.concatenate(samples, 1), np.concatenate(records)

    def _unpacked(self, lines: Bytes) -> Samples:
        """The samples [band, row, col] of lines as bytes [lines, line_bytes]."""
        form = self.form
        inner = np.ascontiguousarray(lines[:, form.prefix_bytes : form.line_bytes - form.suffix_bytes]).view(form.kind)
        if form.interleave == BIL:
            samples = inner.reshape(-1, form.bands, form.width).transpose(1, 0, 2)
        else:
            samples = inner.reshape(-1, form.width, form.bands).transpose(2, 0, 1)
        return np.ascontiguousarray(samples, form.dtype)

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """A window of the lines that are kept."""
        first = top - self._first
        return self.form.block(self._samples[:, first : first + rows, left : left + cols])

    def records(self, top: int, rows: int) -> Bytes | None:
        """The records uint8 [rows, bytes] of lines that are kept, None where lines have none."""
        return self._records[top - self._first :][:rows] if self.form.record_bytes else None


class BandsOfFile(WholeScene):
    """A file that holds one band after the other."""

    def __init__(self, form: LineFormat, handle: int) -> None:
        """``handle`` is a file that is open for reading. Raises RasterError where it is too small."""
        self.form, self.metadata = form, form.metadata
        self.left_behind: list[str] = []
        size = max(os.fstat(handle).st_size - form.skip_bytes, 0)
        plane = form.width * form.bands * form.kind.itemsize
        height = size // plane if form.height is None else form.height
        if not height or size < height * plane:
            raise RasterError(
                f"{size} bytes behind skip_bytes; {form.bands} bands of {form.width}x{height or 1} take {(height or 1) * plane}",
                Fault.ENDS_EARLY,
                field="file",
                expected=(height or 1) * plane,
                found=size,
            )
        if size > height * plane:
            self.left_behind.append(f"{size - height * plane} bytes behind the last band")
        self.info = form.info(height)
        self._handle = handle

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """A window of the scene. Raises RasterError where the file has become shorter."""
        form, size = self.form, self.form.kind.itemsize
        lines = []
        for row in (band * self.info.height + top + r for band in range(form.bands) for r in range(rows)):
            place = form.skip_bytes + (row * form.width + left) * size
            lines.append(os.pread(self._handle, cols * size, place))
            if len(lines[-1]) < cols * size:
                raise RasterError("the file has become shorter", Fault.ENDS_EARLY, field="file", offset_bytes=place)
        samples = np.frombuffer(b"".join(lines), form.kind).reshape(form.bands, rows, cols)
        return form.block(samples.astype(form.dtype))


def read_line_format(path: Path) -> LineFormat:
    """The description in a JSON file. Raises MetadataError that names the member that is wrong, or OSError."""
    check_regular(path)
    text = read_bounded(path, DESCRIPTION_MAX_BYTES)
    try:
        found = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise MetadataError(f"{path}: a JSON object is expected")
    for name in sorted(set(found) - {*NEEDED, *OPTIONAL}):
        raise _wrong(name, "not a member", ", ".join((*NEEDED, *OPTIONAL)))
    for name in NEEDED:
        if name not in found:
            raise _wrong(name, "missing", "a value")
    side = DEFAULT_LIMITS.side_px
    for name, low, high in (
        ("width", 1, side), ("bands", 1, BANDS_MAX), ("height", 1, side), ("skip_bytes", 0, 1 << 40), ("prefix_bytes", 0, RECORD_BYTES_MAX),
        ("suffix_bytes", 0, RECORD_BYTES_MAX), ("bits", 1, 16),
    ):  # fmt: skip
        value = found.get(name, low)
        if type(value) is not int or not low <= value <= high:
            raise _wrong(name, value, f"a whole number from {low} to {high}")
    for name, accepted in (
        ("dtype", [*SAMPLE_TYPE_CODES]),
        ("interleave", [BIL, BIP, BSQ]),
        ("byte_order", [*ORDERS]),
    ):
        if found.get(name, accepted[0]) not in accepted:
            raise _wrong(name, found[name], ", ".join(accepted))
    nodata = found.get("nodata")
    if nodata is not None:
        number = _number(nodata)
        if number is None or not is_value_of(number, found["dtype"]):
            raise _wrong("nodata", str(nodata)[:40], f"a value of {found['dtype']}")
        found["nodata"] = number
    found["calibration_lines"] = _ranges(found.get("calibration_lines", []))
    form = LineFormat(**found)
    if form.record_bytes > (RECORD_BYTES_MAX if form.interleave != BSQ else 0):
        raise _wrong(
            "prefix_bytes", form.record_bytes, f"at most {RECORD_BYTES_MAX} bytes with suffix_bytes, none with bsq"
        )
    if form.bits is not None and (form.dtype == "float32" or form.bits > 8 * form.kind.itemsize):
        raise _wrong("bits", form.bits, f"at most those of {form.dtype}, none for float32")
    return form


def _number(value: Any) -> float | None:
    """A number as a float, or None for what is none."""
    if value != "nan" and (isinstance(value, bool) or not isinstance(value, int | float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _ranges(value: Any) -> tuple[tuple[int, int], ...]:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not pairs or not all(type(n) is int for pair in value for n in pair) or any(not 0 <= a <= b for a, b in value):
        raise _wrong("calibration_lines", value, "a list of pairs of a first and a last line")
    return tuple((first, last) for first, last in value)


def _wrong(field: str, found: Any, expected: str) -> MetadataError:
    return MetadataError(
        f"description of lines: {field}: {found}; expected {expected}",
        Fault.RANGE,
        field=field,
        expected=expected,
        found=str(found),
    )
