"""Maps: what is read of them, what is refused, and where their objects are drawn."""

import json
import os
import random
import resource
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.warp import transform

from perigee.bitstream.errors import LimitError, MapError
from perigee.bitstream.map_planes import MAP_CLASSES, MAP_PLANES
from perigee.bitstream.metadata import Metadata
from perigee.ground.maps import drawing, objects, reading
from perigee.ground.maps.classes import Classes, classes_from_json, width_of
from perigee.ground.maps.planes import MapPlanes
from perigee.ground.maps.reading import read_map
from perigee.ground.regions import Region

UTM, DEGREES = CRS.from_epsg(32633), CRS.from_epsg(4326)
SCENE = Metadata(transform=(0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0), epsg=32633)  # half a metre
SIDE = 256
WHOLE = Region(0, 0, SIDE, SIDE)


def place(col, row, crs=DEGREES):
    """The coordinates of a place in pixels of the scene."""
    a, _, x, _, e, y = SCENE.transform
    x, y = x + a * col, y + e * row
    (x,), (y,) = transform(UTM, crs, [x], [y])[:2]
    return [x, y]


def box(left, top, right, bottom, **to):
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return {"type": "Polygon", "coordinates": [[place(*corner, **to) for corner in corners]]}


def feature(geometry, **tags):
    return {"type": "Feature", "properties": tags, "geometry": geometry}


@pytest.fixture
def written(tmp_path):
    def write(*features, **members):
        path = tmp_path / "map.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features), **members}))
        return path

    return write


def planes_of(path, region=WHOLE, classes=None):
    found = MapPlanes(read_map(path, classes), SCENE, SIDE, SIDE)
    return dict(zip(MAP_PLANES, found.planes(region), strict=True)), found


def test_a_building_is_drawn_where_it_stands(written):
    planes, found = planes_of(written(feature(box(40, 60, 80.5, 100), building="yes")))
    wanted = np.zeros((SIDE, SIDE))
    wanted[60:100, 40:80] = 1
    wanted[60:100, 80] = 0.5
    assert np.abs(planes["building"] - wanted).mean() < 1e-3
    assert planes["known"].sum() == pytest.approx(40 * 40.5, rel=0.06) and not planes["water"].any()
    edge = planes["edge"]
    assert edge[80, 60] == 1 and 0 < edge[62, 60] < 1 and edge[50, 60] == 0, "nothing is known outside"
    assert found.polygons(WHOLE, "building") == [0] and found.mask(0, WHOLE).sum() in (40 * 40, 40 * 41)
    assert found.map.crs.to_epsg() == 4326 and found.map.objects == 1


def test_no_pixel_depends_on_the_window(written):
    shapes = [feature(box(10 * n, 7 * n, 10 * n + 13.3, 7 * n + 9.7), building="yes") for n in range(25)]
    road = feature(
        {"type": "LineString", "coordinates": [place(3, 3), place(130, 90), place(250, 20)]}, highway="primary"
    )
    _, found = planes_of(written(*shapes, road))
    whole = found.planes(WHOLE)
    part = found.planes(Region(37, 91, 100, 60))
    assert np.array_equal(part, whole[:, 37:137, 91:151])


def test_a_road_has_its_width(written):
    line = {"type": "LineString", "coordinates": [place(20, 128), place(236, 128)]}
    for tags, metres in (
        ({"highway": "primary"}, 11),
        ({"highway": "path", "width": "8 m"}, 8),
        ({"highway": "road", "layer": "road"}, 5.5),
    ):
        planes, _ = planes_of(written(feature(line, **tags)))
        assert planes["road"][:, 100].sum() * 0.5 == pytest.approx(metres, abs=0.5), tags
    assert planes["road"][128, 100] == 1 and planes["road"][100, 100] == 0


def test_a_hole_is_no_building_and_classes_keep_apart(written):
    ring = box(50, 50, 150, 150)["coordinates"] + box(80, 80, 120, 120)["coordinates"]
    planes, _ = planes_of(
        written(
            feature({"type": "Polygon", "coordinates": ring}, building="yes"),
            feature(box(0, 0, 256, 256), natural="water"),
        )
    )
    assert planes["building"][60, 60] == 1 and planes["building"][100, 100] == 0
    assert planes["water"].min() == 1 and planes["known"].min() == 1


