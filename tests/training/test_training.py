"""Training end to end on a few real tiles: a run learns and resumes, and its export decodes."""

import csv
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from perigee.benchmarks.codec import ArrayCodec
from perigee.bitstream.contract import answer
from perigee.bitstream.errors import OutputError, ProfileError, RasterError
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import load_profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.engines.torch import TorchGraph
from perigee.export.profile import export_profile
from perigee.models.checkpoint import CheckpointError, load_codec
from perigee.models.codec.codec import Codec, CodecConfig, loss_of
from perigee.models.codec.transform import BlockTransform
from perigee.training import cli
from perigee.training.data import (
    COLOUR_SHARE,
    FLAT_SHARE,
    NOISE_SHARE,
    SATURATED_SHARE,
    CropSampler,
    load_folders,
    split,
    varied,
)
from perigee.training.held_out import is_held_out
from perigee.training.loop import Trainer, TrainingConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiles):
    out = tmp_path_factory.mktemp("images")
    for tile in tiles[:4]:
        shutil.copy(tile, out)
    shutil.copy(tiles[4], out / next(name for name in map("{}.tif".format, range(1000)) if is_held_out(name, 0.02)))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder):
    """A run of a few steps, resumed once."""
    out = tmp_path_factory.mktemp("run")
    common = [str(out), "--data", str(folder), "--presets", "swift", "lite", "--batch", "2", "--crop", "64"]
    assert cli.main([*common, "--minutes", "0.03"]) == 0
    first = torch.load(out / "checkpoint.pt", weights_only=True)
    assert cli.main([*common, "--minutes", "0.08"]) == 0
    return out, first


