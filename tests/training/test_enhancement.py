"""An enhancer from images to a checkpoint: pairs of real encoders, all kinds of prior, and what a training run leaves."""

import numpy as np
import pytest
import torch
from PIL import Image

from perigee.bitstream.conditions import CODING_CONDITIONS, BandScale, coding_condition
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.export.enhancement_graph import write_enhancer
from perigee.export.graph import round_to_half
from perigee.models.checkpoint import CheckpointError, read_checkpoint
from perigee.models.enhancement.network import COMPACT, SMALL
from perigee.models.enhancement.prior import BETAS, Enhancer, posterior_mean
from perigee.training import enhancement, enhancement_cli
from perigee.training.data import ImageSet, load_folders
from perigee.training.degraded import Pairs, by_jpeg, by_jpeg2000, by_jpeg2000_bands
from perigee.training.enhancement import EnhancementTrainer
from perigee.training.enhancement_strength import fitted


@pytest.fixture
def folder(tmp_path, rng):
    """A folder of three images, one too small to be reduced."""
    y, x = np.mgrid[0:300, 0:420]
    for number, side in enumerate((300, 300, 256)):
        planes = [
            120 + 80 * np.sin(x / (9 + number) + k) * np.cos(y / 23) + rng.normal(0, 6, x.shape) for k in range(3)
        ]
        pixels = np.stack(planes, 2).clip(0, 255).astype(np.uint8)[:side, : side + 40 * (number == 0)]
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def test_real_encoders_keep_to_the_rate(folder):
    pixels = np.asarray(Image.open(folder / "0.png"))[:256, :256]
    errors = []
    for rate in (0.2, 1.0, 3.0):
        coded = by_jpeg2000(pixels, rate)
        decoded, bits = coded.decoded, coded.coding.bits_per_pixel
        assert decoded.shape == pixels.shape and 0.8 * rate < bits < 1.15 * rate
        errors.append(np.square(decoded.astype(float) - pixels).mean())
    assert errors[0] > errors[1] > errors[2]
    fine, coarse = by_jpeg(pixels, 90, 0).coding, by_jpeg(pixels, 30, 2).coding
    assert fine.bits_per_pixel > coarse.bits_per_pixel and fine.step < coarse.step


def test_pairs_cover_codecs_and_rates_and_stay_aligned(folder):
    pairs = Pairs(load_folders([folder]), 12, 3)
    made = [pairs.make() for _ in range(40)]
    assert {tuple(p.condition[1:4]) for p in made} == {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}
    rates = [2 ** (4 * p.condition[0]) for p in made]
    assert min(rates) < 0.4 and max(rates) > 1.5
    originals, decoded, conditions = pairs.batch(6, 64)
    assert originals.shape == decoded.shape == (6, 3, 64, 64) and conditions.shape == (6, CODING_CONDITIONS)
    for original, found in zip(originals, decoded, strict=True):
        apart = np.square(original.astype(float) - found).mean()
        assert apart < 0.5 * np.square(original.astype(float) - found[:, ::-1]).mean() or apart < 200


@pytest.mark.parametrize("kind", ["none", "oracle", "regressed", "generated"])
def test_every_kind_of_prior_adds_little_at_first_and_takes_any_size(kind):
    torch.manual_seed(1)
    enhancer = Enhancer(SMALL, kind)
    image, condition = torch.rand(2, 3, 128, 192), torch.tensor([coding_condition(0.5, "jpeg2000")] * 2)
    noise = torch.randn(2, SMALL.tokens, 2, 3)
    added, doubt = enhancer(image, condition, original=image.flip(2), noise=noise)
    assert added.shape == image.shape and added.abs().mean() < 0.2 and doubt.shape == (2, 1, 128, 192)
    if kind == "generated":
        assert not torch.equal(added, enhancer(image, condition, noise=-noise)[0])


def test_bands_of_many_counts_become_grey_levels(rng):
    samples = rng.integers(1000, 3000, (3, 256, 256)).astype(np.uint16)
    samples[1] = samples[1] // 4 + 7000
    scale = BandScale.of(samples)
    grey = scale.grey(samples)
    assert 10 < grey[0].min() < 20 and 235 < grey[0].max() < 245 and grey[1].max() < 90
    found = [by_jpeg2000_bands(samples, scale, decibels) for decibels in (25, 45)]
    errors = [float(np.square(original - decoded).mean()) for original, decoded, _ in found]
    assert 10 * np.log10(255**2 / errors[0]) == pytest.approx(25, abs=2) and errors[1] < errors[0] / 30
    coarse, fine = (coding for _, _, coding in found)
    assert coarse.step > 4 * fine.step and coarse.bits_per_pixel < fine.bits_per_pixel