def test_the_older_form_with_a_crs_and_metadata_of_the_file(written):
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    path = written(
        feature(box(40, 60, 80, 100, crs=CRS.from_epsg(3857)), layer="building"),
        crs=crs, attribution="(c) OpenStreetMap contributors", timestamp="2024-05-01",
    )  # fmt: skip
    planes, found = planes_of(path)
    assert planes["building"][61:99, 41:79].min() == 1
    assert found.map.notes == {
        "attribution": "(c) OpenStreetMap contributors", "licence": "(c) OpenStreetMap contributors, ODbL 1.0", "date": "2024-05-01",
    }  # fmt: skip
    assert len(found.map.digest) == 16


@pytest.mark.parametrize("suffix", ["gpkg", "fgb"])
def test_geopackage_and_flatgeobuf(written, tmp_path, suffix):
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    shapes = [box(40, 60, 80, 100, crs=UTM), box(100, 60, 120, 100, crs=UTM)]
    geometry = shapely.to_wkb([shapely.geometry.shape(shape) for shape in shapes])
    path = tmp_path / f"map.{suffix}"
    tags = [np.array(["house", None], object), np.array([None, "water"], object)]
    pyogrio.raw.write(path, geometry, tags, ["building", "natural"], geometry_type="Polygon", crs="EPSG:32633")
    planes, found = planes_of(path)
    assert planes["building"][61:99, 41:79].min() == 1 and planes["water"][80, 110] == 1
    assert found.map.crs.to_epsg() == 32633 and found.map.objects == 2
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MapError, match="cannot be read"):
        read_map(path)


def test_classes_by_a_mapping_of_ones_own(written):
    path = written(feature(box(40, 60, 80, 100), type="house"), feature(box(100, 60, 120, 100), type="lake"))
    classes = classes_from_json('{"building": {"type": ["house", "shed"]}, "water": {"type": "lake"}}')
    planes, _ = planes_of(path, classes=classes)
    assert planes["building"][80, 60] == 1 and planes["water"][80, 110] == 1
    with pytest.raises(MapError, match="nothing to draw"):
        read_map(path)
    for text in ("{", "[]", '{"castle": {"type": "*"}}', "{}", '{"building": ["yes"]}', '{"building": {"a": 3}}'):
        with pytest.raises(MapError):
            classes_from_json(text)


def test_openstreetmap_tags():
    classes = Classes()
    for tags, wanted in (
        ({"building": "no"}, None), ({"building": "house"}, "building"), ({"highway": "proposed"}, None), ({"railway": "tram"}, "rail"),
        ({"railway": "subway"}, None),
        ({"waterway": "river"}, "water"), ({"landuse": "forest"}, "wood"), ({"landuse": "farmland"}, "field"), ({"natural": "beach"}, "land"),
        ({"layer": "1"}, None), ({}, None), ({"building": False}, None), ({"building": 0}, None), ({"building": np.bool_(False)}, None),
        ({"building": np.bool_(True)}, "building"), ({"building": float("nan")}, None), ({"building": ""}, None),
    ):  # fmt: skip
        assert classes.of(tags) == wanted, tags


def test_what_has_no_area_is_left_out_and_counted(written):
    found = read_map(
        written(
            feature({"type": "Point", "coordinates": place(9, 9)}, building="yes"),
            feature({"type": "Polygon", "coordinates": [[place(9, 9), place(9, 10)]]}, building="yes"),
            feature(None, building="yes"),
            feature(box(0, 0, 9, 9), shop="bakery"),
            feature(
                {
                    "type": "GeometryCollection",
                    "geometries": [box(40, 60, 80, 100), {"type": "Point", "coordinates": [0, 0]}],
                },
                building=1,
            ),
        )
    )
    assert found.left_out == {"without an area": 2, "without a geometry": 1, "without a class": 1}
    assert found.objects == 1 and MAP_CLASSES[found.parts[0].kind] == "building"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a GeoJSON"), ("[" * 100_000, "nested too deeply"), ("{}", "FeatureCollection"), ("[1]", "FeatureCollection"),
        ('{"type": "FeatureCollection", "features": []}', "no features"), ('{"type": "FeatureCollection", "features": {}}', "FeatureCollection"),
        ('{"type": "FeatureCollection", "features": [3]}', "feature 0"),
    ],
)  # fmt: skip
def test_what_is_no_map_is_refused(tmp_path, text, said):
    path = tmp_path / "map.geojson"
    path.write_text(text)
    with pytest.raises(MapError, match=said):
        read_map(path)


