"""The whole codec as it is trained: analysis, gains, hyper-latents, prior, reconstruction, synthesis, and its rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream import prior as P
from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.models.codec.flight import NO_LINEAR_PATH, Analysis, Gains, HyperAnalysis, Synthesis
from perigee.models.codec.prior import TrainedPrior

SPREAD_MIN, SPREAD_MAX = 0.045, 56.0  # of the logistic distributions, in latent steps
LOG2 = math.log(2.0)
Z_BANDS = 8  # parts of the quality range with hyper-latent tables of their own
CENTROID_REACH = 8.0  # spreads
COST_FLOOR = 0.03  # bits per pixel: below this a sample no longer gains weight


@dataclass(frozen=True)
class CodecConfig:
    """What defines the networks of a codec: presets of the analysis and the rate range it is trained for."""

    presets: tuple[str, ...] = ("swift", "lite", "light")
    lambda_min: float = 0.00015
    lambda_max: float = 1.0
    prior: P.Widths = field(default_factory=P.Widths)
    synthesis_widths: tuple[int, int, int, int] = (192, 128, 64, 32)
    synthesis_blocks: tuple[int, int, int, int] = (2, 3, 2, 1)

    def lambda_of(self, quality_step: Tensor) -> Tensor:
        """Lagrangian of the loss ``bpp + lambda * 255**2 * MSE`` at Q = 0..250, log-linear."""
        span = math.log(self.lambda_max / self.lambda_min)
        return self.lambda_min * torch.exp(quality_step * (span / P.QUALITY_STEPS))

    def quality_of(self, lam: Tensor) -> Tensor:
        """Inverse of :meth:`lambda_of`, rounded to whole steps."""
        span = math.log(self.lambda_max / self.lambda_min)
        return torch.round(torch.log(lam / self.lambda_min) * (P.QUALITY_STEPS / span)).clamp(0, P.QUALITY_STEPS)


def config_from(stored: Mapping[str, Any]) -> CodecConfig:
    """The configuration that a checkpoint holds as plain values (``asdict``). Raises KeyError or TypeError for another thing."""

    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}

    return CodecConfig(**plain({**stored, "prior": P.Widths(**plain(stored["prior"]))}))


class Output(NamedTuple):
    """Result of a training pass: image [N, 3, H, W], bits per sample for y and z [N]."""

    image: Tensor
    bits_y: Tensor
    bits_z: Tensor


class Coded(NamedTuple):
    """What the bitstream carries: symbols q, the prior's means and spreads [N, M, H, W], bits a patch for y and z [N]; and the
    gained latents ``y`` that were rounded to q."""

    q: Tensor
    mean: Tensor
    spread: Tensor
    bits_y: Tensor
    bits_z: Tensor
    y: Tensor


class HyperPrior(nn.Module):
    """Distribution of z: per channel and band of quality a mixture of three logistics, frozen into a table at export."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = torch.tensor([[1.0, 0.0, -1.0], [0.0, -1.0, 1.0], [-1.6, -0.7, 0.5]])  # logits, means, log scales
        self.shared = nn.Parameter(start.repeat(channels, 1, 1))
        self.bands = nn.Parameter(torch.zeros(Z_BANDS, channels, 3, 3))

    def likelihood(self, z: Tensor, band: Tensor) -> Tensor:
        """Probability of the unit interval around ``z`` [N, C, H, W] in the bands of quality [N] (int64)."""
        logits, means, log_scales = (self.shared + self.bands[band])[..., None, None].unbind(2)
        scale = torch.exp(-log_scales)
        centred = (z[:, :, None] - means).abs()  # symmetric: stable tails
        parts = torch.sigmoid((0.5 - centred) * scale) - torch.sigmoid((-0.5 - centred) * scale)
        return (parts * torch.softmax(logits, 2)).sum(2).clamp_min(1e-7)


class Reconstruction(nn.Module):
    """Centres of the quantisation cells: the centroid of the predicted logistic in the cell of q, then the inverse gain.

    One learned factor a channel narrows the logistic, whose tails are heavier than it knows. q itself stays an unshifted
    integer.
    """

    def __init__(self, latents: int, gain_start: Tensor) -> None:
        super().__init__()
        self.narrowing = nn.Parameter(torch.zeros(latents))
        self.inverse_gains = Gains(latents, -gain_start)

    def forward(self, q: Tensor, mean: Tensor, spread: Tensor, quality_step: Tensor) -> Tensor:
        """Latents with the quality plane appended: [N, latents + 1, H, W]."""
        width = 1 / (spread * torch.exp(self.narrowing)[None, :, None, None])  # of a cell, in spreads
        distance = q - mean
        near = ((distance.abs() - 0.5) * width).clamp_max(
            CENTROID_REACH
        )  # beyond, the tail is exponential to 1 in 3,000
        far = near + width
        part = F.softplus(-near) - F.softplus(-far) + near * torch.sigmoid(-near) - far * torch.sigmoid(-far)
        inside = part / (torch.sigmoid(-near) - torch.sigmoid(-far)) - near  # from the cell's near side, in spreads
        y = q + torch.sign(distance) * (inside / width - 0.5)
        y = y * self.inverse_gains(quality_step)
        n, _, rows, cols = q.shape
        plane = (quality_step / P.QUALITY_STEPS).reshape(n, 1, 1, 1).expand(n, 1, rows, cols)
        return torch.cat([y, plane], 1)


