"""Georeferencing, names and tags of a product, from the metadata of its source and the view that was taken of it."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import rasterio
import rasterio.errors
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.rpc import RPC
from rasterio.transform import Affine

from perigee.bitstream.errors import MetadataError
from perigee.bitstream.metadata import GeoKeys, Metadata, Tag
from perigee.ground.source import ImageSource, source_name
from perigee.ground.views import Layout, View

UNKNOWN_CRS = ("refuse", "keep", "drop")  # what is done with a CRS that cannot be interpreted
EPOCH_KEY, DOUBLES_TAG = 5120, 34736
UNSETTABLE = ("ns", "bidx")  # tags whose names rasterio takes for its own parameters


def crs_of(metadata: Metadata) -> CRS | None:
    """The scene's CRS, from its EPSG code, its text, or its raw GeoKeys; None where it has none.

    Raises MetadataError where PROJ cannot make sense of it.
    """
    try:
        if metadata.epsg is not None:
            return CRS.from_epsg(metadata.epsg)
        if metadata.crs_wkt is not None:
            return CRS.from_wkt(metadata.crs_wkt)
        found = None if metadata.geokeys is None else _crs_from_geokeys(metadata.geokeys)
    except (
        rasterio.errors.CRSError,
        rasterio.errors.RasterioError,
        rasterio.errors.RasterioIOError,
        UnicodeError,
    ) as error:
        raise MetadataError(f"the CRS cannot be used ({error})", field="CRS", found=crs_text(metadata)) from error
    local = found is None or found.to_wkt().startswith(("LOCAL_CS", "ENGCRS"))
    if local and metadata.geokeys is not None and _names_a_crs(metadata.geokeys):
        raise MetadataError(
            "the CRS cannot be used (GDAL reads none from the GeoKeys)", field="CRS", found=crs_text(metadata)
        )
    return found


def _names_a_crs(keys: GeoKeys) -> bool:
    """Whether GeoKeys name a geographic or projected CRS by its code."""
    d = keys.directory
    return any(d[i] in (2048, 3072) and d[i + 1] == 0 and d[i + 3] not in (0, 32767) for i in range(4, len(d) - 3, 4))


def crs_text(metadata: Metadata) -> str:
    """The CRS as it was carried, for people."""
    if metadata.epsg is not None:
        return f"EPSG:{metadata.epsg}"
    if metadata.crs_wkt is not None:
        return metadata.crs_wkt
    keys = metadata.geokeys
    return "" if keys is None else f"GeoKeys {list(keys.directory)} {list(keys.doubles)} {keys.ascii!r}"


def usable_crs(metadata: Metadata, unknown_crs: str) -> tuple[CRS | None, dict[str, str]]:
    """The CRS of a product and tags that say what became of one that cannot be interpreted.

    ``unknown_crs`` is ``refuse``, which raises MetadataError; ``keep``, which keeps it as text in a tag; or ``drop``.
    """
    try:
        return crs_of(metadata), {}
    except MetadataError as error:
        if unknown_crs == "refuse":
            raise MetadataError(
                f"{error}; --unknown-crs keep (unknown_crs=keep) keeps it as text, drop leaves it out",
                field="CRS",
                expected="a CRS that PROJ knows",
                found=crs_text(metadata),
            ) from error
        tags = {"PERIGEE_CRS_PROBLEM": str(error)}
        return None, tags | ({"PERIGEE_CRS": crs_text(metadata)} if unknown_crs == "keep" else {})


def epoch_of(metadata: Metadata) -> float | None:
    """The coordinate epoch in GeoKey 5120, in years; None where there is none."""
    keys = metadata.geokeys
    if keys is None:
        return None
    d = keys.directory
    for key, location, _, value in (d[i : i + 4] for i in range(4, len(d) - 3, 4)):
        if key == EPOCH_KEY and location == DOUBLES_TAG and value < len(keys.doubles):
            return keys.doubles[value]
    return None


def geotiff_version(metadata: Metadata, crs: CRS | None) -> dict[str, str]:
    """The creation option that keeps the GeoTIFF version of a compound CRS: GDAL shows its vertical part by the version."""
    keys = metadata.geokeys
    if keys is None or crs is None or "VERT" not in crs.to_wkt():
        return {}
    return {"GEOTIFF_VERSION": "1.1" if keys.directory[2] else "1.0"}


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
    with rasterio.Env(GTIFF_REPORT_COMPD_CS="YES"), MemoryFile(data) as memory, memory.open() as source:
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


def describe(target: Any, source: ImageSource, view: View, layout: Layout, unknown_crs: str = "refuse") -> None:
    """Georeferencing, names, units and tags of a dataset open for writing. Raises MetadataError for an unusable CRS."""
    metadata = source.metadata
    crs, tags = usable_crs(metadata, unknown_crs)
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
    _describe_bands(target, metadata, source.bands, view, layout)
    target.update_tags(**tags, **source.provenance())


def _describe_bands(target: Any, metadata: Metadata, bands: int, view: View, layout: Layout) -> None:
    """Names, scales, units and tags of the bands, at the places that the bands have in the product."""
    place = _places(bands, view, layout)

    def in_places(values: tuple[Any, ...], empty: Any) -> list[Any]:
        out = [empty] * target.count
        for band, number in place.items():
            if band < len(values):
                out[number] = values[band]
        return out

    for number, name in enumerate(in_places(metadata.band_names, ""), start=1):
        if name:
            target.set_band_description(number, name)
    if metadata.scales:
        scales = in_places(metadata.scales, (1.0, 0.0))
        target.scales, target.offsets = [s for s, _ in scales], [o for _, o in scales]
    if metadata.units:
        target.units = in_places(metadata.units, "")
    for number, tag in _placed_tags(metadata, bands, view, layout):
        if tag.name not in UNSETTABLE:
            target.update_tags(number, tag.domain or None, **{source_name(tag.name): tag.value})


def _places(bands: int, view: View, layout: Layout) -> dict[int, int]:
    """The place in the product, from 0, of each band of the source; an entry behind the last band is the alpha band's."""
    place = {band: number for band, number in zip(view.bands, layout.places, strict=True)}
    return place if layout.alpha is None else place | {bands: layout.alpha}


