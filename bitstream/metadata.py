"""The metadata packet: georeferencing, radiometry, the eight acquisition fields of COSMIC, an opaque ancillary part.

The packet is the payload of a metadata chunk, and can also travel alone in one. A packet is a sequence of
fields, each a tag, a varint length and a value; absent means absent. A reader refuses unknown tags below 128 and skips
those from 128. Floating-point values are stored as they are, so that a transform comes back unrounded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from perigee.bitstream.errors import BitstreamError, Fault, FormatError, LimitError, MetadataError, UnsupportedError
from perigee.bitstream.format import METADATA, read_varint, write_chunk, write_varint
from perigee.bitstream.parsing import read_chunk

ANCILLARY_MAX_BYTES = 65536
EPSG, GEOKEYS, NORTH_UP, AFFINE, GCPS, RPC = 1, 2, 3, 4, 5, 6
NODATA, SCALES, ACQUISITION, ANCILLARY, BAND_NAMES, POINT, ALPHA, FILL_MASKED, COLOUR = 7, 8, 9, 10, 11, 12, 13, 14, 15
OPTIONAL_TAG = 128
# optional fields: a reader that does not know one skips it
NBITS, UNITS, INTERPRETATIONS, TAGS, CRS_WKT, PREMULTIPLIED, PALETTE = 128, 129, 130, 131, 132, 133, 134
TAGS_MAX_BYTES = 1 << 20  # unpacked
PALETTE_BYTES = 3 * 256
RPC_VALUES = 92
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Acquisition:
    """How the scene was taken; None where a field is not known. Angles in degrees, azimuths clockwise from north."""

    longitude_deg: float | None = None
    latitude_deg: float | None = None
    timestamp: datetime | None = None
    gsd_m: float | None = None
    cloud_cover_percent: float | None = None
    off_nadir_deg: float | None = None
    target_azimuth_deg: float | None = None
    sun_azimuth_deg: float | None = None
    sun_elevation_deg: float | None = None

    def __post_init__(self) -> None:
        if (self.longitude_deg is None) != (self.latitude_deg is None):
            raise MetadataError(
                "longitude and latitude are given together or not at all",
                Fault.MISSING,
                field="longitude_deg, latitude_deg",
            )
        for name, low, high in ACQUISITION_RANGES:
            value = getattr(self, name)
            if value is not None and not low - 1e-6 * abs(low) <= value <= high:  # stored as float32
                raise MetadataError(
                    f"{name} is {value}, accepted are {low} to {high}",
                    field=name,
                    expected=f"{low} to {high}",
                    found=value,
                )
        if self.timestamp is not None and self.timestamp.tzinfo is None:
            raise MetadataError("the timestamp needs a time zone", Fault.MISSING, field="timestamp")


ACQUISITION_RANGES = (
    ("longitude_deg", -180.0, 180.0),
    ("latitude_deg", -90.0, 90.0),
    ("gsd_m", 1e-4, 1e6),
    ("cloud_cover_percent", 0.0, 100.0),
    ("off_nadir_deg", 0.0, 90.0),
    ("target_azimuth_deg", 0.0, 360.0),
    ("sun_azimuth_deg", 0.0, 360.0),
    ("sun_elevation_deg", -90.0, 90.0),
)
_SCALARS = tuple(name for name, _, _ in ACQUISITION_RANGES[2:])


@dataclass(frozen=True)
class GeoKeys:
    """TIFF tags 34735, 34736 and 34737 as they stand in the source."""

    directory: tuple[int, ...]
    doubles: tuple[float, ...] = ()
    ascii: bytes = b""


class Tag(NamedTuple):
    """A tag of the source in GDAL's sense. ``band`` counts from 1, 0 is the whole scene; ``domain`` is empty for the default one."""

    name: str
    value: str
    band: int = 0
    domain: str = ""