@pytest.mark.parametrize(
    ("coordinates", "said"),
    [
        ([[[0, 0], [1, "a"], [1, 1]]], "position"), ([[[0, 0], [1, None], [1, 1]]], "position"), ([[[0, 0], [True, False], ["1", "2"]]], "position"),
        ([[0, 0], [1, 1]], "position"), (7, "nested"),
        ([[[1e400, 0], [1, 1], [0, 1]]], "finite"), ([[[0, 0], [9520016, 3202766], [1, 1]]], "names its CRS"), ([[[0], [1], [2]]], "position"),
    ],
)  # fmt: skip
def test_a_wrong_geometry_is_named(written, coordinates, said):
    with pytest.raises(MapError, match=said):
        read_map(written(feature({"type": "Polygon", "coordinates": coordinates}, building="yes")))


def test_a_map_of_elsewhere_and_scenes_without_a_place(written):
    path = written(feature(box(5000, 60, 5080, 100), building="yes"))
    with pytest.raises(MapError, match="lies elsewhere"):
        MapPlanes(read_map(path), SCENE, SIDE, SIDE)
    for metadata in (Metadata(), Metadata(epsg=32633), Metadata(transform=SCENE.transform)):
        with pytest.raises(MapError, match="transform and a CRS"):
            MapPlanes(read_map(path), metadata, SIDE, SIDE)
    unknown = {"type": "name", "properties": {"name": "EPSG:999999"}}
    with pytest.raises(MapError, match="CRS is not known"):
        read_map(written(feature(box(0, 0, 9, 9), building="yes"), crs=unknown))


def test_sizes_are_bounded(written, monkeypatch):
    path = written(*[feature(box(n, 0, n + 1, 1), building="yes") for n in range(20)])
    for module, name, most in (
        (reading, "BYTES_MAX", 1000), (reading, "BRACES_MAX", 30), (objects, "OBJECTS_MAX", 10), (objects, "VERTICES_MAX", 50),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, name, most)
            with pytest.raises(LimitError):
                read_map(path)


def test_a_million_vertices_take_bounded_time_and_memory(tmp_path, monkeypatch):
    ring = [place(128 + 90 * np.cos(t), 128 + 90 * np.sin(t)) for t in np.linspace(0, 2 * np.pi, 500)]
    ring[-1] = ring[0]
    one = json.dumps(feature({"type": "Polygon", "coordinates": [ring]}, building="yes"))
    path = tmp_path / "map.geojson"
    path.write_text('{"type": "FeatureCollection", "features": [' + ",".join([one] * 2000) + "]}")
    assert path.stat().st_size < reading.BYTES_MAX
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimitError, match="1000000 vertices within 272 x 272 pixels"):
        planes_of(path)
    monkeypatch.setattr(drawing, "VERTICES_MAX", 10**7)
    planes, _ = planes_of(path)
    assert planes["building"][128, 128] == 1
    assert time.monotonic() - start < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


def test_hostile_maps_are_refused_or_drawn(written):
    """Mutations of bytes and of structure: a typed error or planes, in bounded time."""
    path = written(
        feature(box(40, 60, 80, 100), building="yes"),
        feature({"type": "LineString", "coordinates": [place(3, 3), place(130, 90)]}, highway="primary", width="6"),
        feature({"type": "MultiPolygon", "coordinates": [box(9, 9, 20, 20)["coordinates"]]}, natural="water"),
        crs={"type": "name", "properties": {"name": "EPSG:4326"}},
    )
    data, rng = path.read_bytes(), random.Random(5)
    tokens = [
        b"1e999",
        b"-",
        b"null",
        b"[]",
        b"{}",
        b'"',
        b"[[[[",
        b"NaN",
        b"Infinity",
        b"1e308",
        b"true",
        b",",
        b"\x00",
        b"\xff",
        b"}",
    ]
    drawn = 0
    for _ in range(int(os.environ.get("PERIGEE_MUTATIONS", "1500"))):
        out = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(out))
            kind = rng.randrange(4)
            if kind == 0:
                out[at] = rng.randrange(256)
            elif kind == 1:
                del out[at : at + rng.randint(1, 30)]
            elif kind == 2:
                out[at:at] = rng.choice(tokens)
            else:
                out[at : at + rng.randint(1, 12)] = rng.choice(tokens)
        path.write_bytes(bytes(out))
        try:
            planes, _ = planes_of(path, Region(0, 0, 64, 64))
        except (MapError, LimitError):
            continue
        drawn += 1
        assert all(np.isfinite(plane).all() for plane in planes.values())
        assert planes["edge"].min() >= -1 and planes["edge"].max() <= 1
    assert drawn, "some mutations leave a map"


