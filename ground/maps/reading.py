"""Reads a vector map: GeoJSON (RFC 7946, and the older form with a CRS), or GeoPackage and FlatGeobuf by pyogrio.

A file is bounded in bytes, objects and vertices before it is drawn. What has no area (points, rings of fewer than three vertices) and objects of
no class are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.errors
from rasterio.crs import CRS

from perigee.bitstream.errors import Fault, LimitError, MapError
from perigee.bitstream.map_planes import MAP_CLASSES
from perigee.ground.maps.classes import Classes, width_of

BYTES_MAX = 64 << 20
OBJECTS_MAX = 500_000
VERTICES_MAX = 4_000_000
WGS84 = CRS.from_epsg(4326)
MAP_STEM = "map"
DEGREES = (180.0, 90.0)  # largest longitude and latitude
SQLITE, FLATGEOBUF = b"SQLite format 3\0", b"fgb"
OSM, OSM_LICENCE = "OpenStreetMap", "(c) OpenStreetMap contributors, ODbL 1.0"
NOTES = {  # what a file may say of itself, by the names of its members
    "source": ("source", "generator", "name"),
    "licence": ("licence", "license"),
    "attribution": ("attribution", "copyright"),
    "date": ("timestamp", "date"),
}
NOTE_MAX = 200  # characters
Points = npt.NDArray[np.float64]  # [n, 2]: x and y in the map's CRS


@dataclass(frozen=True)
class Part:
    """A polygon with its holes, or a line of some width, of the object with this number and class (of ``MAP_CLASSES``)."""

    number: int
    kind: int
    rings: tuple[Points, ...]
    width_m: float | None = None  # of a line


@dataclass(frozen=True)
class VectorMap:
    """A map that was read: parts in its CRS, what it says of itself, the digest of its file, and what was left out, by reason."""

    parts: tuple[Part, ...]
    crs: CRS
    digest: str
    notes: Mapping[str, str]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def objects(self) -> int:
        """How many objects have a class."""
        return len({part.number for part in self.parts})


def read_map(path: Path, classes: Classes | None = None) -> VectorMap:
    """Read a map. Raises MapError for a file that is none or has nothing to draw, LimitError for one that is too large, and OSError."""
    size = path.stat().st_size
    if size > BYTES_MAX:
        raise LimitError(
            f"{path.name}: a map of {size} bytes; accepted are up to {BYTES_MAX}: cut it to the scene",
            field="map",
            expected=f"at most {BYTES_MAX} bytes",
            found=size,
        )
    data = path.read_bytes()
    features: Iterable[Any]
    if data.startswith((SQLITE, FLATGEOBUF)):
        features, crs, members = _by_pyogrio(path)
    else:
        features, crs, members = _of_geojson(path.name, data)
    collector = _Collector(path.name, classes or Classes())
    for number, feature in enumerate(features):
        collector.add(number, feature)
    if not collector.parts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in collector.left_out.items()) or "no features"
        raise MapError(
            f"{path.name}: nothing to draw ({reasons})", Fault.MISSING, field="map", expected=", ".join(MAP_CLASSES)
        )
    if crs == WGS84:
        _check_degrees(path.name, collector.parts)
    return VectorMap(
        tuple(collector.parts), crs, hashlib.sha256(data).hexdigest()[:16], _notes(members), dict(collector.left_out)
    )


def map_file_of(data: bytes) -> str:
    """The name under which the bytes of a map are kept: its suffix says what they are."""
    suffix = ".gpkg" if data.startswith(SQLITE) else ".fgb" if data.startswith(FLATGEOBUF) else ".geojson"
    return MAP_STEM + suffix


def _of_geojson(name: str, data: bytes) -> tuple[list[Any], CRS, Mapping[str, Any]]:
    """The features of a GeoJSON text, its CRS and its members."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
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
            found=str(kind)[:NOTE_MAX],
        )
    return features, _crs_of(name, found.get("crs")), found


def _crs_of(name: str, member: Any) -> CRS:
    """The CRS that the older form of GeoJSON names; WGS 84 where it names none."""
    if member is None:
        return WGS84
    try:
        crs = CRS.from_user_input(member["properties"]["name"])
    except (KeyError, TypeError, ValueError, rasterio.errors.CRSError) as error:
        raise MapError(f"{name}: its CRS is not known ({str(error)[:NOTE_MAX]})", Fault.KIND, field="crs") from error
    # "urn:ogc:def:crs:OGC:1.3:CRS84" is WGS 84 with longitude first, as GeoJSON has it anyway
    return WGS84 if crs.is_geographic and crs.to_epsg() in (None, 4326) else crs


def _by_pyogrio(path: Path) -> tuple[Iterator[Any], CRS, Mapping[str, Any]]:
    """The features of all layers of a GeoPackage or FlatGeobuf, which have one CRS, and no members."""
    try:
        import pyogrio
        import shapely
        from shapely.geometry import mapping
    except ModuleNotFoundError as error:
        raise MapError(
            f'{path.name}: a GeoPackage or FlatGeobuf needs pyogrio and shapely: pip install "perigee[maps]"',
            Fault.KIND,
            field="map",
            expected="GeoJSON",
        ) from error
    try:
        layers = [
            pyogrio.raw.read(path, layer=layer, max_features=OBJECTS_MAX + 1) for layer, _ in pyogrio.list_layers(path)
        ]
        crs = CRS.from_user_input(layers[0][0]["crs"] or WGS84)
    except Exception as error:  # pyogrio's errors have no common base that is documented
        raise MapError(
            f"{path.name}: cannot be read ({str(error)[:NOTE_MAX]})", Fault.UNREADABLE, field="map"
        ) from error

    def features() -> Iterator[Any]:
        for meta, _, geometries, columns in layers:
            for row, geometry in enumerate(shapely.from_wkb(geometries)):
                shape = None if geometry is None else mapping(geometry)
                yield {
                    "geometry": shape,
                    "properties": {n: c[row] for n, c in zip(meta["fields"], columns, strict=True)},
                }

    return features(), crs, {}


