"""All networks of a compensator in one module, as it is trained: each part by itself, those before it frozen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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
        return textured

    def encode(self, image: Tensor, base: Tensor) -> Tensor:
        """z0 of unit deviation."""
        z: Tensor = self.encoder(image, base) / self.z_deviation[None, :, None, None]
        return z
