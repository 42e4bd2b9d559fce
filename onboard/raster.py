"""Windows out of a GeoTIFF, with what is valid in them; bounded memory, never the whole scene.

Samples come as [band, row, col] in the file's type, validity as bool of the same shape. Invalid is what the file declares
so: its nodata value, its mask page, a zero in its alpha band. A kind of image that cannot be coded as light is refused
with a RasterError that says what would be accepted.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import tifffile

from perigee.bitstream.arrays import Samples
from perigee.bitstream.errors import PerigeeError, RasterError
from perigee.bitstream.metadata import Metadata
from perigee.onboard.geotiff import dtype_name, source_metadata
from perigee.onboard.source import SourceInfo, Window

ACCEPTED = "accepted are GeoTIFFs of 1 to 32 bands of uint8, uint16 or int16, grey or colour, not palette"
SEGMENT_MAX_BYTES = 1 << 30
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised; one line a bad file is ours to print
CACHE_MAX_BYTES = 1 << 29
REDUCED, MASK_SUBFILE = 1, 4
PAGES_MAX = 64
MINISBLACK, RGB, YCBCR = 1, 2, 6
JPEG = (6, 7)  # compressions


class _PageReader:
    """Windows of one TIFF page through its strips or tiles; keeps the segments of the current rows of patches."""

    def __init__(self, page: tifffile.TiffPage) -> None:
        self._page = page
        self._separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
        self._cache: dict[int, tuple[int, int, int, Samples]] = {}
        length = page.tilelength if page.is_tiled else page.rowsperstrip
        self._rows = min(int(length), page.imagelength)
        self._cols = int(page.tilewidth) if page.is_tiled else page.imagewidth
        self._grid = (-(-page.imagelength // self._rows), -(-page.imagewidth // self._cols))
        if self._rows * self._cols * page.samplesperpixel * np.dtype(dtype_name(page)).itemsize > SEGMENT_MAX_BYTES:
            raise RasterError(f"a strip or tile of {self._rows}x{self._cols} pixels; accepted are up to 1 GiB")
        tables = page.jpegtables
        self._decode = {} if tables is None else {"jpegtables": tables}
        needed = self._grid[0] * self._grid[1] * (page.samplesperpixel if self._separate else 1)
        if len(page.dataoffsets) < needed or len(page.databytecounts) < needed:
            raise RasterError(f"the file lists {len(page.dataoffsets)} strips or tiles, its size needs {needed}")

    def _segment(self, index: int) -> tuple[int, int, int, Samples]:
        """First plane, row and column of a segment and its samples [row, col, sample]."""
        known = self._cache.get(index)
        if known is not None:
            return known
        page = self._page
        handle = page.parent.filehandle
        size = page.databytecounts[index]
        data: bytes | None = None
        if size:
            handle.seek(page.dataoffsets[index])
            data = handle.read(size)
            if len(data) < size:
                raise RasterError(f"the file ends inside strip or tile {index}")
        array, (plane, _, row, col, _), _ = page.decode(data, index, **self._decode)
        per_plane = self._grid[0] * self._grid[1]
        if array is None:  # sparse: the position must be worked out
            plane, place = divmod(index, per_plane) if self._separate else (0, index)
            row, col = (n * s for n, s in zip(divmod(place, self._grid[1]), (self._rows, self._cols), strict=True))
            shape = (min(self._rows, page.imagelength - row), min(self._cols, page.imagewidth - col))
            samples = 1 if self._separate else page.samplesperpixel
            fill = np.asarray(page.nodata if page.nodata is not None else 0, page.dtype)
            array = np.broadcast_to(fill, (1, *shape, samples))
        found = (int(plane), int(row), int(col), array[0])
        if sum(part[3].nbytes for part in self._cache.values()) + found[3].nbytes > CACHE_MAX_BYTES:
            self._cache.clear()
        self._cache[index] = found
        return found

    def read(self, top: int, left: int, rows: int, cols: int) -> Samples:
        """[sample, row, col] of a window inside the image."""
        page = self._page
        out = np.zeros((page.samplesperpixel, rows, cols), dtype_name(page))
        first_row, last_row = top // self._rows, (top + rows - 1) // self._rows
        first_col, last_col = left // self._cols, (left + cols - 1) // self._cols
        per_plane = self._grid[0] * self._grid[1]
        self._cache = {i: s for i, s in self._cache.items() if first_row <= i % per_plane // self._grid[1]}
        for plane in range(page.samplesperpixel if self._separate else 1):
            for row in range(first_row, last_row + 1):
                for col in range(first_col, last_col + 1):
                    start, r, c, data = self._segment(plane * per_plane + row * self._grid[1] + col)
                    r0, r1 = max(r, top), min(r + data.shape[0], top + rows)
                    c0, c1 = max(c, left), min(c + data.shape[1], left + cols)
                    part = data[r0 - r : r1 - r, c0 - c : c1 - c].transpose(2, 0, 1)
                    out[start : start + len(part), r0 - top : r1 - top, c0 - left : c1 - left] = part
        return out


class Raster:
    """An open GeoTIFF. Raises RasterError for what cannot be read or must not be coded as light."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = tifffile.TiffFile(path)
        except OSError as error:
            if isinstance(error, (tifffile.TiffFileError,)) or error.errno is None:
                raise RasterError(f"not a readable TIFF ({error}); {ACCEPTED}") from error
            raise
        except Exception as error:  # tifffile raises many kinds on broken headers
            raise RasterError(f"not a readable TIFF ({error}); {ACCEPTED}") from error
        self._sidecar: tifffile.TiffFile | None = None
        try:
            self._open(path)
        except PerigeeError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise RasterError(f"the TIFF's tags are broken ({type(error).__name__}: {error}); {ACCEPTED}") from error

    def _open(self, path: Path) -> None:
        page = self._file.pages.first
        self._page = page
        problem = _refusal(page)
        if problem:
            raise RasterError(f"{problem}; {ACCEPTED}")
        others = [int(p.aspage().subfiletype) for p in self._file.pages[1:PAGES_MAX]]
        if int(page.subfiletype) & (REDUCED | MASK_SUBFILE) or any(
            not kind & (REDUCED | MASK_SUBFILE) for kind in others
        ):
            raise RasterError(
                "several images in one file, or a reduced one first; accepted is one image, with overviews and a mask"
            )
        extra = [int(kind) for kind in page.extrasamples]
        first_extra = page.samplesperpixel - len(extra)
        alphas = [first_extra + i for i, kind in enumerate(extra) if kind in (1, 2)]
        if len(alphas) > 1:
            raise RasterError(f"{len(alphas)} alpha bands; accepted is one")
        self._alpha = alphas[0] if alphas else None
        bands = page.samplesperpixel - len(alphas)
        if not 1 <= bands <= 32:
            raise RasterError(f"{bands} bands beside alpha; {ACCEPTED}")
        self.info = SourceInfo(page.imagewidth, page.imagelength, bands, dtype_name(page))
        self._reader = _PageReader(page)
        self._mask = self._mask_reader(path)
        self.metadata: Metadata = source_metadata(page, bands, self._alpha, self._mask is not None)
        self._nodata = self.metadata.nodata

    def _mask_reader(self, path: Path) -> _PageReader | None:
        page = self._page
        candidates = [p for p in self._file.pages if p is not page and int(getattr(p, "subfiletype", 0)) & MASK_SUBFILE]
        sidecar = path.with_name(path.name + ".msk")
        if not candidates and sidecar.exists():
            self._sidecar = tifffile.TiffFile(sidecar)
            candidates = [self._sidecar.pages.first]
            if self._sidecar.pages.first.samplesperpixel != 1:
                raise RasterError("a mask file with a mask a band; accepted is one mask")
        for candidate in candidates:
            whole = candidate.aspage()
            if (whole.imagewidth, whole.imagelength) == (page.imagewidth, page.imagelength):
                return _PageReader(whole)
        return None

    def read(self, top: int, left: int, rows: int, cols: int) -> Window:
        """A window inside the image. Raises RasterError where the pixel data are broken."""
        try:
            samples = self._reader.read(top, left, rows, cols)
            mask = None if self._mask is None else self._mask.read(top, left, rows, cols)
        except RasterError:
            raise
        except Exception as error:  # codecs raise their own kinds
            raise RasterError(f"the pixel data are broken near row {top}, column {left} ({error})") from error
        alpha = None
        if self._alpha is not None:
            alpha = samples[self._alpha]
            samples = np.delete(samples, self._alpha, axis=0)
        valid = np.ones(samples.shape, bool)
        if self._nodata is not None and mask is None:  # as in GDAL, a mask speaks for itself
            valid &= samples != self._nodata
        if mask is not None:
            valid &= mask[:1] != 0
        if alpha is not None:
            valid &= (alpha != 0)[None]
        return Window(samples, valid, alpha)

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        if self._sidecar is not None:
            self._sidecar.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refusal(page: tifffile.TiffPage) -> str | None:
    """Why a page must not be coded, or None."""
    if page.dtype is None or page.imagewidth < 1 or page.imagelength < 1:
        return "the first page has no image"
    photometric = int(page.photometric)
    if photometric == 3 or page.colormap is not None:
        return "a palette image: its values are classes, not light"
    if photometric not in (MINISBLACK, RGB, YCBCR):
        return f"photometric interpretation {photometric} ({getattr(page.photometric, 'name', 'unknown')})"
    name = dtype_name(page)
    if name not in ("uint8", "uint16", "int16"):
        return f"samples of type {name}"
    if photometric == YCBCR and int(page.compression) not in JPEG:
        return "YCbCr samples that are not JPEG"
    if isinstance(page.bitspersample, int) and page.bitspersample < 8:
        return f"samples of {page.bitspersample} bits"
    if page.imagedepth > 1:
        return "a volume"
    return None
