"""The ground half of the codec: reconstruction of the latents from symbols, and the synthesis of the image.

``x' = T^-1(y) + g_s(y)``: the inverse linear transform plus what a network adds. The last layer of the network starts near
zero, so that training starts from a working transform codec. Images are RGB in 0..1, [N, 3, H, W]; latents are
[N, M, H/16, W/16].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream import prior as P
from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.models.codec.transform import Gains
from perigee.models.layers import ResidualBlock, start_small

STRENGTH_FALL = 2.2  # how far the network's share falls from the lowest to the highest quality, natural logarithm
CENTROID_REACH = 8.0  # distance from the mean, in spreads, beyond which the centroid no longer moves within its cell


class Reconstruction(nn.Module):
    """Dequantisation: the centroid of the predicted logistic distribution within the symbol's cell, then the inverse gain.

    One learned factor for each channel narrows the logistic distribution, whose tails are heavier than those of the latents.
    The symbol itself stays an unshifted integer.
    """

    def __init__(self, latents: int, gain_start: Tensor) -> None:
        """``gain_start`` [KNOTS] holds the log gains of the analysis; the inverse gains start at their negatives."""
        super().__init__()
        self.narrowing = nn.Parameter(torch.zeros(latents))
        self.inverse_gains = Gains(latents, -gain_start)

    def forward(self, q: Tensor, mean: Tensor, spread: Tensor, quality_step: Tensor) -> Tensor:
        """Return the dequantised latents with the quality plane as last channel, [N, latents + 1, H, W].

        ``q``, ``mean`` and ``spread`` are [N, latents, H, W] in quantisation steps; ``quality_step`` is [N], 0..250. The
        quality plane is the quality step over 250.
        """
        width = 1 / (spread * torch.exp(self.narrowing)[None, :, None, None])  # of a cell, in spreads
        distance = q - mean
        # beyond CENTROID_REACH the tail is exponential to 1 part in 3,000
        near = ((distance.abs() - 0.5) * width).clamp_max(CENTROID_REACH)
        far = near + width
        part = F.softplus(-near) - F.softplus(-far) + near * torch.sigmoid(-near) - far * torch.sigmoid(-far)
        inside = part / (torch.sigmoid(-near) - torch.sigmoid(-far)) - near  # from the cell's near side, in spreads
        y = q + torch.sign(distance) * (inside / width - 0.5)
        y = y * self.inverse_gains(quality_step)
        n, _, rows, cols = q.shape
        plane = (quality_step / P.QUALITY_STEPS).reshape(n, 1, 1, 1).expand(n, 1, rows, cols)
        return torch.cat([y, plane], 1)


class Synthesis(nn.Module):
    """Dequantised latents and the quality plane to the image: the inverse linear path plus a residual network.

    The image of the linear path is fed back into the network at half and quarter resolution, so that the network can also
    work as a filter. What the network adds is scaled by ``strength``, log-linear over quality: errors shrink by a factor of
    six from the lowest rates to the highest, and so must their corrections.
    """

    def __init__(
        self,
        latents: int,
        widths: tuple[int, int, int, int] = (192, 128, 64, 32),
        blocks: tuple[int, int, int, int] = (2, 3, 2, 1),
    ) -> None:
        """``widths`` and ``blocks`` are the channels and residual blocks at 1/16, 1/8, 1/4 and 1/2 resolution."""
        super().__init__()
        a, b, c, d = widths

        def residual(level: int) -> list[nn.Module]:
            return [ResidualBlock(widths[level]) for _ in range(blocks[level])]

        self.linear = nn.ConvTranspose2d(latents, 3, BLOCK, stride=BLOCK, bias=False)
        self.input_scale = nn.Parameter(torch.ones(latents))
        self.strength = nn.Parameter(torch.linspace(0.0, -STRENGTH_FALL, KNOTS))
        self.level16 = nn.Sequential(nn.Conv2d(latents + 1, a, 3, padding=1), *residual(0), nn.Conv2d(a, 4 * b, 1))
        self.level8 = nn.Sequential(*residual(1), nn.Conv2d(b, 4 * c, 1))
        self.image4 = nn.Conv2d(48, c, 1)
        self.level4 = nn.Sequential(*residual(2), nn.Conv2d(c, 4 * d, 1))
        self.image2 = nn.Conv2d(12, d, 1)
        self.level2 = nn.Sequential(*residual(3), start_small(nn.Conv2d(d, 12, 3, padding=1), 0.003))

    def forward(self, latents: Tensor, autocast: bool = False) -> Tensor:
        """Return images [N, 3, 16H, 16W], nominally in 0..1 but not clamped.

        ``latents`` [N, M + 1, H, W] carry the quality (0..1) in their last channel. With ``autocast`` the network runs in
        bfloat16; the linear path always runs in float32.
        """
        y = latents[:, :-1]
        image: Tensor = self.linear(y)
        scaled = torch.cat([(y * self.input_scale[None, :, None, None]).clamp(-20, 20), latents[:, -1:]], 1)
        filtered = 4 * image.clamp(-0.75, 0.75)
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            x = F.pixel_shuffle(self.level16(scaled), 2)
            x = F.pixel_shuffle(self.level8(x), 2) + self.image4(F.pixel_unshuffle(filtered, 4))
            x = F.pixel_shuffle(self.level4(x), 2) + self.image2(F.pixel_unshuffle(filtered, 2))
            detail = F.pixel_shuffle(self.level2(x), 2)
        strength = self.strength_at(latents[:, -1:]).repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
        return image + detail.float() * strength + 0.5

    def strength_at(self, plane: Tensor) -> Tensor:
        """Return the factor of the network's detail for quality planes [N, 1, H, W] with values in 0..1."""
        knots = torch.arange(KNOTS, device=plane.device, dtype=plane.dtype)[:, None, None]
        weights = (1 - ((KNOTS - 1) * plane - knots).abs()).clamp_min(0)
        return torch.exp((weights * self.strength[:, None, None]).sum(1, keepdim=True)) / 4
