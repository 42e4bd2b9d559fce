"""The latent space of the diffusion: z0 [N, 4, H/8, W/8] describes the remainder, which is what the one-step image lacks, and a decoder adds it.

In COSMIC z0 describes the whole image. Here the diffusion starts from the one-step image: z0 describes only what that lacks. Where z0 is zero the
decoder adds exactly zero, because all layers that z0 passes through are homogeneous and have no bias; the features enter as
factors. As in Stable Diffusion, one position stands for 8x8 pixels and has four channels, so that the same sampler and the
same windows serve a compensator that starts from its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.models.compensation.trunk import WIDTHS, Features, Modulated
from perigee.models.layers import ResidualBlock, start_small

CHANNELS = 4
SIDE = 8  # pixels on the side of what one position of z0 describes


class RemainderEncoder(nn.Module):
    """Encodes an image and its one-step image to z0; only training needs it.

    This is the image encoder of the COSMIC paper (E with a tilde), applied to the difference instead of the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(24, 48, 3, padding=1),
            ResidualBlock(48),
            nn.PixelUnshuffle(2),
            nn.Conv2d(192, 96, 1),
            ResidualBlock(96),
            nn.PixelUnshuffle(2),
            nn.Conv2d(384, 128, 1),
            ResidualBlock(128),
            nn.Conv2d(128, CHANNELS, 1),
        )

    def forward(self, image: Tensor, first: Tensor) -> Tensor:
        """Return z0 [N, 4, H/8, W/8] of images and one-step images [N, 3, H, W] in 0..1, before it is normalised."""
        out: Tensor = self.layers(torch.cat([16 * (image - first), 4 * (first - 0.5)], 1))
        return out


class RemainderDecoder(nn.Module):
    """Decodes z0, with the trunk's features, to what is added to the one-step image; zero where z0 is zero."""

    def __init__(self) -> None:
        super().__init__()
        _, b, c, d = WIDTHS
        self.enter = nn.Conv2d(CHANNELS, b, 3, padding=1, bias=False)
        self.level8, self.level8b = Modulated(b), Modulated(b)
        self.up8 = nn.Conv2d(b, 4 * c, 1, bias=False)
        self.level4, self.level4b = Modulated(c), Modulated(c)
        self.up4 = nn.Conv2d(c, 4 * d, 1, bias=False)
        self.level2 = Modulated(d)
        self.leave = start_small(nn.Conv2d(d, 12, 3, padding=1, bias=False), 0.02)

    def forward(self, features: Features, z: Tensor) -> Tensor:
        """Return detail [N, 3, H, W] of normalised z [N, 4, H/8, W/8]."""
        v = self.level8b(self.level8(self.enter(z), features.eighth), features.eighth)
        v = F.pixel_shuffle(self.up8(v), 2)
        v = self.level4b(self.level4(v, features.quarter), features.quarter)
        v = F.pixel_shuffle(self.up4(v), 2)
        return 0.25 * F.pixel_shuffle(self.leave(self.level2(v, features.half)), 2)