def test_a_real_map_is_read():
    shared = os.environ.get("PERIGEE_SHARED", str(Path(__file__).resolve().parents[3] / "shared"))
    path = Path(shared) / "data/maps/banepa_epsg3857.geojson"
    if not path.is_file():
        pytest.skip("the map of Banepa is not here")
    with pytest.raises(MapError, match="names its CRS in a member crs"):
        read_map(path)


def test_widths_and_what_lies_below_the_ground(written):
    for tags, metres in (
        ({"width": "8 m"}, 8), ({"width": "nan", "highway": "motorway"}, 22), ({"width": "0", "lanes": 2}, 6.4), ({"lanes": 10**400}, 5.5),
        ({"width": "1e9"}, 200), ({"width": [3]}, 5.5),
    ):  # fmt: skip
        assert width_of("road", tags) == pytest.approx(metres), tags
    line = {"type": "LineString", "coordinates": [place(20, 128), place(236, 128)]}
    hidden = [{"tunnel": "yes"}, {"layer": "-1"}, {"location": "underground"}]
    path = written(
        *[feature(line, highway="primary", **tags) for tags in hidden],
        feature(line, highway="path", tunnel="no", layer="1"),
    )
    found = read_map(path)
    assert found.objects == 1 and found.left_out == {"below the ground": 3}


def test_an_open_ring_is_drawn_and_a_line_is_no_building(written):
    corners = [place(40, 60), place(90, 60), place(40, 110)]
    planes, found = planes_of(
        written(
            feature({"type": "Polygon", "coordinates": [corners]}, building="yes"),
            feature({"type": "LineString", "coordinates": corners}, building="yes"),
        )
    )
    assert planes["building"].sum() == pytest.approx(50 * 50 / 2, rel=0.02)
    assert found.provenance()["PERIGEE_MAP_LEFT_OUT"] == "1 without an area"


@pytest.mark.parametrize("name", [
    "http://127.0.0.1:9/crs", "/etc/hostname", "+proj=longlat +pm=paris", 'LOCAL_CS["x"]', "", 7, ["EPSG:4326"], "EPSG:4326+5773", "OGC:CRS27",
])  # fmt: skip
def test_a_crs_is_a_code_and_nothing_that_has_to_be_looked_up(written, name):
    with pytest.raises(MapError, match="CRS is not known"):
        read_map(written(feature(box(0, 0, 9, 9), building="yes"), crs={"properties": {"name": name}}))


def test_coordinates_of_no_map_are_refused_before_they_are_projected(written):
    crs = {"type": "name", "properties": {"name": "EPSG:3857"}}
    start = time.monotonic()
    for far in (1e9, 1e20, 1e300):
        shape = {"type": "Polygon", "coordinates": [[[0, 0], [far, 0], [0, far], [0, 0]]]}
        with pytest.raises(MapError, match="no map of the Earth"):
            read_map(written(feature(shape, building="yes"), crs=crs))
    assert time.monotonic() - start < 5


def test_texts_of_a_map_are_made_harmless(written):
    path = written(feature(box(0, 0, 9, 9), building="yes"), attribution="(c)\ud800 A\0B\n\x1b[31m C" + "x" * 999)
    note = read_map(path).notes["attribution"]
    assert note.startswith("(c) A B [31m C") and len(note) == 200 and note.encode()
    with pytest.raises(MapError) as caught:
        read_map(written(feature({"type": "\ud800", "coordinates": []}, building="yes")))
    assert str(caught.value).encode()


