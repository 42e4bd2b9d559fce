"""Windows of one page of a TIFF, strip by strip or tile by tile, as GDAL's TIFF library reads them.

tifffile parses the file and imagecodecs decodes the data; where GDAL's library decides otherwise than they do, its rule counts:
a predictor applies only to the compressions that have one, and a strip or tile is sparse only where its offset is zero too.
"""

from __future__ import annotations

import numpy as np
import tifffile

from perigee.bitstream.arrays import Samples
from perigee.bitstream.errors import Fault, RasterError
from perigee.onboard.geotiff import dtype_name

SEGMENT_MAX_BYTES = 1 << 30
CACHE_MAX_BYTES = 1 << 29
PREDICTED = (5, 8, 32946, 34925, 50000)  # LZW, Deflate (two numbers), LZMA, ZSTD: compressions that have a predictor
Segment = tuple[int, int, int, Samples]


class PageReader:
    """Windows of one TIFF page; it keeps the strips or tiles of the current rows of patches."""

    def __init__(self, page: tifffile.TiffPage, fill: float = 0) -> None:
        """``fill`` is the value of sparse strips and tiles. Raises RasterError for a layout that cannot be read."""
        self._page, self._fill = page, fill
        if int(page.compression) not in PREDICTED:
            page.predictor = 1
        self._separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
        self._cache: dict[int, Segment] = {}
        length = int(page.tilelength if page.is_tiled else page.rowsperstrip)
        self._rows = min(length, page.imagelength)
        self._cols = int(page.tilewidth) if page.is_tiled else page.imagewidth
        if self._rows < 1 or self._cols < 1:
            raise RasterError(
                f"strips or tiles of {length} rows and {self._cols} columns",
                Fault.RANGE,
                field="strip or tile",
                expected="at least one row and column",
                found=f"{length}x{self._cols}",
            )
        self._grid = (-(-page.imagelength // self._rows), -(-page.imagewidth // self._cols))
        size = self._rows * self._cols * page.samplesperpixel * np.dtype(dtype_name(page)).itemsize
        if size > SEGMENT_MAX_BYTES:
            raise RasterError(
                f"a strip or tile of {self._rows}x{self._cols} pixels; accepted are up to 1 GiB",
                Fault.LIMIT,
                field="strip or tile",
                expected=f"at most {SEGMENT_MAX_BYTES} bytes",
                found=size,
            )
        tables = page.jpegtables
        self._decode = {} if tables is None else {"jpegtables": tables}
        needed = self._grid[0] * self._grid[1] * (page.samplesperpixel if self._separate else 1)
        listed = min(len(page.dataoffsets), len(page.databytecounts))
        if listed < needed:
            raise RasterError(
                f"the file lists {listed} strips or tiles, its size needs {needed}",
                Fault.COUNT,
                field="strips or tiles",
                expected=needed,
                found=listed,
            )

    def _sparse(self, index: int) -> Segment:
        """A strip or tile that is not in the file: filled with the nodata value, or 0."""
        page = self._page
        plane, place = divmod(index, self._grid[0] * self._grid[1]) if self._separate else (0, index)
        row, col = (n * s for n, s in zip(divmod(place, self._grid[1]), (self._rows, self._cols), strict=True))
        shape = (min(self._rows, page.imagelength - row), min(self._cols, page.imagewidth - col))
        samples = 1 if self._separate else page.samplesperpixel
        return plane, row, col, np.broadcast_to(np.asarray(self._fill, dtype_name(page)), (*shape, samples))

    def _segment(self, index: int) -> Segment:
        """First plane, row and column of a strip or tile and its samples [row, col, sample]."""
        known = self._cache.get(index)
        if known is not None:
            return known
        page = self._page
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if not offset and not size:
            found = self._sparse(index)
        elif not offset or not size:
            raise RasterError(
                f"strip or tile {index} has offset {offset} and {size} bytes; both are zero where it is left out, else neither",
                Fault.PIXEL_DATA,
                field=f"strip or tile {index}",
                expected="an offset and a byte count",
                found=f"offset {offset}, {size} bytes",
            )
        else:
            handle = page.parent.filehandle
            handle.seek(offset)
            data = handle.read(size)
            if len(data) < size:
                raise RasterError(
                    f"the file ends inside strip or tile {index}",
                    Fault.ENDS_EARLY,
                    field=f"strip or tile {index}",
                    expected=size,
                    found=len(data),
                    offset_bytes=offset,
                )
            array, (plane, _, row, col, _), _ = page.decode(data, index, **self._decode)
            if array is None:
                raise RasterError(f"strip or tile {index} is empty", Fault.PIXEL_DATA, field=f"strip or tile {index}")
            found = (int(plane), int(row), int(col), array[0])
        if sum(part[3].nbytes for part in self._cache.values()) + found[3].nbytes > CACHE_MAX_BYTES:
            self._cache.clear()
        self._cache[index] = found
        return found

    def read(self, top: int, left: int, rows: int, cols: int) -> Samples:
        """[sample, row, col] of a window inside the image. Raises RasterError, and whatever a codec raises."""
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
        bottom, right = (
            top + rows,
            left + cols,
        )  # windows follow from left to right, so what ends in this one is done with
        self._cache = {
            i: s for i, s in self._cache.items() if s[1] + s[3].shape[0] > bottom or s[2] + s[3].shape[1] > right
        }
        return out
