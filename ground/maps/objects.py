"""Objects of a map: features of GeoJSON become polygons and lines with a class, within limits.

What has no area (points, rings of fewer than three vertices, lines of a class that has areas), what is hidden, and objects of no class are left out
and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import Fault, LimitError, MapError
from perigee.bitstream.map_planes import MAP_CLASSES
from perigee.ground.maps.classes import Classes, is_hidden, width_of
from perigee.ground.maps.texts import plain

OBJECTS_MAX = 500_000
VERTICES_MAX = 4_000_000
DEPTH_MAX = 8  # of geometry collections
Points = npt.NDArray[np.float64]  # [n, 2]: x and y in the map's CRS


@dataclass(frozen=True)
class Part:
    """A polygon with its holes, whose rings are closed, or a line of some width, of the object with this number and class (of ``MAP_CLASSES``)."""

    number: int
    kind: int
    rings: tuple[Points, ...]
    width_m: float | None = None  # of a line


class Collector:
    """Features to parts, with limits."""

    def __init__(self, name: str, classes: Classes) -> None:
        """``name`` is that of the file."""
        self.parts: list[Part] = []
        self.left_out: Counter[str] = Counter()
        self._name, self._classes, self._vertices = name, classes, 0

    def add(self, number: int, feature: Any) -> None:
        """Add the parts of a feature. Raises MapError where it is none, and LimitError where there are too many."""
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
        elif is_hidden(attributes):
            self.left_out["below the ground"] += 1
        elif geometry is None:
            self.left_out["without a geometry"] += 1
        else:
            width = width_of(name, attributes)
            before = len(self.parts)
            for rings, line in self._shapes(number, geometry):
                if width or not line:
                    self.parts.append(Part(number, MAP_CLASSES.index(name), rings, width if line else None))
            self.left_out["without an area"] += len(self.parts) == before
        self.left_out = +self.left_out  # without zeros

    def _wrong(self, number: int, reason: str) -> MapError:
        return MapError(f"{self._name}: feature {number}: {reason}", Fault.SHAPE, field=f"feature {number}")

    def _shapes(self, number: int, geometry: Any, depth: int = 0) -> Iterator[tuple[tuple[Points, ...], bool]]:
        """Rings of each polygon, or the line, with whether it is one."""
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        inside = geometry.get("coordinates", ()) if isinstance(geometry, dict) else ()
        if kind == "GeometryCollection" and depth < DEPTH_MAX:
            for member in self._listed(number, geometry.get("geometries")):
                yield from self._shapes(number, member, depth + 1)
        elif kind in ("Polygon", "MultiPolygon"):
            for polygon in [inside] if kind == "Polygon" else self._listed(number, inside):
                rings = [self._ring(number, ring) for ring in self._listed(number, polygon)]
                if rings and len(rings[0]) > 3:
                    yield tuple(ring for ring in rings if len(ring) > 3), False
        elif kind in ("LineString", "MultiLineString"):
            for line in [inside] if kind == "LineString" else self._listed(number, inside):
                points = self._points(number, line)
                if len(points) > 1:
                    yield (points,), True
        elif kind not in ("Point", "MultiPoint"):
            raise self._wrong(number, f"its geometry is {plain(kind)}, which GeoJSON does not have here")

    def _listed(self, number: int, value: Any) -> list[Any] | tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._wrong(number, "its coordinates are nested otherwise than those of its type")
        return value

    def _ring(self, number: int, value: Any) -> Points:
        """Positions [n, 2] whose last is the first, as drawing wants them; a file may leave it out."""
        points = self._points(number, value)
        if len(points) > 2 and (points[0] != points[-1]).any():
            return np.concatenate([points, points[:1]])
        return points

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
            found = np.array([position[:2] for position in listed])
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise self._wrong(number, "a position is not two or three numbers") from error
        if found.shape != (len(listed), 2) or found.dtype.kind not in "iuf":
            raise self._wrong(number, "a position is not two or three numbers")
        points = found.astype(np.float64)
        if not np.isfinite(points).all():
            raise self._wrong(number, "a coordinate is not finite")
        return points