def _check_degrees(name: str, parts: Iterable[Part]) -> None:
    largest = np.max([np.abs(part.rings[0]).max(0) for part in parts], axis=0)
    if (largest > DEGREES).any():
        raise MapError(
            f"{name}: coordinates up to {largest[0]:.0f}, {largest[1]:.0f} are no degrees; a GeoJSON that is not in WGS 84 names its CRS in a member "
            "crs",
            Fault.RANGE,
            field="crs",
            expected="longitudes to 180 and latitudes to 90 degrees",
            found=f"{largest[0]:.0f}, {largest[1]:.0f}",
        )


def _notes(members: Mapping[str, Any]) -> dict[str, str]:
    """What a map says of its source, licence, attribution and date, for tags and STAC."""
    out: dict[str, str] = {}
    for note, names in NOTES.items():
        value = next((members[n] for n in names if isinstance(members.get(n), str) and members[n]), None)
        if value:
            out[note] = " ".join(value.split())[:NOTE_MAX]
    if OSM.lower() in " ".join(out.values()).lower():
        out.setdefault("licence", OSM_LICENCE)
    return out


class _Collector:
    """Features to parts, with limits."""

    def __init__(self, name: str, classes: Classes) -> None:
        self.parts: list[Part] = []
        self.left_out: Counter[str] = Counter()
        self._name, self._classes, self._vertices = name, classes, 0

    def _wrong(self, number: int, reason: str) -> MapError:
        return MapError(f"{self._name}: feature {number}: {reason}", Fault.SHAPE, field=f"feature {number}")

    def add(self, number: int, feature: Any) -> None:
        """Add the parts of a feature."""
        if number >= OBJECTS_MAX:
            raise LimitError(
                f"{self._name}: more than {OBJECTS_MAX} features: cut the map to the scene",
                field="map",
                expected=f"at most {OBJECTS_MAX} features",
            )
        if not isinstance(feature, dict):
            raise self._wrong(number, "not a Feature of GeoJSON")
        attributes, geometry = feature.get("properties") or {}, feature.get("geometry")
        if not isinstance(attributes, dict):
            raise self._wrong(number, "its properties are no object")
        name = self._classes.of(attributes)
        if name is None:
            self.left_out["without a class"] += 1
        elif geometry is None:
            self.left_out["without a geometry"] += 1
        else:
            width = width_of(name, attributes)
            before = len(self.parts)
            for rings, line in self._shapes(number, geometry):
                self.parts.append(Part(number, MAP_CLASSES.index(name), rings, width if line else None))
            self.left_out["without an area"] += len(self.parts) == before
        self.left_out = +self.left_out  # without zeros

    def _shapes(self, number: int, geometry: Any, depth: int = 0) -> Iterator[tuple[tuple[Points, ...], bool]]:
        """Rings of each polygon, or the line, with whether it is one."""
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        inside = geometry.get("coordinates", ()) if isinstance(geometry, dict) else ()
        if kind == "GeometryCollection" and depth == 0:
            for member in self._listed(number, geometry.get("geometries")):
                yield from self._shapes(number, member, depth + 1)
        elif kind in ("Polygon", "MultiPolygon"):
            for polygon in [inside] if kind == "Polygon" else self._listed(number, inside):
                rings = [self._points(number, ring) for ring in self._listed(number, polygon)]
                if rings and len(rings[0]) > 2:
                    yield tuple(ring for ring in rings if len(ring) > 2), False
        elif kind in ("LineString", "MultiLineString"):
            for line in [inside] if kind == "LineString" else self._listed(number, inside):
                points = self._points(number, line)
                if len(points) > 1:
                    yield (points,), True
        elif kind not in ("Point", "MultiPoint"):
            raise self._wrong(number, f"its geometry is {str(kind)[:NOTE_MAX]}, which GeoJSON does not have here")

    def _listed(self, number: int, value: Any) -> list[Any] | tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._wrong(number, "its coordinates are nested otherwise than those of its type")
        return value

    def _points(self, number: int, value: Any) -> Points:
        """Positions [n, 2]; heights are dropped."""
        listed = self._listed(number, value)
        self._vertices += len(listed)
        if self._vertices > VERTICES_MAX:
            raise LimitError(
                f"{self._name}: more than {VERTICES_MAX} vertices: cut the map to the scene",
                field="map",
                expected=f"at most {VERTICES_MAX} vertices",
            )
        if not listed:
            return np.zeros((0, 2))
        try:
            points = np.array([position[:2] for position in listed], np.float64)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise self._wrong(number, "a position is not two or three numbers") from error
        if points.shape != (len(listed), 2):
            raise self._wrong(number, "a position is not two or three numbers")
        if not np.isfinite(points).all():
            raise self._wrong(number, "a coordinate is not finite")
        return points
