"""Overlapped windows at absolute places of a scene, and noise that belongs to places: no result depends on a request's size.

Windows stand on a grid of ``STRIDE`` pixels from the scene's corner; each pixel is a weighted mean of the windows over it,
with weights that fall linearly in the overlap. Noise comes from a counter-based generator whose counter is the place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STRIDE = 192  # pixels, of windows of 256
NOISE_BLOCK = 32  # elements on the side of what one state of the generator makes
FloatArray = npt.NDArray[np.float32]


class Window(NamedTuple):
    """A window's place in the grid."""

    row: int
    col: int


class Grid:
    """Windows of ``side`` pixels over a scene of ``rows`` x ``cols``; the last ones may reach beyond it."""

    def __init__(self, rows: int, cols: int, side: int) -> None:
        self.rows, self.cols, self.side = rows, cols, side
        self.shape = tuple(1 + max(0, -(-(n - side) // STRIDE)) for n in (rows, cols))

    def over(self, top: int, left: int, rows: int, cols: int, rings: int = 0) -> list[Window]:
        """Windows that touch a rectangle, and ``rings`` more around them."""
        ranges = []
        for start, length, count in ((top, rows, self.shape[0]), (left, cols, self.shape[1])):
            first = max(0, -(-(start - self.side + 1) // STRIDE)) - rings
            last = (start + length - 1) // STRIDE + rings
            ranges.append(range(max(first, 0), min(last, count - 1) + 1))
        return [Window(r, c) for r in ranges[0] for c in ranges[1]]

    def _around(self, windows: Iterable[Window], rings: int) -> list[range]:
        chosen = list(windows)
        rows, cols = ([w[i] for w in chosen] for i in (0, 1))
        return [
            range(max(min(v) - rings, 0), min(max(v) + rings, n - 1) + 1)
            for v, n in zip((rows, cols), self.shape, strict=True)
        ]

    def around(self, windows: Iterable[Window], rings: int) -> list[Window]:
        """Windows in the rectangle of the given ones, with ``rings`` more on each side."""
        rows, cols = self._around(windows, rings)
        return [Window(r, c) for r in rows for c in cols]

    def count_around(self, windows: Iterable[Window], rings: int) -> int:
        """How many :meth:`around` gives."""
        rows, cols = self._around(windows, rings)
        return len(rows) * len(cols)

    def weights(self, window: Window, pixels_per_element: int = 1) -> FloatArray:
        """Weights [side / pixels_per_element, side / pixels_per_element] of a window; those of all windows over a place add up to 1."""
        parts = []
        for place, count in zip(window, self.shape, strict=True):
            n, overlap = self.side // pixels_per_element, (self.side - STRIDE) // pixels_per_element
            ramp = (np.arange(overlap, dtype=np.float32) + np.float32(0.5)) / np.float32(overlap)
            line = np.ones(n, np.float32)
            if place > 0:
                line[:overlap] = ramp
            if place < count - 1:
                line[n - overlap :] = 1 - ramp
            parts.append(line)
        return parts[0][:, None] * parts[1][None]


def noise_at(seed: int, group: int, top: int, left: int, shape: tuple[int, int, int]) -> FloatArray:
    """Standard normal noise [C, rows, cols] at a place of z, or of texture: the same at the same place, whatever rectangle is asked for."""
    channels, rows, cols = shape
    out = np.empty(shape, np.float32)
    for y, x in _blocks(top, left, rows, cols):
        generator = np.random.Generator(np.random.Philox(key=[seed, group], counter=[0, 0, y, x]))
        block = generator.standard_normal((channels, NOISE_BLOCK, NOISE_BLOCK), np.float32)
        r0, r1 = max(y * NOISE_BLOCK, top), min((y + 1) * NOISE_BLOCK, top + rows)
        c0, c1 = max(x * NOISE_BLOCK, left), min((x + 1) * NOISE_BLOCK, left + cols)
        inner = block[:, r0 - y * NOISE_BLOCK : r1 - y * NOISE_BLOCK, c0 - x * NOISE_BLOCK : c1 - x * NOISE_BLOCK]
        out[:, r0 - top : r1 - top, c0 - left : c1 - left] = inner
    return out


def _blocks(top: int, left: int, rows: int, cols: int) -> Iterator[tuple[int, int]]:
    for y in range(top // NOISE_BLOCK, (top + rows - 1) // NOISE_BLOCK + 1):
        for x in range(left // NOISE_BLOCK, (left + cols - 1) // NOISE_BLOCK + 1):
            yield y, x
