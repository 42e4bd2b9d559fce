"""Streams that a map guides, from the command to the product: where the map says something, and nowhere else."""

import json
import os
import shutil
import time

import httpx
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.io import MemoryFile
from rasterio.transform import Affine

import perigee
from perigee.benchmarks.common import read_rgb
from perigee.ground import cli
from perigee.ground.library import Library
from perigee.ground.service.app import Settings

ROWS, COLS = 300, 700
TRANSFORM = Affine(1e-5, 0, 10.0, 0, -1e-5, 45.0)  # degrees: a metre or so


def building(left, top, right, bottom):
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    ring = [[TRANSFORM.c + TRANSFORM.a * x, TRANSFORM.f + TRANSFORM.e * y] for x, y in corners]
    return {
        "type": "Feature",
        "properties": {"building": "yes"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


@pytest.fixture(scope="module")
def place(tiles, guided_profiles, tmp_path_factory):
    """A folder with a stream, a map of one corner of it, and compensators."""
    folder = tmp_path_factory.mktemp("guided")
    (folder / "profiles").symlink_to(guided_profiles)
    rows = [np.concatenate([read_rgb(path) for path in chosen], 1) for chosen in (tiles[:3], tiles[1:4])]
    image = np.concatenate(rows)[:ROWS, :COLS].transpose(2, 0, 1)
    with rasterio.open(
        folder / "a.tif", "w", driver="GTiff", width=COLS, height=ROWS, count=3, dtype="uint8", crs="EPSG:4326", transform=TRANSFORM
    ) as target:  # fmt: skip
        target.write(image)
    (folder / "a.peri").write_bytes(perigee.encode(folder / "a.tif", 8))
    members = {"type": "FeatureCollection", "attribution": "(c) OpenStreetMap contributors"}
    (folder / "map.geojson").write_text(json.dumps(members | {"features": [building(30, 40, 90, 110)]}))
    (folder / "classes.json").write_text('\ufeff{"water": {"building": "*"}}')
    (folder / "far.geojson").write_text(json.dumps(members | {"features": [building(9000, 40, 9060, 110)]}))
    return folder


@pytest.fixture
def decode(place, tmp_path, capsys):
    def run(name, *options, code=0):
        out = tmp_path / f"{name}.tif"
        arguments = [
            str(place / "a.peri"),
            "-o",
            str(out),
            "--profiles",
            str(place / "profiles"),
            "--threads",
            "2",
            *map(str, options),
        ]
        assert cli.main(arguments) == code
        if code:
            assert not out.exists()
            return capsys.readouterr().err
        with rasterio.open(out) as found:
            return found.read(), found.tags()

    return run


def test_a_map_changes_what_it_knows_and_nothing_else(place, decode):
    guided, tags = decode("guided", "--compensation", "guided", "--map", place / "map.geojson")
    plain, plain_tags = decode("plain", "--compensation", "cosmic")
    changed = (guided != plain).any(0)
    assert changed[40:110, 30:90].mean() > 0.5 and not changed[:, 256:].any()
    assert (
        tags["PERIGEE_MAP_LICENCE"] == "(c) OpenStreetMap contributors, ODbL 1.0" and tags["PERIGEE_MAP_OBJECTS"] == "1"
    )
    assert len(tags["PERIGEE_MAP_HASH"]) == 16 and tags["PERIGEE_COMPENSATOR"] == "guided"
    assert not any(name.startswith("PERIGEE_MAP") for name in plain_tags)


def test_a_window_is_a_part_of_the_whole(place, decode, tmp_path):
    whole, _ = decode(
        "whole", "--compensation", "guided", "--map", place / "map.geojson", "--stac", tmp_path / "item.json"
    )
    part, _ = decode("part", "--compensation", "guided", "--map", place / "map.geojson", "--window", "60,20,100,300")
    assert np.array_equal(part, whole[:, 60:160, 20:320])
    properties = json.loads((tmp_path / "item.json").read_text())["properties"]
    assert properties["perigee:map_attribution"] == "(c) OpenStreetMap contributors"


def test_the_shipped_guide_changes_nothing_but_what_is_near_an_object(place, decode, tmp_path):
    """The guide adds nothing farther than 8 pixels from an object; the projection to the symbols moves blocks of 16 pixels."""
    other = tmp_path / "other.geojson"
    other.write_text(json.dumps({"type": "FeatureCollection", "features": [building(600, 200, 660, 260)]}))
    trust = tmp_path / "trust.tif"
    here, tags = decode("here", "--compensation", "magc", "--map", place / "map.geojson", "--trust", trust)
    there, _ = decode("there", "--compensation", "magc", "--map", other)
    base, _ = decode("base")
    changed = (here != there).any(0)
    assert changed[40:110, 30:90].any() and changed[200:260, 600:660].any()
    assert not changed[:, 128:560].any() and (here != base).any(0)[:, 128:560].mean() > 0.5
    counts = [int(part.split()[0]) for part in tags["PERIGEE_MAP_BUILDINGS"].split(";")[0].split(",")]
    assert sum(counts) == 1 and tags["PERIGEE_COMPENSATOR"] == "magc"
    with rasterio.open(trust) as found:
        assert found.read(1).max() > 0


def test_strength_0_is_the_base_image(place, decode):
    base, _ = decode("base")
    found, tags = decode("zero", "--compensation", "guided", "--map", place / "map.geojson", "--strength", 0)
    assert np.array_equal(found, base) and "PERIGEE_MAP_HASH" not in tags


def test_classes_of_ones_own(place, decode, tmp_path):
    mapping = tmp_path / "classes.json"
    mapping.write_text('{"water": {"building": "*"}}')
    built, _ = decode("built", "--compensation", "guided", "--map", place / "map.geojson")
    flooded, tags = decode(
        "flooded", "--compensation", "guided", "--map", place / "map.geojson", "--map-classes", mapping
    )
    assert (built != flooded).any() and len(tags["PERIGEE_MAP_CLASSES"]) == 16
    mapping.write_text("{")
    said = decode("x", "--compensation", "guided", "--map", place / "map.geojson", "--map-classes", mapping, code=65)
    assert "mapping of classes" in said


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--compensation", "guided"], 64, "guided by a map, and none was given"),
        (["--compensation", "cosmic", "--map", "map.geojson"], 64, "takes no map"),
        (["--map", "map.geojson"], 64, "takes no map"),
        (["--compensation", "restore", "--map", "map.geojson"], 64, "takes no map"),
        (["--compensation", "guided", "--map", "far.geojson"], 65, "lies elsewhere"),
        (["--compensation", "guided", "--map", "none.geojson"], 66, "none.geojson"),
        (["--compensation", "guided", "--map", "a.peri"], 65, "not a GeoJSON"),
        (["--compensation", "cosmic", "--map-classes", "classes.json"], 64, "none was given"),
    ],
)
def test_what_does_not_go_together_is_refused(place, decode, options, code, said):
    paths = [place / option if "." in option else option for option in options]
    assert said in decode("x", *paths, code=code)