def test_a_run_resumes_and_logs(run):
    out, first = run
    second = torch.load(out / "checkpoint.pt", weights_only=True)
    assert second["step"] > first["step"] > 0 and second["seconds"] > first["seconds"]
    with (out / "log.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) >= 2 and float(rows[-1]["bpp"]) > 0 and rows[-1]["quantised"] == "1"
    costs = [float(rows[-1]["swift"]), float(rows[-1]["lite"])]
    assert np.isfinite(costs).all() and all(costs) and "light" not in rows[-1]
    assert len((out / "commands.log").read_text().splitlines()) == 2


def test_without_validation_images_the_log_has_empty_cells_and_a_spent_budget_adds_nothing(tmp_path, tiles, capsys):
    (tmp_path / "images").mkdir()
    shutil.copy(tiles[0], tmp_path / "images")
    command = [
        str(tmp_path / "run"),
        "--data",
        str(tmp_path / "images"),
        "--presets",
        "swift",
        "--batch",
        "1",
        "--crop",
        "64",
    ]
    assert cli.main([*command, "--minutes", "0.01"]) == 0
    log = (tmp_path / "run" / "log.csv").read_text()
    row = list(csv.DictReader(log.splitlines()))[-1]
    assert float(row["bpp"]) > 0 and row["swift"] == "" and row["Q25"] == ""
    assert "too few to hold any out" in capsys.readouterr().err
    assert cli.main([*command, "--minutes", "0.01"]) == 0
    assert (tmp_path / "run" / "log.csv").read_text() == log and "checkpoint.pt" in capsys.readouterr().err


def test_a_missing_folder_is_told_before_a_run_is_made(tmp_path, capsys):
    assert cli.main([str(tmp_path / "run"), "--data", str(tmp_path / "nothing")]) == os.EX_NOINPUT
    assert "nothing" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_its_export_is_a_profile_that_decodes(run, tmp_path, tiles):
    out, _ = run
    manifest = export_profile(out / "checkpoint.pt", tmp_path / "p", "p")
    assert manifest["parity"]["scale_indices_differing"] == [0, 0, 0]
    assert max(manifest["parity"]["pixels_max_difference"]) < 0.5
    assert max(manifest["parity"]["latents_differing"]) < 20
    profile = load_profile(tmp_path / "p")
    assert list(profile.analyses) == ["swift", "lite"]
    tile = np.asarray(Image.open(tiles[5]))
    streams = []
    for analysis in profile.analyses:
        codec = ArrayCodec(profile, analysis=analysis)
        streams.append(codec.encode(tile, 60))
        assert np.abs(codec.decode(streams[-1]).astype(float) - tile).mean() < 15
    assert streams[0] != streams[1] and parse_stream(streams[0]).header == parse_stream(streams[1]).header
    with pytest.raises(ProfileError, match="no analysis 'light'; it has swift, lite"):
        profile.analysis("light")
    with pytest.raises(OutputError, match="already"):
        export_profile(out / "checkpoint.pt", tmp_path / "p", "p")


def test_cosmics_encoder_trains_and_flies(folder, tmp_path, tiles):
    """The published encoder trains, is exported, and runs in both engines, with and without its attention."""
    names = ["cosmic", "cosmic-cam", "cosmic-cam-linear"]
    common = ["--data", str(folder), "--presets", *names, "--batch", "2", "--crop", "64", "--minutes", "0.03"]
    assert cli.main([str(tmp_path / "run"), *common]) == 0
    manifest = export_profile(tmp_path / "run" / "checkpoint.pt", tmp_path / "p", "p")
    assert max(manifest["parity"]["latents_differing"]) < 20
    image = np.asarray(Image.open(tiles[0])).transpose(2, 0, 1)[None].astype(np.float32) / 255
    profile = load_profile(tmp_path / "p")
    for name in names:
        (q1, _), (q2, _) = (
            FlightEngine(profile, 2, graph, analysis=name).analyse(image, 200)
            for graph in (OnnxRuntimeGraph, TorchGraph)
        )
        assert (q1 != q2).mean() < 1e-3 and q1.any()


def blocks_of(crops):
    """Crops float [N, 64, 64, 3] as blocks [16 N, 3, 16, 16]."""
    return crops.reshape(-1, 4, 16, 4, 16, 3).permute(0, 1, 3, 5, 2, 4).reshape(-1, 3, 16, 16)


def test_a_start_from_the_block_transform_is_a_working_codec(folder):
    """The transform codec reconstructs images before any training."""
    torch.manual_seed(0)
    codec = Codec(CodecConfig())
    sampler = CropSampler(load_folders([folder]))
    crops = torch.from_numpy(sampler.batch(300, 64, np.random.default_rng(1))).float() / 255
    codec.start_from_transform(blocks_of(crops))
    x = crops[:4].permute(0, 3, 1, 2)
    quality = torch.full((4,), 230.0)
    with torch.no_grad():
        _, bpp, mse = loss_of(codec(x, quality, noise=False, analysis="lite"), x, codec.config.lambda_of(quality))
    assert -10 * torch.log10(mse.mean()) > 27 and 0 < bpp.mean() < 8


def test_the_block_transform_is_separable_orthonormal_and_ordered_by_power(folder):
    crops = torch.from_numpy(CropSampler(load_folders([folder])).batch(200, 64, np.random.default_rng(1))).float() / 255
    blocks = blocks_of(crops) - 0.5
    transform = BlockTransform(768)
    transform.fit(blocks)
    basis = transform.weight.detach().reshape(768, 768)
    assert torch.allclose(basis @ basis.T, torch.eye(768), atol=1e-5)
    y = transform(blocks).detach().reshape(len(blocks), 768)
    assert torch.allclose(y @ basis, blocks.reshape(len(blocks), 768), atol=1e-5)
    power = y.square().mean(0)
    assert (power[1:] <= power[:-1] * 1.0001).all() and power[:32].sum() > 0.9 * power.sum()
    assert torch.equal(BlockTransform(100).weight, BlockTransform(768).weight[:100])


def test_qualities_are_drawn_where_an_image_takes_usual_rates(folder, tmp_path):
    """A smooth image is trained at higher quality than a busy one."""
    trainer = Trainer(CodecConfig(("swift",)), TrainingConfig(), tmp_path)
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(400, 3, 64, 64, generator=generator)
    smooth, busy = (trainer._qualities(0.5 + contrast * (noise - 0.5), generator) for contrast in (0.02, 0.5))
    for drawn in (smooth, busy):
        assert torch.equal(drawn, drawn.round()) and drawn.min() >= 0 and drawn.max() <= 250
    assert smooth.median() > busy.median() + 60


def test_crops_are_balanced_by_source_and_stay_inside(folder, tmp_path):
    big = tmp_path / "flight"
    big.mkdir()
    Image.fromarray(np.full((900, 900, 3), 200, np.uint8)).save(big / "a.png")
    Image.fromarray(np.full((40, 400, 3), 1, np.uint8)).save(big / "too-small.png")
    images = load_folders([folder, big])
    assert len(images.images) == 6
    sampler = CropSampler(images, {"flight": 3.0})
    rng = np.random.default_rng(0)
    share = np.mean([(sampler.crop(64, rng) == 200).all() for _ in range(400)])
    plain = 1 - NOISE_SHARE - FLAT_SHARE - COLOUR_SHARE - SATURATED_SHARE
    assert share == pytest.approx(plain * 3 * 900 / (3 * 900 + 512), abs=0.1)
    training, validation = split(images, 0.5)
    assert len(training.images) + len(validation.images) == 6
    assert not set(training.names) & set(validation.names)


def test_varied_crops_reach_other_colours_noise_and_saturation():
    rng = np.random.default_rng(2)
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[:, None] + 80, 64, 1)
    crop = np.stack([ramp, ramp + 20, ramp + 40], -1)
    seen = [varied(crop, rng) for _ in range(600)]
    assert all(out.shape == crop.shape and out.dtype == np.uint8 for out in seen)
    saturated = [out for out in seen if set(np.unique(out)) <= {0, 255}]
    untouched = [out for out in seen if np.array_equal(out, crop)]
    assert saturated and 0.6 < len(untouched) / len(seen) < 0.8
    assert any(out[..., 0].mean() > out[..., 2].mean() + 20 for out in seen)  # bands exchanged