def test_large_and_far_shapes_are_drawn_within_the_region(written, monkeypatch):
    angles = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    star = [
        place(128 + r * np.cos(a), 128 + r * np.sin(a))
        for a, r in zip(angles, 100 + 40 * np.sin(7 * angles), strict=True)
    ]
    path = written(feature({"type": "Polygon", "coordinates": [star]}, building="yes"))
    _, found = planes_of(path)
    region = Region(60, 90, 70, 80)
    clipped = found.planes(region)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "CLIPPED_FROM", 10**9)
        assert np.array_equal(found.planes(region), clipped) and clipped[0].any() and not clipped[0].all()
        whole = found.planes(WHOLE)
    assert np.array_equal(whole[:, 60:130, 90:170], clipped)
    utm = {"type": "name", "properties": {"name": "EPSG:32633"}}
    wide = [[-9e7, -9e7], [9e7, -9e7], [9e7, 9e7], [-9e7, 9e7]]
    planes, _ = planes_of(written(feature({"type": "Polygon", "coordinates": [wide]}, natural="water"), crs=utm))
    assert planes["water"].min() == 1
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "VERTICES_MAX", 100)
        patch.setattr(drawing, "CLIPPED_FROM", 10**9)
        with pytest.raises(LimitError, match="simplify"):
            found.planes(WHOLE)


def test_long_lines_cost_what_is_near(written):
    rng = np.random.default_rng(3)
    points = rng.uniform(-9000, 9000, (20_000, 2)) + [500_000, 5_000_000]
    utm = {"type": "name", "properties": {"name": "EPSG:32633"}}
    _, found = planes_of(
        written(feature({"type": "LineString", "coordinates": points.tolist()}, highway="path"), crs=utm)
    )
    start = time.monotonic()
    assert found.planes(Region(0, 0, 16, 16)).shape == (len(MAP_PLANES), 16, 16)
    assert time.monotonic() - start < 5


def test_a_scene_across_180_degrees(written):
    scene = Metadata(transform=(1e-5, 0.0, 179.9985, 0.0, -1e-5, 10.0), epsg=4326)  # 180 degrees at column 150
    crossing = [[179.9995, 9.999], [-179.9995, 9.999], [-179.9995, 9.998], [179.9995, 9.998]]
    beyond = [[-179.9994, 9.9995], [-179.9992, 9.9995], [-179.9992, 9.999], [-179.9994, 9.999]]
    shapes = [feature({"type": "Polygon", "coordinates": [ring]}, building="yes") for ring in (crossing, beyond)]
    found = MapPlanes(read_map(written(*shapes)), scene, SIDE, SIDE)
    planes = dict(zip(MAP_PLANES, found.planes(WHOLE), strict=True))
    wanted = np.zeros((SIDE, SIDE))
    wanted[100:200, 100:200], wanted[50:100, 210:230] = 1, 1
    assert np.abs(planes["building"] - wanted).sum() < 30


def test_another_datum_is_not_taken_for_wgs_84(written):
    paris = {"type": "name", "properties": {"name": "EPSG:4807"}}  # grads from the meridian of Paris
    (x,), (y,) = transform(UTM, CRS.from_epsg(4807), [500_020.0], [4_999_970.0])[:2]
    ring = [[x, y], [x + 1e-4, y], [x + 1e-4, y + 1e-4], [x, y + 1e-4]]
    _, found = planes_of(written(feature({"type": "Polygon", "coordinates": [ring]}, building="yes"), crs=paris))
    left = found.box(0)
    assert abs(left.left - 40) < 4 and abs(left.bottom - 60) < 4


@pytest.mark.parametrize("kind", ["styles", "two CRSs", "view"])
def test_geopackages_as_programs_write_them(written, tmp_path, kind):
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    path, tags = tmp_path / "map.gpkg", [np.array([True, False])]
    geometry = shapely.to_wkb([shapely.geometry.shape(box(n, 60, n + 40, 100, crs=UTM)) for n in (40, 100)])
    pyogrio.raw.write(path, geometry, tags, ["building"], geometry_type="Polygon", crs="EPSG:32633", layer="a")
    if kind == "two CRSs":
        pyogrio.raw.write(
            path, geometry, tags, ["building"], geometry_type="Polygon", crs="EPSG:32634", layer="b", append=True
        )
        with pytest.raises(MapError, match="different CRSs"):
            read_map(path)
        return
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, name TEXT)")
        file.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', 'layer_styles')"
        )
        if kind == "view":
            file.execute(
                "CREATE VIEW endless AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
            )
    if kind == "view":
        with pytest.raises(MapError, match="views"):
            read_map(path)
        return
    planes, found = planes_of(path)
    assert planes["building"][80, 60] == 1 and planes["building"][80, 120] == 0 and found.map.objects == 1
