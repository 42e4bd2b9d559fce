"""The flight codec: a linear 16x16 block transform with a light residual analysis, and the ground synthesis.

``y = T(x) + g_a(x)`` on board, ``x' = T^-1(y) + g_s(y)`` on the ground; the last layer of each network starts near
zero, so that training starts from a working transform codec. Presets differ in the analysis alone: ``swift`` has none
beside the linear path, ``lite`` and ``light`` add space-to-depth stages of residual depthwise blocks. They share
everything else, so one prior and one synthesis on the ground serve whichever flies.
Images are RGB in 0..1, [N, 3, H, W] with H and W multiples of 64; latents [N, M, H/16, W/16].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.models.codec.reference import CamForm, CosmicAnalysis, LightConvBlock

Stages = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# presets: channels and residual blocks of the stages at 1/4, 1/8 and 1/16 resolution
ANALYSIS_STAGES: dict[str, Stages | None] = {
    "swift": None,
    "lite": ((64, 1), (96, 2), (160, 2)),
    "light": ((96, 2), (128, 4), (192, 4)),
}
# COSMIC's encoder, N = 96, without and with CAM: in place of the linear path, as published, and beside it, as our networks are
COSMIC_CHANNELS = 96
COSMIC_CAM: dict[str, CamForm | None] = {
    "cosmic": None,
    "cosmic-cam": "depthwise",
    "cosmic-linear": None,
    "cosmic-cam-linear": "depthwise",
}
NO_LINEAR_PATH = {"cosmic", "cosmic-cam"}
PRESETS = (*ANALYSIS_STAGES, *COSMIC_CAM)
STRENGTH_FALL = 2.2  # of the synthesis' detail over the qualities, natural logarithm


def start_small(layer: nn.Conv2d, std: float) -> nn.Conv2d:
    """The layer with weights of the given deviation and no bias, so that its branch starts near zero."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class BlockTransform(nn.Module):
    """Separable linear transform of 16x16 blocks: colours, then rows, then columns, each with learned filters.

    It starts as the colour KLT followed by the DCT, which compacts overhead imagery as well as the full KLT of the
    blocks does, for a fraction of the multiply-adds. Row filters are learned for each colour, column filters for each
    colour and row frequency; ``order`` picks the latents out of the 768 components, the strongest first.
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
        """Colour KLT and order of the components by their power, from ``blocks`` [K, 3, 16, 16] of pixels in -0.5..0.5."""
        planes = blocks.permute(1, 0, 2, 3).reshape(3, -1).double()
        _, vectors = torch.linalg.eigh(planes @ planes.T / planes.shape[1])
        self.colours.copy_(vectors.flip(1).T.float())
        power = torch.einsum("knij,pnij->kp", self._all_filters(), blocks).square().mean(1)
        self.order.copy_(power.argsort(descending=True)[: len(self.order)])

    def _all_filters(self) -> Tensor:
        filters = torch.einsum("cuvj,cui,ck->cuvkij", self.columns, self.rows, self.colours)
        return filters.reshape(-1, 3, BLOCK, BLOCK)

    @property
    def latents(self) -> int:
        """How many components are latents."""
        return len(self.order)

    @property
    def weight(self) -> Tensor:
        """The same transform as one dense convolution of stride 16: [latents, 3, 16, 16]."""
        return self._all_filters()[self.order]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, stride=BLOCK)


class LightBlock(nn.Module):
    """``x + conv1x1(leaky_relu(conv1x1(depthwise5x5(x)), 0.1))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.point1 = nn.Conv2d(channels, channels, 1)
        self.point2 = start_small(nn.Conv2d(channels, channels, 1), 0.02)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.point2(F.leaky_relu(self.point1(self.depth(x)), 0.1))
        return out


