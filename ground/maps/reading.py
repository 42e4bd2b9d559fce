"""Reads a vector map: GeoJSON (RFC 7946, and the older form with a CRS), or GeoPackage and FlatGeobuf by pyogrio.

A map may come from anybody. It is bounded in bytes, objects and vertices before it is drawn, its CRS is one of a registry (a name that leads
to a file or an address is not followed), and its texts are made harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.errors
from rasterio.crs import CRS

from perigee.bitstream.errors import Fault, LimitError, MapError
from perigee.bitstream.map_planes import MAP_CLASSES
from perigee.ground.maps import objects
from perigee.ground.maps.classes import Classes
from perigee.ground.maps.objects import Collector, Part
from perigee.ground.maps.texts import plain
from perigee.support.files import read_bounded

BYTES_MAX = 64 << 20
BRACES_MAX = 2_000_000  # objects of JSON, of which every one takes memory
WGS84 = CRS.from_epsg(4326)
MAP_STEM, SUFFIXES = "map", (".geojson", ".gpkg", ".fgb")
DEGREES = (180.0, 90.0)  # largest longitude and latitude
METRES = 1e8  # largest coordinate of another CRS: twice the way around the Earth; PROJ needs hours for 1e20
SQLITE, FLATGEOBUF = b"SQLite format 3\0", b"fgb"
CRS_NAME = re.compile(
    r"(?:urn:ogc:def:crs:|https?://www\.opengis\.net/def/crs/)?(EPSG|OGC)[:/](?:[0-9.]*[:/])?(CRS84|[0-9]{4,6})", re.I
)
OSM, OSM_LICENCE = "OpenStreetMap", "(c) OpenStreetMap contributors, ODbL 1.0"
NOTES = {  # what a file may say of itself, by the names of its members
    "source": ("source", "generator", "name"),
    "licence": ("licence", "license"),
    "attribution": ("attribution", "copyright"),
    "date": ("timestamp", "date"),
}


@dataclass(frozen=True)
class VectorMap:
    """A map that was read: parts in its CRS, what it says of itself, the digest of its file, and what was left out, by reason.

    ``classes`` is the digest of a mapping of classes, empty without one.
    """

    parts: tuple[Part, ...]
    crs: CRS
    digest: str
    notes: Mapping[str, str]
    left_out: Mapping[str, int] = field(default_factory=dict)
    classes: str = ""

    @property
    def objects(self) -> int:
        """How many objects have a class."""
        return len({part.number for part in self.parts})


def read_map(path: Path, classes: Classes | None = None) -> VectorMap:
    """Read a map. Raises MapError for a file that is none or has nothing to draw, LimitError for one that is too large, and OSError."""
    try:
        data = read_bounded(path, BYTES_MAX)
    except LimitError as error:
        raise LimitError(
            f"{path.name}: a map of more than {BYTES_MAX} bytes: cut it to the scene",
            field="map",
            expected=f"at most {BYTES_MAX} bytes",
        ) from error
    classes = classes or Classes()
    features: Iterable[Any]
    if data.startswith((SQLITE, FLATGEOBUF)):
        if data.startswith(SQLITE):
            _check_tables(path)
        features, crs, members = _by_pyogrio(path, classes)
    else:
        features, crs, members = _of_geojson(path.name, data)
    collector = Collector(path.name, classes)
    for number, feature in enumerate(features):
        collector.add(number, feature)
    if not collector.parts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in collector.left_out.items()) or "no features"
        raise MapError(
            f"{path.name}: nothing to draw ({reasons})", Fault.MISSING, field="map", expected=", ".join(MAP_CLASSES)
        )
    _check_extent(path.name, collector.parts, crs)
    digest = hashlib.sha256(data).hexdigest()[:16]
    return VectorMap(tuple(collector.parts), crs, digest, _notes(members), dict(collector.left_out), classes.digest)


def map_file_of(data: bytes) -> str:
    """The name under which the bytes of a map are kept: its suffix says what they are."""
    suffix = ".gpkg" if data.startswith(SQLITE) else ".fgb" if data.startswith(FLATGEOBUF) else ".geojson"
    return MAP_STEM + suffix


def map_file_in(folder: Path) -> Path | None:
    """The map that is kept in a folder, None where there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{MAP_STEM}{suffix}").is_file()), None)


