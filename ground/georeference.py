"""Georeferencing, names and tags of a product, from the metadata of its source and the view that was taken of it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import rasterio
import rasterio.errors
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.rpc import RPC
from rasterio.transform import Affine

from perigee.bitstream.errors import MetadataError
from perigee.bitstream.metadata import GeoKeys, Metadata
from perigee.ground.source import ImageSource
from perigee.ground.views import View


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
        raise MetadataError(f"the CRS cannot be used ({error})", field="CRS") from error


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


def rpc_of(values: tuple[float, ...], view: View) -> RPC:
    """TIFF tag 50844 as rasterio's RPC, shifted and scaled to the view."""
    f = view.reduction
    line, sample = ((v - o + 0.5) / f - 0.5 for v, o in ((values[2], view.region.top), (values[3], view.region.left)))
    return RPC(
        err_bias=values[0], err_rand=values[1], line_off=line, samp_off=sample, lat_off=values[4], long_off=values[5],
        height_off=values[6], line_scale=values[7] / f, samp_scale=values[8] / f, lat_scale=values[9], long_scale=values[10],
        height_scale=values[11], line_num_coeff=list(values[12:32]), line_den_coeff=list(values[32:52]),
        samp_num_coeff=list(values[52:72]), samp_den_coeff=list(values[72:92]),
    )  # fmt: skip


def gcps_of(metadata: Metadata, view: View) -> list[GroundControlPoint]:
    """The scene's ground control points in the pixels of the view."""
    f, top, left = view.reduction, view.region.top, view.region.left
    return [
        GroundControlPoint(row=(g[1] - top) / f, col=(g[0] - left) / f, x=g[2], y=g[3], z=g[4], id=str(i + 1))
        for i, g in enumerate(metadata.gcps)
    ]


def describe(target: Any, source: ImageSource, view: View) -> None:
    """Georeferencing, names and tags of a dataset open for writing."""
    metadata = source.metadata
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
        target.gcps = (gcps_of(metadata, view), crs or CRS())
    elif crs is not None:
        target.crs = crs
    if metadata.rpc is not None:
        target.rpcs = rpc_of(metadata.rpc, view)
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
    target.update_tags(**source.provenance())


def undo_gcp_shift(path: Path, wanted: list[GroundControlPoint]) -> None:
    """GDAL 3 moves the GCPs of a pixel-is-point file when it writes them: measure by how much, and move them back."""
    with rasterio.open(path, "r+") as target:
        found, crs = target.gcps
        rows, cols = (getattr(found[0], n) - getattr(wanted[0], n) for n in ("row", "col"))
        if rows or cols:
            moved = [
                GroundControlPoint(row=g.row - rows, col=g.col - cols, x=g.x, y=g.y, z=g.z, id=g.id) for g in wanted
            ]
            target.gcps = (moved, crs or CRS())
