"""A GeoTIFF as a source: windows with what is valid in them, in bounded memory, never the whole scene.

Invalid is what the file declares so: its nodata value, its mask, a zero in its alpha band. What GDAL reads is the measure:
samples, validity and metadata are GDAL's, or the file is refused with a RasterError that says what would be accepted.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import tifffile

from perigee.bitstream.errors import Fault, PerigeeError, RasterError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.samples import differ_from
from perigee.bitstream.version2 import FLOAT, SAMPLE_TYPE_CODES
from perigee.onboard.gdal_xml import from_tiff
from perigee.onboard.geotiff import (
    ALPHA,
    EXTRA_SAMPLES,
    GDAL_METADATA,
    TAGS_MAX_BYTES,
    Described,
    described,
    dtype_name,
    interpretations_of,
    source_metadata,
    value_of,
)
from perigee.onboard.sidecars import Siblings
from perigee.onboard.source import BANDS_MAX, Block, SourceInfo, WholeScene
from perigee.onboard.tiff import PREDICTED, PageReader

ACCEPTED = "accepted are GeoTIFFs of 1 to 32 bands of uint8, uint16, int16 or float32, grey or colour, or one of classes with a palette"
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised; one line a bad file is ours to print
REDUCED, MASK_SUBFILE = 1, 4
PAGES_MAX = 64
MINISBLACK, PALETTE, RGB, YCBCR = 1, 3, 2, 6
JPEG = (6, 7)  # compressions
CONTIGUOUS = 1  # planar configuration
ORIENTATION = 274
MASK_PER_DATASET = 2  # GDAL's flag of a mask that serves all bands


class Raster(WholeScene):
    """An open GeoTIFF. ``left_behind`` names what the file has and the stream will not carry.

    Raises RasterError for what cannot be read or must not be coded as light, MetadataError for what no stream can carry.
    """

    def __init__(self, path: Path, tags_max_bytes: int = TAGS_MAX_BYTES) -> None:
        """``tags_max_bytes`` bounds what the tags of dataset and bands may take in the stream; 0 leaves them behind."""
        try:
            self._file = tifffile.TiffFile(path)
        except OSError as error:
            if isinstance(error, (tifffile.TiffFileError,)) or error.errno is None:
                raise RasterError(f"not a readable TIFF ({error}); {ACCEPTED}", Fault.UNREADABLE) from error
            raise
        except Exception as error:  # tifffile raises many kinds on broken headers
            raise RasterError(f"not a readable TIFF ({error}); {ACCEPTED}", Fault.UNREADABLE) from error
        self._sidecar: tifffile.TiffFile | None = None
        try:
            self._open(path, tags_max_bytes)
        except (PerigeeError, OSError):
            self.close()
            raise
        except Exception as error:
            self.close()
            raise RasterError(
                f"the TIFF's tags are broken ({type(error).__name__}: {error}); {ACCEPTED}", Fault.UNREADABLE
            ) from error

    def _open(self, path: Path, tags_max_bytes: int) -> None:
        page = self._file.pages.first
        self._page = page
        _check_page(page)
        self._check_others()
        found = described(page, path)
        self._alpha = self._alpha_of(found)
        bands = page.samplesperpixel - (self._alpha is not None)
        if not 1 <= bands <= BANDS_MAX:
            raise RasterError(
                f"{bands} bands beside alpha; {ACCEPTED}",
                Fault.KIND,
                field="bands",
                expected=f"1 to {BANDS_MAX}",
                found=bands,
            )
        classes = page.colormap is not None
        self.info = SourceInfo(page.imagewidth, page.imagelength, bands, dtype_name(page), classes)
        self._mask = self._mask_reader(path, found)
        self.metadata: Metadata = source_metadata(page, found, self._alpha, self._mask is not None, tags_max_bytes)
        self.left_behind = found.left_behind
        self._nodata = self.metadata.nodata
        self._reader = PageReader(page, 0 if self._nodata is None else self._nodata)

    def _check_others(self) -> None:
        """Refuse a file whose first page is not the one image in it."""
        others = [int(p.aspage().subfiletype) for p in self._file.pages[1:PAGES_MAX]]
        if int(self._page.subfiletype) & (REDUCED | MASK_SUBFILE) or any(
            not kind & (REDUCED | MASK_SUBFILE) for kind in others
        ):
            raise RasterError(
                "several images in one file, or a reduced one first; accepted is one image, with overviews and a mask",
                Fault.KIND,
                field="pages",
                expected="one image",
            )

    def _alpha_of(self, found: Described) -> int | None:
        shown = interpretations_of(self._page, found.gdal)
        alphas = [i for i, name in enumerate(shown) if name == ALPHA]
        if alphas and (self._page.colormap is not None or dtype_name(self._page) == FLOAT):
            raise RasterError(f"an alpha band beside floats or a palette; {ACCEPTED}", Fault.KIND, field="alpha")
        if len(alphas) > 1:
            raise RasterError(
                f"{len(alphas)} alpha bands; accepted is one",
                Fault.KIND,
                field="alpha",
                expected="one",
                found=len(alphas),
            )
        return alphas[0] if alphas else None

    def _mask_reader(self, path: Path, found: Described) -> PageReader | None:
        """The reader of the mask that GDAL would use: a page of the file, or the file ``.msk`` beside it."""
        page = self._page
        pages = [p.aspage() for p in (*self._file.pages[1:PAGES_MAX], *(page.pages or ())[:PAGES_MAX])]
        inside = [p for p in pages if int(p.subfiletype) & (REDUCED | MASK_SUBFILE) == MASK_SUBFILE]
        size = (page.imagewidth, page.imagelength)
        fitting = [p for p in inside if (p.imagewidth, p.imagelength) == size]
        beside = Siblings(path).find(path.name + ".msk")
        if beside is not None:
            if fitting:
                raise RasterError(
                    f"a mask in the file and another one in {beside.name}; accepted is one of them",
                    Fault.AMBIGUOUS,
                    field="mask",
                )
            self._sidecar = tifffile.TiffFile(beside)
            mask = self._sidecar.pages.first
            flags = {tag.name: tag.value for tag in from_tiff(str(value_of(mask, GDAL_METADATA) or "")).tags}
            flag = flags.get("INTERNAL_MASK_FLAGS_1", "")
            if not flag.isdecimal() or (mask.imagewidth, mask.imagelength) != size:
                found.left_behind.append(
                    f"{beside.name}, which has no mask flags of GDAL or another size than the image"
                )
                return None
            if not int(flag) & MASK_PER_DATASET:
                raise RasterError(
                    "a mask file with a mask for each band; accepted is one mask", Fault.KIND, field="mask"
                )
            fitting = [mask]
        if not fitting:
            return None
        if fitting[0].samplesperpixel != 1 or dtype_name(fitting[0]) not in ("bool", "uint8"):
            raise RasterError(
                "a mask of several bands or of more than 8 bits; accepted is one band of 1 or 8 bits",
                Fault.KIND,
                field="mask",
            )
        return PageReader(fitting[0])

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        """A window inside the image. Raises RasterError where the pixel data are broken."""
        try:
            samples = self._reader.read(top, left, rows, cols)
            mask = None if self._mask is None else self._mask.read(top, left, rows, cols)
        except RasterError:
            raise
        except Exception as error:  # codecs raise their own kinds
            raise RasterError(
                f"the pixel data are broken near row {top}, column {left} ({error})", Fault.PIXEL_DATA
            ) from error
        alpha = None
        if self._alpha is not None:
            alpha = samples[self._alpha]
            samples = np.delete(samples, self._alpha, axis=0)
        valid = np.ones(samples.shape, bool)
        if self._nodata is not None:
            valid &= differ_from(samples, self._nodata)
        if mask is not None:
            if (~valid & (mask[:1] != 0)).any():
                self._tell("samples with the nodata value that the mask declares valid: they are coded as invalid")
            valid &= mask[:1] != 0
        if alpha is not None:
            valid &= (alpha != 0)[None]
        return Block(samples, valid, alpha)

    def _tell(self, what: str) -> None:
        if what not in self.left_behind:
            self.left_behind.append(what)

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        if self._sidecar is not None:
            self._sidecar.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_page(page: tifffile.TiffPage) -> None:
    """Raise RasterError for a page that must not be coded."""
    reason = _refusal(page)
    if reason:
        raise RasterError(f"{reason}; {ACCEPTED}", Fault.KIND, field="image")


def _refusal(page: tifffile.TiffPage) -> str | None:
    """Why a page must not be coded, or None."""
    if page.imagewidth < 1 or page.imagelength < 1:
        return "the first page has no image"
    photometric = int(page.photometric)
    palette = photometric == PALETTE and page.colormap is not None and page.samplesperpixel == 1
    if palette and (page.bitspersample != 8 or dtype_name(page) != "uint8"):
        return f"a palette image of {page.bitspersample} bits; accepted are 8"
    if not palette and (photometric not in (MINISBLACK, RGB, YCBCR) or page.colormap is not None):
        beside = " with a colour map" if page.colormap is not None else ""
        return f"photometric interpretation {photometric}{beside} ({getattr(page.photometric, 'name', 'unknown')})"
    bits = page.bitspersample
    if page.dtype is None or dtype_name(page) not in SAMPLE_TYPE_CODES:
        kind = f"type {dtype_name(page)}" if page.dtype is not None else f"{bits} bits"
        return f"samples of {kind}"
    if not isinstance(bits, int) or bits < 8:
        return f"samples of {bits} bits"
    if photometric == YCBCR and int(page.compression) not in JPEG:
        return "YCbCr samples that are not JPEG"
    if (
        photometric == MINISBLACK
        and int(page.compression) in JPEG
        and page.samplesperpixel == 3
        and int(page.planarconfig) == CONTIGUOUS
    ):
        return "JPEG of three grey samples, whose colour transform is not known"
    unknown = [int(kind) for kind in page.extrasamples if int(kind) not in EXTRA_SAMPLES]
    if unknown:
        return f"extra samples of kind {unknown[0]}"
    if page.imagedepth > 1:
        return "a volume"
    orientation = int(value_of(page, ORIENTATION) or 1)
    if orientation != 1:
        return f"orientation {orientation}: the first sample is not the upper left corner, and readers differ in whether they turn it"
    predictor = int(page.predictor) if int(page.compression) in PREDICTED else 1
    if predictor not in ((1, 3) if dtype_name(page) == FLOAT else (1, 2)) or predictor == 2 and bits not in (8, 16):
        return f"predictor {predictor} on {dtype_name(page)} of {bits} bits"
    return None