def _of_geojson(name: str, data: bytes) -> tuple[list[Any], CRS, Mapping[str, Any]]:
    """The features of a GeoJSON text, its CRS and its members."""
    if data.count(b"{") > BRACES_MAX:
        raise LimitError(
            f"{name}: more than {BRACES_MAX} objects of JSON", field="map", expected=f"at most {BRACES_MAX}"
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else plain(error)
        raise MapError(f"{name}: not a GeoJSON text ({reason})", Fault.UNREADABLE, field="map") from error
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "FeatureCollection":
        features = found.get("features")
    elif kind == "Feature":
        features = [found]
    else:
        features = None
    if not isinstance(features, list):
        raise MapError(
            f"{name}: not a FeatureCollection or Feature of GeoJSON",
            Fault.KIND,
            field="map",
            expected="FeatureCollection, Feature",
            found=plain(kind),
        )
    member = found.get("crs")
    return features, WGS84 if member is None else _crs_of_member(name, member), found


def _crs_of_member(name: str, member: Any) -> CRS:
    """The CRS that the older form of GeoJSON names. GDAL would also read a file or an address from such a name: only codes are accepted."""
    properties = member.get("properties") if isinstance(member, dict) else None
    text = properties.get("name") if isinstance(properties, dict) else None
    code = CRS_NAME.fullmatch(text.strip()) if isinstance(text, str) else None
    try:
        if code is not None:
            # CRS84 is WGS 84 with longitude first, as GeoJSON has it anyway
            return WGS84 if code[2].upper() == "CRS84" else CRS.from_epsg(int(code[2]))
    except rasterio.errors.CRSError:
        pass
    raise MapError(
        f"{name}: its CRS is not known ({plain(text)}); accepted are codes of EPSG such as EPSG:32633, and CRS84",
        Fault.KIND,
        field="crs",
        expected="EPSG:CODE, CRS84",
        found=plain(text),
    )


def _check_tables(path: Path) -> None:
    """Raise MapError for a GeoPackage with views, which may be computed without end."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as file:
            views = [row[0] for row in file.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]
    except sqlite3.Error as error:
        raise MapError(f"{path.name}: cannot be read ({plain(error)})", Fault.UNREADABLE, field="map") from error
    if views:
        raise MapError(
            f"{path.name}: a GeoPackage with views ({plain(', '.join(map(str, views)))}); save what they show as layers",
            Fault.KIND,
            field="map",
            expected="layers",
        )


def _by_pyogrio(path: Path, classes: Classes) -> tuple[Iterator[Any], CRS, Mapping[str, Any]]:
    """The features of all layers of a GeoPackage or FlatGeobuf, which must have one CRS, and no members."""
    try:
        import pyogrio
        import shapely
        from shapely.geometry import mapping
    except ModuleNotFoundError as error:
        raise MapError(
            f"{path.name}: a GeoPackage or FlatGeobuf needs pyogrio and shapely: pip install '.[maps]' in Perigee's checkout",
            Fault.KIND,
            field="map",
            expected="GeoJSON",
        ) from error
    layers: list[Any] = []
    room = objects.OBJECTS_MAX + 1
    try:
        for layer, geometry_type in pyogrio.list_layers(path):
            if geometry_type is None:  # a table without geometry, such as QGIS's styles
                continue
            info = pyogrio.read_info(path, layer=layer)
            fields = [name for name in info["fields"] if name in classes.attributes]
            layers.append(pyogrio.raw.read(path, layer=layer, columns=fields, max_features=max(room, 1)))
            if len(layers[-1][2]) < min(info["features"], max(room, 1)):
                raise ValueError(f"the layer {layer} is cut short")  # told as the errors below
            room -= len(layers[-1][2])
        if not layers:
            raise ValueError("it has no layer of shapes")
        crs = [CRS.from_string(meta["crs"]) if meta["crs"] else WGS84 for meta, *_ in layers]
    except Exception as error:  # pyogrio's errors have no common base that is documented
        told = plain(str(error).replace(str(path), path.name))
        raise MapError(f"{path.name}: cannot be read ({told})", Fault.UNREADABLE, field="map") from error
    if any(one != crs[0] for one in crs):
        raise MapError(f"{path.name}: its layers have different CRSs; save them in one", Fault.MISFIT, field="crs")

    def features() -> Iterator[Any]:
        for meta, _, geometries, columns in layers:
            for row, geometry in enumerate(shapely.from_wkb(geometries, on_invalid="ignore")):
                values = {name: column[row] for name, column in zip(meta["fields"], columns, strict=True)}
                yield {"geometry": None if geometry is None else mapping(geometry), "properties": values}

    return features(), crs[0], {}


def _check_extent(name: str, parts: Iterable[Part], crs: CRS) -> None:
    """Raise MapError for coordinates that are none of the CRS's."""
    largest = np.max([np.abs(ring).max(0) for part in parts for ring in part.rings], axis=0)
    if crs.is_geographic and (largest > DEGREES).any():
        raise MapError(
            f"{name}: coordinates up to {largest[0]:.0f}, {largest[1]:.0f} are no degrees; a GeoJSON that is not in WGS 84 names its CRS in a member "
            "crs",
            Fault.RANGE,
            field="crs",
            expected="longitudes to 180 and latitudes to 90 degrees",
            found=f"{largest[0]:.0f}, {largest[1]:.0f}",
        )
    if largest.max() > METRES:
        raise MapError(
            f"{name}: coordinates up to {largest.max():.3g} lie on no map of the Earth",
            Fault.RANGE,
            field="map",
            expected=f"coordinates up to {METRES:g}",
            found=f"{largest.max():.3g}",
        )


def _notes(members: Mapping[str, Any]) -> dict[str, str]:
    """What a map says of its source, licence, attribution and date, for tags and STAC."""
    out: dict[str, str] = {}
    for note, names in NOTES.items():
        texts = (plain(members[n]) for n in names if isinstance(members.get(n), str))
        value = next((text for text in texts if text), None)
        if value:
            out[note] = value
    if OSM.lower() in " ".join(out.values()).lower():
        out.setdefault("licence", OSM_LICENCE)
    return out
