"""Building blocks that the codec and the compensator share."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

Small = TypeVar("Small", nn.Conv2d, nn.Linear)


def start_small(layer: Small, std: float) -> Small:
    """Give a convolution or a linear layer small random weights and no bias, so that its branch adds almost nothing when training starts.

    ``std`` is the standard deviation of the weights. The layer is changed in place and returned.
    """
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """``x + conv3x3(leaky_relu(conv3x3(x), 0.1))`` on tensors [N, channels, H, W]; it starts close to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = start_small(nn.Conv2d(channels, channels, 3, padding=1), 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        out: Tensor = x + self.conv2(F.leaky_relu(self.conv1(x), 0.1))
        return out
