"""What a GeoTIFF says beside its pixels: georeferencing, nodata, names, units and tags, acquisition fields.

The rules are GDAL's. What GDAL reads from the file and its sidecars is carried exactly, or it stands in ``left_behind``, or the
file is refused; nothing goes missing without a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from perigee.bitstream.errors import Fault, MetadataError
from perigee.bitstream.metadata import RPC_VALUES, Acquisition, GeoKeys, Metadata, Tag, pack_metadata
from perigee.bitstream.samples import DTYPE_RANGE
from perigee.bitstream.version2 import FLOAT
from perigee.onboard.gdal_xml import GdalMetadata, from_tiff
from perigee.onboard.sidecars import Siblings, pam_of, rpc_of, unread_of, world_file_of

PIXEL_SCALE, TIEPOINTS, TRANSFORMATION = 33550, 33922, 34264
KEY_DIRECTORY, KEY_DOUBLES, KEY_ASCII = 34735, 34736, 34737
GDAL_METADATA, GDAL_NODATA, RPC_TAG, DATE_TIME = 42112, 42113, 50844, 306
MODEL_TYPE, RASTER_TYPE, GEOGRAPHIC, PROJECTED, LINEAR_UNITS = 1024, 1025, 2048, 3072, 3076
# keys beside the code that only repeat it: None for any value (names), else the values that change nothing
IMPLIED_PROJECTED = {1024: None, 1025: None, 1026: None, 2049: None, 2054: {9102}, 3072: None, 3073: None, 3076: {9001}}
IMPLIED_GEOGRAPHIC = {1024: None, 1025: None, 1026: None, 2048: None, 2049: None, 2054: {9102}, 2057: None, 2059: None}
# EPSG codes that stand alone: elsewhere a code may be that of a compound or three-dimensional CRS, or one that GDAL replaces
ALONE_PROJECTED = (range(2000, 3900), range(20000, 32767))
ALONE_GEOGRAPHIC = (4148, 4167, 4171, 4230, 4258, 4267, 4269, 4283, 4326, 4490, 4612, 4674, 6318, 7844)
IN_METRES = (
    range(25828, 25839),
    range(26901, 26924),
    range(32601, 32661),
    range(32701, 32761),
    (2154, 3035, 3395, 3857),
)
OVERRIDES = (b"LUnits", b"ESRI PE String")  # in a citation, they change the CRS
KEY_VERSION = 1
RGB_LIKE = (2, 6)  # photometric interpretations RGB and YCbCr
# TIFF tags that GDAL shows as tags of the dataset. Software and resolution describe the file, and stay with it.
TEXT_TAGS = {
    269: "TIFFTAG_DOCUMENTNAME",
    270: "TIFFTAG_IMAGEDESCRIPTION",
    306: "TIFFTAG_DATETIME",
    315: "TIFFTAG_ARTIST",
    316: "TIFFTAG_HOSTCOMPUTER",
    33432: "TIFFTAG_COPYRIGHT",
}
# tags that GDAL shows and that are not carried
OTHER_TAGS = {
    280: "MinSampleValue",
    281: "MaxSampleValue",
    700: "XMP metadata",
    34675: "an ICC profile",
    50909: "GEO_METADATA",
}
# kinds of extra samples: unspecified, associated and unassociated alpha, and how Corel writes the latter
EXTRA_SAMPLES = {0: False, 1: True, 2: True, 999: True}
TAGS_MAX_BYTES = 4096  # packed, unless the caller sets another limit; onboard/cli.py has the same default
UNDEFINED, ALPHA = "Undefined", "Alpha"
COLOURS = ("Red", "Green", "Blue")


@dataclass
class Described:
    """What stands beside the pixels of a GeoTIFF and in the files beside it, before it becomes metadata."""

    gdal: GdalMetadata
    transform: tuple[float, ...] | None = None
    rpc: tuple[float, ...] | None = None
    left_behind: list[str] = field(default_factory=list)


def value_of(page: tifffile.TiffPage, code: int) -> Any:
    """The value of a tag, or None."""
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def dtype_name(page: tifffile.TiffPage) -> str:
    """Sample type in native byte order, "none" where the page has none."""
    return "none" if page.dtype is None else str(page.dtype.newbyteorder("=").name)


def _doubles(page: tifffile.TiffPage, code: int) -> tuple[float, ...]:
    value = value_of(page, code)
    return () if value is None else tuple(float(v) for v in np.atleast_1d(value))


def _raw(page: tifffile.TiffPage, code: int) -> bytes:
    """The bytes of a tag as they stand in the file: a text may be in any encoding."""
    tag = page.tags.get(code)
    if tag is None:
        return b""
    handle = page.parent.filehandle
    handle.seek(tag.valueoffset)
    data: bytes = handle.read(tag.valuebytecount)
    return data


def _text(page: tifffile.TiffPage, code: int) -> str:
    """A tag's text, in UTF-8 or else in Latin-1, up to its first byte 0."""
    raw = _raw(page, code).split(b"\0")[0]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def geokeys_of(page: tifffile.TiffPage) -> GeoKeys | None:
    """The file's GeoKeys, None without any that GDAL reads."""
    directory = value_of(page, KEY_DIRECTORY)
    if directory is None or len(directory) < 4 or directory[0] != KEY_VERSION or len(directory) < 4 + 4 * directory[3]:
        return None
    text = _raw(page, KEY_ASCII)
    if text and not text.endswith(b"\0"):
        text += b"\0"
    return GeoKeys(tuple(int(v) for v in directory), _doubles(page, KEY_DOUBLES), text)


