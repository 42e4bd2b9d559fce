"""Rectangles in pixels (or in latents), and how they lie in one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Place = tuple[slice, slice]


class Region(NamedTuple):
    """A rectangle: its first row and column, and how many it has of each."""

    top: int
    left: int
    rows: int
    cols: int

    @property
    def bottom(self) -> int:
        """The row behind its last."""
        return self.top + self.rows

    @property
    def right(self) -> int:
        """The column behind its last."""
        return self.left + self.cols

    @property
    def pixels(self) -> int:
        """How many elements it holds."""
        return self.rows * self.cols

    def intersection(self, other: Region) -> Region:
        """What both have in common; with no rows or no columns where that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        rows, cols = min(self.bottom, other.bottom) - top, min(self.right, other.right) - left
        return Region(top, left, max(rows, 0), max(cols, 0))

    def within(self, outer: Region) -> Place:
        """The slices that pick this region out of an array that holds ``outer``."""
        top, left = self.top - outer.top, self.left - outer.left
        return np.s_[top : top + self.rows, left : left + self.cols]

    def grown(self, margin: int, limits: Region) -> Region:
        """The region with a margin on each side, as far as ``limits`` reaches."""
        return Region(
            self.top - margin, self.left - margin, self.rows + 2 * margin, self.cols + 2 * margin
        ).intersection(limits)

    def blocks(self, side: int) -> Region:
        """The same area, enlarged to whole blocks and counted in blocks of ``side``."""
        top, left = self.top // side, self.left // side
        return Region(top, left, -(-self.bottom // side) - top, -(-self.right // side) - left)

    def times(self, factor: int) -> Region:
        """Inverse of :meth:`blocks`: every number times ``factor``."""
        return Region(*(factor * n for n in self))


def squares_over(region: Region, side: int) -> Iterator[tuple[int, int, Place, Place]]:
    """Squares of ``side``, counted from the scene's corner, that a region touches.

    Yields row and column of the square, and where what they have in common lies in the square and in the region.
    """
    touched = region.blocks(side)
    for row in range(touched.top, touched.bottom):
        for col in range(touched.left, touched.right):
            square = Region(row * side, col * side, side, side)
            common = square.intersection(region)
            yield row, col, common.within(square), common.within(region)
