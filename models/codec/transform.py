"""The linear part of the codec: a separable transform of 16x16 blocks, and the gains that set the quantisation step.

Images are RGB, [N, 3, H, W] with H and W multiples of 16; latents are [N, M, H/16, W/16].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.contract import BLOCK, KNOTS


class BlockTransform(nn.Module):
    """Separable linear transform of 16x16 blocks: colours first, then rows, then columns, each with learned filters.

    It starts as the Karhunen-Loève transform (KLT) of the colours followed by the DCT. On overhead imagery this compacts
    energy as well as the full KLT of the blocks does, for a fraction of the multiply-adds. The row filters are learned for
    each colour, the column filters for each pair of colour and row frequency. ``order`` picks the latents out of the 768
    components, the strongest first.
    """

    order: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        n = torch.arange(BLOCK, dtype=torch.float64)
        cosine = torch.cos(math.pi / BLOCK * (n + 0.5) * n[:, None]) * math.sqrt(2 / BLOCK)
        cosine[0] /= math.sqrt(2)
        self.colours = nn.Parameter(torch.eye(3))
        self.rows = nn.Parameter(cosine.float().repeat(3, 1, 1))  # [colour, row frequency, row]
        self.columns = nn.Parameter(cosine.float().repeat(3, BLOCK, 1, 1))  # [colour, row frequency, frequency, column]
        self.register_buffer("order", torch.arange(latents))

    @torch.no_grad()
    def fit(self, blocks: Tensor) -> None:
        """Set the colour transform to the KLT of the blocks and order the components by their power.

        ``blocks`` is float [K, 3, 16, 16] with pixels in -0.5..0.5.
        """
        planes = blocks.permute(1, 0, 2, 3).reshape(3, -1).double()
        _, vectors = torch.linalg.eigh(planes @ planes.T / planes.shape[1])
        self.colours.copy_(vectors.flip(1).T.float())
        power = torch.einsum("knij,pnij->kp", self._all_filters(), blocks).square().mean(1)
        self.order.copy_(power.argsort(descending=True)[: len(self.order)])

    def _all_filters(self) -> Tensor:
        """Return the 768 filters [768, 3, 16, 16] in their separable order."""
        filters = torch.einsum("cuvj,cui,ck->cuvkij", self.columns, self.rows, self.colours)
        return filters.reshape(-1, 3, BLOCK, BLOCK)

    @property
    def latents(self) -> int:
        """The number of components that become latents."""
        return len(self.order)

    @property
    def weight(self) -> Tensor:
        """The same transform as the weight [latents, 3, 16, 16] of one dense convolution of stride 16."""
        return self._all_filters()[self.order]

    def forward(self, x: Tensor) -> Tensor:
        """Transform images [N, 3, H, W], pixels in -0.5..0.5, to coefficients [N, latents, H/16, W/16]."""
        return F.conv2d(x, self.weight, stride=BLOCK)


class Gains(nn.Module):
    """One positive factor for each latent channel, log-linear between seven knots over the quality step 0..250."""

    def __init__(self, latents: int, start: Tensor) -> None:
        """``start`` [KNOTS] holds the natural logarithms of the gains at the knots, the same for all channels."""
        super().__init__()
        self.knots = nn.Parameter(start[:, None].repeat(1, latents))

    def forward(self, quality_step: Tensor) -> Tensor:
        """Return the gains [N, latents, 1, 1] at the quality steps [N]."""
        position = quality_step[:, None] * ((KNOTS - 1) / 250.0)
        knots = torch.arange(KNOTS, device=quality_step.device, dtype=quality_step.dtype)
        weights = (1 - (position - knots).abs()).clamp_min(0)
        return torch.exp(weights @ self.knots)[:, :, None, None]
