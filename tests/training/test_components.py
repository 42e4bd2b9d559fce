"""A component profile from files to streams, as a researcher makes one: train, export, encode, decode."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import tifffile
import torch

import perigee
from perigee.bitstream.component_profile import load_component_profile
from perigee.export import components_cli as export_cli
from perigee.models.codec.component import ComponentCodec, quantised, references_of
from perigee.training import components, components_cli
from perigee.training.bands import components_of, load_rasters, triplets


@pytest.fixture
def files(tmp_path, rng):
    """A folder of multi-band files, with an index that forbids one of them, and one file with nodata."""
    folder = tmp_path / "data"
    folder.mkdir()
    y, x = np.mgrid[0:160, 0:130]
    shared = 2000 + 900 * np.sin(x / 11) * np.cos(y / 17)
    for number, bands in enumerate((1, 4, 6, 4)):
        samples = (shared * rng.uniform(0.4, 1, (bands, 1, 1)) + rng.normal(0, 20, (bands, 160, 130))).astype(np.uint16)
        tags = [(42113, "s", 0, "0", True)] if number == 2 else []
        samples[:, :9] = 0 if number == 2 else samples[:, :9]
        tifffile.imwrite(
            folder / f"{number}.tif",
            samples,
            photometric="minisblack",
            planarconfig="separate" if bands > 1 else None,
            extratags=tags,
        )
    with (folder / "index.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [["file", "train_ok"], *([f"{n}.tif", "no" if n == 3 else "yes"] for n in range(4))]
        )
    return folder


def test_files_that_are_not_allowed_or_held_out_are_not_trained_on(files):
    training, validation = load_rasters(files)
    assert {r.name for r in training} | {r.name for r in validation} == {"0.tif", "1.tif", "2.tif"}
    (with_nodata,) = [r for r in training + validation if r.name == "2.tif"]
    assert (with_nodata.samples > 0).all() and with_nodata.low.min() > 0, "nodata does not count"


def test_three_bands_at_a_time_are_images_of_8_bits(files):
    found = triplets(files, 128)
    assert sorted(found.names) == ["1.tif", "2.tif", "2.tif"], "of 1, 4 and 6 bands; the last is not allowed"
    assert set(found.sources) == {"bands"}
    for image in found.images:
        assert image.shape == (160, 130, 3) and image.dtype == np.uint8
        assert image.min() < 20 and image.max() > 235, "the bands fill the grey levels"
    assert not triplets(files, 256).images, "too small"


def test_coefficients_keep_the_energy_of_the_bands(rng):
    scaled = rng.normal(0, 0.2, (3, 64, 128)).astype(np.float32)
    found = components_of(scaled, scaled.reshape(3, -1), np.arange(256))
    centred = scaled - scaled.mean((1, 2), keepdims=True)
    assert found.shape == (3, 256, 4, 8)
    assert np.square(found).sum() == pytest.approx(np.square(centred).sum(), rel=1e-3)


def test_training_sees_what_flies(rng):
    """The network in training gives the integers of the exported prior."""
    torch.manual_seed(3)
    codec = ComponentCodec()
    codec.prior.quantised = True
    y = torch.from_numpy(rng.laplace(0, 2, (2, 8, 8, 256)).astype(np.float32))
    q = quantised(y)
    assert (torch.abs(q / 2 - y) <= 0.85).all()
    with torch.no_grad():
        z = torch.randint(-5, 6, (2, 2, 2, 32)).float()
        mean, index = codec.prior.predict(z, q, torch.tensor([90, 90]), torch.arange(2), references_of(q))
    assert (mean * 16 == torch.round(mean * 16)).all() and (index == torch.round(index)).all()


def test_train_export_encode_decode(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(components, "STATISTICS_CROPS", 12)
    monkeypatch.setattr(components_cli, "CROPS", 2)
    run, folder = tmp_path / "run", tmp_path / "mine"
    command = [str(run), "--data", str(files), "--minutes", "0.02", "--threads", "1"]
    assert components_cli.main(command) == 0
    assert "held out; from training step 0" in capsys.readouterr().err
    assert (run / "checkpoint.pt").is_file() and (run / "log.csv").read_text().startswith("step,minutes,bits,cost")
    assert components_cli.main(command) == 0, "a run that is spent is left as it is"
    assert export_cli.main([str(run / "checkpoint.pt"), str(folder)]) == 0
    profile = load_component_profile(folder)
    assert profile.name == "mine" and profile.manifest.details["accumulator_proof"]["largest"] < 1 << 24
    samples = tifffile.imread(files / "1.tif")
    stream = perigee.encode(samples, 60, profile=folder)
    image = perigee.decode(stream, profiles=[folder])
    assert np.abs(image.samples.astype(int) - samples).mean() < 20
    assert export_cli.main([str(tmp_path / "none.pt"), str(folder)]) == 66
    again = [str(tmp_path / "synthesis"), *command[1:], "--synthesis-of", str(folder)]
    assert components_cli.main(again) == 0 and "synthesis of mine" in capsys.readouterr().err
    assert (tmp_path / "synthesis" / "log.csv").read_text().startswith("step,minutes,left")
    assert components_cli.main(again) == 0, "a run that is spent is left as it is"
    assert export_cli.main([str(tmp_path / "synthesis" / "checkpoint.pt"), str(folder)]) == 0
    assert load_component_profile(folder).contract.digest == profile.contract.digest
    assert load_component_profile(folder).manifest.has("synthesis.onnx")
    stream = perigee.encode(samples, 20, profile=folder)
    assert perigee.decode(stream, profiles=[folder]).samples.shape == samples.shape