class ResidualBlock(nn.Module):
    """``x + conv3x3(leaky_relu(conv3x3(x), 0.1))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = start_small(nn.Conv2d(channels, channels, 3, padding=1), 0.01)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.leaky_relu(self.conv1(x), 0.1))
        return out


class ResidualAnalysis(nn.Module):
    """g_a of ``lite`` and ``light``: a depthwise stem at 1/4, stages at 1/4, 1/8 and 1/16 resolution."""

    def __init__(self, stages: Stages, latents: int) -> None:
        super().__init__()
        (a, blocks_a), (b, blocks_b), (c, blocks_c) = stages
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, 48, 5, padding=2, groups=48),
            nn.Conv2d(48, a, 1),
            *(LightBlock(a) for _ in range(blocks_a)),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * a, b, 1),
            *(LightBlock(b) for _ in range(blocks_b)),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * b, c, 1),
            *(LightBlock(c) for _ in range(blocks_c)),
            start_small(nn.Conv2d(c, latents, 1), 0.003),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Analysis(nn.Module):
    """Image to latents before the gain: the linear path in fp32, plus one preset's network (bf16 in training).

    The presets ``cosmic`` and ``cosmic-cam``, which the flight network is compared with, have no linear path.
    """

    def __init__(self, presets: Sequence[str], latents: int) -> None:
        super().__init__()
        self.presets = tuple(presets)
        self.linear = BlockTransform(latents)
        self.networks = nn.ModuleDict()
        for name in presets:
            stages = ANALYSIS_STAGES.get(name)
            if name in COSMIC_CAM:
                network = CosmicAnalysis(COSMIC_CHANNELS, latents, COSMIC_CAM[name])
                last = network[-1]
                if name not in NO_LINEAR_PATH and isinstance(last, LightConvBlock):
                    start_small(last.point, 0.003)
                self.networks[name] = network
            elif stages is not None:
                self.networks[name] = ResidualAnalysis(stages, latents)

    def forward(self, x: Tensor, preset: str | None = None, autocast: bool = False) -> Tensor:
        """With the named preset, or with all in turn: the batch in as many parts as there are presets."""
        presets = self.presets if preset is None else (preset,)
        parts = [
            self._one(part, name, autocast)
            for name, part in zip(presets, (x - 0.5).tensor_split(len(presets)), strict=True)
            if len(part)
        ]
        return torch.cat(parts)

    def _one(self, x: Tensor, preset: str, autocast: bool) -> Tensor:
        y: Tensor | float = 0.0 if preset in NO_LINEAR_PATH else self.linear(x)
        if preset in self.networks:
            # outliers beyond the nominal range travel on the linear path alone
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                detail = self.networks[preset](4 * x.clamp(-0.75, 0.75))
            y = y + 4 * detail.float()
        assert isinstance(y, Tensor)
        return y


class HyperAnalysis(nn.Module):
    """Magnitudes of the gained latents [N, M, H, W] to hyper-latents [N, 64, H/4, W/4]."""

    def __init__(self, latents: int, hyper_latents: int, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latents, width, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, width, 5, stride=2, padding=2, groups=width),
            nn.Conv2d(width, width, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(width, width, 5, stride=2, padding=2, groups=width),
            nn.Conv2d(width, hyper_latents, 1),
        )

    def forward(self, q: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.log1p(q.abs()))
        return out


class Synthesis(nn.Module):
    """Dequantised latents and the quality plane to the image, the linear path plus a residual network.

    Input [N, M + 1, H, W]: latents and the quality (0..1) as the last channel; output [N, 3, 16H, 16W].
    The linear path's image is fed back at half and quarter resolution, so that the network can also work as a filter.
    What it adds is scaled by ``strength``, log-linear over quality: errors shrink by a factor of six from the lowest rates
    to the highest, and so must their corrections.
    """

    def __init__(
        self,
        latents: int,
        widths: tuple[int, int, int, int] = (192, 128, 64, 32),
        blocks: tuple[int, int, int, int] = (2, 3, 2, 1),
    ) -> None:
        """``widths`` and residual ``blocks`` at 1/16, 1/8, 1/4 and 1/2 resolution."""
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
        y = latents[:, :-1]
        image: Tensor = self.linear(y)
        scaled = torch.cat([(y * self.input_scale[None, :, None, None]).clamp(-20, 20), latents[:, -1:]], 1)
        filtered = 4 * image.clamp(-0.75, 0.75)
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            x = F.pixel_shuffle(self.level16(scaled), 2)
            x = F.pixel_shuffle(self.level8(x), 2) + self.image4(F.pixel_unshuffle(filtered, 4))
            x = F.pixel_shuffle(self.level4(x), 2) + self.image2(F.pixel_unshuffle(filtered, 2))
            detail = F.pixel_shuffle(self.level2(x), 2)
        return (
            image
            + detail.float() * self.strength_at(latents[:, -1:]).repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
            + 0.5
        )

    def strength_at(self, plane: Tensor) -> Tensor:
        """Factor of the detail for quality planes [N, 1, H, W] of 0..1."""
        knots = torch.arange(KNOTS, device=plane.device, dtype=plane.dtype)[:, None, None]
        weights = (1 - ((KNOTS - 1) * plane - knots).abs()).clamp_min(0)
        return torch.exp((weights * self.strength[:, None, None]).sum(1, keepdim=True)) / 4


class Gains(nn.Module):
    """One positive factor per latent channel, log-linear over seven knots in quality Q = 0..250."""

    def __init__(self, latents: int, start: Tensor) -> None:
        """``start``: log gains at the knots [KNOTS]."""
        super().__init__()
        self.knots = nn.Parameter(start[:, None].repeat(1, latents))

    def forward(self, quality_step: Tensor) -> Tensor:
        """``quality_step`` [N] to gains [N, latents, 1, 1]."""
        position = quality_step[:, None] * ((KNOTS - 1) / 250.0)
        knots = torch.arange(KNOTS, device=quality_step.device, dtype=quality_step.dtype)
        weights = (1 - (position - knots).abs()).clamp_min(0)
        return torch.exp(weights @ self.knots)[:, :, None, None]
