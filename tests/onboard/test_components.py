"""Scenes of any number of bands, 8 to 16 bits, as a satellite sends them and the ground gets them back: format version 2."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio

import perigee
from perigee.bitstream import format as fmt
from perigee.bitstream.component_prior import magnitude_table
from perigee.bitstream.component_profile import find_component_profile
from perigee.bitstream.costs import TableCosts
from perigee.bitstream.errors import ProfileError, RasterError, UpsetError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.prior import Prediction
from perigee.bitstream.profile import find_profile
from perigee.bitstream.version2 import (
    ComponentSegment,
    Parameters,
    version_of,
    write_component_segment,
    write_component_stream,
    write_parameters,
    write_strip,
)
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground import cli as ground_cli
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.onboard import cli
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.fidelity import Fidelity
from perigee.onboard.source import ArraySource, WholeScene


@pytest.fixture(scope="module")
def codec() -> ComponentEncoder:
    return ComponentEncoder(find_component_profile("spectral1"))


@pytest.fixture(scope="module")
def engine() -> GroundComponents:
    return GroundComponents(find_component_profile("spectral1"), synthesis=False)


def landscape(
    bands: int, rows: int, cols: int, seed: int = 0, depth: float = 4000.0, dtype: str = "uint16"
) -> np.ndarray:
    """Bands that have most of their structure in common, as those of a sensor do, with a little noise of their own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:cols]
    shared = np.zeros((rows, cols))
    for wavelength in (300, 90, 37, 17, 9, 5):
        turn = rng.uniform(0, 2 * np.pi, 2)
        shared += (
            np.sin(turn[0] + 2 * np.pi * (x * np.cos(turn[1]) + y * np.sin(turn[1])) / wavelength) * wavelength**0.6
        )
    shared = (shared - shared.min()) / max(np.ptp(shared), 1e-9)
    gain = rng.uniform(0.4, 1, (bands, 1, 1))
    own = rng.normal(0, 0.003, (bands, rows, cols)) + 0.05 * gain * np.sin(x / 40 + np.arange(bands)[:, None, None])
    return np.clip(depth * (0.1 + 0.7 * gain * shared + own), 0, np.iinfo(dtype).max).astype(dtype)


def decoded(data: bytes, engine: GroundComponents) -> np.ndarray:
    decoder = ComponentDecoder(parse_component_stream(data), engine)
    return decoder.region(Region(0, 0, decoder.height, decoder.width)).samples


@pytest.mark.parametrize(
    ("bands", "dtype", "shape"),
    [
        (1, "uint16", (300, 270)),
        (4, "uint8", (64, 64)),
        (5, "int16", (130, 70)),
        (32, "uint16", (40, 33)),
        (2, "uint16", (1, 1)),
    ],
)
def test_any_bands_and_type_come_back(codec, engine, bands, dtype, shape):
    samples = landscape(bands, *shape, depth=200 if dtype == "uint8" else 4000, dtype=dtype)
    samples = samples - np.int16(900) if dtype == "int16" else samples
    sizes, errors = [], []
    for quality in (10, 40, 70, 100):
        data = codec.encode_scene(ArraySource(samples), quality, verify=quality == 40).data
        found = decoded(data, engine)
        assert found.dtype == samples.dtype and found.shape == samples.shape
        sizes.append(len(data))
        errors.append(float(np.sqrt(np.square(found.astype(float) - samples).mean())))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert errors[-1] <= 0.5


def test_bytes_never_fall_and_errors_never_rise_with_quality(codec, engine):
    samples = landscape(4, 128, 128)
    sizes, errors = [], []
    for quality in range(0, 101, 4):
        data = codec.encode_scene(ArraySource(samples), quality).data
        sizes.append(len(data))
        errors.append(np.square(decoded(data, engine).astype(float) - samples).mean())
    assert len(sizes) == 26 and sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert np.sqrt(errors[-1]) < 1 and 8 * sizes[0] / samples.size < 0.15


def test_a_step_in_counts_is_kept_by_every_band(codec, engine):
    samples = landscape(4, 200, 200, depth=9000)
    steps = (2.0, 4.0, 8.0, 32.0)
    data = codec.encode_scene(ArraySource(samples), 0, fidelity=Fidelity(counts=steps)).data
    error = decoded(data, engine).astype(float) - samples
    for band, step in enumerate(steps):
        assert np.sqrt(np.square(error[band]).mean()) < 1.1 * step / np.sqrt(12) + 0.3
        assert abs(error[band].mean()) < 0.1 * step
    with pytest.raises(RasterError, match="2 counts for 4 bands"):
        codec.encode_scene(ArraySource(samples), 0, fidelity=Fidelity(counts=(1.0, 2.0)))


