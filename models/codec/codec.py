"""The whole codec as it is trained: analysis, gains, hyper-latents, prior, reconstruction, synthesis, and its rate.

Images are RGB in 0..1, float32 [N, 3, H, W] with H and W multiples of 64; latents and symbols are [N, M, H/16, W/16]. The
quality step Q is a number from 0 to 250.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream import prior as P
from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.models.codec.analysis import NO_LINEAR_PATH, Analysis, HyperAnalysis
from perigee.models.codec.prior import TrainedPrior
from perigee.models.codec.synthesis import Reconstruction, Synthesis
from perigee.models.codec.transform import Gains

SPREAD_MIN, SPREAD_MAX = 0.045, 56.0  # of the logistic distributions, in quantisation steps
LOG2 = math.log(2.0)
Z_BANDS = 8  # parts of the quality range that have hyper-latent tables of their own
COST_FLOOR = 0.03  # bits per pixel: below this cost an image no longer gains weight


@dataclass(frozen=True)
class CodecConfig:
    """What defines the networks of a codec: its analyses, the sizes of its parts, and the rate range it is trained for."""

    analyses: tuple[str, ...] = ("swift", "lite", "light")
    lambda_min: float = 0.00015
    lambda_max: float = 1.0
    prior: P.Widths = field(default_factory=P.Widths)
    synthesis_widths: tuple[int, int, int, int] = (192, 128, 64, 32)
    synthesis_blocks: tuple[int, int, int, int] = (2, 3, 2, 1)

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain values for a checkpoint, where the analyses are stored as ``presets``."""
        stored = asdict(self)
        return {"presets": stored.pop("analyses"), **stored}

    def lambda_of(self, quality_step: Tensor) -> Tensor:
        """Return the Lagrangian of the loss ``bpp + lambda * 255**2 * MSE`` at quality steps 0..250, log-linear."""
        span = math.log(self.lambda_max / self.lambda_min)
        return self.lambda_min * torch.exp(quality_step * (span / P.QUALITY_STEPS))

    def quality_of(self, lam: Tensor) -> Tensor:
        """Return the whole quality step 0..250 nearest to a Lagrangian: the inverse of :meth:`lambda_of`."""
        span = math.log(self.lambda_max / self.lambda_min)
        return torch.round(torch.log(lam / self.lambda_min) * (P.QUALITY_STEPS / span)).clamp(0, P.QUALITY_STEPS)


def config_from(stored: Mapping[str, Any]) -> CodecConfig:
    """Return the configuration that a checkpoint holds, see :meth:`CodecConfig.plain`.

    Raises KeyError or TypeError where ``stored`` is something else.
    """

    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}

    values = plain({**stored, "prior": P.Widths(**plain(stored["prior"]))})
    return CodecConfig(analyses=values.pop("presets"), **values)


class Output(NamedTuple):
    """Result of a training pass: decoded images [N, 3, H, W], and for each image the bits of y and of z [N]."""

    image: Tensor
    bits_y: Tensor
    bits_z: Tensor


class Coded(NamedTuple):
    """What the bitstream carries of N patches.

    ``q`` are the symbols, ``mean`` and ``spread`` the prior's prediction in quantisation steps, all [N, M, H, W];
    ``bits_y`` and ``bits_z`` [N] are the bits of each patch; ``y`` are the gained latents that were rounded to ``q``.
    """

    q: Tensor
    mean: Tensor
    spread: Tensor
    bits_y: Tensor
    bits_z: Tensor
    y: Tensor


