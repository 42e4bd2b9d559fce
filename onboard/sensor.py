"""What an operator knows of a sensor: a JSON file for ``onboard-encode --sensor``.

All members are optional. ``step_counts``: the quantisation step in counts, a number or one for each band, such as half the noise.
``band_weights``: how much each band's errors matter. ``dead_columns``: for each band a list of columns, from 0 on, that mean nothing.
They travel as invalid samples; in the product they are nodata, or masked in all bands where the source has no nodata value.
``band_offsets``: for each band by how many lines and columns its picture of the same ground lies below and right of the sensor's zero; the
bands are coded laid onto each other. ``matrix``: a fixed spectral transform, a row for each component, from the bands over their ranges.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.errors import Fault, MetadataError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.records import Bytes
from perigee.bitstream.version2 import PLACES_MAX
from perigee.onboard.registration import RegisteredSource
from perigee.onboard.source import BANDS_MAX, Block, Source, SourceInfo

MAX_BYTES = 1 << 20
MEMBERS = ("step_counts", "band_weights", "dead_columns", "band_offsets", "matrix")
ORTHONORMAL = 0.01  # how far the products of the matrix's rows may be from 0 and 1


@dataclass(frozen=True)
class Sensor:
    """A sensor file. ``matrix`` is float32 [components, bands]; ``dead_columns`` has the columns of each band."""

    step_counts: tuple[float, ...] = ()
    band_weights: tuple[float, ...] = ()
    dead_columns: tuple[tuple[int, ...], ...] = ()
    band_offsets: tuple[tuple[int, ...], ...] = ()
    matrix: FloatArray | None = None

    def check(self, info: SourceInfo) -> None:
        """Raises MetadataError where the file is of a sensor with another number of bands or columns."""
        for name in ("dead_columns", "band_offsets", "matrix"):
            found = getattr(self, name)
            if found is not None and len(found) not in (0, info.bands):
                raise _wrong(name, f"{len(found)} bands", f"{info.bands} bands")
        most = max((column for columns in self.dead_columns for column in columns), default=-1)
        if most >= info.width:
            raise _wrong("dead_columns", f"column {most}", f"columns 0 to {info.width - 1}")

    def prepared(self, source: Source) -> tuple[Source, IntArray | None]:
        """The source with its dead columns invalid and its bands laid onto each other, and the bands' places in it, [bands, 2], where
        they differ. Raises MetadataError as :meth:`check`, and where bands of such a source cannot be moved."""
        self.check(source.info)
        if any(self.dead_columns):
            source = _WithoutColumns(source, self.dead_columns)
        if len(set(self.band_offsets)) < 2:
            return source, None
        registered = RegisteredSource(source, tuple((line, column) for line, column in self.band_offsets))
        return registered, registered.places


ANY_SENSOR = Sensor()


class _WithoutColumns:
    """A source some of whose columns are invalid."""

    def __init__(self, source: Source, columns: tuple[tuple[int, ...], ...]) -> None:
        self._source = source
        self._dead = np.zeros((source.info.bands, 1, source.info.width), bool)
        for band, numbers in enumerate(columns):
            self._dead[band, 0, list(numbers)] = True

    @property
    def info(self) -> SourceInfo:
        return self._source.info

    @property
    def metadata(self) -> Metadata:
        metadata = self._source.metadata
        return metadata if metadata.nodata is not None else replace(metadata, masked=True)

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """A window inside the scene, in pixels."""
        block = self._source.read(top, left, rows, cols)
        return block._replace(valid=block.valid & ~self._dead[..., left : left + cols])

    def lines_until(self, bottom: int) -> int:
        """As the source's."""
        return self._source.lines_until(bottom)

    def keep(self, lines: int) -> None:
        """As the source's."""
        self._source.keep(lines)

    def records(self, top: int, rows: int) -> Bytes | None:
        """As the source's."""
        return self._source.records(top, rows)


def _wrong(field: str, found: Any, expected: str) -> MetadataError:
    return MetadataError(
        f"sensor file: {field}: {found}; expected {expected}",
        Fault.RANGE,
        field=field,
        expected=expected,
        found=str(found),
    )


def _numbers(field: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= BANDS_MAX or not all(_is_number(v) and 0 < v < math.inf for v in values):
        raise _wrong(field, value, "a number above 0, or one for each band")
    return tuple(float(v) for v in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _columns(value: Any) -> tuple[tuple[int, ...], ...]:
    lists = isinstance(value, list) and all(isinstance(columns, list) for columns in value)
    if not lists or not all(type(c) is int and c >= 0 for columns in value for c in columns):
        raise _wrong("dead_columns", value, "for each band a list of columns from 0 on")
    return tuple(tuple(columns) for columns in value)


def _offsets(value: Any) -> tuple[tuple[int, ...], ...]:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    whole = pairs and all(type(n) is int for pair in value for n in pair)
    if not whole or any(max(numbers) - min(numbers) > PLACES_MAX for numbers in zip(*value, strict=True)):
        raise _wrong(
            "band_offsets",
            value,
            f"for each band a whole number of lines and of columns, at most {PLACES_MAX} apart",
        )
    return tuple(tuple(pair) for pair in value)


def _matrix(value: Any) -> FloatArray:
    rows = isinstance(value, list) and all(isinstance(row, list) and len(row) == len(value) for row in value)
    if not rows or not 1 <= len(value) <= BANDS_MAX or not all(_is_number(v) for row in value for v in row):
        raise _wrong(
            "matrix", type(value).__name__, "as many rows of numbers as bands, each with a number for each band"
        )
    matrix = np.array(value, np.float32)
    off = np.abs(matrix @ matrix.T - np.eye(len(matrix))).max()
    if not off <= ORTHONORMAL:
        raise _wrong("matrix", f"rows whose products are off by {off:.3g}", "orthonormal rows")
    return matrix


def read_sensor(path: Path) -> Sensor:
    """Read a sensor file. Raises MetadataError naming the member that is wrong, or OSError."""
    if path.stat().st_size > MAX_BYTES:
        raise MetadataError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise MetadataError(f"{path}: a JSON object is expected")
    unknown = sorted(set(found) - set(MEMBERS))
    if unknown:
        raise _wrong(unknown[0], "not a member", ", ".join(MEMBERS))
    if "step_counts" in found and "band_weights" in found:
        raise _wrong("band_weights", "given beside step_counts", "one of the two")
    return Sensor(
        _numbers("step_counts", found["step_counts"]) if "step_counts" in found else (),
        _numbers("band_weights", found["band_weights"]) if "band_weights" in found else (),
        _columns(found["dead_columns"]) if "dead_columns" in found else (),
        _offsets(found["band_offsets"]) if "band_offsets" in found else (),
        _matrix(found["matrix"]) if "matrix" in found else None,
    )