def short_keys(keys: GeoKeys) -> dict[int, int | None]:
    """Keys with their value where it is stored in the directory itself, else None."""
    d = keys.directory
    rows = [d[i : i + 4] for i in range(4, min(4 + 4 * d[3], len(d) - 3), 4)]
    return {key: (value if location == 0 else None) for key, location, _, value in rows}


def _epsg(geokeys: GeoKeys | None) -> int | None:
    """The EPSG code, where it alone gives the same CRS as the keys."""
    if geokeys is None or any(text in geokeys.ascii for text in OVERRIDES):
        return None
    keys = short_keys(geokeys)
    model = keys.get(MODEL_TYPE)
    if model not in (1, 2):
        return None
    implied = IMPLIED_PROJECTED if model == 1 else IMPLIED_GEOGRAPHIC
    for key, value in keys.items():
        accepted = implied.get(key, set())
        if accepted is not None and value not in accepted:
            return None
    code = keys.get(PROJECTED if model == 1 else GEOGRAPHIC) or 0
    if LINEAR_UNITS in keys and not any(code in codes for codes in IN_METRES):
        return None
    alone = any(code in codes for codes in ALONE_PROJECTED) if model == 1 else code in ALONE_GEOGRAPHIC
    return code if alone else None


def _transform(page: tifffile.TiffPage, point: bool) -> tuple[float, ...] | None:
    matrix, scale, ties = _doubles(page, TRANSFORMATION), _doubles(page, PIXEL_SCALE), _doubles(page, TIEPOINTS)
    if len(scale) >= 2 and scale[0] and scale[1]:
        a, b, d, e = scale[0], 0.0, 0.0, -abs(scale[1])  # as GDAL reads it
        if len(ties) < 6:
            return (a, b, 0.0, d, e, 0.0)
        c, f = ties[3] - ties[0] * a, ties[4] - ties[1] * e
    elif len(matrix) == 16:
        a, b, c, d, e, f = matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]
    else:
        return None
    if point:  # the tags name a pixel's centre, a transform its corner
        c, f = c - 0.5 * (a + b), f - 0.5 * (d + e)
    return (a, b, c, d, e, f)


def _unplaced(page: tifffile.TiffPage) -> bool:
    """Whether the file has a pixel scale without a tiepoint: GDAL takes its origin as 0, unless a world file says more."""
    return len(_doubles(page, PIXEL_SCALE)) >= 2 and len(_doubles(page, TIEPOINTS)) < 6


def described(page: tifffile.TiffPage, path: Path) -> Described:
    """What the file and its sidecars say, with GDAL's precedence: ``.aux.xml``, the file itself, a world file."""
    gdal = from_tiff(_text(page, GDAL_METADATA)) if GDAL_METADATA in page.tags else GdalMetadata()
    for code, name in TEXT_TAGS.items():
        text = _text(page, code) if code in page.tags else ""
        if text and not text.startswith(
            '{"shape":'
        ):  # what tifffile writes of the array describes the file, not the scene
            gdal.tags.append(Tag(name, text))
    gdal.left_behind += [name for code, name in OTHER_TAGS.items() if code in page.tags]
    for tag in gdal.tags:
        if tag.name == "NODATA_VALUES" and not tag.band and not tag.domain:
            raise MetadataError(
                "a NODATA_VALUES item, by which a pixel is invalid where all its bands have certain values; accepted are one nodata "
                "value, a mask and an alpha band",
                Fault.KIND,
                field="NODATA_VALUES",
            )
    siblings = Siblings(path)
    gdal.update(pam_of(path, siblings))
    out = Described(gdal, gdal.transform, left_behind=gdal.left_behind)
    keys = geokeys_of(page)
    point = keys is not None and short_keys(keys).get(RASTER_TYPE) == 2
    inside = _transform(page, point)
    if out.transform is None and (inside is None or _unplaced(page)):
        out.transform, found = world_file_of(path, siblings)
        if out.transform is None and found:
            out.left_behind.append(found)
    out.rpc, found = rpc_of(path, siblings)
    if out.rpc is None and found:
        out.left_behind.append(found)
    out.left_behind += [f"{name}, which is not read" for name in unread_of(path, siblings)]
    return out