def spread_of(index: Tensor) -> Tensor:
    """Scale index 0..63 (real in training) to the spread of the logistic distribution in latent steps, log-spaced."""
    return SPREAD_MIN * torch.exp(index * (math.log(SPREAD_MAX / SPREAD_MIN) / (P.SCALE_COUNT - 1)))


class Codec(nn.Module):
    """All trained parts; :meth:`forward` is a training pass."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        latents = config.prior.latents
        knots = torch.linspace(0, P.QUALITY_STEPS, KNOTS)
        start = math.log(5.0) + 0.5 * (torch.log(config.lambda_of(knots)) - math.log(0.01))
        self.analysis = Analysis(config.presets, latents)
        self.gains = Gains(latents, start)
        self.hyper = HyperAnalysis(latents, config.prior.hyper_latents)
        self.hyper_prior = HyperPrior(config.prior.hyper_latents)
        self.prior = TrainedPrior(config.prior)
        self.reconstruction = Reconstruction(latents, start)
        self.synthesis = Synthesis(latents, config.synthesis_widths, config.synthesis_blocks)
        self.inverse: Tensor | None = None  # of a linear analysis that is not trained: images are held to their symbols

    @torch.no_grad()
    def hold(self) -> None:
        """From now on hold images to the symbols of their patches, as the ground does with linear segments (decision 0005).

        For a codec whose only analysis is the linear transform, and while that is not trained.
        """
        weight = self.analysis.linear.weight
        self.inverse = torch.linalg.pinv(weight.flatten(1).double()).float()

    def held(self, image: Tensor, q: Tensor, quality_step: Tensor) -> Tensor:
        """``image`` [N, 3, 16H, 16W] moved to where its transform lies within the cells of q [N, latents, H, W]."""
        if self.inverse is None:
            return image
        gains = self.gains(quality_step)
        y = self.analysis.linear(image - 0.5)
        missing = torch.clamp(y, (q - 0.5) / gains, (q + 0.5) / gains) - y
        return image + F.pixel_shuffle(F.conv2d(missing, self.inverse[:, :, None, None]), BLOCK)

    @torch.no_grad()
    def start_from_transform(self, blocks: Tensor) -> None:
        """Set both linear paths to the block transform that suits ``blocks`` [K, 3, 16, 16], pixels in 0..1."""
        self.analysis.linear.fit(blocks - 0.5)
        basis = self.analysis.linear.weight
        # latents that are no transform coefficients have nothing to gain from the inverse transform
        self.synthesis.linear.weight.copy_(basis if set(self.config.presets) - NO_LINEAR_PATH else 0 * basis)
        deviation = self.analysis.linear(blocks - 0.5).square().mean((0, 2, 3)).sqrt()
        self.synthesis.input_scale.copy_(1 / (deviation + 0.1))

    def latents(
        self, x: Tensor, quality_step: Tensor, preset: str | None = None, autocast: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Gained latents and hyper-latents before rounding; ``preset`` None divides the batch among all presets."""
        y = self.analysis(x, preset, autocast) * self.gains(quality_step)
        return y, self.hyper(y)

    def code(
        self,
        x: Tensor,
        quality_step: Tensor,
        noise: bool = True,
        preset: str | None = None,
        autocast: bool = False,
    ) -> Coded:
        """Patches [N, 3, H, W] at Q [N] to symbols and their cost. Latents that are not trained are always truly rounded."""
        y, z = self.latents(x, quality_step, preset, autocast)
        q = y + (torch.round(y) - y).detach()
        z_hat = z + (torch.round(z).clamp(-P.Z_CLAMP, P.Z_CLAMP) - z).detach()
        mean, index = self.prior(z_hat, q, quality_step)
        spread = spread_of(index)
        rated_y = y + torch.rand_like(y) - 0.5 if noise and y.requires_grad else q
        rated_z = z + torch.rand_like(z) - 0.5 if noise else z_hat
        distance = (rated_y - mean).abs()
        probability = torch.sigmoid((0.5 - distance) / spread) - torch.sigmoid((-0.5 - distance) / spread)
        bits_y = -torch.log(probability.clamp_min(1e-7)).flatten(1).sum(1) / LOG2
        bands = torch.div(quality_step.long() * Z_BANDS, P.QUALITY_STEPS + 1, rounding_mode="floor")
        bits_z = -torch.log(self.hyper_prior.likelihood(rated_z, bands)).flatten(1).sum(1) / LOG2
        return Coded(q, mean, spread, bits_y, bits_z, y)

    def forward(
        self,
        x: Tensor,
        quality_step: Tensor,
        noise: bool = True,
        preset: str | None = None,
        autocast: bool = False,
        slices_kept: Tensor | None = None,
        patch: int | None = None,
    ) -> Output:
        """``x`` [N, 3, H, W] in 0..1; ``noise`` uses additive noise for the rates, otherwise true rounding.

        ``preset`` None divides the batch among all presets of the analysis. ``patch`` codes patches of that side, a divisor
        of H and W, by themselves and synthesises them together, as the ground does with a scene's.
        ``slices_kept`` [N]: the image is made as from a segment cut after so many slices, the rest at the prior's mean.
        """
        blocks = (x.shape[2] // patch) * (x.shape[3] // patch) if patch else 1
        coded = self.code(
            to_patches(x, patch) if patch else x, quality_step.repeat_interleave(blocks), noise, preset, autocast
        )
        q, mean, spread = coded[:3]
        bits_y, bits_z = (bits.reshape(len(x), -1).sum(1) for bits in coded[3:5])
        if patch:
            rows, cols = x.shape[2] // patch, x.shape[3] // patch
            q, mean, spread = (from_patches(part, rows, cols) for part in (q, mean, spread))
        if slices_kept is not None:
            sizes = torch.tensor(self.config.prior.slices, device=x.device)
            number = torch.repeat_interleave(torch.arange(len(sizes), device=x.device), sizes)
            q = torch.where((number[None] < slices_kept[:, None])[:, :, None, None], q, mean)
        image = self.synthesis(self.reconstruction(q, mean, spread, quality_step), autocast)
        if slices_kept is None:
            image = self.held(image, q, quality_step)
        else:
            whole = (slices_kept >= len(self.config.prior.slices))[:, None, None, None]
            image = torch.where(whole, self.held(image, q, quality_step), image)
        return Output(image, bits_y, bits_z)


def prior_loss_of(codec: Codec, x: Tensor, quality_step: Tensor, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`loss_of`, for a prior that is trained alone: the error is that of the reconstructed latents.

    The rate hardly minds where in its cell the mean of a latent of 0 lies; the picture does, so the error must stay in the loss.
    The transform is nearly orthonormal: squares of latents are squares of pixels.
    """
    coded = codec.code(x, quality_step, autocast=autocast)
    bpp = (coded.bits_y + coded.bits_z) / (x.shape[2] * x.shape[3])
    found = codec.reconstruction(coded.q, coded.mean, coded.spread, quality_step)[:, :-1]
    wrong = found - coded.y / codec.gains(quality_step)
    mse = wrong.square().sum((1, 2, 3)) / x[0].numel()
    cost = bpp + codec.config.lambda_of(quality_step) * 65025 * mse
    return (cost / (cost.detach() + COST_FLOOR)).mean(), bpp, mse


def to_patches(x: Tensor, side: int) -> Tensor:
    """[N, C, rows * side, cols * side] to [N * rows * cols, C, side, side]."""
    n, c, height, width = x.shape
    parts = x.reshape(n, c, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(-1, c, side, side).contiguous(memory_format=torch.channels_last)


def from_patches(x: Tensor, rows: int, cols: int) -> Tensor:
    """Inverse of :func:`to_patches`, for patches of any side."""
    _, c, h, w = x.shape
    parts = x.reshape(-1, rows, cols, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(-1, c, rows * h, cols * w)


def loss_of(output: Output, x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (scalar), bpp [N] and MSE [N].

    Each sample's cost ``bpp + lambda * 255**2 * MSE`` is divided by its own present value (plus a little), which makes
    its gradient that of the logarithm: a per cent saved counts the same on water and on a city, at every rate, as it
    does in a per-image BD-rate.
    """
    pixels = x.shape[2] * x.shape[3]
    bpp = (output.bits_y + output.bits_z) / pixels
    mse = F.mse_loss(output.image, x, reduction="none").mean((1, 2, 3))
    cost = bpp + lam * 65025 * mse
    return (cost / (cost.detach() + COST_FLOOR)).mean(), bpp, mse
