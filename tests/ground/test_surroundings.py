"""Neither the environment nor the date line changes a product without a word."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

import perigee
from perigee.bitstream.metadata import GeoKeys, Metadata
from perigee.bitstream.parsing import parse_stream
from perigee.ground.cli import main
from perigee.ground.library import Library
from perigee.ground.stac import footprint, stac_item
from perigee.ground.views import view_of
from perigee.onboard.acquisition import read_acquisition
from perigee.onboard.source import ArraySource

PIXELS = np.full((1, 64, 64), 90, np.uint8)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "s.peri"
    metadata = Metadata(epsg=32633, transform=(10.0, 0.0, 5e5, 0.0, -10.0, 4.6e6))
    path.write_bytes(perigee.encode(PIXELS, metadata=metadata))
    return path


@pytest.mark.parametrize(
    "foreign",
    [
        {"PROJ_DATA": "/nonexistent"},
        {"PROJ_LIB": "/nonexistent"},
        {"GDAL_DATA": "/nonexistent"},
        {"GTIFF_SRS_SOURCE": "EPSG", "GDAL_TIFF_INTERNAL_MASK": "NO"},
        {"GDAL_PAM_ENABLED": "NO", "GTIFF_POINT_GEO_IGNORE": "TRUE"},
        {"COMPRESS_OVERVIEW": "JPEG", "PREDICTOR_OVERVIEW": "3", "INTERLEAVE_OVERVIEW": "BAND"},
    ],
    ids=lambda foreign: next(iter(foreign)),
)
def test_inherited_settings_of_gdal_and_proj_are_not_used(stream, tmp_path, foreign):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PROJ_", "GDAL_"))}
    made = {}
    for name, environment in (("clean", clean), ("foreign", clean | foreign)):
        out = tmp_path / f"{name}.tif"
        command = [sys.executable, "-m", "perigee.ground", str(stream), "-o", str(out)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        assert all(variable in result.stderr for variable in foreign) == (name == "foreign")
        made[name] = out.read_bytes()
    assert made["clean"] == made["foreign"]
    with rasterio.open(tmp_path / "foreign.tif") as product:
        assert product.crs.to_epsg() == 32633


def test_a_crs_that_cannot_be_interpreted_is_refused_kept_or_dropped(tmp_path, capsys):
    for name, unknown in (
        ("epsg", {"epsg": 32999}),
        ("wkt", {"crs_wkt": 'PROJCS["none",FOO'}),
        ("keys", {"geokeys": GeoKeys((1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32999))}),
    ):
        path = tmp_path / f"{name}.peri"
        path.write_bytes(
            perigee.encode(PIXELS, metadata=Metadata(transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0), **unknown))
        )
        out = tmp_path / f"{name}.tif"
        assert main([str(path), "-o", str(out)]) == os.EX_DATAERR and not out.exists()
        assert "--unknown-crs" in capsys.readouterr().err
        for policy in ("keep", "drop"):
            assert main([str(path), "-o", str(out), "--unknown-crs", policy, "--overwrite"]) == 0
            with rasterio.open(out) as product:
                assert product.crs is None and "PERIGEE_CRS_PROBLEM" in product.tags()
                assert ("PERIGEE_CRS" in product.tags()) == (policy == "keep")
                assert product.transform == rasterio.Affine(1, 0, 0, 0, -1, 0)


def rings(geometry):
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [polygon[0] for polygon in polygons]


def item_of(tmp_path, crs, transform):
    path, item = tmp_path / "s.peri", tmp_path / "i.json"
    place = {"epsg": crs} if isinstance(crs, int) else {"crs_wkt": rasterio.crs.CRS.from_user_input(crs).to_wkt()}
    path.write_bytes(perigee.encode(PIXELS, metadata=Metadata(transform=transform, **place)))
    assert main([str(path), "-o", str(tmp_path / "o.tif"), "--stac", str(item), "--overwrite"]) == 0
    return json.loads(item.read_text())


def test_a_footprint_across_the_date_line_is_cut_there(tmp_path):
    found = item_of(tmp_path, 32701, (500.0, 0.0, 170000.0, 0.0, -500.0, 8200000.0))
    assert found["geometry"]["type"] == "MultiPolygon" and found["bbox"][0] > 0 > found["bbox"][2]
    for ring in rings(found["geometry"]):
        lons = [x for x, _ in ring]
        assert max(lons) - min(lons) < 1 and ring[0] == ring[-1] and min(abs(abs(x) - 180) for x in lons) < 1e-6
    found = item_of(tmp_path, 32633, (10.0, 0.0, 5e5, 0.0, -10.0, 4.6e6))
    assert found["geometry"]["type"] == "Polygon" and found["bbox"][0] < found["bbox"][2]


def test_a_footprint_around_a_pole_reaches_it(tmp_path):
    found = item_of(tmp_path, 3031, (10000.0, 0.0, -320000.0, 0.0, -10000.0, 320000.0))
    assert found["bbox"][1] == -90 and (found["bbox"][0], found["bbox"][2]) == (-180, 180)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ('LOCAL_CS["site",UNIT["metre",1]]', (1.0, 0.0, 1.0, 0.0, -1.0, 1.0)),
        ("IAU_2015:30100", (0.1, 0.0, 10.0, 0.0, -0.1, 10.0)),
        ("IAU_2015:49910", (1000.0, 0.0, 1e5, 0.0, -1000.0, 1e5)),
        ("+proj=geos +h=35785831 +lon_0=0 +sweep=y", (171875.0, 0.0, -5.5e6, 0.0, -171875.0, 5.5e6)),
        ("+proj=ortho +lat_0=0 +lon_0=0", (218750.0, 0.0, -7e6, 0.0, -218750.0, 7e6)),
        (4326, (1.0, 0.0, 0.0, 0.0, -1.0, 500.0)),
    ],
    ids=["local", "moon", "mars", "geostationary", "orthographic", "beyond a pole"],
)
def test_a_product_without_a_place_on_the_earth_has_an_item_without_geometry(tmp_path, crs, transform):
    found = item_of(tmp_path, crs, transform)
    assert found["geometry"] is None and "bbox" not in found
    assert found["properties"]["proj:transform"] == list(transform)


def test_a_transform_that_is_no_number_has_no_place():
    pixels = perigee.encode(PIXELS, profile="flight3", metadata=Metadata(epsg=4326))
    source = Library(threads=1).source(parse_stream(pixels))
    source.metadata = replace(source.metadata, transform=(float("nan"), 0.0, 0.0, 0.0, -1.0, 0.0))
    found = stac_item(source, view_of(source), Path("o.tif"))
    assert found["geometry"] is None and "bbox" not in found and "proj:transform" not in found["properties"]


@pytest.mark.parametrize(
    ("left", "top", "width", "height"), [(0, 90, 360, 180), (-180.25, 90.25, 360, 180.5), (-200, 90.5, 400, 180.5)]
)
def test_the_footprint_of_the_whole_world_is_the_whole_map(tmp_path, left, top, width, height):
    found = item_of(tmp_path, 4326, (width / 64, 0.0, float(left), 0.0, -height / 64, float(top)))
    assert found["bbox"] == [-180, -90, 180, 90] and found["geometry"]["type"] == "Polygon"


def test_the_item_of_a_product_without_a_time_gives_no_time_when_it_is_encoded_again(tmp_path):
    item_of(tmp_path, 32633, (10.0, 0.0, 5e5, 0.0, -10.0, 4.6e6))
    assert read_acquisition(tmp_path / "i.json").timestamp is None


@given(st.floats(-180, 180), st.floats(-80, 80), st.floats(0.01, 40), st.floats(0.01, 9), st.integers(-2, 2))
@settings(max_examples=100, deadline=None)
def test_footprints_lie_within_the_map_and_keep_their_area(west, south, width, height, turns):
    east, north = west + width, south + height
    outline = [(west, south), (east, south), (east, north), (west, north)]
    geometry, bbox = footprint([(x + 360 * turns, y) for x, y in outline])
    area = 0.0
    for ring in rings(geometry):
        assert all(-180 - 1e-6 <= x <= 180 + 1e-6 for x, _ in ring) and ring[0] == ring[-1]
        part = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:], strict=False)) / 2
        assert part >= -1e-6, "counter-clockwise"
        area += part
    assert area == pytest.approx(width * height, rel=1e-3, abs=1e-4)
    assert (bbox[0] > bbox[2]) == (len(rings(geometry)) == 2)


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon", "coordinates": [[[179, 10], [-179, 10], [-179, 12], [179, 12], [179, 10]]]},
        {
            "type": "MultiPolygon",
            "coordinates": [
                [[[179, 10], [180, 10], [180, 12], [179, 12], [179, 10]]],
                [[[-180, 10], [-179, 10], [-179, 12], [-180, 12], [-180, 10]]],
            ],
        },
    ],
    ids=["jumping", "cut"],
)
def test_an_input_footprint_across_the_date_line_has_its_middle_there(tmp_path, geometry):
    path = tmp_path / "item.json"
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {"gsd": 1}}))
    found = read_acquisition(path)
    assert abs(abs(found.longitude_deg) - 180) < 1e-6 and found.latitude_deg == 11


def test_on_board_a_crs_is_carried_and_never_interpreted(tmp_path):
    """A CRS that no software knows costs the satellite nothing."""
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", transform=from_origin(0, 0, 1, 1)
    ) as target:
        target.write(PIXELS)
    path.with_name("a.tif.aux.xml").write_text("<PAMDataset><SRS>PROJCS[&quot;nowhere&quot;]</SRS></PAMDataset>")
    assert perigee.decode(perigee.encode(path)).metadata.crs_wkt == 'PROJCS["nowhere"]'


def test_nodata_of_an_array_makes_samples_invalid():
    data = PIXELS.copy()
    data[0, :5] = 7
    window = ArraySource(data, Metadata(nodata=7)).read(0, 0, 64, 64)
    assert not window.valid[0, :5].any() and window.valid[0, 5:].all()
