"""Tiles of an image source, at full size and reduced, made when they are asked for and kept as long as there is room.

At full size what is decoded are the windows of ``ground-decode``, so that the samples are the same. Reduced tiles are quick looks where the
source can give them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from perigee.bitstream.arrays import Samples
from perigee.bitstream.errors import TooLargeError
from perigee.ground.regions import Region
from perigee.ground.source import Decoded, ImageSource
from perigee.ground.views import SCALES, View, blocks_of, reduce_block

CACHE_BYTES = 256 << 20
DEEPEST = len(SCALES) - 1  # the level of the smallest scale that is made of the source itself
Key = tuple[int, int, int]


class Cache:
    """What was made last, by key, up to so many bytes. Several threads may use it."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit, self._lock = limit_bytes, threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], Decoded] = OrderedDict()
        self.bytes = 0

    def get(self, key: tuple[object, ...]) -> Decoded | None:
        """What was kept under a key, if it still is."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: tuple[object, ...], block: Decoded) -> None:
        """Keep a block, and drop others that were not asked for as lately."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = block
                self.bytes += _size(block)
            while (
                self.bytes > self._limit and len(self._kept) > 1
            ):  # a single one stays, however large: it is what is being read
                _, dropped = self._kept.popitem(last=False)
                self.bytes -= _size(dropped)

    def forget(self, owner: object) -> None:
        """Drop all blocks whose key begins with ``owner``."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == owner]:
                self.bytes -= _size(self._kept.pop(key))


def _forget(source: ImageSource) -> None:
    """Let go of the latents that a decoded stream keeps for its next window, which is elsewhere."""
    forget: Callable[[], None] | None = getattr(source, "forget", None)
    if forget is not None:
        forget()


def _size(block: Decoded) -> int:
    return block.samples.nbytes + block.valid.nbytes + (0 if block.alpha is None else block.alpha.nbytes)


class Tiles:
    """Square tiles of a source. Level 0 is its full size, each further one half as large, until one tile holds everything."""

    def __init__(
        self,
        source: ImageSource,
        side: int,
        windows: Callable[[Region], list[Region]],
        overview: ImageSource | None = None,
        cache: Cache | None = None,
        owner: object = None,
        samples_most: int | None = None,
    ) -> None:
        """``windows`` are those in which the source is decoded where a region is touched; ``overview`` gives the reduced levels, of which a tile may
        be made of ``samples_most`` samples of the source."""
        self.source, self.side, self._windows = source, side, windows
        self._overview = overview or source
        self._cache, self._owner = cache or Cache(), owner
        self._lock = threading.Lock()  # one thread decodes at a time
        self._samples_most = samples_most
        self.windows_decoded = 0
        self.levels = [(source.height, source.width)]
        while max(self.levels[-1]) > side:
            rows, cols = self.levels[-1]
            self.levels.append((-(-rows // 2), -(-cols // 2)))

    def extent(self, level: int, row: int, col: int) -> Region:
        """What a tile holds, in the pixels of its level."""
        rows, cols = self.levels[level]
        return Region(row * self.side, col * self.side, self.side, self.side).intersection(Region(0, 0, rows, cols))

    def alone(self) -> threading.Lock:
        """A lock for whoever uses the source beside the tiles."""
        return self._lock

    def tile(self, level: int, row: int, col: int) -> Decoded:
        """A tile, which may be smaller at the far edges. Raises TooLargeError, and what the source raises."""
        samples = self.extent(level, row, col).pixels * 4**level * self.source.bands
        if self._samples_most is not None and level and samples > self._samples_most:
            raise TooLargeError(
                f"a tile of level {level} is made of {samples} samples; accepted are up to {self._samples_most}: ask for a lower level",
                field="level",
                expected=f"at most {self._samples_most} samples",
                found=samples,
            )
        key = (self._owner, "tile", level, row, col)
        found = self._cache.get(key)
        if found is None:
            with self._lock:
                found = self._cache.get(key) or self._made(level, row, col)
                if level:
                    self._cache.put(key, found)
        return found

    def _made(self, level: int, row: int, col: int) -> Decoded:
        extent = self.extent(level, row, col)
        bands = tuple(range(self.source.bands))
        if level == 0:
            parts = [(window, self._window(window)) for window in self._windows(extent)]
            return _assembled(parts, extent, self.source)
        if level <= DEEPEST:
            factor = SCALES[level]
            whole = Region(0, 0, self.source.height, self.source.width)
            view = View(extent.times(factor).intersection(whole), bands, factor)
            blocks = [(Region(at.top + extent.top, at.left + extent.left, at.rows, at.cols), block)
                      for at, block in blocks_of(self._overview, view)]  # fmt: skip
            _forget(self._overview)
            return _assembled(blocks, extent, self.source)
        finer = Region(2 * extent.top, 2 * extent.left, 2 * extent.rows, 2 * extent.cols)
        rows, cols = self.levels[level - 1]
        finer = finer.intersection(Region(0, 0, rows, cols))
        places = finer.blocks(self.side)
        parts = []
        for r in range(places.top, places.bottom):
            for c in range(places.left, places.right):
                key = (self._owner, "tile", level - 1, r, c)
                tile = self._cache.get(key) or self._made(level - 1, r, c)
                self._cache.put(key, tile)
                parts.append((self.extent(level - 1, r, c), tile))
        return reduce_block(self.source, _assembled(parts, finer, self.source), 2)

    def _window(self, window: Region) -> Decoded:
        """A window at full size."""
        key = (self._owner, "window", *window)
        found = self._cache.get(key)
        if found is None:
            found = _assembled(list(self.source.blocks(window)), window, self.source)
            _forget(self.source)
            self.windows_decoded += 1
            self._cache.put(key, found)
        return found


def _assembled(parts: list[tuple[Region, Decoded]], region: Region, source: ImageSource) -> Decoded:
    """One block of what parts hold of a region."""
    samples = np.zeros((source.bands, region.rows, region.cols), source.dtype)
    valid = np.zeros(samples.shape, bool)
    alpha: Samples | None = None
    for place, block in parts:
        common = place.intersection(region)
        here, there = common.within(region), common.within(place)
        samples[(slice(None), *here)] = block.samples[(slice(None), *there)]
        valid[(slice(None), *here)] = block.valid[(slice(None), *there)]
        if block.alpha is not None:
            alpha = np.zeros(samples.shape[1:], block.alpha.dtype) if alpha is None else alpha
            alpha[here] = block.alpha[there]
    return Decoded(samples, valid, alpha)