def test_a_run_starts_from_another_ones_weights(run, folder, tmp_path):
    out, _ = run
    common = ["--data", str(folder), "--presets", "swift", "lite", "--batch", "2", "--crop", "64", "--minutes", "0.02"]
    start = ["--start-from", str(out / "checkpoint.pt"), "--learning-rate", "1e-9"]
    assert cli.main([str(tmp_path / "b"), *common, *start]) == 0
    first, second = (torch.load(p / "checkpoint.pt", weights_only=True)["mean"] for p in (out, tmp_path / "b"))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    wrong = ["--start-from", str(out / "checkpoint.pt"), "--presets", "light"]
    assert cli.main([str(tmp_path / "c"), *common, *wrong]) == 65


def test_the_synthesis_grows_and_trains_alone(run, folder, tmp_path):
    """New blocks start as the identity, and frozen parts do not change, so the contract is the same and old streams decode."""
    out, _ = run
    common = ["--data", str(folder), "--presets", "swift", "lite", "--batch", "2", "--crop", "64", "--minutes", "0.02"]
    deeper = [
        "--start-from",
        str(out / "checkpoint.pt"),
        "--only",
        "synthesis",
        "--synthesis-blocks",
        "3",
        "3",
        "4",
        "1",
    ]
    assert cli.main([str(tmp_path / "a"), *common, *deeper, "--learning-rate", "1e-9"]) == 0
    assert cli.main([str(tmp_path / "b"), *common, *deeper, "--learning-rate", "1e-3"]) == 0
    (first, _), (same, _), (other, _) = (load_codec(p / "checkpoint.pt") for p in (out, tmp_path / "a", tmp_path / "b"))
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    quality = torch.full((1,), 150.0)
    with torch.no_grad():
        images = [codec(x, quality, noise=False, analysis="swift").image for codec in (first, same, other)]
    assert torch.allclose(images[0], images[1], atol=1e-4) and not torch.allclose(images[0], images[2], atol=1e-4)
    for name, value in first.state_dict().items():
        if not name.startswith(("synthesis.", "reconstruction.")):
            assert torch.allclose(value, other.state_dict()[name]), name
    shallower = ["--start-from", str(out / "checkpoint.pt"), "--synthesis-blocks", "1", "3", "2", "1"]
    assert cli.main([str(tmp_path / "c"), *common, *shallower]) == 65


