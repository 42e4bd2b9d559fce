"""Acquisition fields from STAC items and sidecars, with the traps that vendors set."""

import json

import pytest

from perigee.bitstream.errors import MetadataError
from perigee.onboard.acquisition import read_acquisition


def read(tmp_path, value):
    path = tmp_path / "m.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_acquisition(path)


def test_fmow_record(tmp_path):
    a = read(
        tmp_path,
        {
            "gsd": 1.9, "timestamp": "2015-07-13T10:12:13Z", "cloud_cover": 7, "off_nadir_angle_dbl": 12.3,
            "target_azimuth_dbl": 33.0, "sun_azimuth_dbl": 150.25, "sun_elevation_dbl": 51.5,
            "raw_location": "POLYGON ((10 50, 12 50, 12 52, 10 52, 10 50))",
        },
    )  # fmt: skip
    assert (a.longitude_deg, a.latitude_deg, a.gsd_m, a.cloud_cover_percent) == (11, 51, 1.9, 7)
    assert (a.off_nadir_deg, a.target_azimuth_deg, a.sun_azimuth_deg, a.sun_elevation_deg) == (12.3, 33.0, 150.25, 51.5)


@pytest.mark.parametrize(
    ("item", "centre"),
    [
        ({"geometry": {"type": "Point", "coordinates": [7, 8]}, "properties": {}}, (7, 8)),
        (
            {
                "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 4], [0, 4], [0, 0]]]},
                "properties": {},
            },
            (1, 2),
        ),
        ({"bbox": [0, 0, 100, 2, 4, 200], "properties": {}}, (1, 2)),
        ({"properties": {"proj:centroid": {"lat": 3, "lon": 4}}}, (4, 3)),
        ({"lon": 5, "lat": 6}, (5, 6)),
        ({"properties": {}}, (None, None)),
    ],
)
def test_positions(tmp_path, item, centre):
    a = read(tmp_path, item)
    assert (a.longitude_deg, a.latitude_deg) == centre


def test_unknown_values_are_absent(tmp_path):
    a = read(tmp_path, {"cloud_cover": -999, "sun_elevation_dbl": None, "gsd": "0.5"})
    assert a.cloud_cover_percent is None and a.sun_elevation_deg is None and a.gsd_m == 0.5


@pytest.mark.parametrize(
    ("end", "known"),
    [
        ("2020-01-02T03:04:09+02:00", True),
        ("2020-01-03T00:00:00Z", True),
        ("2026-01-02T03:04:05Z", False),
        ("2019-01-02T03:04:05Z", False),
        (None, False),
    ],
)
def test_only_a_short_range_of_times_is_the_time_of_an_acquisition(tmp_path, end, known):
    times = {"datetime": None, "start_datetime": "2020-01-02T03:04:05+02:00", "end_datetime": end}
    found = read(tmp_path, {"properties": times}).timestamp
    assert (found is not None) == known
    assert not known or found.utcoffset().seconds == 7200


@pytest.mark.parametrize(
    ("ring", "centre"),
    [
        ([[x, 0] for x in range(11)] + [[10, 10], [0, 10], [0, 0]], (5, 5)),
        ([[0, 0], [3, 0], [0, 3]], (1, 1)),
        ([[178, 0], [179, 0], [-178, 0], [-178, 2], [178, 2], [178, 0]], (180, 1)),
        ([[0, 0], [1, 0], [8, 0], [0, 0]], (4, 0)),
        ([[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]], (2, 2)),
    ],
    ids=["dense edge", "triangle", "date line", "line", "bow tie"],
)
def test_the_position_is_the_centroid_of_the_footprint(tmp_path, ring, centre):
    found = read(tmp_path, {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}})
    assert (found.longitude_deg, found.latitude_deg) == pytest.approx(centre)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("{", "not JSON"), ("[1]", "object"), ({"gsd": "near"}, "gsd"), ({"cloud_cover": 101}, "cloud_cover_percent"),
        ({"sun_elevation_dbl": 91}, "sun_elevation_deg"), ({"timestamp": "yesterday"}, "RFC 3339"), ({"bbox": ["a", "b", "c", "d"]}, "position"),
    ],
)  # fmt: skip
def test_errors_name_the_field(tmp_path, value, word):
    with pytest.raises(MetadataError, match=word):
        read(tmp_path, value)
