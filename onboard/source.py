"""Where pixels come from: a source gives its size, its metadata, and windows of samples with their validity.

A GeoTIFF (:class:`perigee.onboard.raster.Raster`) and an array in memory are sources. The encoder reads a source window by
window, so that a scene never has to be in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from perigee.bitstream.arrays import BoolArray, Samples
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.records import Bytes
from perigee.bitstream.samples import differ_from, is_value_of
from perigee.bitstream.version2 import SAMPLE_TYPE_CODES

BANDS_MAX = 32


class Block(NamedTuple):
    """Samples [band, row, col], validity bool of the same shape, alpha [row, col] where the source has one."""

    samples: Samples
    valid: BoolArray
    alpha: Samples | None


@dataclass(frozen=True)
class SourceInfo:
    """What the header of a stream needs: size in pixels, number of bands without alpha, sample type. ``classes`` says that samples are numbers of
    classes, of which no mean means anything; ``exact`` has first and last lines of what is always kept exactly."""

    width: int
    height: int
    bands: int
    dtype: str
    classes: bool = False
    exact: tuple[tuple[int, int], ...] = ()

    def is_exact(self, top: int, rows: int) -> bool:
        """Whether any of some lines has to be kept exactly."""
        return any(first < top + rows and last >= top for first, last in self.exact)


def not_light(reason: str, expected: str) -> RasterError:
    """The error of samples that are not coded as light is."""
    return RasterError(reason, Fault.KIND, field="image", expected=expected)


class Source(Protocol):
    """A scene to be encoded."""

    @property
    def info(self) -> SourceInfo: ...

    @property
    def metadata(self) -> Metadata: ...

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """A window inside the scene, in pixels. Raises RasterError where the pixel data are broken."""
        ...

    def lines_until(self, bottom: int) -> int:
        """Wait for the lines above ``bottom``, and let those go that lie above the lines that were waited for before. How many lines there are
        then: fewer where the scene has ended, which has that height from then on."""
        ...

    def keep(self, lines: int) -> None:
        """Keep so many lines more than :meth:`lines_until` says."""
        ...

    def records(self, top: int, rows: int) -> Bytes | None:
        """The records uint8 [rows, bytes] that came with lines that are there; None where none did."""
        ...


def check_bits(samples: Samples, valid: BoolArray, bits: int | None) -> None:
    """Raise RasterError where a valid sample has more bits than all are said to have: no product would hold it."""
    if bits is not None and samples.size and int(samples.max()) >> bits and (samples[valid] >> bits).any():
        raise RasterError(
            f"samples of up to {int(samples[valid].max())}, which {bits} bits cannot hold",
            Fault.RANGE,
            field="bits",
            expected=f"at most {(1 << bits) - 1}",
            found=int(samples[valid].max()),
        )


class WholeScene:
    """What a scene that is there as a whole has of :class:`Source`."""

    def lines_until(self, bottom: int) -> int:
        """All lines are there."""
        return bottom

    def keep(self, lines: int) -> None:
        """All lines stay."""

    def records(self, top: int, rows: int) -> Bytes | None:
        """There are none."""
        return None


class ArraySource(WholeScene):
    """An array in memory as a source."""

    def __init__(self, samples: Samples, metadata: Metadata | None = None, valid: BoolArray | None = None) -> None:
        """``samples`` are uint8, uint16, int16 or float32 [band, row, col], or [row, col] for one band; ``valid`` is bool of that shape or
        [row, col] for all bands, and marks samples that mean something (default: all but those of the metadata's nodata value).

        Raises RasterError for another shape or type, and for a nodata value that no sample can have.
        """
        samples = samples[None] if samples.ndim == 2 else samples
        name = samples.dtype.newbyteorder("=").name
        if (
            samples.ndim != 3
            or name not in SAMPLE_TYPE_CODES
            or not 1 <= len(samples) <= BANDS_MAX
            or not samples[0].size
        ):
            raise RasterError(
                f"an array of {name} {list(samples.shape)}; accepted are uint8, uint16, int16 and float32, [band, row, col] with 1 to "
                f"{BANDS_MAX} bands, or [row, col]",
                Fault.SHAPE,
                field="samples",
                expected=f"{', '.join(SAMPLE_TYPE_CODES)} [band, row, col]",
                found=f"{name} {list(samples.shape)}",
            )
        self._samples = samples.astype(name, copy=False)
        bands, height, width = samples.shape
        self.metadata = metadata or Metadata()
        self.info = SourceInfo(width, height, bands, name, bool(self.metadata.palette))
        nodata = self.metadata.nodata
        if nodata is not None and not is_value_of(nodata, name):
            raise RasterError(
                f"nodata {nodata} is no value of {name}", Fault.RANGE, field="nodata", expected=name, found=nodata
            )
        if valid is None:
            self._valid = np.ones(samples.shape, bool) if nodata is None else differ_from(self._samples, nodata)
        elif valid.dtype != np.bool_ or valid.shape not in (samples.shape, samples.shape[1:]):
            raise RasterError(
                f"validity of {valid.dtype} {list(valid.shape)} for samples of {list(samples.shape)}; accepted is bool of that "
                "shape, or of its rows and columns",
                Fault.SHAPE,
                field="valid",
                expected=list(samples.shape),
                found=list(valid.shape),
            )
        else:
            self._valid = np.broadcast_to(valid, samples.shape)
        check_bits(self._samples, self._valid, self.metadata.nbits)

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """A window inside the scene, in pixels."""
        window = np.s_[:, top : top + rows, left : left + cols]
        return Block(self._samples[window], self._valid[window], None)
