"""Image sources as files: Cloud-Optimised GeoTIFF and PNG, with georeferencing, masks and provenance.

A product is written through a plain tiled GeoTIFF on disk, block by block, so that memory stays bounded, and only then copied
to its final form. Every tag is set before that copy, since a COG must not be touched afterwards.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import Samples
from perigee.bitstream.errors import Fault, OrderError
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.georeference import describe, gcps_of, undo_gcp_shift
from perigee.ground.regions import Region
from perigee.ground.source import ImageSource, Progress
from perigee.ground.views import View, blocks_of

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # scenes without georeferencing are legitimate
COG_MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
TILED = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "BIGTIFF": "IF_SAFER"}
COG = {"driver": "COG", "COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BLOCKSIZE": 512, "BIGTIFF": "IF_SAFER"}


def _window(place: Region) -> Window:
    return Window(place.left, place.top, place.cols, place.rows)


def _alpha_place(source: ImageSource, view: View) -> int | None:
    """Position (from 0) of the alpha band in the product: the source's, or last where bands were chosen."""
    alpha = source.metadata.alpha_band
    return None if alpha is None else min(alpha, len(view.bands))


def _write_plain(path: Path, source: ImageSource, view: View, progress: Progress | None) -> None:
    """The view as a tiled GeoTIFF, block by block."""
    alpha = _alpha_place(source, view)
    count = len(view.bands) + (alpha is not None)
    colour = source.bands == 3 if source.metadata.colour is None else source.metadata.colour
    rgb = colour and view.bands[:3] == (0, 1, 2) and alpha in (None, 3)
    rows, cols = view.size
    layout = TILED | {
        "width": cols,
        "height": rows,
        "count": count,
        "dtype": source.dtype,
        "photometric": "RGB" if rgb else "MINISBLACK",
        "nodata": source.metadata.nodata,
    }
    places = [i for i in range(count) if i != alpha]
    masked = source.metadata.masked or (source.incomplete and source.metadata.nodata is None and alpha is None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "w+", **layout) as target:
        for place, block in blocks_of(source, view, progress):
            target.write(block.samples, [p + 1 for p in places], window=_window(place))
            if alpha is not None and block.alpha is not None:
                target.write(block.alpha, alpha + 1, window=_window(place))
            if masked:
                target.write_mask(block.valid.all(0), window=_window(place))
        target.colorinterp = _interpretation(list(target.colorinterp), rgb, alpha)
        describe(target, source, view)
    if source.metadata.gcps and source.metadata.pixel_is_point:
        undo_gcp_shift(path, gcps_of(source.metadata, view))


def _interpretation(found: list[ColorInterp], rgb: bool, alpha: int | None) -> list[ColorInterp]:
    """What each band of a product shows, from what GDAL assumed."""
    if rgb:
        found[:3] = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    found = [ColorInterp.undefined if c == ColorInterp.alpha else c for c in found]
    if alpha is not None:
        found[alpha] = ColorInterp.alpha
    return found


@contextmanager
def _plain_beside(path: Path) -> Iterator[Path]:
    """A path for the plain GeoTIFF that a product is copied from, in a folder that goes with the block."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        yield Path(folder) / "plain.tif"


def _copy(plain: Path, path: Path, **options: Any) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES", GDAL_PAM_ENABLED="NO"):
        rasterio.shutil.copy(plain, path, **options)


def write_cog(path: Path, source: ImageSource, view: View, progress: Progress | None = None) -> None:
    """Write a Cloud-Optimised GeoTIFF (Deflate, internal overviews). ``path`` should be temporary; see ``support.files``."""
    with _plain_beside(path) as plain:
        _write_plain(plain, source, view, progress)
        _copy(plain, path, **COG)


def write_png(path: Path, source: ImageSource, view: View, progress: Progress | None = None) -> None:
    """Write a PNG of one or three bands (the first three of more), 8 or 16 bits. Raises OrderError for int16."""
    check_png(source)
    bands = view.bands if len(view.bands) in (1, 3) else view.bands[:3] if len(view.bands) > 3 else view.bands[:1]
    with _plain_beside(path) as plain:
        _write_plain(plain, source, View(view.region, bands, view.reduction), progress)
        _copy(plain, path, driver="PNG")


def check_png(source: ImageSource) -> None:
    """Raise OrderError for an image that no PNG can hold."""
    if source.dtype == "int16":
        raise OrderError(
            "PNG has no signed samples; ask for a GeoTIFF",
            Fault.KIND,
            field="format",
            expected="tif",
            found="png",
        )


def check_trust(source: ImageSource, view: View) -> CompensatedSource:
    """The source, where :func:`write_trust` can serve the view. Raises OrderError or CompensationError before any work."""
    if not isinstance(source, CompensatedSource):
        raise OrderError(
            "how far to trust an image is told by the compensator that estimates it: ask for compensation",
            Fault.MISSING,
            field="compensation",
        )
    if view.reduction != 1 or not set(view.bands) <= set(range(fmt.BANDS_PER_GROUP)):
        raise OrderError(
            "how far to trust an image is told at full size, for bands 1 to 3",
            field="scale, bands",
            expected="scale 1, bands 1 to 3",
        )
    source.check_interval()
    return source


def write_trust(path: Path, source: CompensatedSource, view: View, progress: Progress | None = None) -> None:
    """Write how far to trust the image of a view, as a COG of two bands beside it.

    The first band is half the width of the 90 % interval around each value, in the image's units and rounded up; the second is 1
    where detail was generated. Both have no data where the image has none. Raises OrderError for a view that is reduced or has
    other bands than red, green and blue, and CompensationError where the compensator gives no intervals.
    """
    check_trust(source, view)
    dtype = "uint8" if source.dtype == "uint8" else "uint16"
    rows, cols = view.size
    layout = TILED | {"width": cols, "height": rows, "count": 2, "dtype": dtype, "photometric": "MINISBLACK"}
    with _plain_beside(path) as plain:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(plain, "w+", **layout) as target:
            for place, block in blocks_of(source, view, progress):
                region = place._replace(top=place.top + view.region.top, left=place.left + view.region.left)
                width = np.ceil(source.widest_range * source.half_width(0, region))
                marks = source.generated_in(0, region)
                both = np.stack([np.minimum(width, np.iinfo(dtype).max), marks]).astype(dtype)
                target.write(both, window=_window(place))
                target.write_mask(block.valid.all(0), window=_window(place))
            describe(target, source, View(view.region, ()))
            target.set_band_description(1, "half width of the 90 % interval")
            target.set_band_description(2, "generated detail")
        if source.metadata.gcps and source.metadata.pixel_is_point:
            undo_gcp_shift(plain, gcps_of(source.metadata, view))
        _copy(plain, path, **COG)


def read_array(source: ImageSource, view: View, progress: Progress | None = None) -> Samples:
    """The view in memory [band, row, col], without alpha."""
    out = np.empty((len(view.bands), *view.size), source.dtype)
    for place, block in blocks_of(source, view, progress):
        out[(slice(None), *place.within(Region(0, 0, *view.size)))] = block.samples
    return out
