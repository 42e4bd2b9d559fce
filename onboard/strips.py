"""The strips of a scene: rows of patches that share their parameters, read from top to bottom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from perigee.bitstream.version2 import ComponentHeader
from perigee.onboard.source import Block, Source


class Strips:
    """A scene as one strip, or as strips of some rows of patches that are read once each and kept while they are coded."""

    def __init__(self, source: Source, header: ComponentHeader, strip_rows: int | None) -> None:
        """``strip_rows`` is the number of rows of patches of a strip; None: the whole scene is one, and read twice."""
        self._source, self._header, self._kept = source, header, strip_rows is not None
        total = header.grid[0]
        high = strip_rows or total
        self.rows = [(first, min(high, total - first)) for first in range(0, total, high)]

    def patches(self, first: int, rows: int) -> range:
        """Numbers of the patches of a strip."""
        cols = self._header.grid[1]
        return range(first * cols, (first + rows) * cols)

    def windows(self, first: int, rows: int) -> Iterable[Block]:
        """The windows of a strip's patches: kept in memory, or read again each time that they are gone through."""
        windows = _Windows(self._source, self._header, self.patches(first, rows))
        return list(windows) if self._kept else windows

    def sample(self, patches: range) -> Iterable[Block]:
        """The windows of some patches, read anew."""
        return _Windows(self._source, self._header, patches)


class _Windows:
    def __init__(self, source: Source, header: ComponentHeader, patches: range) -> None:
        self._source, self._header, self._patches = source, header, patches

    def __iter__(self) -> Iterator[Block]:
        return (self._source.read(*self._header.patch_region(patch)) for patch in self._patches)
