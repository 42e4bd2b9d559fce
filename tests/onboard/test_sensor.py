"""Sensor files: what is known of a sensor changes how its scenes are coded, and a wrong file is refused by name."""

import json

import numpy as np
import pytest
import rasterio

import perigee
from perigee.bitstream.errors import MetadataError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.ground import cli as ground_cli
from perigee.onboard import cli
from perigee.onboard.registration import RegisteredSource
from perigee.onboard.sensor import read_sensor
from perigee.onboard.source import ArraySource

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
        ('{"band_offsets": [[0, 0], [1025, 0]]}', "1024 apart"),
        ('{"band_offsets": [[0, 0], [1]]}', "band_offsets"),
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


@pytest.fixture(scope="module")
def apart():
    """Three bands of the same ground, seen 0, 9 and 18 lines and 0, -4 and -8 columns apart."""
    rng = np.random.default_rng(4)
    ground = np.kron(rng.integers(200, 3000, (40, 50)), np.ones((8, 8))) + rng.normal(0, 20, (320, 400))
    offsets = ((0, 0), (9, -4), (18, -8))
    bands = [
        ground[30 - line : 290 - line, 20 - column : 370 - column] * (1 + 0.2 * b)
        for b, (line, column) in enumerate(offsets)
    ]
    return np.stack(bands).astype(np.uint16), offsets


def test_bands_are_laid_onto_each_other_and_taken_out_again(apart, tmp_path):
    samples, offsets = apart
    path, sensor = tmp_path / "scene.tif", tmp_path / "sensor.json"
    with rasterio.open(
        path, "w", driver="GTiff", width=350, height=260, count=3, dtype="uint16", crs="EPSG:32633",
        transform=rasterio.Affine(2, 0, 5e5, 0, -2, 5e6),
    ) as out:  # fmt: skip
        out.write(samples)
    sensor.write_text(json.dumps({"band_offsets": offsets}))
    sizes = []
    for name, more in (("plain", []), ("laid", ["--sensor", str(sensor)])):
        stream = tmp_path / f"{name}.peri"
        assert cli.main([str(path), "-o", str(stream), "--step", "40", *more]) == 0
        sizes.append(stream.stat().st_size)
    assert sizes[1] < 0.8 * sizes[0], "a transform gains once the bands lie on each other"
    found = perigee.decode(stream)
    assert found.samples.shape == samples.shape and found.valid.all()
    assert np.abs(found.samples.astype(int) - samples).max() <= 80
    part = perigee.decode(stream, (100, 90, 120, 200), (3, 1)).samples.astype(int)
    assert np.abs(part - found.samples[[2, 0], 100:220, 90:290]).max() <= 12  # the synthesis sees other surroundings
    described = perigee.inspect(stream)
    assert (described["height"], described["width"], described["band_places"]) == (260, 350, [[18, 0], [9, 4], [0, 8]])
    assert ground_cli.main([str(stream), "-o", str(tmp_path / "out.tif")]) == 0
    with rasterio.open(tmp_path / "out.tif") as product:
        assert product.shape == (260, 350) and product.transform.c == 5e5 and product.crs.to_epsg() == 32633
        assert np.array_equal(product.read(), found.samples)


def test_bands_with_an_alpha_band_are_not_moved(tmp_path):
    source = ArraySource(np.zeros((2, 20, 20), np.uint16), Metadata(alpha_band=2))
    with pytest.raises(MetadataError, match="alpha"):
        RegisteredSource(source, ((0, 0), (1, 0)))


def test_the_frame_holds_every_sample_once(apart):
    samples, offsets = apart
    valid = np.random.default_rng(1).random(samples.shape) < 0.9
    source = RegisteredSource(ArraySource(samples, None, valid), offsets)
    whole = source.read(0, 0, source.info.height, source.info.width)
    assert source.info.height == 278 and source.info.width == 358
    for band, (line, column) in enumerate(source.places.tolist()):
        own = np.s_[band, line : line + 260, column : column + 350]
        assert np.array_equal(whole.samples[own], samples[band]) and np.array_equal(whole.valid[own], valid[band])
    assert whole.valid.sum() == valid.sum()
    part = source.read(250, 340, 28, 18)
    assert np.array_equal(part.samples, whole.samples[:, 250:, 340:]) and np.array_equal(
        part.valid, whole.valid[:, 250:, 340:]
    )
