"""Buildings of a map against the decoded image: what stands there is drawn, what the image contradicts is not."""

import json

import numpy as np
import pytest

from perigee.bitstream.map_planes import MAP_PLANES
from perigee.bitstream.metadata import Metadata
from perigee.ground.maps.planes import MapPlanes
from perigee.ground.maps.reading import read_map
from perigee.ground.maps.support import CONTRADICTED, SUPPORTED, UNSUPPORTED, ObjectSupport, contrast
from perigee.ground.regions import Region

SCENE = Metadata(transform=(1.0, 0.0, 500_000.0, 0.0, -1.0, 5_000_000.0), epsg=32633)
WHOLE = Region(0, 0, 300, 300)
BOXES = {
    "there": (40, 50, 80, 90),
    "nothing": (150, 60, 190, 100),
    "faint": (60, 200, 100, 240),
    "small": (200, 200, 205, 205),
    "edge": (280, 100, 340, 140),
}


def ring(left, top, right, bottom):
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return [[500_000 + x, 5_000_000 - y] for x, y in corners]


@pytest.fixture
def support(tmp_path):
    rng = np.random.default_rng(2)
    image = rng.normal(0.4, 0.04, (3, 300, 300)).astype(np.float32)
    for name, level in (("there", 0.8), ("faint", 0.45), ("edge", 0.1)):
        left, top, right, bottom = BOXES[name]
        image[:, top:bottom, left : min(right, 300)] += level - 0.4
    features = [
        {
            "type": "Feature",
            "properties": {"building": "yes"},
            "geometry": {"type": "Polygon", "coordinates": [ring(*box)]},
        }
        for box in BOXES.values()
    ]
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    path = tmp_path / "m.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    found = MapPlanes(read_map(path), SCENE, 300, 300)
    return ObjectSupport(found, lambda r: image[:, r.top : r.bottom, r.left : r.right], WHOLE, (0.3, 1.5))


def test_each_building_is_judged_by_what_stands_there(support):
    found = {name: support.of(number) for number, name in enumerate(BOXES)}
    assert found == {
        "there": SUPPORTED, "nothing": CONTRADICTED, "faint": UNSUPPORTED, "small": UNSUPPORTED, "edge": SUPPORTED,
    }  # fmt: skip
    assert support.report() == {"supported": 2, "unsupported": 2, "contradicted": 1, "not_drawn": [1]}
    assert support.provenance()["PERIGEE_MAP_BUILDINGS"].startswith("2 supported, 2 unsupported, 1 contradicted")


def test_the_buildings_of_a_product_are_counted(support):
    support.planes(WHOLE)
    support.product = Region(40, 30, 60, 60)
    assert support.counts == {"supported": 1, "unsupported": 0, "contradicted": 0}
    support.product = Region(60, 140, 100, 100)
    assert support.report() == {"supported": 0, "unsupported": 0, "contradicted": 1, "not_drawn": [1]}


def test_where_nothing_was_received_nothing_is_contradicted():
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    assert contrast(np.full((3, 60, 60), 0.4, np.float32), mask) is None


def test_what_is_contradicted_is_not_drawn_whatever_the_window(support):
    planes = dict(zip(MAP_PLANES, support.planes(WHOLE), strict=True))
    assert planes["building"][55:85, 45:75].min() == 1 and not planes["building"][60:100, 150:190].any()
    assert planes["known"][80, 170] == 1, "the map still knows the ground there"
    part = support.planes(Region(40, 130, 90, 90))
    assert np.array_equal(part, support.planes(WHOLE)[:, 40:130, 130:220])


def test_contrast_does_not_depend_on_brightness():
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    image = np.random.default_rng(1).normal(0.5, 0.05, (3, 60, 60)).astype(np.float32)
    plain = contrast(image, mask)
    image[:, mask] += 0.3
    assert contrast(image, mask) > 1.5 > 0.6 > plain
    assert contrast(image + 0.2, mask) == pytest.approx(contrast(image, mask), rel=1e-3)
    assert contrast(image, np.zeros_like(mask)) is None and contrast(image, np.ones_like(mask)) is None