def test_a_band_of_more_weight_has_smaller_errors(codec, engine):
    samples = landscape(3, 200, 200)
    even, weighted = (
        decoded(codec.encode_scene(ArraySource(samples), 65, fidelity=f).data, engine).astype(float) - samples
        for f in (Fidelity(), Fidelity(weights=(1.0, 1.0, 4.0)))
    )
    assert np.square(weighted[2]).mean() < 0.3 * np.square(even[2]).mean()


def test_outliers_come_back_within_what_was_asked(codec, engine):
    """Fires, glint and ships lie far outside the range that bands are scaled by."""
    samples = landscape(3, 192, 192, depth=1000)
    samples[:, 40:42, 60:63] = 60000
    samples[1, 100, 100] = 0
    data = codec.encode_scene(ArraySource(samples), 0, fidelity=Fidelity(counts=(4.0,))).data
    error = np.abs(decoded(data, engine).astype(float) - samples)
    assert error.max() < 40 and error[:, 40:42, 60:63].max() < 40


def test_bands_that_are_not_registered_cost_no_more_than_without_a_transform(codec):
    samples = landscape(4, 256, 256, seed=3)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 4000, samples.shape).astype(np.uint16)
    shifted = np.stack([np.roll(band, 10 * n, 0) for n, band in enumerate(samples)])
    for scene, transformed in ((samples, True), (noise, False), (shifted, None)):
        data = codec.encode_scene(ArraySource(scene), 30).data
        spectral = parse_component_stream(data).parameters[0].spectral
        assert transformed is None or spectral.is_identity is not transformed
        alone = sum(len(codec.encode_scene(ArraySource(band[None]), 30).data) for band in scene)
        assert len(data) < 1.01 * alone


class Sequential(WholeScene):
    """A source that can be read once, from top to bottom, as lines come from a detector."""

    def __init__(self, samples: np.ndarray) -> None:
        self._inner = ArraySource(samples)
        self.info, self.metadata = self._inner.info, self._inner.metadata
        self._row = -1

    def read(self, top, left, rows, cols):
        assert top >= self._row, "what was read is gone"
        self._row = top
        return self._inner.read(top, left, rows, cols)


def test_strips_are_read_once_and_give_the_same_bytes_from_a_pipe(codec, engine):
    samples = landscape(3, 600, 300)
    with pytest.raises(AssertionError, match="what was read is gone"):
        codec.encode_scene(Sequential(samples), 40)
    piped = codec.encode_scene(Sequential(samples), 40, strip_rows=1).data
    assert piped == codec.encode_scene(ArraySource(samples), 40, strip_rows=1).data
    stream = parse_component_stream(piped)
    assert stream.strips == {1: 1, 2: 2} and set(stream.parameters) == {0, 1, 2}
    error = decoded(piped, engine).astype(float) - samples
    assert np.sqrt(np.square(error).mean()) < 40


def test_a_lost_strip_costs_itself_alone(codec, engine):
    samples = landscape(3, 600, 300)
    whole = codec.encode_scene(ArraySource(samples), 40, strip_rows=1).data
    good = decoded(whole, engine)
    stream = parse_component_stream(whole)
    chunks = [write_parameters(n, p) for n, p in stream.parameters.items() if n != 1]
    chunks += [write_strip(row, 1, n) for row, n in stream.strips.items()]
    chunks += [write_component_segment(s) for s in stream.segments.values()]
    hit = write_component_stream(stream.header, chunks)
    decoder = ComponentDecoder(parse_component_stream(hit, damaged=True), engine, damaged=True)
    found = decoder.region(Region(0, 0, 600, 300))
    assert sorted(decoder.report.lost) == [2, 3]
    assert not found.valid[:, 256:512].any() and found.valid[:, :256].all() and found.valid[:, 512:].all()
    assert np.array_equal(found.samples[:, :256], good[:, :256]) and np.array_equal(
        found.samples[:, 512:], good[:, 512:]
    )