def _placed_tags(metadata: Metadata, bands: int, view: View, layout: Layout) -> Iterator[tuple[int, Tag]]:
    """The source's tags, each with the number of the product's band that it belongs to, 0 for the dataset."""
    place = _places(bands, view, layout)
    for tag in metadata.tags:
        if tag.band == 0:
            yield 0, tag
        elif tag.band - 1 in place:
            yield place[tag.band - 1] + 1, tag


def sidecar_of(source: ImageSource, view: View, layout: Layout, crs: CRS | None) -> str:
    """What rasterio cannot set in a dataset, as the text of a file ``.aux.xml`` beside it; empty where there is nothing."""
    epoch, parts = epoch_of(source.metadata), []
    if epoch is not None and crs is not None:
        parts.append(f'<SRS coordinateEpoch="{epoch:.12g}">{_xml(crs.to_wkt())}</SRS>')
    items: dict[int, dict[str, str]] = defaultdict(lambda: defaultdict(str))
    for number, tag in _placed_tags(source.metadata, source.bands, view, layout):
        if tag.name in UNSETTABLE:
            items[number][tag.domain] += f'<MDI key="{tag.name}">{_xml(tag.value)}</MDI>'
    for number, domains in items.items():
        text = "".join(f'<Metadata domain="{_xml(domain)}">{found}</Metadata>' for domain, found in domains.items())
        parts.append(f'<PAMRasterBand band="{number}">{text}</PAMRasterBand>' if number else text)
    return f"<PAMDataset>{''.join(parts)}</PAMDataset>" if parts else ""


def _xml(text: str) -> str:
    return escape(text, {'"': "&quot;"})


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
