"""A JPEG 2000, JPEG or TIFF file as an image source, with its georeferencing.

The satellite reads GeoTIFFs by its own code (``onboard/raster.py``); here GDAL decodes, because the ground has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Compression, MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

import perigee
from perigee.bitstream.arrays import BoolArray, Samples
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.samples import DTYPE_RANGE, keep_from_nodata, sample_range
from perigee.engines.coding import CODESTREAM, JPEG, JPEG2000, SIGNATURE, coding_of
from perigee.ground.products import GDAL_ERRORS
from perigee.ground.regions import Region
from perigee.ground.source import Decoded, Report, acquisition_tags, source_tags
from perigee.support.files import check_regular

# GDAL's driver by how a file begins. No other: some of its formats name further files to open.
DRIVERS = (
    (CODESTREAM, "JP2OpenJPEG"), (SIGNATURE, "JP2OpenJPEG"), (b"\xff\xd8\xff", "JPEG"),
    *((begin, "GTiff") for begin in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)  # fmt: skip
WITHIN_TIFF = {Compression.jpeg: JPEG, Compression.jpeg2000: JPEG2000}
BANDS_MAX = 32
BLOCK_PX = 1024  # on the side of what is read at once
REFUSED = {
    ColorInterp.palette: "a palette",
    ColorInterp.cyan: "CMYK",
    ColorInterp.black: "CMYK",
    ColorInterp.Y: "YCbCr",
}


class CodedFile:
    """A file as an image source; ``coding`` says how it was coded. It is opened for each reading, so that threads may share it."""

    def __init__(self, path: Path) -> None:
        """Raises RasterError for what is no image or none of one to 32 bands of uint8, uint16 or int16, and OSError."""
        check_regular(path)
        self._path = path
        with path.open("rb") as head:
            begin = head.read(16)
        drivers = [driver for magic, driver in DRIVERS if begin.startswith(magic)]
        if not drivers:
            raise RasterError(f"{path}: neither JPEG 2000 nor JPEG nor TIFF", Fault.KIND, field="file")
        self._driver = drivers[0]
        self.report = Report()
        with self._open() as file:
            self._check(file)
            alpha = [i for i, shown in enumerate(file.colorinterp) if shown == ColorInterp.alpha]
            self._alpha = alpha[0] if alpha else None
            self._places = [i for i in range(file.count) if i != self._alpha]
            self.width, self.height = file.width, file.height
            self.bands, self.dtype = len(self._places), file.dtypes[0]
            self.metadata = _metadata_of(file, self._alpha)
            inner = WITHIN_TIFF.get(file.compression)
        coding = coding_of(path, self.width * self.height)
        self.coding = replace(coding, codec=inner) if coding.codec is None else coding

    def _open(self) -> DatasetReader:
        try:
            return rasterio.open(self._path, driver=self._driver)
        except GDAL_ERRORS as error:
            raise RasterError(f"{self._path}: cannot be read as an image ({error})", Fault.UNREADABLE) from error

    def _check(self, file: DatasetReader) -> None:
        kinds = set(file.dtypes)
        odd = [REFUSED[shown] for shown in file.colorinterp if shown in REFUSED]
        if (
            file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK"
        ):  # which GDAL would turn into red, green and blue
            odd = ["CMYK"]
        if odd or len(kinds) != 1 or not kinds <= set(DTYPE_RANGE) or not 1 <= file.count <= BANDS_MAX:
            found = odd[0] if odd else f"{file.count} bands of {', '.join(sorted(kinds))}"
            raise RasterError(
                f"{self._path}: {found}; accepted are 1 to {BANDS_MAX} bands of {', '.join(DTYPE_RANGE)}, no palette and no CMYK",
                Fault.KIND,
                field="bands",
                expected=f"1 to {BANDS_MAX} bands of {', '.join(DTYPE_RANGE)}",
                found=found,
            )

    @property
    def incomplete(self) -> bool:
        """Whether parts may have no data although nothing declares it: never."""
        return False

    @property
    def has_gaps(self) -> bool:
        """Whether some samples may be invalid."""
        return self.metadata.masked or self.metadata.nodata is not None

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """The image or a region of it in blocks, row by row; ``bands`` counts from 0 (None: all). Raises RasterError."""
        whole = region or Region(0, 0, self.height, self.width)
        chosen = [self._places[b] + 1 for b in (range(self.bands) if bands is None else bands)]
        with self._open() as file:
            for top in range(whole.top, whole.bottom, BLOCK_PX):
                for left in range(whole.left, whole.right, BLOCK_PX):
                    rows, cols = min(BLOCK_PX, whole.bottom - top), min(BLOCK_PX, whole.right - left)
                    yield Region(top, left, rows, cols), self._read(file, Window(left, top, cols, rows), chosen)

    def _read(self, file: DatasetReader, window: Window, chosen: list[int]) -> Decoded:
        try:
            samples = file.read(chosen, window=window)
            valid = file.read_masks(chosen, window=window) > 0 if self.has_gaps else np.ones(samples.shape, bool)
            alpha = None if self._alpha is None else file.read(self._alpha + 1, window=window)
        except GDAL_ERRORS as error:
            raise RasterError(f"{self._path}: its pixels cannot be decoded ({error})", Fault.PIXEL_DATA) from error
        return Decoded(samples, valid, alpha)

    def overview(self, bands: Sequence[int]) -> tuple[Samples, BoolArray]:
        """Bands (from 0) of the whole image, reduced to at most 1024 pixels on the side, and their validity: [band, row, col]. Raises RasterError."""
        reduction = max(1, -(-max(self.width, self.height) // BLOCK_PX))
        shape = (len(bands), -(-self.height // reduction), -(-self.width // reduction))
        chosen = [self._places[b] + 1 for b in bands]
        with self._open() as file:
            try:
                samples = file.read(chosen, out_shape=shape)
                valid = file.read_masks(chosen, out_shape=shape) > 0 if self.has_gaps else np.ones(shape, bool)
            except GDAL_ERRORS as error:
                raise RasterError(f"{self._path}: its pixels cannot be decoded ({error})", Fault.PIXEL_DATA) from error
        return samples, valid

    def settle(self, samples: Samples, valid: BoolArray) -> None:
        """Give invalid samples the fill value, in place, and keep valid ones from looking like nodata."""
        nodata = self.metadata.nodata
        if nodata is not None:
            keep_from_nodata(samples, valid, int(nodata), sample_range(self.dtype, self.metadata.nbits)[1])
        samples[~valid] = 0 if nodata is None else int(nodata)

    def provenance(self) -> dict[str, str]:
        """Tags that say how the file was coded."""
        found = self.coding
        coded = {} if found.codec is None else {"PERIGEE_SOURCE_CODEC": found.codec}
        return {
            "PERIGEE_SOFTWARE": f"perigee {perigee.__version__}",
            **coded,
            "PERIGEE_SOURCE_BITS_PER_PIXEL": f"{found.bits_per_pixel:.4g}",
            **acquisition_tags(self.metadata),
            **source_tags(self.metadata),
        }


def _metadata_of(file: DatasetReader, alpha: int | None) -> Metadata:
    """What a file says beside its pixels, as far as GDAL reads it."""
    crs = file.crs or file.gcps[1]
    code = crs.to_epsg() if crs else None
    points = tuple((p.col, p.row, p.x, p.y, p.z or 0.0) for p in file.gcps[0])
    plain = file.transform.is_identity or bool(points)
    nodata = file.nodata
    if nodata is not None and not (np.isfinite(nodata) and nodata == int(nodata)):
        nodata = None
    masked = nodata is None and any(
        MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in file.mask_flag_enums
    )
    scales = tuple(zip(file.scales, file.offsets, strict=True))
    return Metadata(
        epsg=code,
        crs_wkt=crs.to_wkt() if crs and code is None else None,
        transform=None if plain else tuple(file.transform)[:6],
        gcps=points,
        pixel_is_point=file.tags().get("AREA_OR_POINT") == "Point",
        nodata=nodata,
        masked=masked,
        alpha_band=alpha,
        scales=scales if any(pair != (1.0, 0.0) for pair in scales) else (),
        band_names=tuple(name or "" for name in file.descriptions) if any(file.descriptions) else (),
    )