def test_any_window_equals_the_whole(codec, engine):
    samples = landscape(4, 520, 300)
    decoder = ComponentDecoder(parse_component_stream(codec.encode_scene(ArraySource(samples), 30).data), engine)
    whole = decoder.region(Region(0, 0, 520, 300)).samples
    window = decoder.region(Region(200, 130, 101, 77), [2, 0]).samples
    assert np.array_equal(window, whole[[2, 0], 200:301, 130:207])
    pieces = np.zeros_like(whole)
    for place, block in decoder.blocks():
        pieces[(slice(None), *place.within(Region(0, 0, 520, 300)))] = block.samples
    assert np.array_equal(pieces, whole)


def test_nodata_and_masks_survive(codec, engine):
    samples = landscape(3, 300, 300)
    samples[:, :40, :270] = 0
    samples[1, 100:110, 100:110] = 0
    samples[:, 256:, 256:] = 0
    data = codec.encode_scene(ArraySource(samples, Metadata(nodata=0.0)), 30).data
    decoder = ComponentDecoder(parse_component_stream(data), engine)
    found = decoder.region(Region(0, 0, 300, 300))
    assert np.array_equal(found.valid, samples != 0) and np.array_equal(found.samples == 0, samples == 0)
    assert parse_component_stream(data).segments[3].mode == fmt.EMPTY
    error = (found.samples.astype(float) - samples)[found.valid]
    assert np.sqrt(np.square(error).mean()) < 80, "invalid samples do not disturb the transform"


def test_a_cut_segment_shows_all_bands_coarsely(codec, engine):
    samples = landscape(4, 256, 256)
    stream = parse_component_stream(codec.encode_scene(ArraySource(samples), 50).data)
    segment = stream.segments[0]
    errors = []
    for share in (0.1, 0.4, 0.8):
        cut = segment._replace(words=segment.words[: int(share * len(segment.words))], cut=True)
        stream.segments[0] = cut
        decoder = ComponentDecoder(stream, engine)
        found = decoder.region(Region(0, 0, 256, 256)).samples.astype(float)
        assert decoder.report.cut == {0: decoder.report.cut[0]}
        errors.append(np.sqrt(np.square(found - samples).mean((1, 2))))
    assert (errors[0] > errors[1]).all() and (errors[1] > errors[2]).all()
    assert (errors[0] < samples.astype(float).std((1, 2))).all()


def test_the_qualities_of_components_and_the_offsets_of_tables_are_followed(codec, engine):
    samples = landscape(2, 64, 64)
    stream = parse_component_stream(codec.encode_scene(ArraySource(samples), 40).data)
    stream.segments[0] = stream.segments[0]._replace(qualities=(0, 30))
    with pytest.raises(Exception, match="checksum|words|escape|zero"):
        ComponentDecoder(stream, engine).region(Region(0, 0, 64, 64))
    parameters = stream.parameters[0]
    shifted = Parameters(parameters.spectral, np.full((2, 256), 3, np.int8))
    source = ArraySource(samples).read(0, 0, 64, 64)
    (chunk,) = codec.encode_patch(0, source, shifted, 100)
    data = write_component_stream(stream.header, [write_parameters(0, shifted), chunk])
    assert np.abs(decoded(data, engine).astype(int) - samples).max() < 400


def test_verify_finds_a_segment_that_does_not_decode(codec):
    samples = landscape(2, 64, 64)
    stream = parse_component_stream(codec.encode_scene(ArraySource(samples), 40).data)
    segment, parameters = stream.segments[0], stream.parameters[0]
    codec.verify(segment, parameters, (64, 64))
    with pytest.raises(UpsetError):
        codec.verify(segment._replace(checksum=segment.checksum ^ 1), parameters, (64, 64))
    with pytest.raises(UpsetError):
        codec.verify(segment._replace(words=segment.words[:-1]), parameters, (64, 64))


def test_an_upset_in_the_prior_is_mended(engine):
    """Weights that flip in memory are found by the prior's checksums, and the patch is encoded again as it should be."""
    samples = landscape(3, 128, 128)
    encoder = ComponentEncoder(find_component_profile("spectral1"))
    good = encoder.encode_scene(ArraySource(samples), 40).data
    for part in range(2):
        memory = encoder.engine.prior.memory()[0], magnitude_table(encoder.contract.widths.magnitudes)
        memory[part].reshape(-1).view(np.uint8)[:4096] ^= 0x40
        scene = encoder.encode_scene(ArraySource(samples), 40)
        assert (scene.upsets, scene.data) == (1, good) or not hasattr(encoder.engine.prior, "packing")


