"""The networks on board: the analyses and the hyper-analysis.

``y = T(x) + g_a(x)``: the linear block transform plus what a network adds. The last layer of each network starts near zero,
so that training starts from a working transform codec. ``swift`` is the linear path alone; ``lite`` and ``light`` add
space-to-depth stages of residual depthwise blocks. The analyses of one codec share everything else, so that one prior and one
synthesis on the ground serve whichever analysis flies.
Images are RGB in 0..1, [N, 3, H, W] with H and W multiples of 64; latents are [N, M, H/16, W/16].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.models.codec.reference import CamForm, CosmicAnalysis, LightConvBlock
from perigee.models.codec.transform import BlockTransform
from perigee.models.layers import start_small

Stages = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# channels and residual blocks of each analysis' stages at 1/4, 1/8 and 1/16 resolution; None where there is no network
ANALYSIS_STAGES: dict[str, Stages | None] = {
    "swift": None,
    "lite": ((64, 1), (96, 2), (160, 2)),
    "light": ((96, 2), (128, 4), (192, 4)),
}
# COSMIC's encoder with N = 96, without and with CAM: in place of the linear path, as published, and beside it, as our networks
COSMIC_CHANNELS = 96
COSMIC_CAM: dict[str, CamForm | None] = {
    "cosmic": None,
    "cosmic-cam": "depthwise",
    "cosmic-linear": None,
    "cosmic-cam-linear": "depthwise",
}
NO_LINEAR_PATH = {"cosmic", "cosmic-cam"}
ANALYSES = (*ANALYSIS_STAGES, *COSMIC_CAM)


class LightBlock(nn.Module):
    """``x + conv1x1(leaky_relu(conv1x1(depthwise5x5(x)), 0.1))`` on tensors [N, channels, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.point1 = nn.Conv2d(channels, channels, 1)
        self.point2 = start_small(nn.Conv2d(channels, channels, 1), 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        out: Tensor = x + self.point2(F.leaky_relu(self.point1(self.depth(x)), 0.1))
        return out


class ResidualAnalysis(nn.Module):
    """The network g_a of ``lite`` and ``light``: a depthwise stem, then stages at 1/4, 1/8 and 1/16 resolution."""

    def __init__(self, stages: Stages, latents: int) -> None:
        """``stages`` holds the channels and the number of :class:`LightBlock` of each stage."""
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
        """Map scaled images [N, 3, H, W] to what is added to the latents, [N, latents, H/16, W/16]."""
        out: Tensor = self.layers(x)
        return out


class Analysis(nn.Module):
    """The analyses of one codec: from the image to the latents before the gain.

    The linear path is computed in float32, the network of an analysis in bfloat16 where training asks for it. The analyses
    ``cosmic`` and ``cosmic-cam``, which the project's own are compared with, have no linear path.
    """

    def __init__(self, names: Sequence[str], latents: int) -> None:
        """``names`` are the analyses to build, out of :data:`ANALYSES`."""
        super().__init__()
        self.names = tuple(names)
        self.linear = BlockTransform(latents)
        self.networks = nn.ModuleDict()
        for name in names:
            stages = ANALYSIS_STAGES.get(name)
            if name in COSMIC_CAM:
                network = CosmicAnalysis(COSMIC_CHANNELS, latents, COSMIC_CAM[name])
                last = network[-1]
                if name not in NO_LINEAR_PATH and isinstance(last, LightConvBlock):
                    start_small(last.point, 0.003)
                self.networks[name] = network
            elif stages is not None:
                self.networks[name] = ResidualAnalysis(stages, latents)

    def forward(self, x: Tensor, name: str | None = None, autocast: bool = False) -> Tensor:
        """Return the latents [N, latents, H/16, W/16] of images [N, 3, H, W] in 0..1.

        ``name`` chooses the analysis. With None the batch is divided into as many parts as there are analyses, and each
        analysis transforms one part. ``autocast`` runs the networks in bfloat16.
        """
        names = self.names if name is None else (name,)
        parts = [
            self._one(part, one, autocast)
            for one, part in zip(names, (x - 0.5).tensor_split(len(names)), strict=True)
            if len(part)
        ]
        return torch.cat(parts)

    def _one(self, x: Tensor, name: str, autocast: bool) -> Tensor:
        """Transform images [N, 3, H, W] in -0.5..0.5 with one analysis."""
        y: Tensor | float = 0.0 if name in NO_LINEAR_PATH else self.linear(x)
        if name in self.networks:
            # outliers beyond the nominal range travel on the linear path alone
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                detail = self.networks[name](4 * x.clamp(-0.75, 0.75))
            y = y + 4 * detail.float()
        assert isinstance(y, Tensor)
        return y


class HyperAnalysis(nn.Module):
    """The network from the magnitudes of the latents to the hyper-latents."""

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
        """Map gained latents [N, latents, H, W] to hyper-latents [N, hyper_latents, H/4, W/4], not rounded yet."""
        out: Tensor = self.layers(torch.log1p(q.abs()))
        return out
