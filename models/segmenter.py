"""A small network that says where an overhead image shows buildings, roads, water, wood and fields.

It is a U-Net (Ronneberger et al. 2015) over five resolutions, 1/2 to 1/32, with depthwise blocks. The benchmarks judge decoded images by it, and
the training of map guidance asks it what a decoded image shows.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

SEEN = ("building", "road", "water", "wood", "field")
WIDTHS = (24, 48, 96, 128, 160)  # at 1/2, 1/4, 1/8, 1/16 and 1/32 resolution
DEEPEST = 2 ** len(WIDTHS)  # sides are multiples of this


class _Block(nn.Module):
    """A depthwise 5x5 and two 1x1 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.SiLU(),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Segmenter(nn.Module):
    """Logits of each class in ``SEEN`` at half the resolution of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(12, WIDTHS[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        self.encode = nn.ModuleList(nn.Sequential(_Block(w), _Block(w)) for w in WIDTHS)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
        self.decode = nn.ModuleList(nn.Sequential(_Block(w), _Block(w)) for w in WIDTHS[:-1])
        self.leave = nn.Conv2d(WIDTHS[0], len(SEEN), 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, len(SEEN), H/2, W/2] of images [N, 3, H, W] in 0..1 with sides that are multiples of ``DEEPEST``."""
        x = self.enter(F.pixel_unshuffle(4 * (image - 0.5), 2))
        seen = []
        for level, encode in enumerate(self.encode):
            x = encode(x if level == 0 else self.down[level - 1](F.pixel_unshuffle(x, 2)))
            seen.append(x)
        for level in reversed(range(len(WIDTHS) - 1)):
            x = F.interpolate(self.up[level](x), scale_factor=2.0, mode="nearest") + seen[level]
            x = self.decode[level](x)
        logits: Tensor = self.leave(x)
        return logits
