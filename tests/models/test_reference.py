"""The reference encoders: shapes, gradients, and multiply-adds that reproduce the published and computed figures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perigee.benchmarks.flops import LIMITS_G, Row, all_rows, count, flight_row, main, paper_rows, table, total_of
from perigee.bitstream.prior import Widths, macs_per_position
from perigee.models.codec.prior import TrainedPrior
from perigee.models.codec.reference import (
    GDN,
    LATENTS,
    CamForm,
    CosmicAnalysis,
    CrossAttention,
    ElicAnalysis,
    ElicEntropy,
    LightConvBlock,
    MeanScaleHyper,
    reference_analysis,
)
from perigee.models.compensation.magc import STEPS as MAGC_STEPS
from perigee.models.compensation.magc import Magc, magc_from
from perigee.models.enhancement.paper import LatentReader, PaperEnhancer

TOLERANCE = 0.03  # what the counting behind the expected figures is trusted to


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.codec: row for row in all_rows()}


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("cam", [None, "depthwise", "ghost", "full"])
def test_paper_shapes(size: int, cam: CamForm | None) -> None:
    with torch.no_grad():
        y = CosmicAnalysis(16, 24, cam)(torch.rand(2, 3, size, size))
        z, mean, scale = MeanScaleHyper(16, 24)(y)
    assert y.shape == mean.shape == scale.shape == (2, 24, size // 16, size // 16)
    assert z.shape == (2, 16, size // 64, size // 64)
    assert torch.isfinite(mean).all()


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("all_previous", [False, True])
def test_elic_shapes(size: int, all_previous: bool) -> None:
    with torch.no_grad():
        y = ElicAnalysis(16, 24)(torch.rand(1, 3, size, size))
        z, mean, scale = ElicEntropy(16, 24, (4, 4, 6, 10), all_previous)(y)
    assert y.shape == mean.shape == scale.shape == (1, 24, size // 16, size // 16)
    assert z.shape == (1, 16, size // 64, size // 64)
    assert torch.isfinite(mean).all()


def test_default_widths() -> None:
    with torch.no_grad():
        y = reference_analysis("paper")(torch.rand(1, 3, 128, 128))
    assert y.shape == (1, LATENTS, 8, 8)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="expected one of paper, elic"):
        reference_analysis("cosmic")
    with pytest.raises(ValueError, match="25 is odd"):
        LightConvBlock(8, 25)
    with pytest.raises(ValueError, match="hold 8 channels, expected 24"):
        ElicEntropy(16, 24, (4, 4))


def test_gdn_is_its_formula_at_the_start() -> None:
    x = torch.randn(1, 4, 3, 3)
    squares = (x * x).sum(1, keepdim=True)
    expected = x / torch.sqrt(1 + 0.1 * x * x + 1e-4 * squares)
    torch.testing.assert_close(GDN(4)(x), expected, rtol=1e-4, atol=1e-5)


def test_gdn_gradients_are_finite_and_reach_everything() -> None:
    gdn = GDN(6)
    with torch.no_grad():
        gdn.raw_gamma[0] = -20.0  # a row that training has driven to zero
    for x in (torch.zeros(1, 6, 4, 4), 100 * torch.randn(1, 6, 4, 4)):
        x.requires_grad_()
        gdn.zero_grad()
        gdn(x).square().sum().backward()
        for gradient in (x.grad, gdn.raw_beta.grad, gdn.raw_gamma.grad):
            assert gradient is not None and torch.isfinite(gradient).all()
    assert gdn.raw_beta.grad is not None and (gdn.raw_beta.grad != 0).all()


@pytest.mark.parametrize("build", [lambda: CosmicAnalysis(8, 12), lambda: ElicAnalysis(8, 12)])
def test_every_parameter_of_the_analyses_learns(build: Callable[[], nn.Module]) -> None:
    network = build()
    network(torch.rand(1, 3, 64, 64)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("form", ["depthwise", "ghost", "full"])
def test_cam_weighs_its_local_branch(form: CamForm) -> None:
    torch.manual_seed(1)
    cam, x = CrossAttention(8, form), torch.randn(1, 8, 16, 16)
    with torch.no_grad():
        ratio = cam(x) / cam.local(x)
    assert ratio.min() > 0 and ratio.max() < 1
    assert ratio.std() > 0


def test_cam_changes_the_output() -> None:
    torch.manual_seed(1)
    with_cam, without = CosmicAnalysis(8, 12), CosmicAnalysis(8, 12, cam=None)
    others = [layer for layer in with_cam if not isinstance(layer, CrossAttention)]
    assert len(with_cam) == len(others) + 2
    for ours, theirs in zip(without, others, strict=True):
        ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(with_cam(x), without(x), atol=1e-4)


def test_elic_predicts_from_what_is_decoded_alone() -> None:
    """A change of one latent may move no prediction that comes before it in coding order."""
    torch.manual_seed(1)
    entropy = ElicEntropy(8, 12, (2, 4, 6), all_previous=True).eval()
    for module in entropy.hyper_analysis.modules():  # the hyper-prior would see every change
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    y = 4 * torch.randn(1, 12, 8, 8)
    changed = y.clone()
    changed[0, 3, 4, 4] += 8  # an anchor of the second group
    with torch.no_grad():
        moved = entropy(y).mean != entropy(changed).mean
    anchors = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0
    assert not moved[0, :2].any() and not moved[0, 2:6, anchors].any()
    assert moved[0, 2:6].any() and moved[0, 6:].any()


@pytest.mark.parametrize(
    ("codec", "part", "expected_g"),
    [
        ("paper, depthwise CAM, mean-scale", "analysis", 1.08),
        ("paper, no CAM, mean-scale", "analysis", 0.95),
        ("paper, ghost CAM, mean-scale", "analysis", 1.12),
        ("paper, full CAM, mean-scale", "analysis", 3.71),
        ("paper, full CAM, mean-scale", "total", 4.90),
        ("paper, depthwise CAM, mean-scale", "total", 2.27),
        ("elic", "analysis", 16.71),
        ("elic", "hyper_analysis", 0.215),
        ("elic", "total", 21.95),
        ("elic, aggregation once", "total", 20.71),
    ],
)
def test_figures_are_reproduced(rows: dict[str, Row], codec: str, part: str, expected_g: float) -> None:
    assert getattr(rows[codec], part) / 1e9 == pytest.approx(expected_g, rel=TOLERANCE)


def test_mean_scale_hyper_prior_is_1_19_g(rows: dict[str, Row]) -> None:
    row = rows["paper, no CAM, mean-scale"]
    assert (row.hyper_analysis + row.entropy) / 1e9 == pytest.approx(1.19, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("part", "expected_g"),
    [("hyper_synthesis", 0.528), ("channel", 1.48), ("spatial", 0.54), ("aggregation", 2 * 1.23)],
)
def test_parts_of_elics_entropy_networks(part: str, expected_g: float) -> None:
    counts, _ = count(ElicEntropy(), torch.zeros(1, LATENTS, 16, 16))
    assert total_of(counts, part) / 1e9 == pytest.approx(expected_g, rel=TOLERANCE)


@pytest.mark.parametrize(("channels", "latents", "expected_g"), [(128, 192, 0.94), (96, 128, 0.50), (64, 96, 0.25)])
def test_smaller_widths(channels: int, latents: int, expected_g: float) -> None:
    analysis, y = count(CosmicAnalysis(channels, latents), torch.zeros(1, 3, 256, 256))
    hyper, _ = count(MeanScaleHyper(channels, latents), y)
    assert (total_of(analysis) + total_of(hyper)) / 1e9 == pytest.approx(expected_g, rel=TOLERANCE)


@pytest.mark.parametrize("analysis", LIMITS_G)
def test_analyses_keep_their_limits(rows: dict[str, Row], analysis: str) -> None:
    row = rows[analysis]
    assert row.total <= LIMITS_G[analysis] * 1e9 and row.verdict == "pass"
    assert min(row.analysis, row.hyper_analysis, row.entropy, row.ground_synthesis or 0) > 0


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: CosmicAnalysis(16, 24, "depthwise"), (1, 3, 128, 128)),
        (lambda: CosmicAnalysis(16, 24, "ghost"), (1, 3, 128, 128)),
        (lambda: CosmicAnalysis(16, 24, "full"), (1, 3, 128, 128)),
        (lambda: ElicAnalysis(16, 24), (1, 3, 128, 128)),
        (lambda: ElicEntropy(16, 24, (4, 8, 12)), (1, 24, 8, 8)),
        (lambda: MeanScaleHyper(16, 24), (1, 24, 8, 8)),
    ],
)
def test_hooks_agree_with_a_counter_below_the_modules(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """PyTorch's own counter sees functional convolutions too: the hooks overlook none (GDN's 1x1 above all)."""
    network, x = build(), torch.rand(shape)
    counts, _ = count(network, x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    assert counter.get_total_flops() == 2 * total_of(counts)


def test_the_priors_formula_agrees_with_a_counter_below_the_modules() -> None:
    widths = Widths(latents=24, hyper_latents=8, hyper=12, context=12, head=16, slices=(4, 8, 12))
    prior = TrainedPrior(widths)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prior(torch.zeros(1, 8, 4, 4), torch.zeros(1, 24, 16, 16), torch.full((1,), 125.0))
    assert counter.get_total_flops() == pytest.approx(2 * macs_per_position(widths) * 256)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear has weights of its own"):
        count(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 8)), torch.zeros(1, 3, 8, 8))


def test_a_miss_is_called_a_miss() -> None:
    row = Row("lite", 400_000_000, 1, 0, limit_g=0.40)
    assert row.verdict == "miss" and "miss" in table([row])


def test_a_larger_patch_costs_in_proportion() -> None:
    small, large = flight_row("lite", 128), flight_row("lite", 256)
    assert large.total == pytest.approx(4 * small.total, rel=1e-3)
    names = [row.codec for row in paper_rows(None, True, 64)]
    assert names == ["paper, no CAM, our prior", "paper, no CAM, mean-scale"]


def test_report_and_csv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: dict[str, Row]
) -> None:
    monkeypatch.setattr("perigee.benchmarks.flops.all_rows", lambda: list(rows.values()))
    main(["--csv", str(tmp_path / "out" / "flops.csv")])
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith(("swift", "lite", "light"))]
    assert len(lines) == 3 and all("pass" in line for line in lines)
    with (tmp_path / "out" / "flops.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert [record["codec"] for record in records] == list(rows)
    assert all(int(record["on_board"]) == rows[record["codec"]].total for record in records)


def test_the_published_enhancement_has_its_published_cost() -> None:
    """61.1 G multiply-adds in all, 59.0 of them in the multiscale network, 1.97 in its fusion, and 1.98 in the reader of the prior."""
    model = PaperEnhancer().eval()
    image, noise = torch.rand(1, 3, 256, 256), torch.randn(1, 256, 4, 4)
    with torch.no_grad():
        for part, inputs, macs_g in (
            (model, (image, noise), 61.1), (model.network, (image, noise), 59.0), (model.network.fusion, (torch.rand(1, 384, 32, 32), noise), 1.97),
            (model.reader, (image,), 1.98), (LatentReader(2), (torch.rand(1, 6, 256, 256),), 2.09),
        ):  # fmt: skip
            with FlopCounterMode(display=False) as counter:
                out = part(*inputs)
            assert counter.get_total_flops() / 2e9 == pytest.approx(macs_g, rel=TOLERANCE)
            assert torch.isfinite(out).all()
        assert not torch.equal(model(image, noise), model(image, torch.zeros_like(noise)))
    parameters = sum(value.numel() for value in model.parameters())
    assert parameters / 1e6 == pytest.approx(24.1, rel=TOLERANCE)


def test_the_published_map_guidance_has_its_published_cost() -> None:
    """142.5 G multiply-adds a tile on board (136.4 the VAE's encoder, 6.2 the codec), 5.4 T on the ground; nothing is computed here."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        levels = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        vae = diffusers.AutoencoderKL(3, 3, *levels, block_out_channels=(128, 256, 512, 512), layers_per_block=2)
        unet = diffusers.UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        net = Magc(vae, unet).eval()
        image, z, step, prompt = (
            torch.zeros(1, 3, 256, 256),
            torch.zeros(1, 4, 32, 32),
            torch.zeros(1),
            torch.zeros(1, 77, 1024),
        )

    def giga(part: Callable[..., object], *inputs: torch.Tensor) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            part(*inputs)
        return counter.get_total_flops() / 2e9

    coded = giga(net.encode, image, image)
    one_step, decoded = giga(net.denoise, z, step, z, image, prompt), giga(net.image, z)
    assert coded == pytest.approx(142.5, rel=TOLERANCE)
    assert giga(net.codec.encode, z, image) == pytest.approx(6.2, rel=0.02)
    assert giga(net.adapter, image, z) == pytest.approx(11.9, rel=TOLERANCE)
    assert one_step == pytest.approx(90.6 + 11.9, rel=TOLERANCE)
    assert (MAGC_STEPS * one_step + decoded) / 1000 == pytest.approx(5.4, rel=TOLERANCE)
    assert sum(v.numel() for v in net.adapter.parameters()) / 1e6 == pytest.approx(158, rel=TOLERANCE)


def test_the_published_map_guidance_runs_with_a_local_folder(tmp_path: Path) -> None:
    """Small random weights in the layout of diffusers: at first the U-Net's answer is that of its own weights and the adapter's."""
    diffusers = pytest.importorskip("diffusers")
    widths = (8, 8, 8, 8)
    levels = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    diffusers.AutoencoderKL(3, 3, *levels, block_out_channels=widths, norm_num_groups=4).save_pretrained(
        tmp_path / "vae"
    )
    diffusers.UNet2DConditionModel(
        block_out_channels=(16, 16, 16, 16),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        layers_per_block=1,
    ).save_pretrained(tmp_path / "unet")
    net, planes = magc_from(tmp_path, 9).eval(), torch.rand(1, 9, 256, 256)
    image, prompt = torch.rand(1, 3, 256, 256), torch.zeros(1, 77, 32)
    with torch.no_grad():
        coded = net.encode(image, planes)
        assert (
            coded.y.shape == coded.mean.shape == (1, 64, 8, 8)
            and coded.z.shape == (1, 64, 4, 4)
            and (coded.scale > 0).all()
        )
        assert torch.allclose((coded.y - coded.mean).round(), coded.y - coded.mean, atol=1e-4)
        assert not torch.equal(net.encode(image, 1 - planes).mean, coded.mean)
        decoded = net.codec.decode(coded.y, planes)
        noise = torch.randn(1, 4, 32, 32)
        first = net.denoise(noise, torch.tensor([999.0]), decoded, planes, prompt)
        assert torch.equal(first, net.denoise(noise, torch.tensor([999.0]), 0 * decoded, planes, prompt))
        assert not torch.equal(first, net.denoise(noise, torch.tensor([999.0]), decoded, 0 * planes, prompt))
        assert net.image(first).shape == image.shape