def test_auto_takes_components_unless_the_image_is_rgb(tmp_path):
    grey = landscape(1, 64, 64)
    colour = landscape(3, 64, 64, depth=250, dtype="uint8")
    assert version_of(perigee.encode(grey)) == 2 and version_of(perigee.encode(colour)) == 1
    assert version_of(perigee.encode(colour, profile="spectral1")) == 2
    image = perigee.decode(perigee.encode(grey, 60))
    assert image.tags["PERIGEE_PROFILE"] == "spectral1" and np.abs(image.samples.astype(int) - grey).max() < 60
    found = perigee.inspect(perigee.encode(grey, 60))
    assert found["format_version"] == 2 and found["bits_per_sample"] == pytest.approx(
        8 * found["bytes"] / 4096, abs=1e-4
    )


def test_compensation_leaves_components_alone_and_says_so():
    data = perigee.encode(landscape(4, 64, 64))
    image = perigee.decode(data, compensation="cosmic")
    assert "does not serve the profile spectral1" in image.tags["PERIGEE_COMPENSATION_LEFT_ALONE"]
    assert np.array_equal(image.samples, perigee.decode(data).samples)


def test_the_commands(tmp_path, capsys):
    samples = landscape(6, 100, 80)
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", width=80, height=100, count=6, dtype="uint16", crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 500000, 0, -10, 5000000), nodata=0,
    ) as file:  # fmt: skip
        file.write(samples)
        file.descriptions = tuple(["B2", "B3", "B4", "B8", "B11", "B12"])
    scene, stream, product = tmp_path / "scene.tif", tmp_path / "scene.peri", tmp_path / "out.tif"
    assert cli.main([str(scene), "-q", "50", "--json", "--verify", "--measure-errors"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["profile"], line["format_version"], line["bands"]) == ("spectral1", 2, 6)
    assert all(
        0 < rms < 40 and largest < 400
        for rms, largest in zip(line["errors"]["rms"], line["errors"]["largest"], strict=True)
    )
    assert (
        ground_cli.main([str(stream), "-o", str(product), "--bands", "6,1", "--stac", str(tmp_path / "item.json")]) == 0
    )
    measured = " ".join(f"{rms:.4g}" for rms in line["errors"]["rms"])
    item = json.loads((tmp_path / "item.json").read_text())
    assert item["properties"]["perigee:onboard_rms_error"].split()[0] == measured.split()[0]
    with rasterio.open(product) as file:
        assert file.crs.to_epsg() == 32633 and file.descriptions == ("B12", "B2") and file.nodata == 0
        assert np.abs(file.read().astype(int) - samples[[5, 0]]).mean() < 40
        assert file.tags()["PERIGEE_PROFILE"] == "spectral1"
        assert len(file.tags()["PERIGEE_ONBOARD_LARGEST_ERROR"].split()) == 6
    assert ground_cli.main([str(stream), "--info"]) == 0
    assert '"format_version": 2' in capsys.readouterr().out
    assert cli.main([str(scene), "--overwrite", "--format", "1"]) == 0
    assert version_of(stream.read_bytes()) == 1
    assert cli.main([str(scene), "--overwrite", "--profile", "flight3", "--step", "2"]) == 78
    assert "are for component profiles" in capsys.readouterr().err
    assert cli.main([str(scene), "--overwrite", "--format", "1", "--profile", "spectral1"]) == 78
    assert cli.main([str(scene), "--overwrite", "--step", "2", "--strip-rows", "1"]) == 0
    assert version_of(stream.read_bytes()) == 2
    for wrong in (
        ["--step", "0"],
        ["--band-weights", "1,x"],
        ["--step", "1", "--band-weights", "1"],
        ["--format", "3"],
        ["--format", "1", "--step", "2"],
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([str(scene), *wrong])
        assert caught.value.code == 64


def test_a_profile_that_is_damaged_is_refused(tmp_path):
    profile = find_component_profile("spectral1")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in profile.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert find_component_profile(str(copy)).contract.digest == profile.contract.digest
    bad = bytearray((copy / "analysis.npz").read_bytes())
    bad[200] ^= 1
    (copy / "analysis.npz").write_bytes(bad)
    with pytest.raises(ProfileError, match=r"analysis\.npz has SHA-256"):
        ComponentEncoder(find_component_profile(str(copy)))
    with pytest.raises(ProfileError, match="no component profile"):
        find_component_profile("nothing")


def test_a_dropped_patch_is_told(codec, engine):
    samples = landscape(2, 64, 64)
    stream = parse_component_stream(codec.encode_scene(ArraySource(samples), 40).data)
    stream.segments[0] = ComponentSegment(0, fmt.DROPPED)
    decoder = ComponentDecoder(stream, engine)
    assert not decoder.region(Region(0, 0, 64, 64)).valid.any()
    assert decoder.report.lost == {0: "dropped on board"} and decoder.incomplete
    assert replace(stream, damage=[]).segments


def test_a_scene_has_offsets_of_the_tables_that_save_bytes(codec, engine, monkeypatch):
    samples = landscape(2, 700, 800)  # 12 patches, without the noise that the prior has learned to expect
    tuned = codec.encode_scene(ArraySource(samples), 40, verify=True).data
    offsets = parse_component_stream(tuned).parameters[0].offsets
    assert offsets.any() and np.abs(offsets).max() <= 14
    monkeypatch.setattr("perigee.onboard.component_encoder.PATCHES_MIN", 13)
    plain = codec.encode_scene(ArraySource(samples), 40).data
    assert not parse_component_stream(plain).parameters[0].offsets.any()
    assert len(tuned) < len(plain)
    errors = [np.square(decoded(data, engine).astype(float) - samples).mean() for data in (tuned, plain)]
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("profile", ["spectral1", "flight3"])
def test_bits_by_offset_are_those_of_tables_that_the_prior_would_have_named(profile):
    tables = (find_component_profile if profile == "spectral1" else find_profile)(profile).contract.tables
    costs, scales, steps = TableCosts(tables), tables.scales, 1 if profile == "spectral1" else 2
    rng = np.random.default_rng(3)
    table = rng.integers(0, 16 * scales, (3, 4, 4)).astype(np.int32)
    mean = table % 16 + 16 * rng.integers(-400, 400, table.shape).astype(np.int32)
    latents = steps * ((mean // 8 + rng.integers(-300, 300, table.shape)) // steps).astype(np.int32)
    offsets = np.array([-9, 0, 5], np.int32)
    prediction = Prediction(table, mean)
    compiled = costs.by_offset(latents, prediction, offsets)
    for number, offset in enumerate(offsets):
        plain = costs._with_offset(latents, table, mean, int(offset)).reshape(3, -1).sum(1)
        assert np.allclose(compiled[:, number], plain, rtol=1e-5)
        moved = Prediction(np.clip(table // 16 + offset, 0, scales - 1) * 16 + table % 16, mean)
        assert np.allclose(costs.by_offset(latents, moved, offsets[1:2])[:, 0], plain, rtol=1e-5)


@pytest.mark.parametrize(("bands", "dtype", "nbits", "nodata"), [(3, "uint16", 12, None), (1, "int16", None, 0)])
def test_errors_that_were_measured_on_board_are_those_of_the_product(codec, engine, bands, dtype, nbits, nodata):
    samples = landscape(bands, 300, 280, depth=4095, dtype=dtype)
    valid = np.ones(samples.shape, bool)
    valid[:, 20:90, 100:200] = False
    samples[:, 20:90, 100:200] = 0
    samples[:, 5, 5] = 1
    source = ArraySource(samples, Metadata(nbits=nbits, nodata=nodata), valid)
    scene = codec.encode_scene(source, 60, measure_errors=True)
    error = (decoded(scene.data, engine).astype(int) - samples)[:, valid[0]]
    for found in (scene.errors, parse_component_stream(scene.data).errors):
        assert np.allclose(found.rms, np.sqrt(np.square(error).mean(1)), rtol=1e-5)
        assert np.array_equal(found.largest, np.abs(error).max(1))
        assert np.allclose(found.bias, error.mean(1), atol=1e-6)
    plain = codec.encode_scene(source, 60)
    assert plain.errors is None and len(plain.data) < len(scene.data)


def test_a_large_scene_survives_the_loss_of_its_parameters(codec, engine):
    samples = landscape(1, 257, 256 * 33)  # 66 patches
    data = codec.encode_scene(ArraySource(samples), 5).data
    stream = parse_component_stream(data)
    spoiled = bytearray(data)
    spoiled[data.index(write_parameters(0, stream.parameters[0])) + 5] ^= 1
    assert parse_component_stream(bytes(spoiled), damaged=True).parameters.keys() == {0}
