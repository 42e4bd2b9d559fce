"""Which class an object of a map has, by its attributes: OpenStreetMap's tags, a class by name, or a mapping of the user's own.

Tags: https://wiki.openstreetmap.org/wiki/Map_features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perigee.bitstream.errors import Fault, MapError
from perigee.bitstream.map_planes import MAP_CLASSES

NAMED_BY = ("layer", "class")  # attributes that may give a class by its name
ANY, NO = "*", "no"
WIDTH_RANGE_M = (0.5, 200.0)
LANE_M = 3.2
ROAD_WIDTHS_M = {
    "motorway": 22.0, "trunk": 16.0, "primary": 11.0, "secondary": 9.0, "tertiary": 7.5, "unclassified": 5.5, "residential": 6.0,
    "living_street": 5.0, "service": 4.0, "track": 3.0, "motorway_link": 7.0, "trunk_link": 7.0, "primary_link": 6.0,
    "secondary_link": 6.0, "tertiary_link": 6.0, "pedestrian": 4.0, "footway": 1.8, "path": 1.5, "cycleway": 2.0, "steps": 2.0,
}  # fmt: skip
WIDTHS_M = {"building": 0.0, "road": 5.5, "rail": 3.5, "water": 4.0, "wood": 0.0, "field": 0.0, "land": 0.0}
WATERWAYS_M = {"river": 25.0, "canal": 12.0, "stream": 3.0, "drain": 2.0, "ditch": 1.5}


@dataclass(frozen=True)
class Rule:
    """Objects with this attribute have this class; ``values`` holds the attribute's values, or ``*`` for any but "no"."""

    name: str
    attribute: str
    values: frozenset[str]

    def fits(self, attributes: Mapping[str, Any]) -> bool:
        """Whether an object with these attributes has the class."""
        value = attributes.get(self.attribute)
        if value is None or value is False:
            return False
        return str(value) in self.values or (ANY in self.values and str(value) != NO)


def _rule(name: str, attribute: str, *values: str) -> Rule:
    return Rule(name, attribute, frozenset(values))


OPENSTREETMAP = (
    _rule("building", "building", ANY),
    _rule("road", "highway", *ROAD_WIDTHS_M),
    _rule("rail", "railway", "rail", "light_rail", "subway", "tram", "narrow_gauge"),
    _rule("water", "natural", "water", "bay", "strait"),
    _rule("water", "waterway", *WATERWAYS_M, "riverbank", "dock"),
    _rule("water", "landuse", "reservoir", "basin"),
    _rule("wood", "natural", "wood", "tree_row"),
    _rule("wood", "landuse", "forest"),
    _rule("field", "landuse", "farmland", "meadow", "orchard", "vineyard", "grass"),
    _rule("field", "natural", "grassland", "heath"),
    _rule("land", "natural", "sand", "beach", "bare_rock", "scree", "shingle"),
    _rule("land", "landuse", "residential", "commercial", "industrial", "retail", "quarry", "brownfield"),
)


@dataclass(frozen=True)
class Classes:
    """How objects are classed: the first rule that fits, else a class that an attribute of ``NAMED_BY`` names."""

    rules: tuple[Rule, ...] = OPENSTREETMAP

    def of(self, attributes: Mapping[str, Any]) -> str | None:
        """The class of an object, None where it has none."""
        for rule in self.rules:
            if rule.fits(attributes):
                return rule.name
        named = (str(attributes.get(key)) for key in NAMED_BY)
        return next((name for name in named if name in MAP_CLASSES), None)


def width_of(name: str, attributes: Mapping[str, Any]) -> float:
    """The width in metres of a line of a class: the ``width`` or ``lanes`` that it states, else what is usual for its kind."""
    try:
        stated = float(str(attributes["width"]).removesuffix("m").strip())
    except (KeyError, ValueError):
        try:
            stated = LANE_M * float(attributes["lanes"])
        except (KeyError, ValueError, TypeError):
            usual = ROAD_WIDTHS_M if name == "road" else WATERWAYS_M if name == "water" else {}
            kind = str(attributes.get("highway" if name == "road" else "waterway"))
            return usual.get(kind, WIDTHS_M[name])
    low, high = WIDTH_RANGE_M
    return min(max(stated, low), high) if stated == stated else WIDTHS_M[name]  # NaN is not itself


def classes_from_json(text: str) -> Classes:
    """Classes from a mapping: a JSON object from class to an object from attribute to a list of values, ``"*"`` for any.

    For example ``{"building": {"type": ["house", "shed"]}, "water": {"lake": "*"}}``. Raises MapError for another form.
    """
    try:
        found = json.loads(text)
        rules = [
            Rule(name, str(attribute), frozenset([values] if isinstance(values, str) else map(str, values)))
            for name, wanted in found.items()
            for attribute, values in wanted.items()
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MapError(
            f"the mapping of classes cannot be understood ({error})",
            Fault.TEXT,
            field="map classes",
            expected='{"building": {"attribute": ["value"]}}',
        ) from error
    unknown = sorted({rule.name for rule in rules} - set(MAP_CLASSES))
    if unknown or not rules:
        raise MapError(
            f"the mapping has the classes {', '.join(unknown) or 'none'}; accepted are {', '.join(MAP_CLASSES)}",
            Fault.NAME,
            field="map classes",
            expected=", ".join(MAP_CLASSES),
            found=", ".join(unknown),
        )
    return Classes(tuple(rules))
