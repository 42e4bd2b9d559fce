"""A stream as a tiled GeoTIFF that exists nowhere: its bytes are made when they are read, so that every program that reads GeoTIFFs reads it.

The directories come first and name the place of each tile, at full size and of all overviews; nothing is decoded before a tile is read.
"""

from __future__ import annotations

import io
import tempfile
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perigee.bitstream.errors import PerigeeError
from perigee.ground.products import needs_mask, write_empty
from perigee.ground.regions import Region
from perigee.ground.source import Decoded, ImageSource
from perigee.ground.tiff import (
    BITS,
    COMPRESSION,
    LONG,
    PHOTOMETRIC,
    PLANAR,
    SAMPLES,
    SHORT,
    SUBFILE,
    Directory,
    Tags,
    first_directory,
    header_of,
    number,
)
from perigee.ground.tiles import Cache, Tiles
from perigee.support.files import PREFIX

SIDE = 512  # pixels of a tile: a synthesis window of 1024 holds four
SIDE_MANY = 256  # of a tile whose pixels take more than this many bytes
PIXEL_BYTES = 8
WINDOW = 1024  # pixels on the side of what is decoded where any window gives the same samples
REDUCED, MASK = 1, 4  # kinds of a directory, TIFF 6.0 page 36
MASK_TAGS = {COMPRESSION: number(SHORT, 1), PHOTOMETRIC: number(SHORT, 4), BITS: number(SHORT, 1), SAMPLES: number(SHORT, 1),
             PLANAR: number(SHORT, 1)}  # fmt: skip
SHARED = (BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, 338, 339, 320, 42113)  # tags that overviews have as well


def aligned_windows(source: ImageSource) -> Callable[[Region], list[Region]]:
    """The windows of ``ground-decode`` that touch a region: those of the source where it has its own, else squares from the scene's corner."""
    whole = Region(0, 0, source.height, source.width)
    own: Callable[[Region], list[Region]] | None = getattr(source, "windows", None)
    if own is not None:
        placed = own(whole)
        return lambda region: [window for window in placed if window.intersection(region).pixels]

    def squares(region: Region) -> list[Region]:
        touched = region.blocks(WINDOW)
        return [
            Region(row * WINDOW, col * WINDOW, WINDOW, WINDOW).intersection(whole)
            for row in range(touched.top, touched.bottom)
            for col in range(touched.left, touched.right)
        ]

    return squares


class VirtualTiff:
    """The bytes of a GeoTIFF of an image source. Several threads may read it."""

    def __init__(
        self,
        source: ImageSource,
        overview: ImageSource | None = None,
        unknown_crs: str = "refuse",
        cache: Cache | None = None,
        owner: object = None,
        samples_most: int | None = None,
    ) -> None:
        """``samples_most`` bounds what a reduced tile is made of.

        ``overview`` is a source of the same scene that makes reduced tiles sooner; ``cache`` may be shared with others, under ``owner``.

        Raises MetadataError for a CRS that is refused, and OutputError where there is no room for a temporary file of some kilobytes.
        """
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            path = Path(folder) / "empty.tif"
            self._layout = write_empty(path, source, unknown_crs)
            tags = first_directory(path)
        bands, itemsize = self._layout.count, np.dtype(source.dtype).itemsize
        side = SIDE if bands * itemsize <= PIXEL_BYTES else SIDE_MANY
        self.tiles = Tiles(source, side, aligned_windows(source), overview, cache, owner, samples_most)
        self._masked = needs_mask(source, self._layout)
        self._directories, self._kinds = self._all(tags, bands * itemsize)
        self._header, self._starts, self.size = header_of(self._directories)

    def _all(self, tags: Tags, pixel_bytes: int) -> tuple[list[Directory], list[tuple[int, bool]]]:
        """Every directory, and of each its level and whether it is a mask."""
        side = self.tiles.side
        directories, kinds = [], []
        for level, (rows, cols) in enumerate(self.tiles.levels):
            reduced = {SUBFILE: number(LONG, REDUCED)} | {tag: tags[tag] for tag in SHARED if tag in tags}
            directories.append(Directory(rows, cols, side, side * side * pixel_bytes, reduced if level else tags))
            kinds.append((level, False))
            if self._masked:
                mask = {SUBFILE: number(LONG, MASK | (REDUCED if level else 0))} | MASK_TAGS
                directories.append(Directory(rows, cols, side, side * side // 8, mask))
                kinds.append((level, True))
        return directories, kinds

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from ``offset``, fewer at the end. Raises what decoding raises."""
        end = min(offset + length, self.size)
        out = bytearray(self._header[offset:end])
        at = offset + len(out)
        while at < end:
            number = bisect_right(self._starts, at) - 1
            directory = self._directories[number]
            tile, inside = divmod(at - self._starts[number], directory.tile_bytes)
            part = self._tile(number, *divmod(tile, directory.across))[inside : inside + end - at]
            out += part
            at += len(part)
        return bytes(out)

    def _tile(self, number: int, row: int, col: int) -> bytes:
        level, is_mask = self._kinds[number]
        block, side = self.tiles.tile(level, row, col), self.tiles.side
        missing = ((0, side - block.valid.shape[1]), (0, side - block.valid.shape[2]))
        if is_mask:
            return np.packbits(np.pad(block.valid.all(0), missing), axis=1).tobytes()
        samples = self._in_places(block)
        return np.ascontiguousarray(np.pad(samples, ((0, 0), *missing)).transpose(1, 2, 0)).tobytes()

    def _in_places(self, block: Decoded) -> np.ndarray:
        """Samples and alpha [band, row, col] where the layout has them."""
        if self._layout.alpha is None:
            return block.samples
        alpha = block.opacity(self.tiles.source.metadata.nbits) if block.alpha is None else block.alpha
        out = np.empty((self._layout.count, *alpha.shape), block.samples.dtype)
        out[list(self._layout.places)], out[self._layout.alpha] = block.samples, alpha
        return out


class VirtualFile(io.RawIOBase):
    """A virtual GeoTIFF as an open file."""

    def __init__(self, tiff: VirtualTiff) -> None:
        super().__init__()
        self._tiff, self._at = tiff, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._tiff.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As of any file; raises OSError where the stream cannot be decoded."""
        try:
            out = self._tiff.read(self._at, len(buffer))
        except PerigeeError as error:
            raise OSError(str(error)) from error
        buffer[: len(out)] = out
        self._at += len(out)
        return len(out)