class HyperPrior(nn.Module):
    """Distribution of the hyper-latents: a mixture of three logistics for each channel and each band of quality.

    The export freezes it into integer tables.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = torch.tensor([[1.0, 0.0, -1.0], [0.0, -1.0, 1.0], [-1.6, -0.7, 0.5]])  # logits, means, log scales
        self.shared = nn.Parameter(start.repeat(channels, 1, 1))
        self.bands = nn.Parameter(torch.zeros(Z_BANDS, channels, 3, 3))

    def likelihood(self, z: Tensor, band: Tensor) -> Tensor:
        """Return the probability of the interval of length 1 around each value of ``z`` [N, C, H, W].

        ``band`` (int64 [N]) is the band of quality, 0..7, of each item of the batch.
        """
        logits, means, log_scales = (self.shared + self.bands[band])[..., None, None].unbind(2)
        scale = torch.exp(-log_scales)
        centred = (z[:, :, None] - means).abs()  # the symmetric form is numerically stable in both tails
        parts = torch.sigmoid((0.5 - centred) * scale) - torch.sigmoid((-0.5 - centred) * scale)
        return (parts * torch.softmax(logits, 2)).sum(2).clamp_min(1e-7)


def spread_of(index: Tensor) -> Tensor:
    """Return the spread of the logistic distribution, in quantisation steps, for scale indices 0..63.

    Spreads are log-spaced. The index is real during training and whole in the exported prior.
    """
    return SPREAD_MIN * torch.exp(index * (math.log(SPREAD_MAX / SPREAD_MIN) / (P.SCALE_COUNT - 1)))


class Codec(nn.Module):
    """All trained parts of a codec; :meth:`forward` is a training pass."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        latents = config.prior.latents
        knots = torch.linspace(0, P.QUALITY_STEPS, KNOTS)
        start = math.log(5.0) + 0.5 * (torch.log(config.lambda_of(knots)) - math.log(0.01))
        self.analysis = Analysis(config.analyses, latents)
        self.gains = Gains(latents, start)
        self.hyper = HyperAnalysis(latents, config.prior.hyper_latents)
        self.hyper_prior = HyperPrior(config.prior.hyper_latents)
        self.prior = TrainedPrior(config.prior)
        self.reconstruction = Reconstruction(latents, start)
        self.synthesis = Synthesis(latents, config.synthesis_widths, config.synthesis_blocks)
        self.inverse: Tensor | None = None  # of the linear analysis, once enable_projection was called

    @torch.no_grad()
    def enable_projection(self) -> None:
        """Project decoded images to the cells of their symbols from now on, as the ground does (decision 0005).

        This is for a codec whose only analysis is the linear transform, and while that transform is not trained.
        """
        weight = self.analysis.linear.weight
        self.inverse = torch.linalg.pinv(weight.flatten(1).double()).float()

    def project_to_cells(self, image: Tensor, q: Tensor, quality_step: Tensor) -> Tensor:
        """Move images to where their transform lies within the quantisation cells of their symbols.

        ``image`` is [N, 3, 16H, 16W], ``q`` [N, latents, H, W], ``quality_step`` [N]. Without :meth:`enable_projection` the
        images are returned as they are.
        """
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
        self.synthesis.linear.weight.copy_(basis if set(self.config.analyses) - NO_LINEAR_PATH else 0 * basis)
        deviation = self.analysis.linear(blocks - 0.5).square().mean((0, 2, 3)).sqrt()
        self.synthesis.input_scale.copy_(1 / (deviation + 0.1))

    def latents(
        self, x: Tensor, quality_step: Tensor, analysis: str | None = None, autocast: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return gained latents [N, M, H/16, W/16] and hyper-latents [N, M_z, H/64, W/64], neither of them rounded.

        ``x`` [N, 3, H, W] in 0..1; ``quality_step`` [N]. ``analysis`` None divides the batch among all analyses.
        """
        y = self.analysis(x, analysis, autocast) * self.gains(quality_step)
        return y, self.hyper(y)

    def code(
        self,
        x: Tensor,
        quality_step: Tensor,
        noise: bool = True,
        analysis: str | None = None,
        autocast: bool = False,
    ) -> Coded:
        """Turn patches ``x`` [N, 3, H, W] in 0..1 at quality steps [N] into symbols and their cost.

        With ``noise`` the rates are estimated on latents with additive uniform noise, otherwise on rounded latents. Latents
        that are not trained are always truly rounded. ``analysis`` None divides the batch among all analyses.
        """
        y, z = self.latents(x, quality_step, analysis, autocast)
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
        analysis: str | None = None,
        autocast: bool = False,
        slices_kept: Tensor | None = None,
        patch: int | None = None,
    ) -> Output:
        """Code and decode images ``x`` [N, 3, H, W] in 0..1 at quality steps [N].

        ``noise``, ``analysis`` and ``autocast`` are as in :meth:`code`. ``patch`` is the side of patches, a divisor of H and
        W, that are coded on their own and synthesised together, as the ground does with the patches of a scene.
        ``slices_kept`` [N] decodes each image as from a segment that was cut after so many slices: the remaining latents
        take the prior's mean.
        """
        blocks = (x.shape[2] // patch) * (x.shape[3] // patch) if patch else 1
        coded = self.code(
            to_patches(x, patch) if patch else x, quality_step.repeat_interleave(blocks), noise, analysis, autocast
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
            image = self.project_to_cells(image, q, quality_step)
        else:
            whole = (slices_kept >= len(self.config.prior.slices))[:, None, None, None]
            image = torch.where(whole, self.project_to_cells(image, q, quality_step), image)
        return Output(image, bits_y, bits_z)


def to_patches(x: Tensor, side: int) -> Tensor:
    """Cut images [N, C, rows * side, cols * side] into patches [N * rows * cols, C, side, side]."""
    n, c, height, width = x.shape
    parts = x.reshape(n, c, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(-1, c, side, side).contiguous(memory_format=torch.channels_last)


def from_patches(x: Tensor, rows: int, cols: int) -> Tensor:
    """Join patches [N * rows * cols, C, h, w] of any side to images [N, C, rows * h, cols * w]."""
    _, c, h, w = x.shape
    parts = x.reshape(-1, rows, cols, c, h, w).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(-1, c, rows * h, cols * w)


def loss_of(output: Output, x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss (scalar), the rate in bits per pixel [N] and the mean squared error [N] of a training pass.

    ``x`` [N, 3, H, W] are the originals in 0..1, ``lam`` [N] the Lagrangians. The cost ``bpp + lambda * 255**2 * MSE`` of
    each image is divided by its own present value (plus a little), which makes its gradient that of the logarithm: a saving
    of one per cent counts the same on water and on a city, and at every rate, as it does in a BD-rate per image.
    """
    pixels = x.shape[2] * x.shape[3]
    bpp = (output.bits_y + output.bits_z) / pixels
    mse = F.mse_loss(output.image, x, reduction="none").mean((1, 2, 3))
    cost = bpp + lam * 65025 * mse
    return (cost / (cost.detach() + COST_FLOOR)).mean(), bpp, mse


def prior_loss_of(codec: Codec, x: Tensor, quality_step: Tensor, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`loss_of` does for a prior that is trained alone, with the error of the reconstructed latents.

    The rate depends little on where in its cell the mean of a latent of 0 lies, but the picture does, so the error must stay
    in the loss. The transform is nearly orthonormal, so squared errors of latents are squared errors of pixels.
    """
    coded = codec.code(x, quality_step, autocast=autocast)
    bpp = (coded.bits_y + coded.bits_z) / (x.shape[2] * x.shape[3])
    found = codec.reconstruction(coded.q, coded.mean, coded.spread, quality_step)[:, :-1]
    wrong = found - coded.y / codec.gains(quality_step)
    mse = wrong.square().sum((1, 2, 3)) / x[0].numel()
    cost = bpp + codec.config.lambda_of(quality_step) * 65025 * mse
    return (cost / (cost.detach() + COST_FLOOR)).mean(), bpp, mse
