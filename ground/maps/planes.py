"""A map over a scene: for each pixel the share of each class, where the map knows anything, and how far the nearest edge is.

Objects are drawn at four times the scene's resolution, at absolute places, so that no pixel depends on which window was asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import rasterio.errors
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform

from perigee.bitstream.arrays import BoolArray, FloatArray
from perigee.bitstream.errors import Fault, LimitError, MapError
from perigee.bitstream.map_planes import EDGE_REACH, MAP_CLASSES, planes_of
from perigee.bitstream.metadata import Metadata
from perigee.ground.georeference import crs_of
from perigee.ground.maps.drawing import Numbers, drawn, polygon, rectangles
from perigee.ground.maps.objects import Part, Points
from perigee.ground.maps.reading import WGS84, VectorMap
from perigee.ground.maps.texts import plain
from perigee.ground.regions import Region

FINER = 4  # drawn pixels to a pixel of the scene, along each side
METRES_PER_DEGREE = 111_320.0
WIDTH_MIN_PX = 0.5  # of a drawn line: a narrower one would fall between the drawn pixels
POLYGONS_MAX = 5_000  # that are looked at one by one in one region


class MapPlanes:
    """A map in the pixels of a scene: its polygons by number from 0, and the segments of its lines."""

    def __init__(self, found: VectorMap, metadata: Metadata, rows: int, cols: int) -> None:
        """Bring a map to the pixels of a scene of so many rows and columns.

        Raises MapError where the scene has no affine georeference, the map cannot be projected to its CRS, or no object touches it.
        """
        self.map = found
        to_map, crs = _georeference_of(metadata)
        to_pixels, metres = ~to_map, _metres_per_pixel(to_map, crs, rows, cols)
        middle = to_map.c + to_map.a * cols / 2 + to_map.b * rows / 2
        projected = _projected([ring for part in found.parts for ring in part.rings], found.crs, crs)
        rings = iter(projected)
        polygons: list[tuple[Part, tuple[Points, ...]]] = []
        lines: list[tuple[Part, Points, float]] = []
        for part in found.parts:
            own = [next(rings) for _ in part.rings]
            if not all(np.isfinite(ring).all() for ring in own):
                continue
            if crs.is_geographic:
                own = _around(own, middle)
            placed = tuple(_applied(to_pixels, x, y) for x, y in own)
            if part.width_m is None:
                polygons.append((part, placed))
            else:
                lines.append((part, placed[0], max(part.width_m / metres, WIDTH_MIN_PX) / 2))
        self._polygons = polygons
        self._kinds = np.array([part.kind for part, _ in polygons], int)
        ends = [(rings[0].min(0), rings[0].max(0)) for _, rings in polygons]
        self._boxes: Numbers = np.array(ends).reshape(-1, 4)  # left, top, right, bottom
        self._segments = _Segments(lines)
        self._objects = len({part.number for part, _ in polygons} | {part.number for part, _, _ in lines})
        every = np.concatenate([self._boxes, self._segments.boxes])
        left, top = every[:, :2].min(0) if len(every) else (0.0, 0.0)
        right, bottom = every[:, 2:].max(0) if len(every) else (0.0, 0.0)
        self._extent = (left, top, right, bottom)
        if not _touching(every, Region(0, 0, rows, cols)).any():
            raise MapError(
                f"the map lies elsewhere: in pixels of the scene it reaches from column {left:.0f} to {right:.0f} and from row {top:.0f} to "
                f"{bottom:.0f}, and the scene has {cols} columns and {rows} rows",
                Fault.MISFIT,
                field="map",
                expected=f"objects within {cols} columns and {rows} rows",
                found=f"columns {left:.0f} to {right:.0f}, rows {top:.0f} to {bottom:.0f}",
            )

    def provenance(self) -> dict[str, str]:
        """What a product has to say of the map, as tags: its digest and that of a mapping of classes, how many objects it has and how many were
        left out, and what it says of itself."""
        tags = {"PERIGEE_MAP_HASH": self.map.digest, "PERIGEE_MAP_OBJECTS": str(self._objects)}
        left_out = dict(self.map.left_out) | {"beyond the projection": self.map.objects - self._objects}
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        tags |= {"PERIGEE_MAP_LEFT_OUT": told} if told else {}
        tags |= {"PERIGEE_MAP_CLASSES": self.map.classes} if self.map.classes else {}
        return tags | {f"PERIGEE_MAP_{note.upper()}": text for note, text in self.map.notes.items()}

    def polygons(self, region: Region, kind: str) -> list[int]:
        """The numbers of the polygons of a class whose boxes touch a region, with a margin of ``EDGE_REACH`` pixels.

        Raises LimitError where there are more than anyone can tell apart.
        """
        near = _touching(self._boxes, _grown(region)) & (self._kinds == MAP_CLASSES.index(kind))
        found: list[int] = np.flatnonzero(near).tolist()
        if len(found) > POLYGONS_MAX:
            raise LimitError(
                f"the map has {len(found)} polygons of the class {kind} within {region.rows} x {region.cols} pixels of the scene",
                field="map",
                expected=f"at most {POLYGONS_MAX}",
                found=len(found),
            )
        return found

    def feature(self, number: int) -> int:
        """The number of the feature in the map's file, from 0, that a polygon belongs to."""
        return self._polygons[number][0].number

    def box(self, number: int) -> Region:
        """The pixels around a polygon, which may leave the scene."""
        left, top, right, bottom = self._boxes[number]
        return Region(
            int(np.floor(top)), int(np.floor(left)), max(int(np.ceil(bottom) - np.floor(top)), 1), max(int(np.ceil(right) - np.floor(left)), 1)
        )  # fmt: skip

    def mask(self, number: int, region: Region) -> BoolArray:
        """Where a polygon covers the middle of a pixel, bool [rows, cols]."""
        shape = polygon(self._polygons[number][1], region)
        return np.asarray(drawn([(shape, 1)] if shape else [], region, 1, np.uint8) > 0)

    def planes(self, region: Region, without: Collection[int] = ()) -> FloatArray:
        """Planes float32 [len(MAP_PLANES), rows, cols] of a region, which may leave the scene, see ``bitstream.map_planes``.

        The map knows the ground within the box around all its objects. The polygons ``without`` are not drawn. Raises LimitError where the map
        has too many vertices here.
        """
        around = _grown(region)
        by_class: dict[int, list[tuple[dict[str, Any], int]]] = defaultdict(list)
        for number in np.flatnonzero(_touching(self._boxes, around)).tolist():
            part, rings = self._polygons[number]
            shape = None if number in without else polygon(rings, around)
            if shape is not None:
                by_class[part.kind].append((shape, 1))
        for kind, shape in self._segments.shapes(around):
            by_class[kind].append((shape, 1))
        shares = np.zeros((len(MAP_CLASSES), around.rows, around.cols), np.float32)
        for kind, shapes in by_class.items():
            fine = drawn(shapes, around, FINER, np.uint8)
            shares[kind] = fine.reshape(around.rows, FINER, around.cols, FINER).mean((1, 3), dtype=np.float32)
        left, top, right, bottom = self._extent
        rows, cols = np.arange(around.top, around.bottom) + 0.5, np.arange(around.left, around.right) + 0.5
        known = ((rows >= top) & (rows <= bottom))[:, None] & ((cols >= left) & (cols <= right))
        return planes_of(shares, known)[:, EDGE_REACH:-EDGE_REACH, EDGE_REACH:-EDGE_REACH]