@dataclass(frozen=True)
class Metadata:
    """Everything beside the pixels. ``transform`` is a, b, c, d, e, f of x = a col + b row + c, y = d col + e row + f.

    ``gcps`` are (col, row, x, y, z); with GCPs and no transform the CRS is that of the GCPs. ``rpc`` is TIFF tag 50844.
    ``scales`` holds (scale, offset) per band: physical value = scale * sample + offset. ``alpha_band`` counts from 0 in
    the source's bands; ``masked`` says that invalid samples come from a mask and not from a nodata value. ``colour``
    says whether the first three bands are red, green and blue; None is the rule that exactly three bands are.

    ``scales``, ``band_names``, ``units`` and ``interpretations`` stand in the order of the bands; an entry behind the last band is
    the alpha band's. ``nbits`` is the number of bits that samples of the source use, None where it is all of their type.
    ``interpretations`` are GDAL's names of what a band shows, empty where they follow from ``colour`` and ``alpha_band``. ``crs_wkt``
    is a CRS that came as text; ``premultiplied`` says that alpha is already in the samples. ``palette`` has red, green and blue of 256 classes,
    one byte each, where samples are numbers of classes and no light; empty elsewhere.
    """

    epsg: int | None = None
    geokeys: GeoKeys | None = None
    transform: tuple[float, ...] | None = None
    gcps: tuple[tuple[float, ...], ...] = ()
    rpc: tuple[float, ...] | None = None
    pixel_is_point: bool = False
    nodata: float | None = None
    masked: bool = False
    alpha_band: int | None = None
    colour: bool | None = None
    scales: tuple[tuple[float, float], ...] = ()
    band_names: tuple[str, ...] = ()
    acquisition: Acquisition | None = None
    ancillary: bytes = b""
    nbits: int | None = None
    units: tuple[str, ...] = ()
    interpretations: tuple[str, ...] = ()
    tags: tuple[Tag, ...] = ()
    crs_wkt: str | None = None
    premultiplied: bool = False
    palette: bytes = b""

    def __post_init__(self) -> None:
        if len(self.palette) not in (0, PALETTE_BYTES):
            raise MetadataError(
                f"a palette of {len(self.palette)} bytes, expected {PALETTE_BYTES}",
                Fault.SIZE,
                field="palette",
                expected=PALETTE_BYTES,
                found=len(self.palette),
            )
        if len(self.ancillary) > ANCILLARY_MAX_BYTES:
            raise MetadataError(
                f"{len(self.ancillary)} ancillary bytes, the limit is {ANCILLARY_MAX_BYTES}",
                Fault.LIMIT,
                field="ancillary",
                expected=f"at most {ANCILLARY_MAX_BYTES}",
                found=len(self.ancillary),
            )
        for name, what, wanted in (("transform", "a transform", 6), ("rpc", "an RPC model", RPC_VALUES)):
            values = getattr(self, name)
            if values is not None and len(values) != wanted:
                raise MetadataError(
                    f"{what} of {len(values)} numbers, expected {wanted}",
                    Fault.SIZE,
                    field=name,
                    expected=wanted,
                    found=len(values),
                )


