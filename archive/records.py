"""What came of each object of an archive: a record of a few hundred bytes, which is all that travels between processes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perigee.support.files import replacing

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
    """Records as lines of JSON, written as they come; a report that was begun is replaced when the work ends."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.counts: Counter[str] = Counter()
        self.failed: list[Record] = []
        self._lines: list[str] = []

    def add(self, record: Record) -> None:
        """Take one more record."""
        self.counts[record.status] += 1
        if record.status == FAILED:
            self.failed.append(record)
        if self._path is not None:
            told = {name: value for name, value in asdict(record).items() if value not in (None, [], 0)}
            self._lines.append(json.dumps(told))

    def close(self) -> None:
        """Write the report, whole or not at all. Raises OSError."""
        if self._path is not None:
            with replacing(self._path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in self._lines), encoding="utf-8")