class _Segments:
    """The segments of all lines: ends [n, 2], half widths and classes [n], and boxes [n, 4]."""

    def __init__(self, lines: Sequence[tuple[Part, Points, float]]) -> None:
        starts = [points[:-1] for _, points, _ in lines]
        counts = [len(points) for points in starts]
        start = np.concatenate([np.zeros((0, 2)), *starts])
        end = np.concatenate([np.zeros((0, 2)), *(points[1:] for _, points, _ in lines)])
        half = np.repeat([half for _, _, half in lines], counts) if lines else np.zeros(0)
        kinds = np.repeat([part.kind for part, _, _ in lines], counts) if lines else np.zeros(0, int)
        long = (start != end).any(1)
        self._start, self._end, self._half, self._kinds = start[long], end[long], half[long], kinds[long]
        reach = 2 * self._half[:, None]
        low, high = np.minimum(self._start, self._end) - reach, np.maximum(self._start, self._end) + reach
        self.boxes: Numbers = np.concatenate([low, high], 1)

    def shapes(self, region: Region) -> Iterable[tuple[int, dict[str, Any]]]:
        """Class and polygon of the segments whose boxes touch a region."""
        near = np.flatnonzero(_touching(self.boxes, region))
        if len(near):
            found = rectangles(self._start[near], self._end[near], self._half[near])
            for kind, ring in zip(self._kinds[near].tolist(), found, strict=True):
                shape = polygon((ring,), region)
                if shape is not None:
                    yield kind, shape


