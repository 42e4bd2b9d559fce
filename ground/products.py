"""Image sources as files: Cloud-Optimised GeoTIFF and PNG, with georeferencing, masks and provenance.

A product is written through a plain tiled GeoTIFF on disk, block by block, so that memory stays bounded, and only then copied
to its final form. Every tag is set before that copy, since a COG must not be touched afterwards.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window

from perigee.bitstream import format as fmt
from perigee.bitstream.errors import Fault, OrderError, OutputError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.version2 import FLOAT
from perigee.ground.extrasamples import mark_premultiplied
from perigee.ground.georeference import describe, gcps_of, geotiff_version, sidecar_of, undo_gcp_shift, usable_crs
from perigee.ground.regions import Region
from perigee.ground.source import ImageSource, Progress, Trusted
from perigee.ground.views import Layout, View, blocks_of, layout_of
from perigee.support.files import PREFIX, SUFFIX

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # scenes without georeferencing are legitimate
COG_MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
TILED = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "BIGTIFF": "IF_SAFER"}
ENVIRONMENT = {"GDAL_TIFF_INTERNAL_MASK": "YES", "GTIFF_REPORT_COMPD_CS": "YES"}
GDAL_ERRORS = (RasterioError, RasterioIOError, CPLE_BaseError)
COG: dict[str, Any] = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    "PREDICTOR": "YES",
    "BLOCKSIZE": 512,
    "BIGTIFF": "IF_SAFER",
}


def compressing(threads: int | None, view: View) -> rasterio.Env:
    """A context in which the products of a view are compressed by so many threads, None for all cores, and one of few blocks by one, since threads
    take time to start. Their bytes are the same."""
    few = view.size[0] * view.size[1] <= COG["BLOCKSIZE"] ** 2
    return rasterio.Env(GDAL_NUM_THREADS="1" if few else str(threads or "ALL_CPUS"))


def _window(place: Region) -> Window:
    return Window(place.left, place.top, place.cols, place.rows)


@contextmanager
def _plain(
    path: Path,
    source: ImageSource,
    view: View,
    unknown_crs: str = "refuse",
    opacity: bool = False,
    whole_bytes: bool = False,
    **more: Any,
) -> Iterator[tuple[Any, Layout, bool, dict[str, Any]]]:
    """A tiled GeoTIFF open for the samples of a view, which is described when the block ends: with its layout, whether it needs a mask, and the
    options with which it has to be copied.

    ``opacity`` puts validity and alpha into an alpha band behind the others, for formats that have no mask; ``whole_bytes`` does not pack samples
    of fewer bits; ``more`` are further options.
    """
    metadata = source.metadata
    layout = Layout(tuple(range(len(view.bands))), len(view.bands)) if opacity else layout_of(source, view)
    colour = source.bands == 3 if metadata.colour is None else metadata.colour
    rgb = colour and view.bands[:3] == (0, 1, 2) and layout.alpha in (None, 3)
    rows, cols = view.size
    crs, _ = usable_crs(metadata, unknown_crs)
    version = geotiff_version(metadata, crs)
    kept = version | ({} if opacity else _bits(metadata))
    options = (
        TILED
        | (version if whole_bytes else kept)
        | {
            "width": cols,
            "height": rows,
            "count": layout.count,
            "dtype": source.dtype,
            "photometric": "RGB" if rgb else "MINISBLACK",
            "nodata": None if opacity else metadata.nodata,
        }
        | more
    )
    if layout.alpha is not None and metadata.premultiplied:
        options["ALPHA"] = "PREMULTIPLIED"
    with rasterio.Env(**ENVIRONMENT), rasterio.open(path, "w+", **options) as target:
        if metadata.palette and not opacity:
            parts = (metadata.palette[part::3] for part in range(3))
            target.write_colormap(1, dict(enumerate(zip(*parts, strict=True))))
        yield target, layout, needs_mask(source, layout) and not opacity, kept
        target.colorinterp = _interpretation(list(target.colorinterp), rgb, view, layout, metadata)
        describe(target, source, view, layout, unknown_crs)
    _complete(path, source, view, layout, crs)


def needs_mask(source: ImageSource, layout: Layout) -> bool:
    """Whether nothing but a mask can say which samples of a product are valid."""
    metadata = source.metadata
    return metadata.masked or (source.incomplete and metadata.nodata is None and layout.alpha is None)


def _write_plain(
    path: Path,
    source: ImageSource,
    view: View,
    progress: Progress | None,
    unknown_crs: str = "refuse",
    opacity: bool = False,
) -> dict[str, Any]:
    """The view as a tiled GeoTIFF, block by block; returns the options with which it has to be copied. ``opacity`` as above."""
    bits = source.metadata.nbits
    with _plain(path, source, view, unknown_crs, opacity) as (target, layout, masked, kept):
        for place, block in blocks_of(source, view, progress):
            window = _window(place)
            target.write(block.samples, [p + 1 for p in layout.places], window=window)
            if layout.alpha is not None:
                alpha = block.opacity(bits) if opacity or block.alpha is None else block.alpha
                target.write(alpha, layout.alpha + 1, window=window)
            if masked:
                target.write_mask(block.valid.all(0), window=window)
    return kept


def write_empty(path: Path, source: ImageSource, unknown_crs: str = "refuse") -> Layout:
    """Write a GeoTIFF of the whole source without any sample, whose one directory describes it, and return its layout.

    Raises MetadataError for a CRS that is refused, OutputError where the file cannot be written.
    """
    view = View(Region(0, 0, source.height, source.width), tuple(range(source.bands)))
    with (
        _told(),
        _plain(path, source, view, unknown_crs, whole_bytes=True, SPARSE_OK=True, INTERLEAVE="PIXEL") as plain,
    ):
        layout = plain[1]
    if source.metadata.premultiplied:
        mark_premultiplied(path)
    return layout


def _bits(metadata: Metadata) -> dict[str, Any]:
    """The creation option of the source's bits per sample, where its nodata value has room in them: GDAL would clamp it."""
    bits = metadata.nbits
    return {} if bits is None or not 0 <= (metadata.nodata or 0) < 1 << bits else {"NBITS": bits}


