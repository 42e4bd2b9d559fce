"""The maps that the benchmark of semantics makes of its tiles are the maps that it says they are."""

import csv

import numpy as np
import pytest
from PIL import Image

from perigee.benchmarks.map_mosaics import PLACE, invented, map_of, mosaic_of, split_objects
from perigee.benchmarks.semantics import iou
from perigee.bitstream.map_planes import MAP_PLANES
from perigee.ground.maps.planes import MapPlanes
from perigee.ground.maps.reading import read_map
from perigee.ground.regions import Region


@pytest.fixture
def buildings():
    out = np.zeros((160, 200), bool)
    for row, col in ((10, 20), (60, 30), (70, 120), (110, 60)):
        out[row : row + 21, col : col + 17] = True
    out[15:20, 25:30] = False  # a courtyard
    return out


@pytest.mark.parametrize("move", [0, 16])
def test_a_map_is_drawn_as_the_mask_it_was_made_of(buildings, tmp_path, move):
    found = MapPlanes(read_map(map_of([buildings], tmp_path / "m.geojson", move)), PLACE, 160, 200)
    planes = dict(zip(MAP_PLANES, found.planes(Region(0, 0, 160, 200)), strict=True))
    assert np.array_equal(planes["building"], np.roll(buildings, (move, move), (0, 1)).astype(np.float32))


def test_other_classes_of_a_map(buildings, tmp_path):
    wood = np.zeros_like(buildings)
    wood[100:, 100:] = ~buildings[100:, 100:]
    path = map_of([buildings], tmp_path / "m.geojson", others={"wood": wood})
    planes = dict(
        zip(MAP_PLANES, MapPlanes(read_map(path), PLACE, 160, 200).planes(Region(0, 0, 160, 200)), strict=True)
    )
    assert np.array_equal(planes["wood"], wood.astype(np.float32)) and planes["building"].sum() == buildings.sum()


def test_invented_buildings_stand_where_there_are_none(buildings):
    found = invented(buildings, 3)
    assert found.max() == 3 and not ((found > 0) & buildings).any()
    assert all((found == number).sum() > 64 for number in (1, 2, 3))
    numbers, withheld = split_objects(buildings, 0.5)
    assert numbers.max() == 4 and len(withheld) == 5 and np.array_equal(numbers > 0, buildings)


def test_overlap_within_a_place():
    one, two, within = (np.zeros((4, 4), bool) for _ in range(3))
    one[:2], two[1:3], within[:, :2] = True, True, True
    assert iou(one, two, within) == pytest.approx(2 / 6) and iou(one, one, within) == 1


def test_tiles_are_put_together_by_their_places(tmp_path):
    rows = [["file", "layers", "bounds"]]
    for number, (left, top) in enumerate([(0, 0), (256, 0), (0, 256), (256, 256)]):
        Image.fromarray(np.full((256, 256, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
        Image.fromarray(np.full((256, 256), number % 2, np.uint8)).save(tmp_path / f"{number}_l.png")
        rows.append([f"{number}.png", f"{number}_l.png", f"{left} {top} {left + 256} {top + 256}"])
    with (tmp_path / "index.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    mosaic = mosaic_of(tmp_path, "m", "*.png", 2)
    corners = mosaic.pixels[[0, 0, 511, 511], [0, 511, 0, 511], 0]
    assert corners.tolist() == [80, 120, 0, 40], "north is up"
    assert mosaic.buildings[:, 256:].all() and not mosaic.others() and not mosaic.buildings[:, :256].any()