def test_the_prior_grows_and_trains_alone(run, folder, tmp_path, tiles):
    """A larger prior costs little more before it is trained; other parts do not change; every engine computes the result."""
    out, _ = run
    common = ["--data", str(folder), "--presets", "swift", "lite", "--batch", "2", "--crop", "64", "--minutes", "0.02"]
    larger = ["--start-from", str(out / "checkpoint.pt"), "--only", "prior", "--prior", "large"]
    assert cli.main([str(tmp_path / "a"), *common, *larger, "--learning-rate", "1e-9"]) == 0
    assert cli.main([str(tmp_path / "b"), *common, *larger, "--learning-rate", "2e-2"]) == 0
    (first, _), (same, _), (other, _) = (load_codec(p / "checkpoint.pt") for p in (out, tmp_path / "a", tmp_path / "b"))
    x = torch.from_numpy(np.asarray(Image.open(tiles[5])).copy()).permute(2, 0, 1)[None].float() / 255
    quality = torch.full((1,), 150.0)
    with torch.no_grad():
        old, grown, trained = (float(c.code(x, quality, False, "swift").bits_y) for c in (first, same, other))
    assert grown == pytest.approx(old, rel=0.2) and trained != grown
    for name, value in first.state_dict().items():
        if not name.startswith(("prior.", "hyper.", "hyper_prior.")):
            assert torch.allclose(value, other.state_dict()[name]), name
    manifest = export_profile(tmp_path / "b" / "checkpoint.pt", tmp_path / "p", "p")
    assert manifest["parity"]["scale_indices_differing"] == [0, 0, 0]
    profile = load_profile(tmp_path / "p")
    assert len(profile.contract.widths.magnitudes) == 128 and profile.contract.widths.passes == 18
    z, q = np.zeros((1, 64, 1, 1), np.int32), np.full((1, 448, 4, 4), 3, np.int32)
    priors = [
        FlightEngine(profile, 1, use_compiled_prior=False).prior,
        GroundEngine(profile, 1, use_compiled_prior=False).prior,
        FlightEngine(profile, graph=TorchGraph).prior,
        profile.contract.reference(),
    ]
    found = [answer(prior.all_passes(z, q, 100)).tolist() for prior in priors]
    assert found[1:] == found[:-1]
    coarser = ["--start-from", str(tmp_path / "b" / "checkpoint.pt"), "--prior", "small"]
    assert cli.main([str(tmp_path / "c"), *common, *coarser]) == 65


def test_sources_of_an_index_can_be_left_out(folder, tmp_path):
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    names = sorted(p.name for p in folder.iterdir())
    (tmp_path / "index.csv").write_text(
        "file,source\n" + f"{names[0]},weak\n" + "".join(f"{n},good\n" for n in names[1:])
    )
    assert set(load_folders([tmp_path], exclude=["weak"]).names) == set(names[1:])
    with pytest.raises(RasterError, match="no image"):
        load_folders([tmp_path], exclude=["weak", "good"])


def test_a_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"something": 1}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a perigee-train checkpoint"):
        export_profile(tmp_path / "x.pt", tmp_path / "out", "x")
