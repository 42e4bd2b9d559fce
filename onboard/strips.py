"""The strips of a scene: rows of patches that share their parameters, read from top to bottom as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from perigee.bitstream.records import Records
from perigee.bitstream.version2 import ComponentHeader
from perigee.onboard.source import Block, Source


class Strip(NamedTuple):
    """Some rows of patches: the first, how many, and the numbers of their patches."""

    first: int
    rows: int
    patches: range


class Strips:
    """A scene as one strip, or as strips of some rows of patches that are read once each and kept while they are coded.

    ``header`` is the scene's; once the last strip has come, its height is what came.
    """

    def __init__(self, source: Source, header: ComponentHeader, strip_rows: int | None) -> None:
        """``strip_rows`` is the number of rows of patches of a strip; None: the whole scene is one, and read twice."""
        self._source, self.header, self._high = source, header, strip_rows

    def __iter__(self) -> Iterator[Strip]:
        side, first = self.header.patch_side, 0
        high = self._high or self.header.grid[0]
        while first * side < self.header.height:
            bottom = min((first + high) * side, self.header.height)
            there = self._source.lines_until(bottom)
            if there < bottom:
                self.header = replace(self.header, height=there)
            rows = min(high, self.header.grid[0] - first)
            if rows < 1:
                return
            cols = self.header.grid[1]
            yield Strip(first, rows, range(first * cols, (first + rows) * cols))
            first += rows

    def windows(self, patches: range) -> Iterable[Block]:
        """The windows of a strip's patches: kept in memory, or read again each time that they are gone through."""
        windows = self.sample(patches)
        return windows if self._high is None else list(windows)

    def sample(self, patches: range) -> Iterable[Block]:
        """The windows of some patches, read anew each time that they are gone through."""
        return _Windows(self._source, self.header, patches)

    def records(self, strip: Strip) -> Records | None:
        """The records of a strip's lines, None where there are none."""
        side = self.header.patch_side
        top, bottom = strip.first * side, min((strip.first + strip.rows) * side, self.header.height)
        found = self._source.records(top, bottom - top)
        return None if found is None or not len(found) else Records(top, found)

    def is_exact(self, patch: int) -> bool:
        """Whether a patch has to be kept exactly."""
        top, _, rows, _ = self.header.patch_region(patch)
        return self._source.info.is_exact(top, rows)


class _Windows:
    def __init__(self, source: Source, header: ComponentHeader, patches: range) -> None:
        self._source, self._header, self._patches = source, header, patches

    def __iter__(self) -> Iterator[Block]:
        return (self._source.read(*self._header.patch_region(patch)) for patch in self._patches)