def _touching(boxes: Numbers, region: Region) -> BoolArray:
    return np.asarray(
        (boxes[:, 0] < region.right) & (boxes[:, 2] > region.left) & (boxes[:, 1] < region.bottom) & (boxes[:, 3] > region.top)
    )  # fmt: skip


def _grown(region: Region) -> Region:
    reach = EDGE_REACH
    return Region(region.top - reach, region.left - reach, region.rows + 2 * reach, region.cols + 2 * reach)


def _georeference_of(metadata: Metadata) -> tuple[Affine, CRS]:
    """The scene's transform from pixels to its CRS, and the CRS."""
    crs = crs_of(metadata)
    if metadata.transform is None or crs is None:
        raise MapError(
            "a map needs a scene with an affine transform and a CRS, which this one lacks",
            Fault.MISSING,
            field="georeference",
            expected="a transform and a CRS",
        )
    to_map = Affine(*metadata.transform)
    if to_map.is_degenerate:
        raise MapError("the scene's transform cannot be inverted", Fault.RANGE, field="transform")
    return to_map, crs


def _applied(to: Affine, x: Numbers, y: Numbers) -> Points:
    """Points [n, 2] moved by an affine transform."""
    return np.stack([to.a * x + to.b * y + to.c, to.d * x + to.e * y + to.f], 1)


def _projected(rings: Sequence[Points], source: CRS, target: CRS) -> Sequence[Numbers]:
    """The x and y of each ring in another CRS, [2, n]."""
    ends = np.cumsum([len(ring) for ring in rings])
    together = np.concatenate(rings).T
    if source != target:
        try:
            x, y, *_ = transform(source, target, together[0], together[1])
        except (rasterio.errors.RasterioError, rasterio.errors.CRSError, CPLE_BaseError) as error:
            raise MapError(
                f"the map cannot be brought to the scene's CRS ({plain(error)})", Fault.MISFIT, field="crs"
            ) from error
        together = np.array([x, y], np.float64)
    return np.split(together, ends[:-1], axis=1)


def _around(rings: list[Numbers], middle: float) -> list[Numbers]:
    """Rings [2, n] in degrees, turned around the Earth to the side of a scene whose middle is at this longitude: a part that crosses 180
    degrees is put together, and the whole part moved."""
    first = float(rings[0][0, 0])
    if np.ptp(np.concatenate([ring[0] for ring in rings])) > 180:
        rings = [np.stack([first + (ring[0] - first + 180) % 360 - 180, ring[1]]) for ring in rings]
    turns = round((middle - float(np.mean(rings[0][0]))) / 360)
    return [np.stack([ring[0] + 360 * turns, ring[1]]) for ring in rings] if turns else rings


def _metres_per_pixel(to_map: Affine, crs: CRS, rows: int, cols: int) -> float:
    """The length of a pixel's side on the ground in the middle of the scene, from the square root of its area."""
    places = _applied(to_map, cols / 2 + np.array([0.0, 1, 0]), rows / 2 + np.array([0.0, 0, 1]))
    (ends,) = _projected([places], crs, WGS84)
    east, north = (ends[:, 1:] - ends[:, :1]) * METRES_PER_DEGREE
    east = east * np.cos(np.radians(ends[1, 0]))
    metres = float(np.sqrt(abs(east[0] * north[1] - east[1] * north[0])))
    return metres if np.isfinite(metres) and metres > 0 else 1.0