def _complete(path: Path, source: ImageSource, view: View, layout: Layout, crs: CRS | None) -> None:
    """What a plain GeoTIFF needs after it was closed: GCPs where they belong, and what can only stand beside it."""
    if source.metadata.gcps and source.metadata.pixel_is_point:
        undo_gcp_shift(path, gcps_of(source.metadata, view))
    sidecar = sidecar_of(source, view, layout, crs)
    if sidecar:
        path.with_name(path.name + ".aux.xml").write_text(sidecar, encoding="utf-8")


def _interpretation(
    found: list[ColorInterp], rgb: bool, view: View, layout: Layout, metadata: Metadata
) -> list[ColorInterp]:
    """What each band of a product shows, from what GDAL assumed and what the source said."""
    if rgb:
        for place, colour in zip(
            layout.places[:3], (ColorInterp.red, ColorInterp.green, ColorInterp.blue), strict=True
        ):
            found[place] = colour
    found = [ColorInterp.undefined if c == ColorInterp.alpha else c for c in found]
    for band, place in zip(view.bands, layout.places, strict=True):
        name = metadata.interpretations[band].lower() if band < len(metadata.interpretations) else ""
        if name in ColorInterp.__members__:
            found[place] = ColorInterp[name]
    if layout.alpha is not None:
        found[layout.alpha] = ColorInterp.alpha
    return found


@contextmanager
def _plain_beside(path: Path) -> Iterator[Path]:
    """A path for the plain GeoTIFF that a product is copied from, in a folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, suffix=SUFFIX, dir=path.parent) as folder:
        yield Path(folder) / "plain.part"


def _copy(plain: Path, path: Path, **options: Any) -> None:
    """Copy the plain GeoTIFF to its final form. Raises OutputError where that fails, as on a full disk."""
    described = plain.with_name(plain.name + ".aux.xml").exists()
    try:
        with rasterio.Env(**ENVIRONMENT, GDAL_PAM_ENABLED="YES" if described else "NO"):
            rasterio.shutil.copy(plain, path, **options)
        with rasterio.open(path) as made:  # GDAL does not always say that a disk is full
            made.read(1, window=Window(made.width - 1, made.height - 1, 1, 1))
    except GDAL_ERRORS as error:
        raise OutputError(f"the product cannot be written ({_reason(error)})", field="product") from error
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what GDAL raises while a product is written into OutputError."""
    try:
        yield
    except GDAL_ERRORS as error:
        raise OutputError(f"the product cannot be written ({_reason(error)})", field="product") from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split()) or type(error).__name__


def write_cog(
    path: Path, source: ImageSource, view: View, progress: Progress | None = None, unknown_crs: str = "refuse"
) -> None:
    """Write a Cloud-Optimised GeoTIFF (Deflate, internal overviews). ``path`` should be temporary; see ``support.files``.

    ``unknown_crs`` says what is done with a CRS that cannot be interpreted, see ``georeference.usable_crs``. Raises MetadataError
    for one that is refused, OutputError where the product cannot be written.
    """
    with _plain_beside(path) as plain, _told():
        kept = _write_plain(plain, source, view, progress, unknown_crs)
        whole = kept.get("NBITS") in (None, 8, 16)
        classes = {"OVERVIEW_RESAMPLING": "NEAREST"} if source.metadata.palette else {}
        _copy(plain, path, **COG | kept | classes | ({} if whole else {"PREDICTOR": "NO"}))
        if source.metadata.premultiplied:
            mark_premultiplied(path)


