"""LDM-RSIC's enhancement at its published size, to count it and to train it where there is a GPU for weeks; it has no trained weights here.

Unlike the compact networks beside it, it takes 256x256 pixels alone, since its prior is 4x4 tokens that are enlarged to the bottleneck's
32x32, and it does not know how its image was coded: the authors train a model for each rate. Zhang et al., IEEE TGRS 2025, section III; where
the paper and the authors' code differ, the code counts (the prior itself is predicted, and no noise is added on the way).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.models.enhancement.network import ChannelNorm, GatedUnit, TransformerBlock
from perigee.models.enhancement.prior import STEPS, TokenDenoiser, posterior_mean
from perigee.models.layers import ResidualBlock

SIDE = 256  # pixels
WIDTHS, BLOCKS, HEADS = (48, 96, 192, 384), (2, 2, 4, 4), (1, 2, 4, 8)
TOKENS, GRID = 256, 4
SLOPE = 0.1


class LatentReader(nn.Module):
    """LRM: 4x4 tokens of 256 numbers, from the decoded image, and in stage I from the original beside it."""

    def __init__(self, images: int) -> None:
        """``images`` is 2 with the original, 1 without."""
        super().__init__()
        self.enter = nn.Conv2d(48 * images, 64, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(64) for _ in range(5)))
        self.down = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.leave = nn.Conv2d(128, TOKENS, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(TOKENS, TOKENS), nn.LeakyReLU(SLOPE), nn.Linear(TOKENS, TOKENS))

    def forward(self, images: Tensor) -> Tensor:
        """Return [N, 256, 4, 4] of ``images`` [N, 3 or 6, 256, 256]."""
        x = F.leaky_relu(self.enter(F.pixel_unshuffle(images, 4)), SLOPE)
        x = F.leaky_relu(self.down(self.blocks(x)), SLOPE)
        pooled = F.adaptive_avg_pool2d(F.leaky_relu(self.leave(x), SLOPE), GRID)
        out: Tensor = self.head(pooled.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class Fusion(nn.Module):
    """DFAM: features of 32x32 are weighted, shifted and scaled by a prior that is enlarged to their size."""

    def __init__(self, channels: int = WIDTHS[-1]) -> None:
        super().__init__()
        both = channels + TOKENS
        self.enlarge = nn.Sequential(
            *(layer for _ in range(3) for layer in (nn.Conv2d(TOKENS, 4 * TOKENS, 3, padding=1), nn.PixelShuffle(2)))
        )
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.weigh = nn.Sequential(nn.Linear(both, both // 16), nn.ReLU(), nn.Linear(both // 16, both))
        self.mix = nn.Conv2d(both, channels, 1)
        self.scale, self.shift = nn.Linear(TOKENS, channels), nn.Linear(TOKENS, channels)
        self.unit = GatedUnit(channels)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x`` [N, channels, 32, 32]; ``prior`` is [N, 256, 4, 4]."""
        both = torch.cat([self.enlarge(prior), self.norm1(x)], 1)
        mean, most = (torch.sigmoid(self.weigh(pool(both, 1).flatten(1))) for pool in (_mean, _most))
        weights = mean + most
        x = x + self.mix(both * weights[..., None, None])
        pooled = _mean(prior, 1).flatten(1)
        scale, shift = self.scale(pooled)[..., None, None], self.shift(pooled)[..., None, None]
        out: Tensor = x + self.unit(self.norm2(x) * scale + shift)
        return out


_mean, _most = F.adaptive_avg_pool2d, F.adaptive_max_pool2d


def _level(width: int, blocks: int, heads: int) -> nn.Sequential:
    return nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))


class MultiscaleNetwork(nn.Module):
    """MEN: a U-Net of Transformer blocks over four scales with the fusion at the coarsest (after Restormer, Zamir et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.encoder = nn.ModuleList(map(_level, WIDTHS, BLOCKS, HEADS))
        self.down = nn.ModuleList(nn.Conv2d(w, w // 2, 3, padding=1) for w in WIDTHS[:-1])
        self.fusion = Fusion()
        self.up = nn.ModuleList(nn.Conv2d(w, 2 * w, 3, padding=1) for w in WIDTHS[1:])
        self.join = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in WIDTHS[1:-1])
        self.decoder = nn.ModuleList(map(_level, (2 * WIDTHS[0], *WIDTHS[1:-1]), BLOCKS[:-1], HEADS[:-1]))
        self.skip = nn.Conv2d(WIDTHS[0], 2 * WIDTHS[0], 1)
        self.leave = nn.Conv2d(2 * WIDTHS[0], 3, 3, padding=1)

    def forward(self, image: Tensor, prior: Tensor) -> Tensor:
        """Return what is to be added to ``image`` [N, 3, 256, 256]; ``prior`` is [N, 256, 4, 4]."""
        first = x = self.enter(image)
        kept = []
        for level, down in zip(self.encoder, self.down, strict=False):
            kept.append(x := level(x))
            x = F.pixel_unshuffle(down(x), 2)
        x = self.encoder[-1](self.fusion(x, prior))
        for k in reversed(range(len(kept))):
            x = torch.cat([F.pixel_shuffle(self.up[k](x), 2), kept[k]], 1)
            x = self.decoder[k](self.join[k - 1](x) if k else x)
        out: Tensor = self.leave(x + self.skip(first))
        return out


class PaperEnhancer(nn.Module):
    """The enhancement of stage II: the prior is generated from noise in four steps, given what the decoded image tells."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = LatentReader(1)
        self.denoiser = TokenDenoiser(TOKENS, TOKENS, 7)
        self.network = MultiscaleNetwork()

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """Return what is to be added to ``image`` [N, 3, 256, 256] in 0..1; ``noise`` is [N, 256, 4, 4]."""
        known, x = self.reader(image), noise
        for step in range(STEPS, 0, -1):
            predicted = self.denoiser(x, known, step)
            x = predicted if step == 1 else posterior_mean(predicted, x, step)
        out: Tensor = self.network(image, x)
        return out
