"""All networks of a compensator in one module, as it is trained: stage by stage, with the parts of earlier stages frozen.

Images are RGB in 0..1, float32 [N, 3, H, W] with H and W multiples of 64; latents are [N, M + 1, H/16, W/16] with the quality
plane as last channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.contract import BLOCK
from perigee.models.compensation.denoiser import DIFFUSION_STEPS, Denoiser, DenoiserConfig, alpha_sigma
from perigee.models.compensation.latent import CHANNELS, RemainderDecoder, RemainderEncoder
from perigee.models.compensation.trunk import NOISE, Features, Finish, OneStepHead, ScaleHead, TextureHead, Trunk

# the stages in the order in which they are trained, and the modules that each of them trains
STAGES = {
    "one-step": ("trunk", "one_step"),
    "texture": ("finish", "one_step", "texture"),
    "latent": ("encoder", "decoder"),
    "diffusion": ("denoiser",),
    "sampling": ("decoder", "denoiser"),
    "scale": ("scale",),
}

AROUND = 7  # side, in blocks, of the neighbourhood in which a repeating pattern is looked for


def without_grid(detail: Tensor) -> Tensor:
    """Remove from detail [N, C, H, W] whatever repeats with the period of the codec's 16x16 blocks.

    On even ground a network that sees the latents weaves a pattern of their period, which a perceptual distance rewards and
    the eye does not. Detail that does not repeat loses about a fiftieth of its energy.
    """
    phases = F.pixel_unshuffle(detail, BLOCK)
    repeated = F.avg_pool2d(phases, AROUND, 1, AROUND // 2, count_include_pad=False)
    return F.pixel_shuffle(phases - repeated, BLOCK)


@dataclass(frozen=True)
class CompensatorConfig:
    """Sizes of a compensator; ``latents`` is the number of the codec's latents without the quality plane."""

    latents: int
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain values for a checkpoint."""
        return asdict(self)


def config_from(stored: dict[str, Any]) -> CompensatorConfig:
    """Return the configuration that a checkpoint holds, see :meth:`CompensatorConfig.plain`.

    Raises KeyError or TypeError where ``stored`` is something else.
    """
    parts: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored["denoiser"].items()}
    return CompensatorConfig(stored["latents"], DenoiserConfig(**parts))


class Compensator(nn.Module):
    """Trunk, one-step and texture heads, latent space, denoiser and scale head.

    The buffer ``z_deviation`` [4] holds the standard deviation of each channel of z0 before it is normalised.
    """

    z_deviation: Tensor

    def __init__(self, config: CompensatorConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.latents)
        self.one_step = OneStepHead()
        self.finish = Finish()  # only for one step with texture; everything else uses the trunk's own upper levels
        self.texture = TextureHead()
        self.encoder = RemainderEncoder()
        self.decoder = RemainderDecoder()
        self.denoiser = Denoiser(config.latents, config.denoiser)
        self.scale = ScaleHead()
        self.register_buffer("z_deviation", torch.ones(CHANNELS))

    def detail(self, features: Features, base: Tensor, noise: Tensor | None) -> Tensor:
        """Return what the one-step compensator adds to the base image, [N, 3, H, W].

        ``noise`` is [N, NOISE, H/2, W/2], or None where the compensator has no texture yet.
        """
        if noise is None:
            plain: Tensor = self.one_step(features.half)
            return plain
        _, half = self.finish(base, features.eighth)
        textured: Tensor = self.one_step(half) + self.texture(half, noise)
        return without_grid(textured)

    def first(self, features: Features, base: Tensor, textured: bool = True) -> Tensor:
        """Return the one-step image [N, 3, H, W] without its texture, from which the diffusion starts.

        ``textured`` says whether the stage ``texture`` has been trained.
        """
        noise = base.new_zeros((len(base), NOISE, *features.half.shape[2:])) if textured else None
        return base + self.detail(features, base, noise)

    def encode(self, image: Tensor, first: Tensor) -> Tensor:
        """Return z0 [N, 4, H/8, W/8] of an image and its one-step image, normalised to unit deviation."""
        z: Tensor = self.encoder(image, first) / self.z_deviation[None, :, None, None]
        return z

    def sample(
        self,
        z: Tensor,
        times: Sequence[float],
        features: Features,
        scaled: Tensor,
        values: Tensor,
        known: Tensor,
    ) -> Tensor:
        """Return z0 by DDIM (Song et al. 2021, eta 0) from ``z`` [N, 4, H/8, W/8], which has the noise of the first of ``times`` (1 to 0).

        The other inputs are those of the denoiser.
        """
        n = len(z)
        for now, after in pairwise(times):
            (a, s), (a_next, s_next) = (
                alpha_sigma(z.new_full((n, 1, 1, 1), t * DIFFUSION_STEPS)) for t in (now, after)
            )
            v = self.denoiser(z, z.new_full((n,), now * DIFFUSION_STEPS), features, scaled, values, known).float()
            z = a_next * (a * z - s * v) + s_next * (s * z + a * v)
        return z