def test_strengths_and_intervals_are_fitted_where_there_is_something_to_see(rng):
    """An enhancer that adds nothing gains nothing: no strength, and intervals that hold 90 % of what is missing."""
    torch.manual_seed(1)
    enhancer = Enhancer(SMALL, "none").eval()
    y, x = np.mgrid[0:256, 0:256]
    images = [
        (128 + 60 * np.sin(x / (5 + n)) * np.cos(y / 9) + rng.normal(0, 5, x.shape)).clip(0, 255).astype(np.uint8)
        for n in range(12)
    ]
    strengths, intervals = fitted(enhancer, ImageSet([np.stack([i] * 3, 2) for i in images], ["a"] * 12, ["b"] * 12))
    assert set(strengths) == {"jpeg2000", "jpeg2000, rough", "jpeg", "perigee", "unknown"}
    assert all(strength == 0 for table in strengths.values() for _, strength in table)
    assert all(before == after > 0.1 for table in intervals.values() for _, before, after in table)


def test_the_diffusion_ends_at_what_is_predicted_and_begins_close_to_noise():
    predicted, noisy = torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    assert torch.allclose(posterior_mean(predicted, noisy, 1), predicted)
    assert float(posterior_mean(noisy, predicted, 4).mean()) < 0.1 and np.prod([1 - b for b in BETAS]) < 0.01


def test_the_compact_preset_keeps_to_its_cost():
    enhancer = Enhancer(COMPACT, "generated")
    weights = sum(p.numel() for name, p in enhancer.named_parameters() if not name.startswith("oracle."))
    assert 2 * weights < 4e6, "in fp16, of 12 MB for all"


def test_stage_two_starts_from_stage_one(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(enhancement, "POOL", 8)
    for name, value in (("CROPS", 2), ("SIDE", 64)):
        monkeypatch.setattr(enhancement, name, value)
    one, two = tmp_path / "one", tmp_path / "two"
    common = ["--data", str(folder), "--minutes", "0.03", "--threads", "1"]
    assert enhancement_cli.main([str(one), *common, "--prior", "oracle"]) == 0
    assert "from training step 0" in capsys.readouterr().err
    assert (one / "log.csv").read_text().startswith("step,minutes,left")
    more = ["--prior", "generated", "--start-from", str(one / "checkpoint.pt")]
    assert enhancement_cli.main([str(two), *common, *more]) == 0
    first, second = (read_checkpoint(run / "checkpoint.pt", torch.device("cpu"))["mean"] for run in (one, two))
    assert torch.equal(first["oracle.enter.weight"], second["oracle.enter.weight"]), "the oracle is not trained again"
    assert not torch.equal(first["network.enter.weight"], second["network.enter.weight"])
    assert enhancement_cli.main([str(two), *common, *more]) == 0, "a run that is spent is left as it is"
    assert enhancement_cli.main([str(tmp_path / "x"), "--data", str(tmp_path / "none")]) == 66


def test_a_training_goes_on_from_an_exported_enhancer(tmp_path, profile):
    shipped = profile.folder.parent / "enhancers" / "restore"
    trainer = EnhancementTrainer(tmp_path / "run", 1, start_from=shipped)
    image, condition = torch.rand(1, 3, 256, 256), torch.tensor([coding_condition(0.5, "jpeg2000")])
    with torch.no_grad():
        added = trainer.mean.eval()(image, condition)[0].numpy()
    wanted, *_ = OnnxRuntimeGraph(shipped / "enhancer.onnx", 1)(
        {"image": image.numpy(), "condition": condition.numpy()}
    )
    assert np.abs(added - wanted).max() < 1e-5 and np.abs(wanted).max() > 1e-3
    (tmp_path / "weights.npz").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="no weights"):
        EnhancementTrainer(tmp_path / "run", 1, start_from=tmp_path)
    with pytest.raises(FileNotFoundError):
        EnhancementTrainer(tmp_path / "run", 1, start_from=profile.folder)


@pytest.mark.parametrize("kind", ["none", "regressed", "generated"])
def test_the_graph_gives_what_the_network_gives(kind, tmp_path):
    torch.manual_seed(2)
    enhancer = Enhancer(SMALL, kind).eval()
    with torch.no_grad():
        for parameter in enhancer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    round_to_half(enhancer)
    write_enhancer(enhancer, tmp_path / "enhancer.onnx")
    image, condition, noise = (
        torch.rand(2, 3, 256, 256),
        torch.rand(2, CODING_CONDITIONS),
        torch.randn(2, SMALL.tokens, 4, 4),
    )
    with torch.no_grad():
        wanted, doubt = enhancer(image, condition, noise=noise)
    feeds = {"image": image.numpy(), "condition": condition.numpy()}
    found, expected = OnnxRuntimeGraph(tmp_path / "enhancer.onnx", 1)(
        feeds | ({"noise": noise.numpy()} if kind == "generated" else {})
    )
    assert wanted.abs().max() > 0.05 and np.allclose(found, wanted.numpy(), atol=1e-5)
    assert np.allclose(expected, doubt.exp().numpy(), rtol=1e-3) and expected.shape == (2, 1, 256, 256)
    with pytest.raises(ValueError, match="original"):
        write_enhancer(Enhancer(SMALL, "oracle"), tmp_path / "oracle.onnx")


def test_bfloat16_is_refused_where_it_would_be_emulated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("perigee.training.run.half_precision", lambda device: False)
    assert enhancement_cli.main([str(tmp_path / "x"), "--data", str(tmp_path), "--bfloat16"]) == 64
    assert "this processor emulates bfloat16" in capsys.readouterr().err
