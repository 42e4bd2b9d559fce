"""The trunk, which turns the base image and its latents into features, and the heads that work on these features.

The trunk is trained once, together with the one-step compensator, and then frozen: the detail decoder and the denoiser of the
diffusion use the same features. Images are RGB in 0..1, [N, 3, H, W] with H and W multiples of 16; latents
[N, M + 1, H/16, W/16] are dequantised, with the quality plane as last channel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.models.layers import ResidualBlock, start_small

WIDTHS = (160, 128, 64, 32)  # channels at 1/16, 1/8, 1/4 and 1/2 resolution
BLOCKS = (1, 3, 3, 1)  # residual blocks at the same resolutions
LATENT_LIMIT = 20.0  # scaled latents are clipped to this magnitude
NOISE = 8  # channels of the noise at 1/2 resolution that texture is made from


class Features(NamedTuple):
    """Features at three resolutions: [N, 128, H/8, W/8], [N, 64, H/4, W/4] and [N, 32, H/2, W/2]."""

    eighth: Tensor
    quarter: Tensor
    half: Tensor


def _residual(level: int) -> list[nn.Module]:
    """Return the residual blocks of a level, 0 for 1/16 to 3 for 1/2 resolution."""
    return [ResidualBlock(WIDTHS[level]) for _ in range(BLOCKS[level])]


def _centred(base: Tensor) -> Tensor:
    """Return the base image as the networks take it: clipped, centred and scaled."""
    return 4 * (base.clamp(-0.25, 1.25) - 0.5)


class Finish(nn.Module):
    """The upper levels of the trunk: features at 1/8 and the base image to features at 1/4 and 1/2."""

    def __init__(self) -> None:
        super().__init__()
        _, b, c, d = WIDTHS
        self.up8 = nn.Conv2d(b, 4 * c, 1)
        self.image4 = nn.Conv2d(48, c, 1)
        self.level4 = nn.Sequential(*_residual(2))
        self.up4 = nn.Conv2d(c, 4 * d, 1)
        self.image2 = nn.Conv2d(12, d, 1)
        self.level2 = nn.Sequential(*_residual(3))

    def forward(self, base: Tensor, eighth: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, 64, H/4, W/4] and [N, 32, H/2, W/2]."""
        image = _centred(base)
        quarter = self.level4(F.pixel_shuffle(self.up8(eighth), 2) + self.image4(F.pixel_unshuffle(image, 4)))
        half = self.level2(F.pixel_shuffle(self.up4(quarter), 2) + self.image2(F.pixel_unshuffle(image, 2)))
        return quarter, half


class Trunk(nn.Module):
    """Computes features from the latents upwards; the base image joins at each level."""

    input_scale: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        a, b, _, _ = WIDTHS
        self.register_buffer("input_scale", torch.ones(latents))  # the reciprocal of each latent's deviation
        self.level16 = nn.Sequential(nn.Conv2d(latents + 1, a, 3, padding=1), *_residual(0), nn.Conv2d(a, 4 * b, 1))
        self.image8 = nn.Conv2d(192, b, 1)
        self.level8 = nn.Sequential(*_residual(1))
        self.finish = Finish()

    def scaled(self, latents: Tensor) -> Tensor:
        """Return the latents scaled to about unit deviation, with outliers clipped and the quality plane unchanged."""
        y = latents[:, :-1] * self.input_scale[None, :, None, None]
        return torch.cat([y.clamp(-LATENT_LIMIT, LATENT_LIMIT), latents[:, -1:]], 1)

    def forward(self, base: Tensor, latents: Tensor) -> Features:
        """Return the features of base images [N, 3, H, W] and their latents [N, M + 1, H/16, W/16]."""
        x = F.pixel_shuffle(self.level16(self.scaled(latents)), 2)
        eighth = self.level8(x + self.image8(F.pixel_unshuffle(_centred(base), 8)))
        return Features(eighth, *self.finish(base, eighth))


class Modulated(nn.Module):
    """``v * (1 + gate(features))`` followed by a residual block; all of it is homogeneous in v, so zero stays zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = start_small(nn.Conv2d(channels, channels, 1), 0.02)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = start_small(nn.Conv2d(channels, channels, 3, padding=1, bias=False), 0.01)

    def forward(self, v: Tensor, features: Tensor) -> Tensor:
        """Return a tensor of the shape of ``v`` [N, channels, H, W]; ``features`` have the same shape."""
        v = v * (1 + self.gate(features))
        out: Tensor = v + self.conv2(F.leaky_relu(self.conv1(v), 0.1))
        return out


class OneStepHead(nn.Module):
    """The one-step compensator: features at 1/2 to the detail that is added to the base image."""

    def __init__(self) -> None:
        super().__init__()
        width = WIDTHS[3]
        self.layers = nn.Sequential(ResidualBlock(width), start_small(nn.Conv2d(width, 12, 3, padding=1), 0.003))

    def forward(self, half: Tensor) -> Tensor:
        """Return detail [N, 3, H, W]."""
        return 0.25 * F.pixel_shuffle(self.layers(half), 2)


class TextureHead(nn.Module):
    """Turns noise, with features at 1/2, into texture that is added to the one-step detail; zero where the noise is zero.

    Without noise a network can only produce regular patterns where the base image is smooth and the ground is not. All layers
    that the noise passes through are homogeneous; the features enter as factors.
    """

    def __init__(self) -> None:
        super().__init__()
        width = WIDTHS[3]
        self.enter = nn.Conv2d(NOISE, width, 3, padding=1, bias=False)
        self.first, self.second = Modulated(width), Modulated(width)
        self.leave = start_small(nn.Conv2d(width, 12, 3, padding=1, bias=False), 0.01)

    def forward(self, half: Tensor, noise: Tensor) -> Tensor:
        """Return texture [N, 3, H, W] of noise [N, NOISE, H/2, W/2]."""
        v = self.second(self.first(self.enter(noise), half), half)
        return 0.25 * F.pixel_shuffle(self.leave(v), 2)


class ScaleHead(nn.Module):
    """Predicts the magnitude of the error of the base image and of the compensated image at each pixel.

    It sees the detail that was added. The uncertainty band of a product is this magnitude times a factor that is fitted on
    images which were held out of training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(WIDTHS[3], 32, 1)
        self.images = nn.Conv2d(24, 32, 3, padding=1)
        self.layers = nn.Sequential(
            nn.LeakyReLU(0.1), nn.Conv2d(32, 32, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(32, 8, 3, padding=1)
        )

    def forward(self, features: Features, base: Tensor, detail: Tensor) -> Tensor:
        """Return positive magnitudes [N, 2, H, W]: of the base image first, then of base image plus ``detail``."""
        seen = F.pixel_unshuffle(torch.cat([4 * (base - 0.5), 16 * detail], 1), 2)
        out = self.layers(self.features(features.half.detach()) + self.images(seen.detach()))
        return 0.05 * torch.exp(F.pixel_shuffle(out, 2).clamp(-6, 4))
