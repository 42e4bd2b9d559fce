"""Draws a map over a scene: for each pixel the share of each class, where the map knows anything, and how far the nearest edge is.

Objects are drawn at four times the scene's resolution, at absolute places, so that no pixel depends on which window was asked for.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.errors
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.errors import Fault, MapError
from perigee.bitstream.map_planes import EDGE_REACH, MAP_CLASSES, planes_of
from perigee.bitstream.metadata import Metadata
from perigee.ground.georeference import crs_of
from perigee.ground.maps.reading import WGS84, Part, Points, VectorMap
from perigee.ground.regions import Region

FINER = 4  # drawn pixels to a pixel of the scene, along each side
METRES_PER_DEGREE = 111_320.0
WIDTH_MIN_PX = 0.5  # of a drawn line: a narrower one would fall between the drawn pixels
Numbers = npt.NDArray[np.float64]


class MapPlanes:
    """A map in the pixels of a scene."""

    def __init__(self, found: VectorMap, metadata: Metadata, rows: int, cols: int) -> None:
        """Bring a map to the pixels of a scene of so many rows and columns.

        Raises MapError where the scene has no affine georeference, the map cannot be projected to its CRS, or no object touches it.
        """
        self.map, self._rows, self._cols = found, rows, cols
        to_map, crs = _georeference_of(metadata)
        to_pixels, metres = ~to_map, _metres_per_pixel(to_map, crs, rows, cols)
        projected = _projected([ring for part in found.parts for ring in part.rings], found.crs, crs)
        rings = iter([_applied(to_pixels, x, y) for x, y in projected])
        boxes, drawn = [], []
        for part in found.parts:
            own = tuple(itertools.islice(rings, len(part.rings)))
            width = 0.0 if part.width_m is None else max(part.width_m / metres, WIDTH_MIN_PX)
            points = np.concatenate(own)
            if np.isfinite(points).all():
                boxes.append([*(points.min(0) - width), *(points.max(0) + width)])
                drawn.append((part, own, width))
        self._parts: list[tuple[Part, tuple[Points, ...], float]] = drawn
        self._boxes: Numbers = np.array(boxes).reshape(-1, 4)  # left, top, right, bottom
        self._of_object: dict[int, list[int]] = defaultdict(list)
        for i, (part, _, _) in enumerate(drawn):
            self._of_object[part.number].append(i)
        left, top = self._boxes[:, :2].min(0) if boxes else (0.0, 0.0)
        right, bottom = self._boxes[:, 2:].max(0) if boxes else (0.0, 0.0)
        self._extent = (left, top, right, bottom)
        if not len(self._over(Region(0, 0, rows, cols))):
            raise MapError(
                f"the map lies elsewhere: in pixels of the scene it reaches from column {left:.0f} to {right:.0f} and from row {top:.0f} to "
                f"{bottom:.0f}, and the scene has {cols} columns and {rows} rows",
                Fault.MISFIT,
                field="map",
                expected=f"objects within {cols} columns and {rows} rows",
                found=f"columns {left:.0f} to {right:.0f}, rows {top:.0f} to {bottom:.0f}",
            )

    def provenance(self) -> dict[str, str]:
        """What a product has to say of the map, as tags: its digest, how many objects it has, and what it says of itself."""
        tags = {"PERIGEE_MAP_HASH": self.map.digest, "PERIGEE_MAP_OBJECTS": str(self.map.objects)}
        return tags | {f"PERIGEE_MAP_{note.upper()}": text for note, text in self.map.notes.items()}

    def _over(self, region: Region) -> Sequence[int]:
        """The parts whose boxes touch a region."""
        b = self._boxes
        return np.flatnonzero(
            (b[:, 0] < region.right) & (b[:, 2] > region.left) & (b[:, 1] < region.bottom) & (b[:, 3] > region.top)
        ).tolist()

    def numbers(self, region: Region, kind: str) -> set[int]:
        """The numbers of the objects of a class whose boxes touch a region, with a margin of ``EDGE_REACH`` pixels."""
        reach = EDGE_REACH
        around = Region(region.top - reach, region.left - reach, region.rows + 2 * reach, region.cols + 2 * reach)
        parts = (self._parts[i][0] for i in self._over(around))
        return {part.number for part in parts if MAP_CLASSES[part.kind] == kind}

    def box(self, number: int) -> Region:
        """The pixels around an object, which may leave the scene."""
        own = self._boxes[self._of_object[number]]
        left, top = np.floor(own[:, :2].min(0)).astype(int).tolist()
        right, bottom = np.ceil(own[:, 2:].max(0)).astype(int).tolist()
        return Region(top, left, max(bottom - top, 1), max(right - left, 1))

    def objects(self, region: Region, kind: str, only: Collection[int] | None = None) -> IntArray:
        """The number, from 1, of the object of a class that covers the middle of each pixel, int32 [rows, cols]; 0 where there is none. ``only``
        these objects are drawn."""
        chosen = [i for i in self._over(region) if MAP_CLASSES[self._parts[i][0].kind] == kind]
        if only is not None:
            chosen = [i for i in chosen if self._parts[i][0].number in only]
        shapes = [(shape, self._parts[i][0].number + 1) for i in chosen for shape in _shapes(*self._parts[i][1:])]
        return np.asarray(_drawn(shapes, region, 1, np.int32), np.int32)

    def planes(self, region: Region, without: Collection[int] = ()) -> FloatArray:
        """Planes float32 [len(MAP_PLANES), rows, cols] of a region, which may leave the scene, see ``bitstream.map_planes``.

        The map knows the ground within the box around all its objects. Those ``without`` are not drawn.
        """
        reach = EDGE_REACH
        around = Region(region.top - reach, region.left - reach, region.rows + 2 * reach, region.cols + 2 * reach)
        by_class: dict[int, list[tuple[Any, int]]] = defaultdict(list)
        for i in self._over(around):
            part, rings, width = self._parts[i]
            if part.number in without:
                continue
            by_class[part.kind] += [(shape, 1) for shape in _shapes(rings, width)]
        shares = np.zeros((len(MAP_CLASSES), around.rows, around.cols), np.float32)
        for kind, shapes in by_class.items():
            fine = _drawn(shapes, around, FINER, np.uint8)
            shares[kind] = fine.reshape(around.rows, FINER, around.cols, FINER).mean((1, 3), dtype=np.float32)
        left, top, right, bottom = self._extent
        rows, cols = np.arange(around.top, around.bottom) + 0.5, np.arange(around.left, around.right) + 0.5
        known = ((rows >= top) & (rows <= bottom))[:, None] & ((cols >= left) & (cols <= right))
        return planes_of(shares, known)[:, reach:-reach, reach:-reach]


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


def _projected(rings: Sequence[Points], source: CRS, target: CRS) -> Iterable[Numbers]:
    """The x and y of each ring in another CRS, [2, n]."""
    ends = np.cumsum([len(ring) for ring in rings])
    together = np.concatenate(rings).T
    if source != target:
        try:
            x, y, *_ = transform(source, target, together[0], together[1])
        except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
            raise MapError(
                f"the map cannot be brought to the scene's CRS ({error})", Fault.MISFIT, field="crs"
            ) from error
        together = np.array([x, y], np.float64)
    return np.split(together, ends[:-1], axis=1)


def _metres_per_pixel(to_map: Affine, crs: CRS, rows: int, cols: int) -> float:
    """The length of a pixel's side on the ground in the middle of the scene, from the square root of its area."""
    places = _applied(to_map, cols / 2 + np.array([0.0, 1, 0]), rows / 2 + np.array([0.0, 0, 1]))
    (ends,) = _projected([places], crs, WGS84)
    east, north = (ends[:, 1:] - ends[:, :1]) * METRES_PER_DEGREE
    east = east * np.cos(np.radians(ends[1, 0]))
    metres = float(np.sqrt(abs(east[0] * north[1] - east[1] * north[0])))
    return metres if np.isfinite(metres) and metres > 0 else 1.0


