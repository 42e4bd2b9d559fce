"""The latent space of the diffusion: what the base image lacks, as z0 [N, 4, H/8, W/8], and its decoder.

COSMIC's decoder leans on a z0 that describes the whole image and is never sent. Here z0 describes only the difference
between image and base: where it is zero the decoder adds nothing, bit for bit, since all its layers on the way of z0 are
without bias and homogeneous, with the features as factors. Eight pixels to a side and four channels, as Stable Diffusion has,
so that both presets share sampler and windows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.models.codec.flight import ResidualBlock, start_small
from perigee.models.compensation.trunk import WIDTHS, Features, Modulated

CHANNELS = 4
SIDE = 8  # pixels


class DetailEncoder(nn.Module):
    """Image and base to z0, for training alone: E~ of the paper, of the difference instead of the image."""

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

    def forward(self, image: Tensor, base: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([16 * (image - base), 4 * (base - 0.5)], 1))
        return out


class DetailDecoder(nn.Module):
    """Features and z0 to the detail that is added to the base image [N, 3, H, W]; zero where z0 is."""

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
        v = self.level8b(self.level8(self.enter(z), features.eighth), features.eighth)
        v = F.pixel_shuffle(self.up8(v), 2)
        v = self.level4b(self.level4(v, features.quarter), features.quarter)
        v = F.pixel_shuffle(self.up4(v), 2)
        return 0.25 * F.pixel_shuffle(self.leave(self.level2(v, features.half)), 2)
