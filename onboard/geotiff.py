"""What a GeoTIFF's tags say beside its pixels: georeferencing, nodata, band names, acquisition fields."""

from __future__ import annotations

import re
import struct
from datetime import datetime, timezone
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from perigee.bitstream.errors import MetadataError
from perigee.bitstream.metadata import RPC_VALUES, Acquisition, GeoKeys, Metadata

PIXEL_SCALE, TIEPOINTS, TRANSFORMATION = 33550, 33922, 34264
KEY_DIRECTORY, KEY_DOUBLES, KEY_ASCII = 34735, 34736, 34737
GDAL_METADATA, GDAL_NODATA, RPC_TAG, DATE_TIME = 42112, 42113, 50844, 306
MODEL_TYPE, RASTER_TYPE, GEOGRAPHIC, PROJECTED = 1024, 1025, 2048, 3072
# keys beside the code that only repeat it: None for any value (names), else the values that change nothing
IMPLIED_PROJECTED = {1024: None, 1025: None, 1026: None, 2049: None, 2054: {9102}, 3072: None, 3073: None, 3076: {9001}}
IMPLIED_GEOGRAPHIC = {1024: None, 1025: None, 1026: None, 2048: None, 2049: None, 2054: {9102}, 2057: None, 2059: None}
USER_DEFINED = 32767
RGB_LIKE = (2, 6)  # photometric interpretations RGB and YCbCr
XML_MAX_BYTES = 1 << 20


def _value(page: tifffile.TiffPage, code: int) -> Any:
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def dtype_name(page: tifffile.TiffPage) -> str:
    """Sample type in native byte order, "none" where the page has none."""
    return "none" if page.dtype is None else str(page.dtype.newbyteorder("=").name)


def _doubles(page: tifffile.TiffPage, code: int) -> tuple[float, ...]:
    value = _value(page, code)
    return () if value is None else tuple(float(v) for v in np.atleast_1d(value))


def _geokeys(page: tifffile.TiffPage) -> GeoKeys | None:
    directory = _value(page, KEY_DIRECTORY)
    if directory is None or len(directory) < 4:
        return None
    text = _value(page, KEY_ASCII) or ""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    if raw and not raw.endswith(b"\0"):
        raw += b"\0"
    return GeoKeys(tuple(int(v) for v in directory), _doubles(page, KEY_DOUBLES), raw)


def _short_keys(keys: GeoKeys) -> dict[int, int | None]:
    """Keys with their value where it is stored in the directory itself, else None."""
    d = keys.directory
    rows = [d[i : i + 4] for i in range(4, min(4 + 4 * d[3], len(d) - 3), 4)]
    return {key: (value if location == 0 else None) for key, location, _, value in rows}


def _epsg(keys: dict[int, int | None]) -> int | None:
    """The EPSG code, where it alone gives the same CRS as the keys."""
    model = keys.get(MODEL_TYPE)
    if model not in (1, 2):
        return None
    implied = IMPLIED_PROJECTED if model == 1 else IMPLIED_GEOGRAPHIC
    for key, value in keys.items():
        accepted = implied.get(key, set())
        if accepted is not None and value not in accepted:
            return None
    code = keys.get(PROJECTED if model == 1 else GEOGRAPHIC)
    return code if code and code < USER_DEFINED and code >= 1024 else None


def _transform(page: tifffile.TiffPage, point: bool) -> tuple[float, ...] | None:
    matrix, scale, ties = _doubles(page, TRANSFORMATION), _doubles(page, PIXEL_SCALE), _doubles(page, TIEPOINTS)
    if len(scale) >= 2 and scale[0] and scale[1] and len(ties) >= 6:
        a, b, d, e = scale[0], 0.0, 0.0, -abs(scale[1])  # as GDAL reads it
        c, f = ties[3] - ties[0] * a, ties[4] - ties[1] * e
    elif len(matrix) == 16:
        a, b, c, d, e, f = matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]
    else:
        return None
    if point:  # the tags name a pixel's centre, a transform its corner
        c, f = c - 0.5 * (a + b), f - 0.5 * (d + e)
    return (a, b, c, d, e, f)


