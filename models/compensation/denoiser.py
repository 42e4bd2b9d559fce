"""The conditional denoiser: diffusers' U-Net over z, with metadata by cross-attention and latents at every level.

It predicts v (Salimans and Ho 2022) of the variance-preserving process ``z_t = a z0 + s noise``, a cosine schedule over
``STEPS`` steps. Presets: ``compact``, trained from scratch on overhead imagery, and ``paper``, the shapes of Stable
Diffusion's U-Net.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perigee.bitstream.conditions import FIELDS
from perigee.models.codec.flight import start_small
from perigee.models.compensation.latent import CHANNELS
from perigee.models.compensation.trunk import WIDTHS, Features

STEPS = 1000


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of a denoiser: ``widths`` at 1/8, 1/16, ... of the image, those with cross-attention, tokens; ``head``: channels of one."""

    widths: tuple[int, ...] = (64, 128, 128)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 1
    token: int = 64
    head: int = 32
    groups: int = 16
    features: int = 32  # channels of the trunk's features beside z
    unet: dict[str, Any] | None = None  # of a U-Net that comes with sizes of its own


PRESETS = {
    "compact": DenoiserConfig(),
    "paper": DenoiserConfig((320, 640, 1280, 1280), (True, True, True, False), 2, 1024, 64, 32, 0),
}


def sinusoid(values: Tensor, size: int) -> Tensor:
    """Values in 0..1 [...] as ``size`` sines and cosines, scaled by 1000 as time steps are (as DiffusionSat does)."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(size // 2, device=values.device) / (size // 2))
    angles = 1000 * values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class MetadataEncoder(nn.Module):
    """Acquisition fields as tokens [N, fields, token]: sinusoid, two layers a field; a learned token where it is absent."""

    def __init__(self, token: int) -> None:
        super().__init__()
        count = len(FIELDS)
        self.size = 32
        self.first = nn.Parameter(torch.randn(count, 2 * self.size, token) * (2 * self.size) ** -0.5)
        self.second = nn.Parameter(torch.randn(count, token, token) * token**-0.5)
        self.bias = nn.Parameter(torch.zeros(count, token))
        self.absent = nn.Parameter(torch.randn(count, token) * 0.02)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """``values`` [N, fields, 2] in 0..1, ``known`` [N, fields], 1 or 0."""
        waves = torch.cat([sinusoid(values[..., 0], self.size), sinusoid(values[..., 1], self.size)], -1)
        hidden = nn.functional.silu(torch.einsum("nfi,fio->nfo", waves, self.first) + self.bias)
        found = torch.einsum("nfi,fio->nfo", hidden, self.second)
        return torch.where(known[..., None] > 0.5, found, self.absent[None])


def _projection(inputs: int, outputs: int, level: int) -> nn.Module:
    """From the latents' resolution 1/16 to that of a level, 1/8 times 2**-level; zero."""
    if level == 0:
        up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)  # type: ignore[arg-type]
        return up
    side = 2 ** (level - 1)
    return start_small(nn.Conv2d(inputs, outputs, side, stride=side), 0.0)


class Denoiser(nn.Module):
    """v [N, 4, h, w] from z_t, the step, the trunk's features, scaled latents [N, M + 1, h/2, w/2], and metadata."""

    def __init__(self, latents: int, config: DenoiserConfig) -> None:
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
        # y at each level's resolution, zero-initialised: training starts from a denoiser that knows nothing of it
        self.injections = nn.ModuleList()
        for i, width in enumerate(config.widths):
            # diffusers adds to a block with attention before it halves the resolution, to one without after that
            level = i if config.attention[i] else min(i + 1, len(config.widths) - 1)
            self.injections.append(_projection(latents + 1, width, level))

    def forward(
        self, z: Tensor, step: Tensor, features: Features, scaled: Tensor, values: Tensor, known: Tensor
    ) -> Tensor:
        tokens = self.metadata(values, known)
        given = z if self.near is None else torch.cat([z, self.near(features.eighth)], 1)
        added = [injection(scaled) for injection in self.injections]
        out: Tensor = self.unet(given, step, tokens, down_intrablock_additional_residuals=added, return_dict=False)[0]
        return out


def alpha_sigma(step: Tensor) -> tuple[Tensor, Tensor]:
    """Share of z0 and of noise at ``step`` 0..STEPS: a cosine schedule, a**2 + s**2 = 1."""
    angle = (step / STEPS).clamp(0, 1) * (math.pi / 2)
    return torch.cos(angle), torch.sin(angle)
