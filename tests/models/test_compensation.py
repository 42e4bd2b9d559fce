"""The compensator's networks: without z they add nothing, and the exported graphs compute what was trained."""

import json

import numpy as np
import pytest
import torch

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.intervals import fit
from perigee.bitstream.conditions import FIELDS, condition_of
from perigee.bitstream.errors import CompensationError
from perigee.bitstream.metadata import Acquisition
from perigee.engines.flight import FlightEngine
from perigee.export.compensation import export_compensator
from perigee.ground.compensation.compensator import Compensator as Loaded
from perigee.ground.compensation.compensator import shipped_folders
from perigee.ground.compensation.sampler import alpha_sigma as shares_of_time
from perigee.ground.compensation.sampler import sample
from perigee.ground.windows import Grid, Window, noise_at
from perigee.models.checkpoint import CheckpointError
from perigee.models.compensation.compensator import STAGES, Compensator, CompensatorConfig, without_grid
from perigee.models.compensation.denoiser import DIFFUSION_STEPS, DenoiserConfig, MetadataEncoder, alpha_sigma
from perigee.models.compensation.trunk import NOISE
from perigee.training.compensation import CompensatorTrainer, StageConfig
from perigee.training.pairs import Pairs, make_pairs
from perigee.training.projection import ProjectToCells

SMALL = CompensatorConfig(448, DenoiserConfig(widths=(16, 16, 16), token=16, head=8, groups=8, features=4))


