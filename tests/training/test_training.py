"""Training end to end on a few real tiles: it learns, resumes, is exported, and the export decodes."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from perigee.benchmarks.codec import ArrayCodec
from perigee.bitstream.errors import ProfileError, RasterError
from perigee.bitstream.profile import load_profile
from perigee.export.profile import export_profile
from perigee.models.codec.codec import Codec, CodecConfig, loss_of
from perigee.training import cli
from perigee.training.data import CropSampler, load_folders, split


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiles):
    out = tmp_path_factory.mktemp("images")
    for tile in tiles[:4]:
        shutil.copy(tile, out)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder):
    """A run of a few steps, resumed once."""
    out = tmp_path_factory.mktemp("run")
    common = [str(out), "--data", str(folder), "--preset", "swift", "--batch", "2", "--crop", "64"]
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
    assert len(rows) >= 2 and float(rows[-1]["loss"]) > 0 and rows[-1]["quantised"] == "1"
    assert len((out / "commands.log").read_text().splitlines()) == 2


def test_its_export_is_a_profile_that_decodes(run, tmp_path, tiles):
    out, _ = run
    manifest = export_profile(out / "checkpoint.pt", tmp_path / "p", "p")
    assert manifest["parity"]["scale_indices_differing"] == [0, 0, 0]
    assert max(manifest["parity"]["pixels_max_difference"]) < 0.5
    assert max(manifest["parity"]["latents_differing"]) < 20
    profile = load_profile(tmp_path / "p")
    codec = ArrayCodec(profile)
    tile = np.asarray(Image.open(tiles[5]))
    assert np.abs(codec.decode(codec.encode(tile, 60)).astype(float) - tile).mean() < 15
    with pytest.raises(ProfileError, match="already"):
        export_profile(out / "checkpoint.pt", tmp_path / "p", "p")


def test_a_start_from_the_klt_is_a_working_codec(folder):
    """Before any training the transform codec already reconstructs."""
    torch.manual_seed(0)
    codec = Codec(CodecConfig("lite"))
    sampler = CropSampler(load_folders([folder]))
    crops = torch.from_numpy(sampler.batch(300, 64, np.random.default_rng(1))).float() / 255
    blocks = crops.reshape(-1, 4, 16, 4, 16, 3).permute(0, 1, 3, 5, 2, 4).reshape(-1, 768)
    codec.start_from_klt(blocks)
    x = crops[:4].permute(0, 3, 1, 2)
    quality = torch.full((4,), 230.0)
    with torch.no_grad():
        _, bpp, mse = loss_of(codec(x, quality, noise=False), x, codec.config.lambda_of(quality))
    assert -10 * torch.log10(mse.mean()) > 27 and 0 < bpp.mean() < 8


def test_crops_are_balanced_by_source_and_stay_inside(folder, tmp_path):
    big = tmp_path / "flight"
    big.mkdir()
    Image.fromarray(np.full((900, 900, 3), 200, np.uint8)).save(big / "a.png")
    Image.fromarray(np.full((40, 400, 3), 1, np.uint8)).save(big / "too-small.png")
    images = load_folders([folder, big])
    assert len(images.images) == 5
    sampler = CropSampler(images, {"flight": 3.0})
    rng = np.random.default_rng(0)
    share = np.mean([(sampler.crop(64, rng) == 200).all() for _ in range(400)])
    assert share == pytest.approx(3 * 900 / (3 * 900 + 512), abs=0.08)
    training, validation = split(images, 0.5)
    assert len(training.images) + len(validation.images) == 5
    assert not set(training.names) & set(validation.names)


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
    with pytest.raises(ProfileError, match="not a perigee-train checkpoint"):
        export_profile(tmp_path / "x.pt", tmp_path / "out", "x")