def _doubles(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def _undoubles(value: bytes, what: str, count: int | None = None) -> tuple[float, ...]:
    if len(value) % 8 or (count is not None and len(value) != 8 * count):
        expected = 8 * count if count else "a multiple of 8"
        raise FormatError(
            f"metadata: {what} has {len(value)} bytes, expected {expected}",
            Fault.SIZE,
            field=what,
            expected=expected,
            found=len(value),
        )
    return struct.unpack(f"<{len(value) // 8}d", value)


def _texts(values: Iterable[str]) -> bytes:
    """Texts separated by byte 0, UTF-8."""
    return "\0".join(value.replace("\0", " ") for value in values).encode()


def _untexts(value: bytes) -> tuple[str, ...]:
    return tuple(value.decode().split("\0"))


def _pack_tags(tags: Iterable[Tag]) -> bytes:
    """Tags as texts: band, domain, name and value of each."""
    return _texts(part for tag in tags for part in (str(tag.band), tag.domain, tag.name, tag.value))


def _unpack_tags(value: bytes) -> tuple[Tag, ...]:
    parts = _untexts(_inflated(value, "tags"))
    if len(parts) % 4 or not all(part.isdecimal() and len(part) <= 3 for part in parts[::4]):
        raise FormatError("metadata: tags come as band, domain, name and value", Fault.SIZE, field="tags")
    return tuple(Tag(parts[i + 2], parts[i + 3], int(parts[i]), parts[i + 1]) for i in range(0, len(parts), 4))


def _inflated(value: bytes, what: str) -> bytes:
    """A zlib stream, of at most ``TAGS_MAX_BYTES`` unpacked."""
    engine = zlib.decompressobj()
    try:
        out = engine.decompress(value, TAGS_MAX_BYTES)
    except zlib.error as error:
        raise FormatError(f"metadata: {what} cannot be inflated ({error})", Fault.TEXT, field=what) from error
    if not engine.eof or engine.unused_data:
        raise FormatError(
            f"metadata: {what} are not one zlib stream of at most {TAGS_MAX_BYTES} bytes", Fault.LIMIT, field=what
        )
    return out


def _pack_acquisition(a: Acquisition) -> bytes:
    present = (a.longitude_deg is not None) | (a.timestamp is not None) << 1
    body = b""
    if a.longitude_deg is not None and a.latitude_deg is not None:
        body += struct.pack("<ii", round(a.longitude_deg * 1e7), round(a.latitude_deg * 1e7))
    if a.timestamp is not None:
        body += struct.pack("<q", (a.timestamp - EPOCH) // timedelta(milliseconds=1))
    for bit, name in enumerate(_SCALARS, start=2):
        value = getattr(a, name)
        if value is not None:
            present |= 1 << bit
            body += struct.pack("<f", value)
    return bytes([present]) + body


def _unpack_acquisition(value: bytes) -> Acquisition:
    out: dict[str, object] = {}
    try:
        present, at = value[0], 1
        if present & 1:
            lon, lat = struct.unpack_from("<ii", value, at)
            out |= {"longitude_deg": lon / 1e7, "latitude_deg": lat / 1e7}
            at += 8
        if present & 2:
            out["timestamp"] = EPOCH + timedelta(milliseconds=struct.unpack_from("<q", value, at)[0])
            at += 8
        for bit, name in enumerate(_SCALARS, start=2):
            if present >> bit & 1:
                out[name] = struct.unpack_from("<f", value, at)[0]
                at += 4
        if at != len(value):
            raise FormatError(
                "metadata: the acquisition fields have another length than their bits say",
                Fault.SIZE,
                field="acquisition",
                expected=at,
                found=len(value),
            )
        return Acquisition(**out)  # type: ignore[arg-type]
    except (IndexError, struct.error, OverflowError, MetadataError) as error:
        raise FormatError(f"metadata: acquisition fields are broken ({error})", field="acquisition") from error


def pack_metadata(m: Metadata) -> bytes:
    """The packet's bytes; empty metadata give b"". Raises MetadataError where a value does not fit its field."""
    try:
        return _pack(m)
    except (struct.error, ValueError, UnicodeEncodeError, LimitError) as error:
        raise MetadataError(f"metadata that no packet can carry ({error})") from error


def _pack(m: Metadata) -> bytes:
    parts: list[tuple[int, bytes]] = []
    if m.epsg is not None:
        parts.append((EPSG, write_varint(m.epsg)))
    if m.geokeys is not None:
        k = m.geokeys
        head = struct.pack("<HH", len(k.directory), len(k.doubles))
        directory = struct.pack(f"<{len(k.directory)}H", *k.directory)
        parts.append((GEOKEYS, head + directory + _doubles(k.doubles) + k.ascii))
    if m.transform is not None:
        a, b, c, d, e, f = m.transform
        parts.append((NORTH_UP, _doubles((a, c, e, f))) if b == 0 == d else (AFFINE, _doubles(m.transform)))
    if m.gcps:
        parts.append((GCPS, b"".join(_doubles(g) for g in m.gcps)))
    if m.rpc is not None:
        parts.append((RPC, _doubles(m.rpc)))
    if m.pixel_is_point:
        parts.append((POINT, b""))
    if m.nodata is not None:
        parts.append((NODATA, struct.pack("<d", m.nodata)))
    if m.masked:
        parts.append((FILL_MASKED, b""))
    if m.alpha_band is not None:
        parts.append((ALPHA, bytes([m.alpha_band])))
    if m.colour is not None:
        parts.append((COLOUR, bytes([m.colour])))
    if m.scales:
        parts.append((SCALES, b"".join(_doubles(s) for s in m.scales)))
    if m.band_names:
        parts.append((BAND_NAMES, _texts(m.band_names)))
    if m.acquisition is not None and any(getattr(m.acquisition, f.name) is not None for f in fields(Acquisition)):
        parts.append((ACQUISITION, _pack_acquisition(m.acquisition)))
    if m.ancillary:
        parts.append((ANCILLARY, m.ancillary))
    if m.nbits is not None:
        parts.append((NBITS, bytes([m.nbits])))
    if m.units:
        parts.append((UNITS, _texts(m.units)))
    if m.interpretations:
        parts.append((INTERPRETATIONS, _texts(m.interpretations)))
    if m.tags:
        parts.append((TAGS, zlib.compress(_pack_tags(m.tags), 9)))
    if m.crs_wkt is not None:
        parts.append((CRS_WKT, zlib.compress(m.crs_wkt.encode(), 9)))
    if m.premultiplied:
        parts.append((PREMULTIPLIED, b""))
    if m.palette:
        parts.append((PALETTE, zlib.compress(m.palette, 9)))
    return b"".join(bytes([tag]) + write_varint(len(value)) + value for tag, value in parts)


def _fields(packet: bytes) -> dict[int, bytes]:
    out: dict[int, bytes] = {}
    at = 0
    while at < len(packet):
        tag = packet[at]
        length, start = read_varint(packet, at + 1)
        if start + length > len(packet):
            left = len(packet) - start
            raise FormatError(
                f"metadata: field {tag} announces {length} bytes, {left} are left",
                Fault.ENDS_EARLY,
                field=f"metadata field {tag}",
                expected=f"at most {left}",
                found=length,
                offset_bytes=at,
            )
        if tag in out:
            raise FormatError(
                f"metadata: field {tag} comes twice", Fault.REPEATED, field=f"metadata field {tag}", offset_bytes=at
            )
        out[tag] = packet[start : start + length]
        at = start + length
    return out


def unpack_metadata(packet: bytes) -> Metadata:
    """Inverse of :func:`pack_metadata`. Raises FormatError or UnsupportedError (unknown tag below 128)."""
    found = _fields(packet)
    known = range(EPSG, COLOUR + 1)
    unknown = [tag for tag in found if tag < OPTIONAL_TAG and tag not in known]
    if unknown:
        raise UnsupportedError(
            f"metadata fields {unknown}, which this reader cannot do without",
            field="metadata field",
            expected=f"1 to {COLOUR}, or from {OPTIONAL_TAG} on",
            found=", ".join(map(str, unknown)),
        )
    try:
        transform: tuple[float, ...] | None = None
        if NORTH_UP in found:
            a, c, e, f = _undoubles(found[NORTH_UP], "the transform", 4)
            transform = (a, 0.0, c, 0.0, e, f)
        elif AFFINE in found:
            transform = _undoubles(found[AFFINE], "the transform", 6)
        gcps = _undoubles(found.get(GCPS, b""), "the GCPs")
        scales = _undoubles(found.get(SCALES, b""), "the scales")
        if len(gcps) % 5 or len(scales) % 2:
            raise FormatError("metadata: GCPs come in fives, scales in pairs", Fault.SIZE, field="GCPs, scales")
        for tag, size in ((POINT, 0), (FILL_MASKED, 0), (COLOUR, 1), (ALPHA, 1)):
            if tag in found and len(found[tag]) != size:
                raise FormatError(
                    f"metadata: field {tag} has {len(found[tag])} bytes, expected {size}",
                    Fault.SIZE,
                    field=f"metadata field {tag}",
                    expected=size,
                    found=len(found[tag]),
                )
        if found.get(COLOUR, b"\0")[0] > 1:
            raise FormatError(
                "metadata: colour is neither 0 nor 1", field="colour", expected="0 or 1", found=found[COLOUR][0]
            )
        if EPSG in found and read_varint(found[EPSG], 0)[1] != len(found[EPSG]):
            raise FormatError("metadata: bytes follow the EPSG code", Fault.SIZE, field="EPSG")
        return Metadata(
            epsg=read_varint(found[EPSG], 0)[0] if EPSG in found else None,
            geokeys=_unpack_geokeys(found[GEOKEYS]) if GEOKEYS in found else None,
            transform=transform,
            gcps=tuple(gcps[i : i + 5] for i in range(0, len(gcps), 5)),
            rpc=_undoubles(found[RPC], "the RPC model", RPC_VALUES) if RPC in found else None,
            pixel_is_point=POINT in found,
            nodata=_undoubles(found[NODATA], "nodata", 1)[0] if NODATA in found else None,
            masked=FILL_MASKED in found,
            alpha_band=found[ALPHA][0] if ALPHA in found else None,
            colour=bool(found[COLOUR][0]) if COLOUR in found else None,
            scales=tuple((scales[i], scales[i + 1]) for i in range(0, len(scales), 2)),
            band_names=_untexts(found[BAND_NAMES]) if BAND_NAMES in found else (),
            acquisition=_unpack_acquisition(found[ACQUISITION]) if ACQUISITION in found else None,
            ancillary=found.get(ANCILLARY, b""),
            nbits=_nbits(found[NBITS]) if NBITS in found else None,
            units=_untexts(found[UNITS]) if UNITS in found else (),
            interpretations=_untexts(found[INTERPRETATIONS]) if INTERPRETATIONS in found else (),
            tags=_unpack_tags(found[TAGS]) if TAGS in found else (),
            crs_wkt=_inflated(found[CRS_WKT], "the CRS").decode() if CRS_WKT in found else None,
            premultiplied=PREMULTIPLIED in found,
            palette=_inflated(found[PALETTE], "the palette") if PALETTE in found else b"",
        )
    except BitstreamError:
        raise
    except (MetadataError, UnicodeDecodeError, IndexError) as error:
        raise FormatError(f"metadata: {error}") from error


def _nbits(value: bytes) -> int:
    if len(value) != 1 or not 1 <= value[0] <= 16:
        raise FormatError(
            "metadata: NBITS is one byte of 1 to 16", field="NBITS", expected="1 to 16", found=value.hex()
        )
    return value[0]


def _unpack_geokeys(value: bytes) -> GeoKeys:
    try:
        keys, doubles = struct.unpack_from("<HH", value)
        directory = struct.unpack_from(f"<{keys}H", value, 4)
        start = 4 + 2 * keys
        stop = start + 8 * doubles
        if len(directory) < 4 or len(value) < stop:
            raise FormatError("metadata: GeoKeys are incomplete", Fault.ENDS_EARLY, field="GeoKeys")
        return GeoKeys(directory, _undoubles(value[start:stop], "GeoKeys", doubles), value[stop:])
    except struct.error as error:
        raise FormatError(f"metadata: GeoKeys are broken ({error})", Fault.ENDS_EARLY, field="GeoKeys") from error


def write_metadata_packet(packet: bytes) -> bytes:
    """A packet (see :func:`pack_metadata`) as a checked chunk, for a stream or to travel alone."""
    return write_chunk(METADATA, packet)


def read_metadata_packet(data: bytes) -> Metadata:
    """The metadata of a packet that travelled alone, as :func:`write_metadata_packet` wrote it. Raises a BitstreamError."""
    kind, payload = read_chunk(data)
    if kind != METADATA:
        raise FormatError(
            f"chunk type {kind:#04x}, a metadata packet has {METADATA:#04x}",
            Fault.PLACE,
            field="chunk type",
            expected=METADATA,
            found=kind,
            offset_bytes=0,
        )
    return unpack_metadata(payload)
