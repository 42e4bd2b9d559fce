"""The enhancement network of LDM-RSIC: a U-Net of residual and Transformer blocks that a prior may steer at its bottleneck.

Where the paper adds features at full resolution, the network here works from half the resolution on and adds its output to the decoded
image. It knows how the image was coded (``Condition``): one model serves all rates. LDM-RSIC: Zhang et al., IEEE TGRS 2025, section III.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.conditions import CODING_CONDITIONS
from perigee.models.layers import ResidualBlock, start_small

REDUCTION = 2
DOUBT_START = -4.5  # logarithm of the error that is expected before any training, about three grey levels


@dataclass(frozen=True)
class Preset:
    """Sizes: channels at 1/2, 1/4 and 1/8 of the resolution, blocks there, heads of the attention, and channels of a prior's tokens."""

    widths: tuple[int, int, int]
    blocks: tuple[int, int, int]
    heads: int
    tokens: int


COMPACT = Preset((40, 80, 128), (1, 1, 4), 4, 64)
SMALL = Preset((8, 12, 16), (1, 1, 1), 2, 8)  # for tests


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).square().mean(1, keepdim=True)
        out: Tensor = (x - mean) * torch.rsqrt(spread + 1e-5) * self.scale[:, None, None] + self.shift[:, None, None]
        return out


class ChannelAttention(nn.Module):
    """Attention between channels instead of positions, so that its cost grows with the area (Restormer, Zamir et al. 2022)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.sharpness = nn.Parameter(torch.ones(heads, 1, 1))
        self.expand = nn.Conv2d(channels, 3 * channels, 1)
        self.depth = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.project = start_small(nn.Conv2d(channels, channels, 1), 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x`` [N, C, H, W]."""
        count, channels, rows, cols = x.shape
        parts = self.depth(self.expand(x)).reshape(count, 3, self.heads, channels // self.heads, rows * cols)
        query, key, value = parts.unbind(1)
        weights = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-1, -2) * self.sharpness).softmax(-1)
        out: Tensor = self.project((weights @ value).reshape(count, channels, rows, cols))
        return out


class GatedUnit(nn.Module):
    """1x1, depthwise 3x3, a GELU that gates the other half, 1x1."""

    def __init__(self, channels: int, factor: int = 2) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * factor * channels, 1)
        self.depth = nn.Conv2d(2 * factor * channels, 2 * factor * channels, 3, padding=1, groups=2 * factor * channels)
        self.project = start_small(nn.Conv2d(factor * channels, channels, 1), 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x`` [N, C, H, W]."""
        gate, value = self.depth(self.expand(x)).chunk(2, 1)
        out: Tensor = self.project(F.gelu(gate) * value)
        return out


class TransformerBlock(nn.Module):
    """Attention and a gated unit, each behind a norm and beside the identity."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = ChannelNorm(channels), ChannelAttention(channels, heads)
        self.norm2, self.unit = ChannelNorm(channels), GatedUnit(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x`` [N, C, H, W]."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.unit(self.norm2(x))
        return out


class PriorFusion(nn.Module):
    """DFAM: the features at the bottleneck are weighted and shifted by a prior.

    The prior [N, tokens, h, w] is resized to the features, so that tokens cover the same ground at any size of the image; the paper
    up-samples 4x4 tokens to exactly 32x32 (section III-C).
    """

    def __init__(self, channels: int, tokens: int, ratio: int = 8) -> None:
        super().__init__()
        both = channels + tokens
        self.norm1 = ChannelNorm(channels)
        self.weigh = nn.Sequential(nn.Conv2d(both, both // ratio, 1), nn.ReLU(), nn.Conv2d(both // ratio, both, 1))
        self.mix = start_small(nn.Conv2d(both, channels, 1), 0.01)
        self.norm2 = ChannelNorm(channels)
        self.modulate = start_small(nn.Conv2d(tokens, 2 * channels, 1), 0.01)
        self.unit = GatedUnit(channels)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x`` [N, channels, H, W]."""
        spread = F.interpolate(prior, x.shape[2:], mode="bilinear", align_corners=False)
        both = torch.cat([spread, self.norm1(x)], 1)
        pooled = F.adaptive_avg_pool2d(both, 1), F.adaptive_max_pool2d(both, 1)
        weights = sum(torch.sigmoid(self.weigh(p)) for p in pooled)
        x = x + self.mix(both * weights)
        scale, shift = self.modulate(spread).chunk(2, 1)
        out: Tensor = x + self.unit(self.norm2(x) * (1 + scale) + shift)
        return out


class Conditioned(nn.Module):
    """Residual blocks whose input is scaled and shifted by the condition."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.modulate = start_small(nn.Linear(CODING_CONDITIONS, 2 * channels), 0.01)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x`` [N, channels, H, W]."""
        scale, shift = self.modulate(condition)[..., None, None].chunk(2, 1)
        out: Tensor = self.blocks(x * (1 + scale) + shift)
        return out


class EnhancementNetwork(nn.Module):
    """Adds to a decoded image what it and its condition, and a prior where there is one, let expect."""

    def __init__(self, preset: Preset = COMPACT, has_prior: bool = False) -> None:
        super().__init__()
        fine, middle, coarse = preset.widths
        area = REDUCTION**2
        self.preset = preset
        self.enter = nn.Conv2d(3 * area, fine, 3, padding=1)
        self.down1, self.down2 = nn.Conv2d(fine, middle, 2, stride=2), nn.Conv2d(middle, coarse, 2, stride=2)
        self.encode1, self.encode2 = Conditioned(fine, preset.blocks[0]), Conditioned(middle, preset.blocks[1])
        self.condition = Conditioned(coarse, 0)
        self.bottleneck = nn.Sequential(*(TransformerBlock(coarse, preset.heads) for _ in range(preset.blocks[2])))
        self.fusion = PriorFusion(coarse, preset.tokens) if has_prior else None
        self.up2, self.up1 = nn.Conv2d(coarse, 4 * middle, 1), nn.Conv2d(middle, 4 * fine, 1)
        self.decode2, self.decode1 = Conditioned(middle, preset.blocks[1]), Conditioned(fine, preset.blocks[0])
        self.leave = start_small(nn.Conv2d(fine, 3 * area, 3, padding=1), 0.003)
        self.doubt = start_small(nn.Conv2d(fine, area, 3, padding=1), 0.01)

    def forward(self, image: Tensor, condition: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what is to be added to ``image`` [N, 3, H, W] in 0..1, whose sides are multiples of 8, and how far off the result is expected
        to be, as the natural logarithm of the mean absolute error over the colours, [N, 1, H, W].

        ``condition`` [N, CODING_CONDITIONS]: see :func:`coding_condition`; ``prior`` [N, tokens, h, w] where the network has a fusion. No
        gradient of the expected error reaches the features that it is read from.
        """
        x1 = self.encode1(self.enter(F.pixel_unshuffle(image - 0.5, REDUCTION)), condition)
        x2 = self.encode2(self.down1(x1), condition)
        x3 = self.condition(self.down2(x2), condition)
        if self.fusion is not None and prior is not None:
            x3 = self.fusion(x3, prior)
        x3 = self.bottleneck(x3)
        x2 = self.decode2(x2 + F.pixel_shuffle(self.up2(x3), 2), condition)
        x1 = self.decode1(x1 + F.pixel_shuffle(self.up1(x2), 2), condition)
        added: Tensor = F.pixel_shuffle(self.leave(x1), REDUCTION)
        doubt: Tensor = F.pixel_shuffle(self.doubt(x1.detach()), REDUCTION) + DOUBT_START
        return added, doubt
