"""All networks of a compensator in one module, as it is trained: each part by itself, those before it frozen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.contract import BLOCK
from perigee.models.compensation.denoiser import Denoiser, DenoiserConfig
from perigee.models.compensation.latent import CHANNELS, DetailDecoder, DetailEncoder
from perigee.models.compensation.trunk import Features, Finish, OneStepHead, ScaleHead, TextureHead, Trunk

# in the order in which they are trained, and the modules that learn then
STAGES = {
    "one-step": ("trunk", "one_step"),
    "texture": ("finish", "one_step", "texture"),
    "latent": ("encoder", "decoder"),
    "diffusion": ("denoiser",),
    "scale": ("scale",),
}


AROUND = 7  # blocks on the side of the neighbourhood in which a pattern would repeat


def without_grid(detail: Tensor) -> Tensor:
    """Detail [N, C, H, W] less what repeats with the codec's blocks: on even ground a network that sees latents weaves a pattern of
    their period, which a perceptual distance likes and the eye does not. Of detail that does not repeat a fiftieth goes along.
    """
    phases = F.pixel_unshuffle(detail, BLOCK)
    repeated = F.avg_pool2d(phases, AROUND, 1, AROUND // 2, count_include_pad=False)
    return F.pixel_shuffle(phases - repeated, BLOCK)


@dataclass(frozen=True)
class CompensatorConfig:
    """``latents``: of the codec, without the quality plane."""

    latents: int
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)


def config_from(stored: dict[str, Any]) -> CompensatorConfig:
    """Inverse of :meth:`CompensatorConfig.plain`."""
    parts: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["denoiser"].items()}
    return CompensatorConfig(stored["latents"], DenoiserConfig(**parts))


class Compensator(nn.Module):
    """Trunk, one-step and texture heads, latent space, denoiser and scale head. ``z_deviation`` brings z0 to unit deviation."""

    z_deviation: Tensor

    def __init__(self, config: CompensatorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.latents)
        self.one_step = OneStepHead()
        self.finish = Finish()  # of one step with texture: the trunk's serves the others, and stays
        self.texture = TextureHead()
        self.encoder = DetailEncoder()
        self.decoder = DetailDecoder()
        self.denoiser = Denoiser(config.latents, config.denoiser)
        self.scale = ScaleHead()
        self.register_buffer("z_deviation", torch.ones(CHANNELS))

    def detail(self, features: Features, base: Tensor, noise: Tensor | None) -> Tensor:
        """What one step adds to the base image, [N, 3, H, W]; ``noise`` [N, NOISE, H/2, W/2], None before there is texture."""
        if noise is None:
            plain: Tensor = self.one_step(features.half)
            return plain
        _, half = self.finish(base, features.eighth)
        textured: Tensor = self.one_step(half) + self.texture(half, noise)
        return without_grid(textured)

    def encode(self, image: Tensor, base: Tensor) -> Tensor:
        """z0 of unit deviation."""
        z: Tensor = self.encoder(image, base) / self.z_deviation[None, :, None, None]
        return z