@pytest.fixture(scope="module")
def pairs(profile, tiles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(profile, [tiles[0].parent], folder, gsd_m={"sample": 0.6})
    return Pairs(folder)


def test_pairs_are_what_the_ground_decodes(pairs, profile):
    codec = ArrayCodec(profile, 2)
    pixels, step = pairs.arrays["image"][0], int(pairs.arrays["quality"][0])
    decoded = codec.decode(codec.encode(np.ascontiguousarray(pixels), step / 2.5)).transpose(2, 0, 1)
    base = np.clip(np.rint(pairs.arrays["base"][0].astype(np.float32) * 255), 0, 255)
    assert np.abs(base - decoded).max() <= 1 and (base == decoded).mean() > 0.9  # float16 in the pairs
    batch = pairs.batch(3, 128, np.random.default_rng(0))
    assert batch["image"].shape == (3, 3, 128, 128) and batch["latents"].shape == (3, 449, 8, 8)
    assert batch["known"][:, FIELDS.index("gsd")].all() and batch["known"].sum() == 3


def test_without_z_the_diffusion_is_the_one_step_image():
    net = Compensator(SMALL)
    base = torch.rand(1, 3, 64, 64)
    features = net.trunk(base, torch.randn(1, 449, 4, 4))
    assert not net.decoder(features, torch.zeros(1, 4, 8, 8)).any()
    assert net.decoder(features, torch.ones(1, 4, 8, 8)).any()
    without_texture = torch.zeros(1, NOISE, 32, 32)
    assert torch.equal(net.first(features, base), base + net.detail(features, base, without_texture))
    assert torch.equal(net.first(features, base, False), base + net.one_step(features.half))


def test_training_samples_as_the_ground_does():
    net, seed = Compensator(SMALL), 7
    with torch.no_grad():  # at first the U-Net's answer is far too regular for a test
        for parameter in net.denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    features = net.trunk(torch.rand(1, 3, 256, 256), torch.randn(1, 449, 16, 16))
    scaled, values, known = torch.randn(1, 449, 16, 16), torch.zeros(1, len(FIELDS), 2), torch.zeros(1, len(FIELDS))

    @torch.no_grad()
    def denoise(_, z, step):
        return net.denoiser(torch.from_numpy(z[None]), torch.tensor([step]), features, scaled, values, known)[0].numpy()

    grid, window = Grid(256, 256, 256), Window(0, 0)
    found = sample(grid, [window], denoise, 3, seed)[window]
    noise = noise_at(seed, 0, 0, 0, (4, 32, 32))
    with torch.no_grad():
        wanted = net.sample(
            torch.from_numpy(noise[None].copy()), np.linspace(1, 0, 4).tolist(), features, scaled, values, known
        )
    assert np.allclose(found, wanted[0].numpy(), atol=1e-4)


def test_an_absent_field_is_its_token_whatever_its_value():
    encoder = MetadataEncoder(16)
    known = torch.zeros(1, len(FIELDS))
    values = torch.rand(2, 1, len(FIELDS), 2)
    assert (encoder(values[0], known) == encoder(values[1], known)).all()
    assert (encoder(values[0], known + 1) != encoder(values[1], known + 1)).any()


def test_schedules_of_training_and_ground_are_one():
    for diffusion_step in (0.0, 250.0, 999.0, 1000.0):
        a, s = alpha_sigma(torch.tensor(diffusion_step))
        assert np.allclose(shares_of_time(diffusion_step / DIFFUSION_STEPS), (a, s), atol=1e-6)


def test_acquisition_fields_as_numbers():
    values, known = condition_of(None)
    assert not values.any() and not known.any()
    full = Acquisition(10, -20, None, 0.5, 30, 15, 359, 180, 45)
    values, known = condition_of(full)
    named = dict(zip(FIELDS, values, strict=True))
    assert known.sum() == 8 and 0 <= values.min() <= values.max() <= 1
    assert named["latitude"][0] == pytest.approx(70 / 180) and named["cloud_cover"][0] == pytest.approx(0.3)
    turned, _ = condition_of(Acquisition(10, -20, None, 0.5, 30, 15, 1, 180, 45))  # 2 degrees apart, not 358
    assert np.abs(turned - values).max() < 0.02


def test_what_is_trained_through_is_what_the_ground_does(pairs, profile):
    """A disturbed image that is projected to the cells of its symbols codes to them again, and has a gradient."""
    batch = pairs.crops(np.array([0, 1]), np.zeros((2, 2), int), 128)
    base, symbols, step = (torch.from_numpy(batch[n]).float() for n in ("base", "symbols", "quality"))
    disturbed = (base + 0.05 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    shown = ProjectToCells(profile)(disturbed, symbols, step)
    assert (shown - base).square().mean() < (disturbed - base).square().mean()
    engine = FlightEngine(profile, 1)
    rounded = np.clip(np.rint(255 * shown.detach().numpy()), 0, 255).astype(np.float32) / 255
    for image, wanted, q in zip(rounded, batch["symbols"], batch["quality"], strict=True):
        found, _ = engine.analyse(image[None], int(q))
        assert (found[0] == wanted).mean() > 0.995  # the rest lies where pixels saturate
    shown.square().sum().backward()
    assert 0 < disturbed.grad.abs().mean() < 2


def test_a_training_can_start_from_the_shipped_compensator(pairs, profile, tmp_path):
    folder = shipped_folders()["cosmic"]
    trainer = CompensatorTrainer(CompensatorConfig(448), ProjectToCells(profile), tmp_path)
    trainer.start_from(folder, ["latent"])
    assert set(trainer.done) == {"one-step", "texture", "scale"}
    batch = pairs.crops(np.array([0]), np.array([[0, 0]]), 256)
    base, latents = batch["base"].astype(np.float32), batch["latents"].astype(np.float32)
    with torch.no_grad():
        found = trainer.mean.trunk(torch.from_numpy(base), torch.from_numpy(latents))
    for part, wanted in zip(found, Loaded(folder, threads=1).features(base, latents), strict=True):
        assert np.allclose(part.numpy(), wanted, atol=1e-3 * np.abs(wanted).max())
    with pytest.raises(CompensationError):
        CompensatorTrainer(SMALL, ProjectToCells(profile), tmp_path / "other").start_from(profile.folder, STAGES)


def test_training_learns_resumes_and_exports(pairs, profile, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    run = tmp_path / "run"
    run.mkdir()
    trainer = CompensatorTrainer(SMALL, ProjectToCells(profile), run)
    short = StageConfig(minutes=0.05, batch=2, crop=64, checkpoint_minutes=0.02)
    trainer.run("one-step", pairs, short, False)
    before = trainer.done["one-step"]["step"]
    again = CompensatorTrainer(SMALL, ProjectToCells(profile), run)
    assert again.done["one-step"]["step"] == before > 0
    (tmp_path / "next").mkdir()
    follower = CompensatorTrainer(SMALL, ProjectToCells(profile), tmp_path / "next")
    follower.start_from(run / "checkpoint.pt", STAGES)
    wanted = dict(again.mean.named_parameters())
    assert not follower.done and all(torch.equal(p, wanted[n]) for n, p in follower.net.named_parameters())
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        follower.start_from(run / "one-step.csv", STAGES)
    torch.save({"codec_config": {}}, tmp_path / "checkpoint.pt")  # a codec's run
    with pytest.raises(CheckpointError, match="a folder of its own"):
        CompensatorTrainer(SMALL, ProjectToCells(profile), tmp_path)
    for stage in ("texture", "latent", "diffusion", "sampling", "scale"):
        again.run(stage, pairs, short, False)
    trunk = dict(trainer.mean.trunk.named_parameters())
    for name, parameter in again.mean.trunk.named_parameters():  # later stages do not change it
        assert torch.equal(parameter, trunk[name])
    manifest = export_compensator(run / "checkpoint.pt", tmp_path / "out", "small", [profile])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["files"] == manifest["files"]
    loaded = Loaded(tmp_path / "out", threads=1)
    pairs.held_out = np.arange(3)
    factors = fit(pairs, Loaded(tmp_path / "out", threads=2), ArrayCodec(profile, 2))
    assert list(factors) == ["base", "one-step", "diffusion"]
    assert all(factor > 0 for table in factors.values() for _, factor in table)
    assert loaded.methods == ["one-step", "diffusion"]
    batch = pairs.crops(np.array([0]), np.array([[0, 0]]), 256)
    base, latents = batch["base"].astype(np.float32), batch["latents"].astype(np.float32)
    features = loaded.features(base, latents)
    net = again.mean.eval()
    for parameter in net.parameters():
        parameter.data.copy_(parameter.data.half() if parameter.numel() >= 4096 else parameter.data)
    with torch.no_grad():
        wanted = net.trunk(torch.from_numpy(base), torch.from_numpy(latents))
        z = torch.randn(1, 4, 32, 32)
        values, known = torch.from_numpy(batch["values"]), torch.from_numpy(batch["known"])
        v = net.denoiser(z, torch.tensor([500.0]), wanted, net.trunk.scaled(torch.from_numpy(latents)), values, known)
        detail = net.decoder(wanted, z)
        noise = torch.randn(1, loaded.settings.noise, 128, 128)
        textured, plain = (net.detail(wanted, torch.from_numpy(base), n) for n in (noise, 0 * noise))
    assert np.abs(loaded.one_step(features, base, noise.numpy()) - textured.numpy()).max() < 1e-4
    assert (textured != plain).any()
    without = loaded.one_step(features, base, 0 * noise.numpy())
    assert np.abs(without - plain.numpy()).max() < 1e-4
    assert np.abs(features.half - wanted.half.numpy()).max() < 1e-3
    found = loaded.denoise(z.numpy(), 500.0, features, latents, batch["values"][0], batch["known"][0])
    assert np.abs(found - v.numpy()).max() < 1e-3
    assert np.abs(loaded.remainder(features, z.numpy()) - detail.numpy()).max() < 1e-4


def test_what_repeats_with_the_blocks_is_taken_out_of_detail():
    pattern = torch.rand(1, 3, 16, 16).repeat(1, 1, 16, 16)
    assert without_grid(pattern).abs().max() < 1e-5
    texture = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    assert 0.95 < without_grid(texture).square().mean() < 1


def test_the_papers_parts_from_a_local_folder(pairs, profile, tmp_path):
    """Small random weights in the layout of diffusers: the shapes are Stable Diffusion's kind, not its weights."""
    diffusers = pytest.importorskip("diffusers")
    from perigee.bitstream.errors import CompensationError
    from perigee.models.compensation.paper import paper_compensator

    with pytest.raises(CompensationError, match="layout of diffusers.*licence"):
        paper_compensator(tmp_path, 448)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 16, 16, 16),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        layers_per_block=1,
    )
    vae.save_pretrained(tmp_path / "vae")
    unet.save_pretrained(tmp_path / "unet")
    net = paper_compensator(tmp_path, 448)
    image, latents = torch.rand(1, 3, 64, 64), torch.randn(1, 449, 4, 4)
    with torch.no_grad():
        z = net.encode(image, image)
        features = net.trunk(image, latents)
        assert z.shape == (1, 4, 8, 8) and not net.decoder(features, 0 * z).any()
        known = torch.zeros(1, len(FIELDS))
        values = torch.zeros(1, len(FIELDS), 2)
        v = net.denoiser(z, torch.tensor([10.0]), features, net.trunk.scaled(latents), values, known)
        assert v.shape == z.shape
        assert torch.allclose(net.denoiser.unet.conv_in.weight, unet.conv_in.weight)
    trainer = CompensatorTrainer(CompensatorConfig(448), ProjectToCells(profile), tmp_path, weights=tmp_path)
    trainer.run("diffusion", pairs, StageConfig(minutes=0.02, batch=1, crop=64), False)
    assert not torch.equal(trainer.net.denoiser.unet.conv_in.weight, unet.conv_in.weight)
    assert torch.equal(next(trainer.net.encoder.vae.parameters()), next(vae.parameters()))  # frozen
    trainer.done["one-step"] = {"finished": True}  # the export accepts random parts
    trainer.save("diffusion", None)
    export_compensator(tmp_path / "checkpoint.pt", tmp_path / "paper", "paper", [profile])
    assert Loaded(tmp_path / "paper", threads=1).methods == ["one-step", "diffusion"]
    (tmp_path / "vae" / "config.json").write_text("{}")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CompensationError, match="cannot read"):
        paper_compensator(tmp_path, 448)