def interpretations_of(page: tifffile.TiffPage, gdal: GdalMetadata) -> list[str]:
    """GDAL's name of what each sample of a pixel shows: from the photometric interpretation and the extra samples, unless the
    metadata say otherwise."""
    count = page.samplesperpixel
    names = [*(COLOURS if int(page.photometric) in RGB_LIKE else ("Gray",)), *([UNDEFINED] * count)][:count]
    extra = [int(kind) for kind in page.extrasamples]
    for i, kind in enumerate(extra):
        place = count - len(extra) + i
        if EXTRA_SAMPLES.get(kind, False) and 0 <= place < count:
            names[place] = ALPHA
    for band, name in gdal.interpretations.items():
        if band < count:
            names[band] = name
    return names


def palette_of(page: tifffile.TiffPage) -> bytes:
    """Red, green and blue of each class of a palette image, one byte each; empty without a palette. Writers multiply by 257, 256 or 1."""
    if page.colormap is None:
        return b""
    colours = np.asarray(page.colormap, np.uint16).T
    factor = 1 if colours.max() < 256 else 256 if (colours % 257).any() else 257
    return (colours // factor).astype(np.uint8).tobytes()


def nodata_of(page: tifffile.TiffPage, found: Described, alpha_band: int | None) -> float | None:
    """The nodata value that samples can have, as GDAL reads it. Raises MetadataError where it cannot be carried."""
    inside = _text(page, GDAL_NODATA) if GDAL_NODATA in page.tags else ""
    bands = [i for i in range(page.samplesperpixel) if i != alpha_band]
    texts = {found.gdal.nodata.get(band, inside) for band in bands}
    if len(texts) > 1:
        raise MetadataError(
            f"bands with the nodata values {', '.join(sorted(text or 'none' for text in texts))}; accepted is one for all bands",
            Fault.KIND,
            field="nodata",
            expected="one value",
            found=", ".join(sorted(texts)),
        )
    text = next(iter(texts), "")
    if not text.strip():
        return None
    plain = re.sub(r"(\d),(\d)", r"\1.\2", text, flags=re.ASCII)  # GDAL takes a comma for a decimal point
    plain = re.sub(
        r"1\.#(QNAN|SNAN|IND)", "nan", plain.replace("1.#INF", "inf")
    )  # as Microsoft's C library prints them
    number = re.match(r"\s*([-+]?(?:nan|inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?))", plain, re.IGNORECASE | re.ASCII)
    if number is None:
        raise MetadataError(
            f"the nodata text {text!r} is no number", Fault.TEXT, field="nodata", expected="a number", found=text
        )
    value = float(number[1])
    if dtype_name(page) == FLOAT:
        with np.errstate(over="ignore"):
            near = float(np.float32(value))
        if np.isinf(near) > np.isinf(value):
            found.left_behind.append(f"nodata {text.strip()}, which no sample of {FLOAT} can have")
            return None
        return near
    low, high = DTYPE_RANGE[dtype_name(page)]
    if not low <= value <= high:  # also not a number: no sample can have it
        found.left_behind.append(f"nodata {text.strip()}, which no sample of {dtype_name(page)} can have")
        return None
    if value != int(value):
        raise MetadataError(
            f"nodata {text.strip()} for samples of {dtype_name(page)}; accepted are whole numbers",
            Fault.RANGE,
            field="nodata",
            expected="a whole number",
            found=value,
        )
    return value


def _acquisition(page: tifffile.TiffPage, tags: list[Tag]) -> Acquisition | None:
    """GDAL's IMAGERY domain, else the DateTime tag (which has no zone and is read as UTC)."""
    imagery = {tag.name: tag.value for tag in tags if tag.domain == "IMAGERY"}
    timestamp = cloud = None
    for text, pattern in (
        (imagery.get("ACQUISITIONDATETIME"), "%Y-%m-%d %H:%M:%S"),
        (_text(page, DATE_TIME) if DATE_TIME in page.tags else None, "%Y:%m:%d %H:%M:%S"),
    ):
        if timestamp is None and text is not None:
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


def _by_band(values: dict[int, Any], order: list[int], empty: Any) -> tuple[Any, ...]:
    """Values in the order of the stream's bands, without those at the end that say nothing; empty where none says anything."""
    out = [values.get(i, empty) for i in order]
    while out and out[-1] == empty:
        out.pop()
    return tuple(out)


def source_metadata(
    page: tifffile.TiffPage, found: Described, alpha_band: int | None, masked: bool, tags_max_bytes: int
) -> Metadata:
    """Metadata of the image in ``page``; what is not carried is added to ``found.left_behind``.

    ``alpha_band`` counts from 0 in the file. Tags that take more than ``tags_max_bytes`` when packed are left behind. Raises
    MetadataError where something cannot be carried.
    """
    gdal = found.gdal
    keys = geokeys_of(page)
    short = short_keys(keys) if keys else {}
    point = short.get(RASTER_TYPE) == 2
    epsg = _epsg(keys)
    if keys is None and KEY_DIRECTORY in page.tags:
        found.left_behind.append("GeoKeys of another version, or fewer than announced, which GDAL does not read")
    if gdal.wkt is not None:
        keys, epsg = None, None
        if gdal.epoch is not None:
            found.left_behind.append(f"the coordinate epoch {gdal.epoch} in the file .aux.xml")
    transform = found.transform or _transform(page, point)
    ties = _doubles(page, TIEPOINTS)
    gcps: tuple[tuple[float, ...], ...] = ()
    if transform is None and len(ties) >= 6:
        shift = 0.5 if point else 0.0
        gcps = tuple((ties[i] + shift, ties[i + 1] + shift, *ties[i + 3 : i + 6]) for i in range(0, len(ties) - 5, 6))
    rpc = found.rpc or _doubles(page, RPC_TAG)
    if rpc and len(rpc) != RPC_VALUES:
        found.left_behind.append(f"an RPC tag of {len(rpc)} numbers instead of {RPC_VALUES}")
    order = [i for i in range(page.samplesperpixel) if i != alpha_band] + ([] if alpha_band is None else [alpha_band])
    bands = page.samplesperpixel - (alpha_band is not None)
    colour = int(page.photometric) in RGB_LIKE
    shown = [interpretations_of(page, gdal)[i] for i in order]
    usual = [*(COLOURS if colour else ("Gray",)), *([UNDEFINED] * bands)][:bands] + [ALPHA] * (alpha_band is not None)
    place = {band + 1: i + 1 for i, band in enumerate(order)} | {0: 0}
    known = [tag for tag in gdal.tags if tag.band in place and not tag.domain]
    for domain in sorted({tag.domain for tag in gdal.tags if tag.domain}):  # GDAL's COG driver does not write them
        used = " beside date and cloud cover" if domain == "IMAGERY" else ""
        found.left_behind.append(f"tags of the domain {domain}{used}")
    scaled = {i: (gdal.scales.get(i, 1.0), gdal.offsets.get(i, 0.0)) for i in {*gdal.scales, *gdal.offsets}}
    extra = [int(kind) for kind in page.extrasamples]
    metadata = Metadata(
        epsg=epsg,
        geokeys=None if epsg is not None else keys,
        transform=transform,
        gcps=gcps,
        rpc=rpc if len(rpc) == RPC_VALUES else None,
        pixel_is_point=point,
        nodata=nodata_of(page, found, alpha_band),
        masked=masked,
        alpha_band=alpha_band,
        colour=None if colour == (bands == 3) else colour,
        scales=_all_or_none(scaled, order, bands, (1.0, 0.0)),
        band_names=_all_or_none(gdal.descriptions, order, bands, ""),
        acquisition=_acquisition(page, gdal.tags),
        nbits=_nbits(page),
        units=_by_band(gdal.units, order, ""),
        interpretations=() if shown == usual else tuple(shown),
        crs_wkt=gdal.wkt,
        premultiplied=alpha_band is not None and 1 in extra,
        palette=palette_of(page),
    )
    return _with_tags(metadata, tuple(tag._replace(band=place[tag.band]) for tag in known), found, tags_max_bytes)


def _all_or_none(values: dict[int, Any], order: list[int], bands: int, empty: Any) -> tuple[Any, ...]:
    """An entry for each band where any has one; behind them the alpha band's, where that has one."""
    out = _by_band(values, order, empty)
    return out + (empty,) * (bands - len(out)) if out else ()


def _nbits(page: tifffile.TiffPage) -> int | None:
    """Bits of a sample where they are not all of its type."""
    bits = page.bitspersample
    whole = np.dtype(dtype_name(page)).itemsize * 8
    return int(bits) if isinstance(bits, int) and bits < whole else None


def _with_tags(metadata: Metadata, tags: tuple[Tag, ...], found: Described, most: int) -> Metadata:
    """The metadata with the tags, unless they take more than so many bytes."""
    if not tags:
        return metadata
    whole = replace(metadata, tags=tags)
    size = len(pack_metadata(whole)) - len(pack_metadata(metadata))
    if size <= most:
        return whole
    reason = "tags are not carried" if most == 0 else f"they take {size} bytes, the limit is {most}"
    found.left_behind.append(f"{len(tags)} tags of the dataset and its bands ({reason})")
    return metadata