def _shapes(rings: tuple[Points, ...], width: float) -> Iterable[dict[str, Any]]:
    """The polygon of rings in pixels, or for a line of some width a rectangle around each of its segments, as GeoJSON geometries."""
    if not width:
        yield {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]}
        return
    for start, end in itertools.pairwise(rings[0]):
        along = end - start
        length = float(np.hypot(*along))
        if length:
            along = along / length * width / 2  # rectangles overlap where a line bends, so that no gap is left
            across = along[::-1] * (-1, 1)
            corners = [start - along + across, end + along + across, end + along - across, start - along - across]
            yield {"type": "Polygon", "coordinates": [[c.tolist() for c in [*corners, corners[0]]]]}


def _drawn(shapes: Sequence[tuple[Any, int]], region: Region, finer: int, dtype: npt.DTypeLike) -> Any:
    """Shapes in pixels of the scene, drawn over a region with so many drawn pixels to a pixel; later ones lie over earlier ones."""
    size = (region.rows * finer, region.cols * finer)
    if not shapes:
        return np.zeros(size, dtype)
    to_scene = Affine(1 / finer, 0, region.left, 0, 1 / finer, region.top)
    return rasterize(shapes, size, transform=to_scene, dtype=np.dtype(dtype).name, skip_invalid=True)
