"""The critic of a compensator: it tells originals from generated images by the features of the perceptual network.

Small heads on a fixed network learn in a few hundred training steps what a critic takes hours to learn from scratch (Sauer et
al. 2021, "Projected GANs converge faster"). The losses are hinge losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (32, 16, 24, 40, 112)  # of EfficientNet-Lite0's stem and blocks 0, 2, 4, 10, see ``perceptual``
FIRST = 1  # the first depth with a head; the stem is left out because it sees only single pixels
WIDTH = 32  # channels of a head


class Critic(nn.Module):
    """Gives a map of scores at each depth except the stem; scores are positive for originals.

    Features of an image are a list of tensors [N, C, H, W], one for each depth, of unit length along the channels, as
    :meth:`PerceptualDistance.features` returns them.
    """

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
        """Return scores [N, 1, H, W] at each depth for the features of an image, given those of its base image."""
        pairs = zip(self.heads, features[FIRST:], base[FIRST:], strict=True)
        return [head(4 * torch.cat([x, y], 1)) for head, x, y in pairs]

    def loss(self, true: Sequence[Tensor], made: Sequence[Tensor], base: Sequence[Tensor]) -> Tensor:
        """Return the critic's loss (scalar) for features of originals, of generated images and of their base images."""
        yes, no = self(true, base), self([f.detach() for f in made], base)
        return torch.stack([F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(yes, no, strict=True)]).mean()

    def verdict(self, made: Sequence[Tensor], base: Sequence[Tensor]) -> Tensor:
        """Return the loss [N] of generated images: the negative mean of their scores."""
        return -torch.stack([score.mean((1, 2, 3)) for score in self(made, base)]).mean(0)