def _xml_items(page: tifffile.TiffPage) -> list[ElementTree.Element]:
    text = _value(page, GDAL_METADATA)
    if not isinstance(text, str) or len(text) > XML_MAX_BYTES or "<!" in text:  # no entities
        return []
    try:
        return list(ElementTree.fromstring(text.strip("\0")).iter("Item"))
    except ElementTree.ParseError:
        return []


def _per_band(items: list[ElementTree.Element], role: str, bands: int) -> dict[int, str]:
    out = {}
    for item in items:
        sample = item.get("sample", "")
        if item.get("role") == role and sample.isdigit() and int(sample) < bands:
            out[int(sample)] = item.text or ""
    return out


def _acquisition(page: tifffile.TiffPage, items: list[ElementTree.Element]) -> Acquisition | None:
    """GDAL's IMAGERY domain, else the DateTime tag (which has no zone and is read as UTC)."""
    imagery = {item.get("name", ""): item.text or "" for item in items if item.get("domain") == "IMAGERY"}
    timestamp = cloud = None
    for text, pattern in (
        (imagery.get("ACQUISITIONDATETIME"), "%Y-%m-%d %H:%M:%S"),
        (_value(page, DATE_TIME), "%Y:%m:%d %H:%M:%S"),
    ):
        if timestamp is None and isinstance(text, str):
            try:
                timestamp = datetime.strptime(text.strip("\0 "), pattern).replace(tzinfo=timezone.utc)
            except ValueError:
                continue
    try:
        cloud = float(imagery["CLOUDCOVER"])
    except (KeyError, ValueError):
        cloud = None
    if cloud is not None and not 0 <= cloud <= 100:  # vendors write -999 for unknown
        cloud = None
    if timestamp is None and cloud is None:
        return None
    return Acquisition(timestamp=timestamp, cloud_cover_percent=cloud)


def _nodata(page: tifffile.TiffPage) -> float | None:
    text = _value(page, GDAL_NODATA)
    if text is None:
        return None
    found = re.match(
        r"\s*([-+]?(?:nan|inf|[\d.]+(?:e[-+]?\d+)?))", str(text), re.IGNORECASE
    )  # GDAL: what a number begins with
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None


def source_metadata(page: tifffile.TiffPage, bands: int, alpha_band: int | None, masked: bool) -> Metadata:
    """Metadata of the image in ``page``. Raises MetadataError where they cannot be carried."""
    keys = _geokeys(page)
    short = _short_keys(keys) if keys else {}
    point = short.get(RASTER_TYPE) == 2
    epsg = _epsg(short)
    transform = _transform(page, point)
    ties = _doubles(page, TIEPOINTS)
    gcps: tuple[tuple[float, ...], ...] = ()
    if transform is None and len(ties) >= 6:
        shift = 0.5 if point else 0.0
        gcps = tuple((ties[i] + shift, ties[i + 1] + shift, *ties[i + 3 : i + 6]) for i in range(0, len(ties) - 5, 6))
    rpc = _doubles(page, RPC_TAG)
    items = _xml_items(page)
    names = _per_band(items, "description", bands)
    scales, offsets = _per_band(items, "scale", bands), _per_band(items, "offset", bands)
    nodata = _nodata(page)
    info_range = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}[dtype_name(page)]
    if nodata is not None and not (info_range[0] <= nodata <= info_range[1] and nodata == int(nodata)):
        nodata = None  # no sample can have it, and GDAL would not write it back
    if alpha_band is None and any(i.get("role") == "colorinterp" and i.text == "Alpha" for i in items):
        raise MetadataError(
            "an alpha band that only GDAL's colour interpretation names; accepted is one in ExtraSamples"
        )
    colour = int(page.photometric) in RGB_LIKE
    try:
        return Metadata(
            epsg=epsg,
            geokeys=None if epsg is not None else keys,
            transform=transform,
            gcps=gcps,
            rpc=rpc if len(rpc) == RPC_VALUES else None,
            pixel_is_point=point,
            nodata=nodata,
            masked=masked,
            alpha_band=alpha_band,
            colour=None if colour == (bands == 3) else colour,
            scales=tuple((float(scales.get(i, 1)), float(offsets.get(i, 0))) for i in range(bands))
            if scales or offsets
            else (),
            band_names=tuple(names.get(i, "") for i in range(bands)) if names else (),
            acquisition=_acquisition(page, items),
        )
    except (ValueError, struct.error) as error:
        raise MetadataError(f"the file's metadata cannot be carried ({error})") from error
