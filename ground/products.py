"""Decoded scenes as files: Cloud-Optimised GeoTIFF and PNG, with georeferencing, masks and provenance.

A product is written through a plain tiled GeoTIFF on disk, window by window, so memory stays bounded, and only then
copied to its final form; every tag is set before that copy (a COG must not be touched afterwards).
"""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# MB, before GDAL is there: its default is a twentieth of the machine's memory, and large scenes fill it
os.environ.setdefault("GDAL_CACHEMAX", "64")
import rasterio
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.rpc import RPC
from rasterio.transform import Affine
from rasterio.windows import Window

import perigee
from perigee.bitstream import format as fmt
from perigee.bitstream.errors import LimitError, MetadataError
from perigee.bitstream.metadata import ACQUISITION_RANGES, GeoKeys, Metadata
from perigee.ground.compensation.decoder import CompensatedDecoder
from perigee.ground.decoder import Decoded, Region, SceneDecoder

SCALES = (1, 2, 4, 8, 16)
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # scenes without georeferencing are legitimate
COG_MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class View:
    """What of a scene is wanted: a pixel region, bands (from 0), and a reduction factor."""

    region: Region
    bands: tuple[int, ...]
    reduction: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return -(-self.region.rows // self.reduction), -(-self.region.cols // self.reduction)


def view_of(
    decoder: SceneDecoder, window: Region | None = None, bands: list[int] | None = None, reduction: int = 1
) -> View:
    """A checked view; everything by default. ``bands`` counts from 1, as operators do. Raises LimitError."""
    h = decoder.header
    region = window or Region(0, 0, h.height, h.width)
    if region.rows < 1 or region.cols < 1 or region.top < 0 or region.left < 0:
        raise LimitError(f"window {tuple(region)}: top and left from 0, rows and columns from 1")
    if region.top + region.rows > h.height or region.left + region.cols > h.width:
        raise LimitError(f"window {tuple(region)} leaves the scene of {h.height} rows and {h.width} columns")
    wrong = [b for b in bands or [] if not 1 <= b <= h.bands]
    if wrong or (bands is not None and (not bands or len(set(bands)) < len(bands))):
        raise LimitError(f"bands {bands}: accepted are different numbers from 1 to {h.bands}")
    if reduction not in SCALES:
        raise LimitError(f"scale 1/{reduction}: accepted are " + ", ".join(f"1/{s}" for s in SCALES))
    return View(region, tuple(range(h.bands)) if bands is None else tuple(b - 1 for b in bands), reduction)


def reduce_block(decoder: SceneDecoder, block: Decoded, factor: int) -> Decoded:
    """Mean over factor x factor pixels of the valid samples; a pixel is valid where any of its samples was."""
    if factor == 1:
        return block
    bands, rows, cols = block.samples.shape
    pad = ((0, 0), (0, -rows % factor), (0, -cols % factor))
    shape = (bands, -(-rows // factor), factor, -(-cols // factor), factor)
    weight = np.pad(block.valid, pad).reshape(shape)
    count = weight.sum((2, 4))
    total = (np.pad(block.samples.astype(np.float64), pad).reshape(shape) * weight).sum((2, 4))
    mean = np.rint(total / np.maximum(count, 1)).astype(block.samples.dtype)
    valid = count > 0
    decoder.settle(mean, valid)
    alpha = None
    if block.alpha is not None:
        alpha = np.pad(block.alpha, pad[1:]).reshape(shape[1:]).max((1, 3))
    return Decoded(mean, valid, alpha)


def crs_of(metadata: Metadata) -> CRS | None:
    """The scene's CRS from its EPSG code or raw GeoKeys. Raises MetadataError where PROJ cannot make sense of it."""
    try:
        if metadata.epsg is not None:
            return CRS.from_epsg(metadata.epsg)
        return None if metadata.geokeys is None else _crs_from_geokeys(metadata.geokeys)
    except (
        rasterio.errors.CRSError,
        rasterio.errors.RasterioError,
        rasterio.errors.RasterioIOError,
        UnicodeError,
    ) as error:
        raise MetadataError(f"the CRS cannot be used ({error})") from error


def _crs_from_geokeys(keys: GeoKeys) -> CRS | None:
    """GDAL's own reading of the keys, from a TIFF of one pixel that carries them."""
    entries: list[tuple[int, int, int, bytes]] = [(tag, 3, 1, struct.pack("<H", v)) for tag, v in (
        (256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1))]  # fmt: skip
    entries += [(273, 4, 1, b"PIXL"), (279, 4, 1, struct.pack("<I", 1))]
    entries.append((33550, 12, 3, struct.pack("<3d", 1, 1, 0)))
    entries.append((33922, 12, 6, struct.pack("<6d", 0, 0, 0, 0, 0, 0)))
    entries.append((34735, 3, len(keys.directory), struct.pack(f"<{len(keys.directory)}H", *keys.directory)))
    if keys.doubles:
        entries.append((34736, 12, len(keys.doubles), struct.pack(f"<{len(keys.doubles)}d", *keys.doubles)))
    if keys.ascii:
        entries.append((34737, 2, len(keys.ascii), keys.ascii))
    entries.sort()
    start = 8 + 2 + 12 * len(entries) + 4
    table, extra = b"", b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            place, value = value, struct.pack("<I", start + 4 + len(extra))
            extra += place + b"\0" * (len(place) % 2)
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    table = table.replace(b"PIXL", struct.pack("<I", start), 1)
    data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + b"\0" * 4 + b"\0" * 4 + extra
    with MemoryFile(data) as memory, memory.open() as source:
        crs: CRS | None = source.crs
        return crs


def _rpc(values: tuple[float, ...], view: View) -> RPC:
    """TIFF tag 50844 as rasterio's RPC, shifted and scaled to the view."""
    f = view.reduction
    line, sample = ((v - o + 0.5) / f - 0.5 for v, o in ((values[2], view.region.top), (values[3], view.region.left)))
    return RPC(
        err_bias=values[0], err_rand=values[1], line_off=line, samp_off=sample, lat_off=values[4], long_off=values[5],
        height_off=values[6], line_scale=values[7] / f, samp_scale=values[8] / f, lat_scale=values[9], long_scale=values[10],
        height_scale=values[11], line_num_coeff=list(values[12:32]), line_den_coeff=list(values[32:52]),
        samp_num_coeff=list(values[52:72]), samp_den_coeff=list(values[72:92]),
    )  # fmt: skip


def provenance(decoder: SceneDecoder) -> dict[str, str]:
    """Tags that say where the pixels come from."""
    profile = decoder.engine.profile
    qualities = sorted({s.quality_step for s in decoder.stream.segments.values() if s.mode == 0})
    tags = {
        "PERIGEE_SOFTWARE": f"perigee {perigee.__version__}",
        "PERIGEE_PROFILE": profile.name,
        "PERIGEE_CONTRACT": profile.contract.digest.hex(),
        "PERIGEE_ENGINE": decoder.engine.name,
        "PERIGEE_QUALITY": ""
        if not qualities
        else "-".join(f"{q / 2.5:g}" for q in sorted({qualities[0], qualities[-1]})),
        "PERIGEE_LOSSY": "YES",
        "PERIGEE_GENERATED_DETAIL": "NO",
    }
    tags |= decoder.generated()
    acquisition = decoder.metadata.acquisition
    if acquisition is not None:
        for name, _, _ in ACQUISITION_RANGES:
            value = getattr(acquisition, name)
            if value is not None:
                tags[f"PERIGEE_{name.upper()}"] = f"{value:.9g}"
        if acquisition.timestamp is not None:
            tags["PERIGEE_TIMESTAMP"] = acquisition.timestamp.isoformat().replace("+00:00", "Z")
    return tags


def _gcps(metadata: Metadata, view: View) -> list[GroundControlPoint]:
    """The scene's ground control points in the pixels of the view."""
    f, top, left = view.reduction, view.region.top, view.region.left
    return [
        GroundControlPoint(row=(g[1] - top) / f, col=(g[0] - left) / f, x=g[2], y=g[3], z=g[4], id=str(i + 1))
        for i, g in enumerate(metadata.gcps)
    ]


def _describe(target: Any, decoder: SceneDecoder, view: View) -> None:
    """Georeferencing, names and tags of a dataset open for writing."""
    metadata = decoder.metadata
    try:
        crs = crs_of(metadata)
    except MetadataError as error:  # the pixels are sound all the same
        crs = None
        target.update_tags(PERIGEE_CRS_PROBLEM=str(error))
    f, region = view.reduction, view.region
    if metadata.transform is not None:
        a, b, c, d, e, g = metadata.transform
        left, top = region.left, region.top
        target.transform = Affine(a * f, b * f, a * left + b * top + c, d * f, e * f, d * left + e * top + g)
    if metadata.gcps:
        target.gcps = (_gcps(metadata, view), crs or CRS())
    elif crs is not None:
        target.crs = crs
    if metadata.rpc is not None:
        target.rpcs = _rpc(metadata.rpc, view)
    if metadata.pixel_is_point:
        target.update_tags(AREA_OR_POINT="Point")
    names = metadata.band_names
    for place, band in enumerate(view.bands, start=1):
        if band < len(names) and names[band]:
            target.set_band_description(place, names[band])
    if metadata.scales:
        unit = [(metadata.scales[b] if b < len(metadata.scales) else (1.0, 0.0)) for b in view.bands]
        extra = target.count - len(unit)
        target.scales = [s for s, _ in unit] + [1.0] * extra
        target.offsets = [o for _, o in unit] + [0.0] * extra
    target.update_tags(**provenance(decoder))


def _alpha_place(decoder: SceneDecoder, view: View) -> int | None:
    """Position (from 0) of the alpha band in the product: the source's, or last where bands were chosen."""
    alpha = decoder.metadata.alpha_band
    return None if alpha is None else min(alpha, len(view.bands))


def _write_plain(path: Path, decoder: SceneDecoder, view: View, progress: Progress | None) -> None:
    """The view as a tiled GeoTIFF, window by window."""
    alpha = _alpha_place(decoder, view)
    count = len(view.bands) + (alpha is not None)
    colour = decoder.metadata.colour
    rgb = (
        (decoder.header.bands == 3 if colour is None else colour) and view.bands[:3] == (0, 1, 2) and alpha in (None, 3)
    )
    rows, cols = view.size
    layout = {
        "driver": "GTiff", "width": cols, "height": rows, "count": count, "dtype": decoder.header.dtype, "tiled": True,
        "blockxsize": 256, "blockysize": 256, "BIGTIFF": "IF_SAFER", "photometric": "RGB" if rgb else "MINISBLACK",
        "nodata": decoder.metadata.nodata,
    }  # fmt: skip
    places = [i for i in range(count) if i != alpha]
    masked = decoder.metadata.masked or (decoder.incomplete and decoder.metadata.nodata is None and alpha is None)
    done = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "w+", **layout) as target:
        for region, block in decoder.blocks(view.region, list(view.bands)):
            block = reduce_block(decoder, block, view.reduction)
            top, left = (
                (n - o) // view.reduction for n, o in ((region.top, view.region.top), (region.left, view.region.left))
            )
            window = Window(left, top, block.samples.shape[2], block.samples.shape[1])
            target.write(block.samples, [p + 1 for p in places], window=window)
            if alpha is not None and block.alpha is not None:
                target.write(block.alpha, alpha + 1, window=window)
            if masked:
                target.write_mask(block.valid.all(0), window=window)
            done += region.rows * region.cols
            if progress:
                progress(done, view.region.rows * view.region.cols)
        interpretation = list(target.colorinterp)
        if rgb:
            interpretation[:3] = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
        for place in places:
            if interpretation[place] == ColorInterp.alpha:
                interpretation[place] = ColorInterp.undefined
        if alpha is not None:
            interpretation[alpha] = ColorInterp.alpha
        target.colorinterp = interpretation
        _describe(target, decoder, view)
    if decoder.metadata.gcps and decoder.metadata.pixel_is_point:
        _undo_gcp_shift(path, _gcps(decoder.metadata, view))


def _undo_gcp_shift(path: Path, wanted: list[GroundControlPoint]) -> None:
    """GDAL 3 moves the GCPs of a pixel-is-point file when it writes them: measure by how much, and move them back."""
    with rasterio.open(path, "r+") as target:
        found, crs = target.gcps
        rows, cols = (getattr(found[0], n) - getattr(wanted[0], n) for n in ("row", "col"))
        if rows or cols:
            moved = [
                GroundControlPoint(row=g.row - rows, col=g.col - cols, x=g.x, y=g.y, z=g.z, id=g.id) for g in wanted
            ]
            target.gcps = (moved, crs or CRS())


def write_cog(path: Path, decoder: SceneDecoder, view: View, progress: Progress | None = None) -> None:
    """Write a Cloud-Optimised GeoTIFF (Deflate, internal overviews). ``path`` should be temporary; see ``bitstream.files``."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "plain.tif"
        _write_plain(plain, decoder, view, progress)
        _copy_to_cog(plain, path)


def _copy_to_cog(plain: Path, path: Path) -> None:
    options = {"driver": "COG", "COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BLOCKSIZE": 512, "BIGTIFF": "IF_SAFER"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES", GDAL_PAM_ENABLED="NO"):
        rasterio.shutil.copy(plain, path, **options)


def check_trust(decoder: CompensatedDecoder, view: View) -> None:
    """What :func:`write_trust` will say of a view that it cannot serve, before any work."""
    if view.reduction != 1 or not set(view.bands) <= set(range(fmt.BANDS_PER_GROUP)):
        raise LimitError("how far to trust an image is told at full size, for bands 1 to 3")
    decoder.check_interval()


def write_trust(path: Path, decoder: CompensatedDecoder, view: View, progress: Progress | None = None) -> None:
    """Write how far to trust the image of a view, as a COG of two bands beside it: half the width of the 90 % interval around each
    value in the image's units, rounded up, and 1 where detail was generated; no data where the image has none.
    Raises CompensationError, and LimitError for a view that is reduced or has other bands than red, green and blue."""
    check_trust(decoder, view)
    dtype = "uint8" if decoder.header.dtype == "uint8" else "uint16"
    span = 255.0
    if decoder.stream.ranges is not None:
        ranges = decoder.stream.ranges[: fmt.BANDS_PER_GROUP].astype(np.float64)
        span = float((ranges[:, 1] - ranges[:, 0]).max())  # of the band that has the widest
    rows, cols = view.size
    layout = {
        "driver": "GTiff", "width": cols, "height": rows, "count": 2, "dtype": dtype, "tiled": True, "blockxsize": 256,
        "blockysize": 256, "BIGTIFF": "IF_SAFER", "photometric": "MINISBLACK",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "plain.tif"
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(plain, "w+", **layout) as target:
            done = 0
            for region, block in decoder.blocks(view.region, list(view.bands)):
                width = np.ceil(span * decoder.half_width(0, region))
                marks = decoder.generated_in(0, region)
                both = np.stack([np.minimum(width, np.iinfo(dtype).max), marks]).astype(dtype)
                place = region.left - view.region.left, region.top - view.region.top
                target.write(both, window=Window(*place, region.cols, region.rows))
                target.write_mask(block.valid.all(0), window=Window(*place, region.cols, region.rows))
                done += region.rows * region.cols
                if progress:
                    progress(done, view.region.rows * view.region.cols)
            _describe(target, decoder, View(view.region, ()))
            target.set_band_description(1, "half width of the 90 % interval")
            target.set_band_description(2, "generated detail")
        if decoder.metadata.gcps and decoder.metadata.pixel_is_point:
            _undo_gcp_shift(plain, _gcps(decoder.metadata, view))
        _copy_to_cog(plain, path)


def write_png(path: Path, decoder: SceneDecoder, view: View, progress: Progress | None = None) -> None:
    """Write a PNG of one or three bands (the first three of more), 8 or 16 bits. Raises LimitError for int16."""
    if decoder.header.dtype == "int16":
        raise LimitError("PNG has no signed samples; ask for a GeoTIFF")
    bands = view.bands if len(view.bands) in (1, 3) else view.bands[:3] if len(view.bands) > 3 else view.bands[:1]
    view = View(view.region, bands, view.reduction)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "plain.tif"
        _write_plain(plain, decoder, view, progress)
        with rasterio.Env(GDAL_PAM_ENABLED="NO"):
            rasterio.shutil.copy(plain, path, driver="PNG")


def read_array(decoder: SceneDecoder, view: View, progress: Progress | None = None) -> npt.NDArray[Any]:
    """The view in memory [band, row, col], without alpha."""
    rows, cols = view.size
    out = np.empty((len(view.bands), rows, cols), decoder.header.dtype)
    done = 0
    for region, block in decoder.blocks(view.region, list(view.bands)):
        block = reduce_block(decoder, block, view.reduction)
        top, left = (
            (n - o) // view.reduction for n, o in ((region.top, view.region.top), (region.left, view.region.left))
        )
        out[:, top : top + block.samples.shape[1], left : left + block.samples.shape[2]] = block.samples
        done += region.rows * region.cols
        if progress:
            progress(done, view.region.rows * view.region.cols)
    return out
