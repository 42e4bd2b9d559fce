"""Bands that show the same ground at different lines and columns, as the detectors of a pushbroom camera do, laid onto each other.

The scene is coded in a frame that is larger than it by what the bands are apart. In the frame the bands fit, so that a spectral transform
gains what it should; the stream says where each band lies in it, and the ground takes it out again. Whole pixels are moved, no sample is
changed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.errors import Fault, MetadataError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.records import Bytes
from perigee.onboard.source import Block, Source, SourceInfo


class RegisteredSource:
    """The frame of a source as a source; samples of bands that do not reach a place are invalid there."""

    def __init__(self, source: Source, band_offsets: tuple[tuple[int, int], ...]) -> None:
        """``band_offsets`` has by how many lines and columns each band's picture of the same ground lies below and right of where the
        sensor's zero is. Raises MetadataError for a source with an alpha band, which belongs to no band's place."""
        if source.metadata.alpha_band is not None:
            raise MetadataError(
                "bands of a scene with an alpha band cannot be laid onto each other: alpha has one place alone",
                Fault.MISFIT,
                field="band_offsets",
            )
        self._source = source
        offsets = np.array(band_offsets, np.int64)
        self.places: IntArray = offsets.max(0) - offsets  # line and column of the frame at which each band begins
        self._lines, self._columns = (int(n) for n in self.places.max(0))
        source.keep(self._lines)

    @property
    def info(self) -> SourceInfo:
        """The frame."""
        info = self._source.info
        return replace(
            info,
            height=info.height + self._lines,
            width=info.width + self._columns,
            exact=tuple((first, last + self._lines) for first, last in info.exact),
        )

    def lines_until(self, bottom: int) -> int:
        """As the source's, for lines of the frame."""
        wanted = min(bottom, self._source.info.height)
        there = self._source.lines_until(wanted)
        return bottom if there == wanted else min(bottom, there + self._lines)

    def keep(self, lines: int) -> None:
        """As the source's."""
        self._source.keep(lines + self._lines)

    def records(self, top: int, rows: int) -> Bytes | None:
        """The records of the source's lines of these numbers; in the frame's last lines there are fewer."""
        return self._source.records(top, max(min(rows, self._source.info.height - top), 0))

    @property
    def metadata(self) -> Metadata:
        """As the source's."""
        return self._source.metadata

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """A window of the frame, in pixels."""
        info = self.info
        samples = np.zeros((info.bands, rows, cols), info.dtype)
        valid = np.zeros(samples.shape, bool)
        size = np.array([self._source.info.height, self._source.info.width])
        wanted = np.array([top, left]) - self.places  # of each band, in the source
        first = np.clip(wanted, 0, size)
        last = np.clip(wanted + [rows, cols], 0, size)
        there = (last > first).all(1)
        if there.any():
            begin, end = first[there].min(0), last[there].max(0)
            block = self._source.read(*begin.tolist(), *(end - begin).tolist())
            for band in np.flatnonzero(there).tolist():
                (y, x), (bottom, right) = (first[band] - begin).tolist(), (last[band] - begin).tolist()
                down, across = (first[band] - wanted[band]).tolist()
                place = np.s_[band, down : down + bottom - y, across : across + right - x]
                samples[place], valid[place] = (
                    block.samples[band, y:bottom, x:right],
                    block.valid[band, y:bottom, x:right],
                )
        return Block(samples, valid, None)