def write_png(
    path: Path, source: ImageSource, view: View, progress: Progress | None = None, unknown_crs: str = "refuse"
) -> None:
    """Write a PNG of the bands of :func:`png_view`, 8 or 16 bits; an alpha band where samples may be invalid. Its text chunks are the product's tags.

    Raises OrderError for int16 and float32, and what :func:`write_cog` raises.
    """
    check_png(source)
    opacity = source.has_gaps or source.metadata.alpha_band is not None
    with _plain_beside(path) as plain, _told():
        _write_plain(plain, source, png_view(view), progress, unknown_crs, opacity)
        _copy(plain, path, driver="PNG", WRITE_METADATA_AS_TEXT="YES")


def png_view(view: View) -> View:
    """What of a view a PNG holds: one band, or the first three where there are as many."""
    return View(view.region, view.bands[: 3 if len(view.bands) >= 3 else 1], view.reduction)


def check_png(source: ImageSource) -> None:
    """Raise OrderError for an image that no PNG can hold."""
    if source.dtype not in ("uint8", "uint16"):
        raise OrderError(
            f"PNG has no samples of {source.dtype}; ask for a GeoTIFF",
            Fault.KIND,
            field="format",
            expected="tif",
            found="png",
        )


def check_trust(source: ImageSource, view: View) -> Trusted:
    """The source, where :func:`write_trust` can serve the view. Raises OrderError or CompensationError before any work."""
    if not isinstance(source, Trusted):
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


def write_trust(
    path: Path, source: Trusted, view: View, progress: Progress | None = None, unknown_crs: str = "refuse"
) -> None:
    """Write how far to trust the image of a view, as a COG of two bands beside it.

    The first band is half the width of the 90 % interval around each value, in the image's units and rounded up; the second is 1
    where detail was generated. Both have no data where the image has none. Raises OrderError for a view that is reduced or has
    other bands than red, green and blue, CompensationError where the compensator gives no intervals, and what :func:`write_cog`
    raises.
    """
    check_trust(source, view)
    dtype = "uint8" if source.dtype == "uint8" else "uint16"
    rows, cols = view.size
    whole, layout = View(view.region, ()), Layout((), None)  # none of the source's bands
    options = TILED | {"width": cols, "height": rows, "count": 2, "dtype": dtype, "photometric": "MINISBLACK"}
    with _plain_beside(path) as plain, _told():
        with rasterio.Env(**ENVIRONMENT), rasterio.open(plain, "w+", **options) as target:
            for place, block in blocks_of(source, view, progress):
                region = place._replace(top=place.top + view.region.top, left=place.left + view.region.left)
                width = np.ceil(source.widest_range * source.half_width(0, region))
                marks = source.generated_in(0, region)
                both = np.stack([np.minimum(width, np.iinfo(dtype).max), marks]).astype(dtype)
                target.write(both, window=_window(place))
                target.write_mask(block.valid.all(0), window=_window(place))
            describe(target, source, whole, layout, unknown_crs)
            target.set_band_description(1, "half width of the 90 % interval")
            target.set_band_description(2, "generated detail")
        _complete(plain, source, whole, layout, usable_crs(source.metadata, unknown_crs)[0])
        _copy(plain, path, **COG)


@dataclass(frozen=True)
class BandStatistics:
    """Of the valid, finite samples of a band; None where it has none."""

    band: int
    valid: int
    min: float | None
    max: float | None
    mean: float | None


def statistics_of(source: ImageSource, view: View, progress: Progress | None = None) -> list[BandStatistics]:
    """Statistics of the valid samples of each band of a view, in bounded memory; ``band`` counts from 1."""
    count = np.zeros(len(view.bands), np.int64)
    total = np.zeros(len(view.bands), np.float64)
    low, high = np.full(len(view.bands), np.inf), np.full(len(view.bands), -np.inf)
    for _, block in blocks_of(source, view, progress):
        for i, (samples, valid) in enumerate(zip(block.samples, block.valid, strict=True)):
            chosen = samples[valid]
            chosen = chosen[np.isfinite(chosen)]
            if chosen.size:
                count[i] += chosen.size
                total[i] += float(chosen.sum(dtype=np.float64))
                low[i], high[i] = min(low[i], chosen.min()), max(high[i], chosen.max())
    whole = float if source.dtype == FLOAT else int
    return [
        BandStatistics(band + 1, int(n), whole(a), whole(b), round(float(t / n), 4))
        if n
        else BandStatistics(band + 1, 0, None, None, None)
        for band, n, t, a, b in zip(view.bands, count, total, low, high, strict=True)
    ]