@pytest.fixture(scope="module")
def url(place, serve):
    library = Library([place / "profiles"], 2)
    (place / "scenes").mkdir()
    shutil.copy(place / "a.peri", place / "scenes" / "a.peri")
    server, address = serve(Settings(library=library, upload_bytes=2_000_000, scenes=place / "scenes"))
    yield address
    server.should_exit = True


def sent(url, place, query, **files):
    parts = {name: (path, (place / path).read_bytes()) for name, path in files.items()}
    return httpx.post(f"{url}/{query}", files=parts, timeout=120)


def test_a_map_is_the_second_part_of_a_form(place, url, decode):
    wanted, _ = decode("guided", "--compensation", "guided", "--map", place / "map.geojson")
    answer = sent(url, place, "decode?compensation=guided", file="a.peri", map="map.geojson")
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.headers["Perigee-Map-Buildings"]) == {"supported": 1, "unsupported": 0, "contradicted": 0}
    with MemoryFile(answer.content) as memory, memory.open() as found:
        assert np.array_equal(found.read(), wanted) and found.tags()["PERIGEE_MAP_OBJECTS"] == "1"
    check_job(url, sent(url, place, "jobs?compensation=guided", file="a.peri", map="map.geojson").json(), wanted)


def check_job(url, job, wanted):
    for _ in range(600):
        state = httpx.get(f"{url}/jobs/{job['id']}").json()
        if state["status"] in ("done", "failed"):
            break
        time.sleep(0.1)
    result = httpx.get(f"{url}/jobs/{job['id']}/result")
    assert (
        json.loads(result.headers["Perigee-Map-Buildings"]) == state["buildings"]
        and state["buildings"]["supported"] == 1
    )
    with MemoryFile(result.content) as memory, memory.open() as found:
        assert np.array_equal(found.read(), wanted)


def test_a_served_scene_is_decoded_with_a_map(place, url, decode):
    wanted, _ = decode("guided", "--compensation", "guided", "--map", place / "map.geojson")
    scene = httpx.get(f"{url}/scenes/a", timeout=60).json()
    assert scene["guided"] == ["magc", "guided"] and "guided" not in scene["compensations"]
    answer = sent(url, place, "scenes/a/decode?compensation=guided", map="map.geojson")
    with MemoryFile(answer.content) as memory, memory.open() as found:
        assert np.array_equal(found.read(), wanted)
    check_job(url, sent(url, place, "scenes/a/jobs?compensation=guided", map="map.geojson").json(), wanted)
    for empty in ({}, {"content": b"", "headers": {"Content-Type": "application/json"}}):
        assert httpx.post(f"{url}/scenes/a/decode", timeout=60, **empty).status_code == 200
    for query, files in (
        ("scenes/a/decode?compensation=guided", {"file": "map.geojson"}),
        ("scenes/a/jobs?compensation=guided", {"file": "a.peri", "map": "map.geojson"}),
        ("scenes/a/decode", {"map": "map.geojson"}),
    ):
        assert sent(url, place, query, **files).status_code == 422
    assert httpx.get(f"{url}/scenes/a/tiles/0/0/0.png?compensation=guided", timeout=60).status_code == 422


