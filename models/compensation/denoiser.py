"""The conditional denoiser: the U-Net of diffusers over z, with metadata by cross-attention and latents at every level.

It predicts the velocity v (Salimans and Ho 2022) of the variance-preserving process ``z_t = a z0 + s noise`` with a cosine
schedule over :data:`DIFFUSION_STEPS` steps. The default sizes are a compact network that is trained from scratch on overhead
imagery; with the weights of Stable Diffusion the sizes are those of its U-Net (see ``paper``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perigee.bitstream.conditions import FIELDS
from perigee.models.compensation.latent import CHANNELS
from perigee.models.compensation.trunk import WIDTHS, Features
from perigee.models.layers import start_small

DIFFUSION_STEPS = 1000


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of a denoiser; its levels work at 1/8, 1/16, ... of the image's resolution."""

    widths: tuple[int, ...] = (48, 96, 96)  # channels of each level
    attention: tuple[bool, ...] = (False, False, True)  # whether a level has cross-attention
    layers: int = 1  # of each block of the U-Net
    token: int = 64  # channels of a metadata token
    head: int = 32  # channels of an attention head
    groups: int = 16  # of the group normalisation
    features: int = 32  # channels of the trunk's features that are given beside z
    unet: dict[str, Any] | None = None  # configuration of a U-Net that comes with sizes of its own


def sinusoid(values: Tensor, size: int) -> Tensor:
    """Turn values [...] in 0..1 into sines and cosines [..., size], scaled by 1000 as diffusion steps are.

    DiffusionSat (Khanna et al. 2024) encodes metadata in the same way.
    """
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(size // 2, device=values.device) / (size // 2))
    angles = 1000 * values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class MetadataEncoder(nn.Module):
    """Turns acquisition fields into tokens: a sinusoid and two layers for each field, or a learned token where it is absent."""

    def __init__(self, token: int) -> None:
        super().__init__()
        count = len(FIELDS)
        self.size = 32
        self.first = nn.Parameter(torch.randn(count, 2 * self.size, token) * (2 * self.size) ** -0.5)
        self.second = nn.Parameter(torch.randn(count, token, token) * token**-0.5)
        self.bias = nn.Parameter(torch.zeros(count, token))
        self.absent = nn.Parameter(torch.randn(count, token) * 0.02)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Return tokens [N, fields, token] of ``values`` [N, fields, 2] in 0..1; ``known`` [N, fields] is 1 or 0."""
        waves = torch.cat([sinusoid(values[..., 0], self.size), sinusoid(values[..., 1], self.size)], -1)
        hidden = nn.functional.silu(torch.einsum("nfi,fio->nfo", waves, self.first) + self.bias)
        found = torch.einsum("nfi,fio->nfo", hidden, self.second)
        return torch.where(known[..., None] > 0.5, found, self.absent[None])


def _projection(inputs: int, outputs: int, level: int) -> nn.Module:
    """Return a layer from the latents' resolution, 1/16, to that of a level, 1/8 times 2**-level; its weights are zero."""
    if level == 0:
        up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)  # type: ignore[arg-type]
        return up
    side = 2 ** (level - 1)
    return start_small(nn.Conv2d(inputs, outputs, side, stride=side), 0.0)


class Denoiser(nn.Module):
    """Predicts v from a noisy z, the diffusion step, the trunk's features, scaled latents and metadata."""

    def __init__(self, latents: int, config: DenoiserConfig) -> None:
        """``latents`` is the number of latents without the quality plane. Raises ModuleNotFoundError without diffusers."""
        super().__init__()
        from diffusers import UNet2DConditionModel

        levels = range(len(config.widths))
        down = ["CrossAttnDownBlock2D" if config.attention[i] else "DownBlock2D" for i in levels]
        up = ["CrossAttnUpBlock2D" if config.attention[i] else "UpBlock2D" for i in reversed(levels)]
        self.config = config
        given = config.unet or {
            "in_channels": CHANNELS + config.features,
            "out_channels": CHANNELS,
            "block_out_channels": config.widths,
            "layers_per_block": config.layers,
            "down_block_types": down,
            "up_block_types": up,
            "cross_attention_dim": config.token,
            "attention_head_dim": tuple(max(1, width // config.head) for width in config.widths),  # number of heads
            "norm_num_groups": config.groups,
        }
        self.unet: Any = UNet2DConditionModel(**given)  # type: ignore[no-untyped-call]
        self.metadata = MetadataEncoder(config.token)
        self.near = nn.Conv2d(WIDTHS[1], config.features, 1) if config.features else None
        # Latents enter at the resolution of each level through weights that are zero at first: training starts from a
        # denoiser that does not use them.
        self.injections = nn.ModuleList()
        for i, width in enumerate(config.widths):
            # diffusers adds to a block with attention before it halves the resolution, and to one without after that.
            level = i if config.attention[i] else min(i + 1, len(config.widths) - 1)
            self.injections.append(_projection(latents + 1, width, level))

    def forward(
        self, z: Tensor, diffusion_step: Tensor, features: Features, scaled: Tensor, values: Tensor, known: Tensor
    ) -> Tensor:
        """Return v [N, 4, h, w] for noisy ``z`` of the same shape at diffusion steps [N] in 0..DIFFUSION_STEPS.

        ``scaled`` [N, M + 1, h/2, w/2] are the latents as :meth:`Trunk.scaled` returns them; ``values`` and ``known`` are as
        for :class:`MetadataEncoder`.
        """
        tokens = self.metadata(values, known)
        given = z if self.near is None else torch.cat([z, self.near(features.eighth)], 1)
        added = [injection(scaled) for injection in self.injections]
        out: Tensor = self.unet(
            given, diffusion_step, tokens, down_intrablock_additional_residuals=added, return_dict=False
        )[0]
        return out


def alpha_sigma(diffusion_step: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors a of z0 and s of the noise at diffusion steps 0..DIFFUSION_STEPS: a cosine, a**2 + s**2 = 1."""
    angle = (diffusion_step / DIFFUSION_STEPS).clamp(0, 1) * (math.pi / 2)
    return torch.cos(angle), torch.sin(angle)
