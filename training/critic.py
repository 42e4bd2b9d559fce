"""The adversary of a compensator: is this an original? It judges by the features of the perceptual network, beside the base's.

Small heads on a fixed network learn in a few hundred steps what a critic from scratch takes hours for (Sauer et al. 2021,
"Projected GANs converge faster"). Hinge losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (32, 16, 24, 40, 112)  # of EfficientNet-Lite0's stem and blocks 0, 2, 4, 10, see ``perceptual``
FIRST = 1  # the stem sees single pixels
WIDTH = 32


class Critic(nn.Module):
    """A map of scores at each depth but the first, positive for originals."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * channels, WIDTH, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(WIDTH, 1, 1),
            )
            for channels in CHANNELS[FIRST:]
        )

    def forward(self, features: Sequence[Tensor], base: Sequence[Tensor]) -> list[Tensor]:
        """``features`` of the image that is judged, ``base`` of the plainly decoded one; both of unit length along channels."""
        pairs = zip(self.heads, features[FIRST:], base[FIRST:], strict=True)
        return [head(4 * torch.cat([x, y], 1)) for head, x, y in pairs]

    def loss(self, true: Sequence[Tensor], made: Sequence[Tensor], base: Sequence[Tensor]) -> Tensor:
        """What the critic minimises (scalar): features of originals, of made images, of base images."""
        yes, no = self(true, base), self([f.detach() for f in made], base)
        return torch.stack([F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(yes, no, strict=True)]).mean()

    def verdict(self, made: Sequence[Tensor], base: Sequence[Tensor]) -> Tensor:
        """What the maker minimises [N]."""
        return -torch.stack([score.mean((1, 2, 3)) for score in self(made, base)]).mean(0)
