"""The synthesis of a component: what a network adds to the plane that the integers give.

A plane is the inverse transform of the latents' centroids. Its errors are those of quantisation: they scale with the step, and the
spreads that the prior predicted tell where they are large. The network sees the latents and their spreads at 1/16 of the
resolution, and the plane itself, with the strongest component of the same place as a guide, at 1/4. It works in steps, so one
network serves all rates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.models.layers import ResidualBlock, start_small

LATENTS = 256
REDUCTION = 4  # of the resolution at which planes are worked on
REACH = 8.0  # steps; what differs more from its surroundings is clamped
LOCAL, WIDE = 9, 37  # pixels on the sides of the surroundings
WIDE_SHARE = 0.1  # by how much the view of the wide surroundings is scaled down


class ComponentSynthesis(nn.Module):
    """Adds to a component what its latents, their spreads and the strongest component let expect."""

    def __init__(self, coarse: int = 96, carried: int = 32, width: int = 48, blocks: tuple[int, int] = (2, 4)) -> None:
        """``coarse`` and ``width`` are the channels at 1/16 and 1/4 resolution, ``carried`` go from the first to the second."""
        super().__init__()
        area = REDUCTION * REDUCTION
        self.coarse = nn.Sequential(
            nn.Conv2d(2 * LATENTS + 1, coarse, 1),
            nn.LeakyReLU(0.1),
            *(ResidualBlock(coarse) for _ in range(blocks[0])),
            nn.Conv2d(coarse, area * carried, 1),
        )
        self.join = nn.Conv2d(carried + 3 * area, width, 1)
        self.fine = nn.Sequential(
            *(ResidualBlock(width) for _ in range(blocks[1])), start_small(nn.Conv2d(width, area, 3, padding=1), 0.003)
        )

    def forward(self, latents: Tensor, index: Tensor, plane: Tensor, guide: Tensor, quality: Tensor) -> Tensor:
        """Return what is to be added to planes, in steps, [N, 1, 16H, 16W].

        ``latents`` and ``index`` [N, 256, H, W]: centroids in steps and scale indices; ``plane`` and ``guide`` [N, 1, 16H, 16W] in
        steps of this component, the guide 0 for the strongest component itself; ``quality`` [N, 1, H, W]: Q / 250.
        """
        known = torch.cat([0.25 * latents.clamp(-REACH, REACH), index / 64, quality], 1)
        carried = F.pixel_shuffle(self.coarse(known), REDUCTION)
        views = [(x - surroundings(x)).clamp(-REACH, REACH) for x in (plane, guide)]
        wide = REACH / WIDE_SHARE
        views.append(WIDE_SHARE * (plane - surroundings(plane, WIDE)).clamp(-wide, wide))
        seen = torch.cat([carried, *(0.25 * F.pixel_unshuffle(x, REDUCTION) for x in views)], 1)
        out: Tensor = F.pixel_shuffle(self.fine(self.join(seen)), REDUCTION)
        return out


def surroundings(x: Tensor, side: int = LOCAL) -> Tensor:
    """Return the means of squares of ``side`` pixels around each pixel of [N, 1, H, W]."""
    return F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
