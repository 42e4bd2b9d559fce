"""Whether the decoded image, which the received symbols describe, agrees with the buildings of a map.

A building stands out from the ground beside it. Its support is the largest difference over the bands between the mean just inside its outline and
the mean just outside, over the deviation of the image around it. Buildings are polygons: those of a feature with several are judged one by one. A
building that is contradicted is not drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray
from perigee.ground.maps.planes import MapPlanes
from perigee.ground.regions import Region

SUPPORTED, UNSUPPORTED, CONTRADICTED = "supported", "unsupported", "contradicted"
KIND = "building"
INSIDE, GAP, OUTSIDE, AROUND = (
    4,
    1,
    5,
    16,
)  # pixels: of the rings inside and outside, between them, and of the surroundings
SIDE_MAX = 768  # pixels of an object's box that are looked at
AREA_MIN = 80  # pixels: smaller buildings are not judged
NOISE = 3 / 255  # added to the deviation
EVEN = 1e-3  # deviation below which an image shows nothing at all
LISTED_MAX = 1000  # features
BaseOf = Callable[[Region], FloatArray]


class ObjectSupport:
    """What is known of the buildings of a map in a scene; each is judged when it is first needed."""

    def __init__(self, found: MapPlanes, base_of: BaseOf, scene: Region, thresholds: tuple[float, float]) -> None:
        """``base_of`` gives the base image [3, rows, cols] of a region of the ``scene``. Below the first threshold a building is contradicted, from
        the second on it is supported."""
        self.found, self._base_of, self._scene, self._thresholds = found, base_of, scene, thresholds
        self.product = scene  # what was asked for: buildings beyond it are judged where they are near, and not counted
        self._known: dict[int, str] = {}

    def of(self, number: int) -> str:
        """Whether a building, by the number of its polygon, is supported, unsupported or contradicted."""
        if number not in self._known:
            self._known[number] = self._judged(number)
        return self._known[number]

    def planes(self, region: Region) -> FloatArray:
        """The map's planes of a region, as ``MapPlanes.planes``, without the buildings that are contradicted."""
        near = self.found.polygons(region, KIND)
        return self.found.planes(region, without={number for number in near if self.of(number) == CONTRADICTED})

    def _counted(self) -> dict[int, str]:
        """The support of the buildings that touch the product."""
        return {n: support for n, support in self._known.items() if self.found.box(n).intersection(self.product).pixels}

    @property
    def counts(self) -> dict[str, int]:
        """How many of the product's buildings have each support."""
        counts = Counter(self._counted().values())
        return {name: counts[name] for name in (SUPPORTED, UNSUPPORTED, CONTRADICTED)}

    def report(self) -> dict[str, Any]:
        """The counts, and the first features of the map, by number from 0, of which a building is contradicted."""
        wrong = {self.found.feature(number) for number, support in self._counted().items() if support == CONTRADICTED}
        listed = sorted(wrong)[:LISTED_MAX]
        return self.counts | {"not_drawn": listed}

    def provenance(self) -> dict[str, str]:
        """The counts of the report as a tag of a product."""
        parts = (f"{count} {name}" for name, count in self.counts.items())
        return {"PERIGEE_MAP_BUILDINGS": ", ".join(parts) + "; what is contradicted is not drawn"}

    def _judged(self, number: int) -> str:
        box = self.found.box(number)
        around = Region(box.top - AROUND, box.left - AROUND, box.rows + 2 * AROUND, box.cols + 2 * AROUND)
        seen = around.intersection(self._scene)
        if not seen.pixels:
            return UNSUPPORTED
        most = SIDE_MAX + 2 * AROUND
        place = Region(seen.top, seen.left, min(seen.rows, most), min(seen.cols, most))
        mask = self.found.mask(number, place)
        score = contrast(self._base_of(place), mask)
        low, high = self._thresholds
        return UNSUPPORTED if score is None or low <= score < high else SUPPORTED if score >= high else CONTRADICTED


def contrast(image: FloatArray, mask: BoolArray) -> float | None:
    """How far an object's mask [rows, cols] stands out of an image [3, rows, cols]; None where it is too small or has nothing beside it, and where
    the image shows nothing at all, as where nothing was received."""
    if mask.sum() < AREA_MIN or image.std((1, 2)).max() < EVEN:
        return None
    inside = mask & ~_shrunk(mask, INSIDE)
    outside = _grown(mask, OUTSIDE) & ~_grown(mask, GAP)
    if not inside.any() or not outside.any():
        return None
    difference = image[:, inside].mean(1) - image[:, outside].mean(1)
    return float(np.abs(difference / (image.std((1, 2)) + NOISE)).max())


def _grown(mask: BoolArray, times: int) -> BoolArray:
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _shrunk(mask: BoolArray, times: int) -> BoolArray:
    return ~_grown(~mask, times)
