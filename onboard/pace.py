"""Coarser quality instead of lost lines: how well lines are coded that cannot wait, by how full their buffer is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from perigee.bitstream.samples import quality_of, quality_step_of

CALM, URGENT = 0.25, 0.75  # of the buffer: below and above these the quality is what was asked for, and the lowest


class QualityChange(NamedTuple):
    """From this line on lines have this quality."""

    line: int
    quality: float


class Buffered(Protocol):
    """What has a buffer."""

    @property
    def fullness(self) -> float: ...


@dataclass
class Pace:
    """Chooses qualities of at least ``lowest``; ``changes`` records every one."""

    source: Buffered
    lowest: float
    changes: list[QualityChange] = field(default_factory=list)
    _last: int | None = None

    @property
    def calm(self) -> bool:
        """Whether there is time for everything."""
        return self.source.fullness <= CALM

    def quality_step(self, asked: int, line: int) -> int:
        """The quality step of the strip that begins at a line, where ``asked`` is the one that was asked for."""
        share = min(max((self.source.fullness - CALM) / (URGENT - CALM), 0.0), 1.0)
        step = round(asked - share * max(asked - quality_step_of(self.lowest), 0))
        if step != (asked if self._last is None else self._last):
            self.changes.append(QualityChange(line, quality_of(step)))
        self._last = step
        return step
