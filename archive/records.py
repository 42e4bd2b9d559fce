"""What came of each object of an archive: a record of a few hundred bytes, which is all that travels between processes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from perigee.bitstream.errors import OutputError

MADE, KEPT, FAILED = "made", "kept", "failed"


@dataclass(frozen=True)
class Record:
    """``status`` is made, kept (there already, from the same bytes in the same way) or failed. ``digest`` names what the product was made of and
    how; ``pixels`` counts positions, times are in seconds."""

    key: str
    status: str
    product: str | None = None
    digest: str | None = None
    bytes_read: int = 0
    bytes_written: int = 0
    pixels: int = 0
    seconds: float = 0.0
    error: str | None = None
    problem: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    bbox: list[float] | None = None
    time: str | None = None


class Report:
    """Records as lines of JSON, written as they come to ``FILE.part``, which becomes the report when the work ends."""

    def __init__(self, path: Path | None) -> None:
        """Raises OutputError where the report cannot be written."""
        self._path = path
        self.counts: Counter[str] = Counter()
        self.failed: list[Record] = []
        self._file: IO[str] | None = None
        if path is not None:
            self._part = path.with_name(path.name + ".part")
            try:
                self._file = self._part.open("w", encoding="utf-8")
            except OSError as error:
                raise OutputError(
                    f"the report {path} cannot be written ({error.strerror})", field="report", found=str(path)
                ) from error

    def add(self, record: Record) -> None:
        """Take one more record. Raises OutputError."""
        self.counts[record.status] += 1
        if record.status == FAILED:
            self.failed.append(record)
        if self._file is not None:
            told = {name: value for name, value in asdict(record).items() if value not in (None, [], 0)}
            try:
                self._file.write(json.dumps(told) + "\n")
                self._file.flush()
            except OSError as error:
                raise OutputError(
                    f"the report cannot be written ({error.strerror})", field="report", found=str(self._path)
                ) from error

    def close(self) -> None:
        """Put the report in its place. Raises OSError."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._part.replace(self._path)
