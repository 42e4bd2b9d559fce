"""Sensor files: what is known of a sensor changes how its scenes are coded, and a wrong file is refused by name."""

import json

import numpy as np
import pytest
import rasterio

from perigee.bitstream.errors import MetadataError
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.ground import cli as ground_cli
from perigee.onboard import cli
from perigee.onboard.sensor import read_sensor

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
MIX = [[0.6, 0.8], [0.8, -0.6]]


@pytest.fixture
def scene(tmp_path, rng):
    """A GeoTIFF of two bands that are much alike; column 40 of the second is dead."""
    base = 1500 + 700 * np.sin(np.mgrid[0:128, 0:128].sum(0) / 9)
    samples = np.stack([base, 0.8 * base + 100]) + rng.normal(0, 4, (2, 128, 128))
    samples[1, :, 40] = 0
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", driver="GTiff", width=128, height=128, count=2, dtype="uint16") as file:
        file.write(samples.astype(np.uint16))
    return path


def encoded(scene, sensor, *more):
    file = scene.with_name("sensor.json")
    file.write_text(json.dumps(sensor))
    code = cli.main([str(scene), "--overwrite", "--sensor", str(file), *more])
    return code, scene.with_suffix(".peri")


def test_steps_come_from_the_file_unless_the_command_gives_them(scene):
    sizes = {}
    for name, sensor, more in (
        ("fine", {"step_counts": 2}, []),
        ("coarse", {"step_counts": [16, 16]}, []),
        ("given", {"step_counts": [16, 16]}, ["--step", "2"]),
        ("weights", {"band_weights": [8, 1]}, []),
    ):
        code, stream = encoded(scene, sensor, *more)
        assert code == 0
        sizes[name] = stream.stat().st_size
    assert sizes["coarse"] < sizes["fine"] == sizes["given"]


def test_dead_columns_come_back_as_invalid_and_do_not_harm_their_neighbours(scene, tmp_path):
    with rasterio.open(scene) as file:
        original = file.read().astype(int)
    dead = np.arange(128) == 40
    for sensor in ({"dead_columns": [[], [40]]}, {}):
        code, stream = encoded(scene, sensor, "--step", "16")
        assert code == 0 and ground_cli.main([str(stream), "-o", str(tmp_path / "out.tif"), "--overwrite"]) == 0
        with rasterio.open(tmp_path / "out.tif") as file:
            product, valid = file.read().astype(int), file.dataset_mask() > 0
        assert np.abs(product[1][:, ~dead] - original[1][:, ~dead]).max() < 40
        assert np.array_equal(valid, np.broadcast_to(~dead if sensor else True, valid.shape))


def test_a_fixed_matrix_is_what_the_stream_carries(scene):
    code, stream = encoded(scene, {"matrix": MIX, "dead_columns": [[], [40]]}, "-q", "30")
    assert code == 0
    matrix = parse_component_stream(stream.read_bytes()).parameters[0].spectral.matrix
    assert np.array_equal(matrix, np.rint(np.array(MIX).T * 16384))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"step_counts": 0}', "step_counts"),
        ('{"step_counts": [1, "x"]}', "step_counts"),
        ('{"step_counts": 1, "band_weights": 1}', "band_weights"),
        ('{"dead_columns": [3]}', "dead_columns"),
        ('{"dead_columns": [[-1]]}', "dead_columns"),
        ('{"matrix": [[1, 1], [0, 1]]}', "orthonormal"),
        ('{"matrix": [[1, 0]]}', "matrix"),
        ('{"matrix": [[NaN]]}', "orthonormal"),
        ('{"gain": 2}', "gain"),
        ("[1]", "object"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, content, named):
    path = tmp_path / "sensor.json"
    path.write_text(content)
    with pytest.raises(MetadataError, match=named):
        read_sensor(path)


def test_a_file_of_another_sensor_is_refused(scene, capsys):
    for sensor in (
        {"dead_columns": [[1]]},
        {"dead_columns": [[], [128]]},
        {"matrix": [[1]]},
        {"step_counts": [1, 2, 3]},
    ):
        code, _ = encoded(scene, sensor)
        assert code == 65
    code, _ = encoded(scene, {"matrix": MIX}, "--profile", "flight3")
    assert code == 78 and "--sensor" in capsys.readouterr().err