@pytest.mark.parametrize(
    ("query", "files", "error"),
    [
        ("decode?compensation=guided", {"file": "a.peri"}, "CompensationError"),
        ("decode", {"file": "a.peri", "map": "map.geojson"}, "CompensationError"),
        ("decode?compensation=guided", {"file": "a.peri", "map": "far.geojson"}, "MapError"),
        ("decode?compensation=guided", {"file": "a.peri", "map": "a.tif"}, "MapError"),
        ("decode?compensation=guided&map_classes=[", {"file": "a.peri", "map": "map.geojson"}, "MapError"),
        ("decode", {"map": "map.geojson"}, None),
        ("decode", {"file": "a.peri", "other": "map.geojson"}, None),
        ("inspect", {"file": "a.peri", "map": "map.geojson"}, None),
    ],
)
def test_maps_that_cannot_be_used_are_problems(place, url, query, files, error):
    answer = sent(url, place, query, **files)
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json().get("error") == error


def test_a_hostile_text_harms_no_one_else(place, url):
    parts = {
        "map": ("m", json.dumps({"type": "Feature", "properties": {"building": 1}, "geometry": {"type": "\ud800"}}))
    }
    job = httpx.post(f"{url}/scenes/a/jobs?compensation=guided", files=parts).json()["id"]
    for _ in range(600):
        found = httpx.get(f"{url}/jobs/{job}")
        if found.json()["status"] == "failed":
            break
        time.sleep(0.1)
    assert found.json()["problem"]["error"] == "MapError"
    assert httpx.get(f"{url}/jobs").status_code == 200 and httpx.get(f"{url}/jobs/{job}/result").status_code == 409


def test_what_a_map_gave_is_said_in_a_png_too(place, tmp_path):
    out, options = tmp_path / "a.png", ["--profiles", str(place / "profiles"), "--compensation", "guided"]
    assert (
        cli.main(
            [
                str(place / "a.peri"),
                "-o",
                str(out),
                *options,
                "--map",
                str(place / "map.geojson"),
                "--window",
                "0,0,128,256",
            ]
        )
        == 0
    )
    with Image.open(out) as png:
        assert png.text["PERIGEE_MAP_LICENCE"].endswith("ODbL 1.0") and png.text["PERIGEE_GENERATED_DETAIL"] == "YES"


def test_buildings_beyond_the_product_are_not_counted(place, url):
    for query, wanted in (("window=0,0,128,256", 1), ("window=200,400,64,64", 0)):
        answer = sent(url, place, f"decode?compensation=guided&{query}", file="a.peri", map="map.geojson")
        assert json.loads(answer.headers["Perigee-Map-Buildings"])["supported"] == wanted
    answer = sent(url, place, "decode?compensation=guided&strength=0", file="a.peri", map="map.geojson")
    assert "Perigee-Map-Buildings" not in answer.headers


def test_a_map_for_streams_of_components_is_refused(place, url):
    data = perigee.encode(np.random.default_rng(1).integers(0, 4000, (5, 128, 128), np.uint16), 40)
    parts = {"file": ("a.peri", data), "map": ("m", (place / "map.geojson").read_bytes())}
    answer = httpx.post(f"{url}/decode", files=parts, timeout=60)
    assert answer.status_code == 422 and "version 2" in answer.json()["detail"]


def test_hostile_maps_do_not_harm_the_service(place, url):
    """Mutations of a map by HTTP: an answer to each, none of them an internal error."""
    data, rng, statuses = (place / "map.geojson").read_bytes(), np.random.default_rng(8), set()
    stream = (place / "a.peri").read_bytes()
    with httpx.Client(timeout=60) as client:
        for _ in range(int(os.environ.get("PERIGEE_MUTATIONS", "1500")) // 50):
            broken = bytearray(data)
            for at in rng.integers(0, len(broken), 3):
                broken[at] = rng.integers(0, 256)
            parts = {"file": ("a.peri", stream), "map": ("m", bytes(broken))}
            statuses.add(client.post(f"{url}/decode?compensation=guided&window=0,0,16,16", files=parts).status_code)
    assert 422 in statuses and statuses <= {200, 422}
