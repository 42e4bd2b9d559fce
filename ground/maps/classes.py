"""Which class an object of a map has, by its attributes: OpenStreetMap's tags, a class by name, or a mapping of the user's own.

Tags: https://wiki.openstreetmap.org/wiki/Map_features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perigee.bitstream.errors import Fault, MapError
from perigee.bitstream.map_planes import MAP_CLASSES
from perigee.ground.maps.texts import number_of, plain, text_of

NAMED_BY = ("layer", "class")  # attributes that may give a class by its name
ANY, NO = "*", ("no", "false", "0", "")
RULES_MAX = 1000
WIDTH_RANGE_M = (0.5, 200.0)
LANE_M = 3.2
ROAD_WIDTHS_M = {
    "motorway": 22.0, "trunk": 16.0, "primary": 11.0, "secondary": 9.0, "tertiary": 7.5, "unclassified": 5.5, "residential": 6.0,
    "living_street": 5.0, "service": 4.0, "track": 3.0, "motorway_link": 7.0, "trunk_link": 7.0, "primary_link": 6.0,
    "secondary_link": 6.0, "tertiary_link": 6.0, "pedestrian": 4.0, "footway": 1.8, "path": 1.5, "cycleway": 2.0, "steps": 2.0,
}  # fmt: skip
WIDTHS_M = {"building": 0.0, "road": 5.5, "rail": 3.5, "water": 4.0, "wood": 0.0, "field": 0.0, "land": 0.0}
WATERWAYS_M = {"river": 25.0, "canal": 12.0, "stream": 3.0, "drain": 2.0, "ditch": 1.5}
READ_TOO = (
    "width",
    "lanes",
    "highway",
    "waterway",
    "tunnel",
    "location",
    "layer",
    "class",
)  # attributes beside those of the rules


@dataclass(frozen=True)
class Rule:
    """Objects with this attribute have this class; ``values`` holds the attribute's values, or ``*`` for any but "no", false and 0."""

    name: str
    attribute: str
    values: frozenset[str]

    def fits(self, attributes: Mapping[str, Any]) -> bool:
        """Whether an object with these attributes has the class."""
        value = text_of(attributes.get(self.attribute))
        return bool(value) and (value in self.values or (ANY in self.values and value.lower() not in NO))


def _rule(name: str, attribute: str, *values: str) -> Rule:
    return Rule(name, attribute, frozenset(values))


OPENSTREETMAP = (
    _rule("building", "building", ANY),
    _rule("road", "highway", *ROAD_WIDTHS_M),
    _rule("rail", "railway", "rail", "light_rail", "tram", "narrow_gauge"),
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
    """How objects are classed: the first rule that fits, else a class that an attribute of ``NAMED_BY`` names.

    ``digest`` is that of a mapping of the user's own, empty without one.
    """

    rules: tuple[Rule, ...] = OPENSTREETMAP
    digest: str = ""

    @property
    def attributes(self) -> frozenset[str]:
        """The attributes that decide about an object."""
        return frozenset((*(rule.attribute for rule in self.rules), *READ_TOO))

    def of(self, attributes: Mapping[str, Any]) -> str | None:
        """The class of an object, None where it has none."""
        for rule in self.rules:
            if rule.fits(attributes):
                return rule.name
        named = (text_of(attributes.get(key)) for key in NAMED_BY)
        return next((name for name in named if name in MAP_CLASSES), None)


def is_hidden(attributes: Mapping[str, Any]) -> bool:
    """Whether an object lies below the ground, where no camera sees it: a tunnel, or what is on a layer below 0."""
    tunnel = text_of(attributes.get("tunnel")).lower()
    return (
        tunnel not in NO
        or text_of(attributes.get("location")).lower() == "underground"
        or (number_of(attributes.get("layer")) or 0) < 0
    )


def width_of(name: str, attributes: Mapping[str, Any]) -> float:
    """The width in metres of a line of a class: the ``width`` or ``lanes`` that it states, else what is usual for its kind; 0 for a class that
    has areas alone."""
    width, lanes = number_of(attributes.get("width")), number_of(attributes.get("lanes"))
    low, high = WIDTH_RANGE_M
    for stated in (width, None if lanes is None else LANE_M * lanes):
        if stated is not None and stated > 0:
            return min(max(stated, low), high)
    usual = ROAD_WIDTHS_M if name == "road" else WATERWAYS_M if name == "water" else {}
    return usual.get(text_of(attributes.get("highway" if name == "road" else "waterway")), WIDTHS_M[name])


def classes_from_json(text: str) -> Classes:
    """Classes from a mapping: a JSON object from class to an object from attribute to a list of values, ``"*"`` for any.

    For example ``{"building": {"type": ["house", "shed"]}, "water": {"lake": "*"}}``. Raises MapError for another form.
    """
    try:
        found = json.loads(text.removeprefix("\ufeff"))
        rules = [
            Rule(name, str(attribute), frozenset([values] if isinstance(values, str) else map(str, values)))
            for name, wanted in found.items()
            for attribute, values in wanted.items()
        ][: RULES_MAX + 1]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MapError(
            f"the mapping of classes cannot be understood ({plain(error)})",
            Fault.TEXT,
            field="map classes",
            expected='{"building": {"attribute": ["value"]}}',
        ) from error
    unknown = sorted({rule.name for rule in rules} - set(MAP_CLASSES))
    if unknown or not rules:
        raise MapError(
            f"the mapping has the classes {plain(', '.join(unknown)) or 'none'}; accepted are {', '.join(MAP_CLASSES)}",
            Fault.NAME,
            field="map classes",
            expected=", ".join(MAP_CLASSES),
            found=plain(", ".join(unknown)),
        )
    if len(rules) > RULES_MAX:
        raise MapError(
            f"the mapping has more than {RULES_MAX} attributes",
            Fault.RANGE,
            field="map classes",
            expected=f"at most {RULES_MAX}",
        )
    return Classes(tuple(rules), hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16])
