"""The published encoders that Perigee's analyses are compared with: COSMIC (``paper``) and ELIC (``elic``).

They are trainable modules, and ``perigee.benchmarks.flops`` counts their multiply-adds. COSMIC has published no code: what
its paper leaves open is a parameter here, and every docstring says which part is our interpretation. Images are [N, 3, H, W]
with H and W multiples of 64, latents [N, M, H/16, W/16], hyper-latents [N, N_h, H/64, W/64].

Sources: COSMIC, NeurIPS 2024 (encoder: text and figure of its compression module); GDN: Ballé et al., ICLR 2016; CAM's
form ``ghost``: GhostNetV2, NeurIPS 2022; mean-scale hyper-prior: Minnen et al., NeurIPS 2018; ELIC, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CamForm = Literal["depthwise", "ghost", "full"]
REFERENCES = ("paper", "elic")
CHANNELS, LATENTS = 192, 320  # N and M; COSMIC states only N, ELIC both
ELIC_GROUPS = (16, 16, 32, 64, 192)


def conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    """Return a convolution with 'same' padding."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def chain(activation: type[nn.Module], *layers: nn.Module) -> nn.Sequential:
    """Return the layers in sequence with an activation between each two of them."""
    between = [part for layer in layers for part in (layer, activation())]
    return nn.Sequential(*between[:-1])


def deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Return a transposed 5x5 convolution that doubles height and width."""
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)


def rounded(x: Tensor) -> Tensor:
    """Round to the nearest integer with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


class GDN(nn.Module):
    """Generalised divisive normalisation of [N, C, H, W] (Ballé et al. 2016): ``x * rsqrt(beta + gamma x^2)``.

    ``gamma`` is a 1x1 convolution over the squared channels. ``beta`` and ``gamma`` are the softplus of trained values: they
    are never negative and, unlike with a clamp, always have a gradient.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        gamma = torch.full((channels, channels), 1e-4) + 0.1 * torch.eye(channels)
        self.raw_beta = nn.Parameter(torch.ones(channels).expm1().log())
        self.raw_gamma = nn.Parameter(gamma.expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        beta = F.softplus(self.raw_beta) + 1e-6
        gamma = F.softplus(self.raw_gamma)[:, :, None, None]
        return x * torch.rsqrt(F.conv2d(x * x, gamma, beta))


class LightConvBlock(nn.Module):
    """COSMIC's light convolution block (LCB): [N, in, H, W] to [N, out, H/stride, W/stride].

    A depthwise 5x5 convolution with the stride is followed by a 1x1 convolution to half of the outputs; a cheap map of those
    gives the other half. The paper does not state the kernel of the cheap map: depthwise 3x3 as in GhostNet is our
    interpretation. It mentions neither normalisation nor activation inside, and there is none here.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Raises ValueError for an odd number of outputs."""
        super().__init__()
        if outputs % 2:
            raise ValueError(f"an LCB makes its outputs in two halves: {outputs} is odd, expected an even number")
        self.depth = nn.Conv2d(inputs, inputs, 5, stride=stride, padding=2, groups=inputs)
        self.point = nn.Conv2d(inputs, outputs // 2, 1)
        self.cheap = nn.Conv2d(outputs // 2, outputs // 2, 3, padding=1, groups=outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, out, H/stride, W/stride]."""
        half = self.point(self.depth(x))
        return torch.cat([half, self.cheap(half)], 1)


class CrossAttention(nn.Module):
    """COSMIC's cross attention (CAM): a local branch (LCB with stride 1) times the sigmoid of a global map.

    The shape [N, C, H, W] stays the same. The paper describes the local branch and "a horizontal, then a vertical 1-D
    convolution" after GhostNetV2. It does not state pooling, the 1x1 convolution, the kernel length, whether the kernels are
    depthwise or full, the sigmoid, or the product. There are three interpretations:

    * ``depthwise`` (the default): depthwise 1x5 and 5x1 at full resolution; the encoder takes 1.08 G multiply-adds at
      256x256.
    * ``ghost``: GhostNetV2's code without its normalisation, that is 2x2 average pooling, 1x1, depthwise 1x5 and 5x1,
      sigmoid, and nearest-neighbour upsampling; 1.12 G.
    * ``full``: full 1x7 and 7x1 convolutions; 3.71 G, which with a mean-scale hyper-prior meets COSMIC's 4.9 G.
    """

    def __init__(self, channels: int, form: CamForm = "depthwise") -> None:
        super().__init__()
        groups, length = (1, 7) if form == "full" else (channels, 5)
        self.local = LightConvBlock(channels, channels)
        self.mix = nn.Conv2d(channels, channels, 1) if form == "ghost" else None
        self.horizontal = nn.Conv2d(channels, channels, (1, length), padding=(0, length // 2), groups=groups)
        self.vertical = nn.Conv2d(channels, channels, (length, 1), padding=(length // 2, 0), groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        seen = x if self.mix is None else self.mix(F.avg_pool2d(x, 2))
        weight = torch.sigmoid(self.vertical(self.horizontal(seen)))
        if self.mix is not None:
            weight = F.interpolate(weight, scale_factor=2, mode="nearest")
        out: Tensor = self.local(x) * weight
        return out


class CosmicAnalysis(nn.Sequential):
    """COSMIC's encoder E: images [N, 3, H, W] to latents [N, M, H/16, W/16].

    It has four LCB, three GDN, and a CAM in front of the second and the third GDN, which is our interpretation of the
    paper's figure. ``cam=None`` leaves CAM out. The paper does not state M; 320 is our assumption.
    """

    def __init__(self, channels: int = CHANNELS, latents: int = LATENTS, cam: CamForm | None = "depthwise") -> None:
        layers: list[nn.Module] = [LightConvBlock(3, channels, 2), GDN(channels)]
        for _ in range(2):
            layers.append(LightConvBlock(channels, channels, 2))
            if cam is not None:
                layers.append(CrossAttention(channels, cam))
            layers.append(GDN(channels))
        super().__init__(*layers, LightConvBlock(channels, latents, 2))


class Statistics(NamedTuple):
    """What an entropy model computes from latents y: hyper-latents z, and means and unbounded scales of the shape of y."""

    z: Tensor
    mean: Tensor
    scale: Tensor


class MeanScaleHyper(nn.Module):
    """The mean-scale hyper-prior (Minnen et al. 2018) that COSMIC's entropy model is counted as.

    It predicts a mean and a scale for each latent, without context. The layers are as commonly built: the hyper-analysis has
    channels M-N-N-N, the hyper-synthesis N-M-1.5M-2M; layers without a stride have 3x3 kernels.
    """

    def __init__(self, channels: int = CHANNELS, latents: int = LATENTS) -> None:
        super().__init__()
        n, m = channels, latents
        wide = m * 3 // 2
        self.hyper_analysis = chain(nn.LeakyReLU, conv(m, n, 3, 1), conv(n, n), conv(n, n))
        self.hyper_synthesis = chain(nn.LeakyReLU, deconv(n, m), deconv(m, wide), conv(wide, 2 * m, 3, 1))

    def forward(self, y: Tensor) -> Statistics:
        """Return the statistics of latents ``y`` [N, M, H, W]."""
        z = rounded(self.hyper_analysis(y))
        return Statistics(z, *self.hyper_synthesis(z).chunk(2, 1))


class BottleneckBlock(nn.Module):
    """ELIC's residual block: ``x + 1x1(relu(3x3(relu(1x1(x)))))`` with half the channels inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.layers = chain(nn.ReLU, conv(channels, half, 1, 1), conv(half, half, 3, 1), conv(half, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        out: Tensor = x + self.layers(x)
        return out


def bottlenecks(channels: int) -> list[nn.Module]:
    """Return three residual blocks, which ELIC always uses in a row."""
    return [BottleneckBlock(channels) for _ in range(3)]


class AttentionBlock(nn.Module):
    """ELIC's attention block: ``x + trunk(x) * sigmoid(mask(x))``.

    Both branches consist of three residual blocks; the mask ends in a 1x1 convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*bottlenecks(channels))
        self.mask = nn.Sequential(*bottlenecks(channels), conv(channels, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        out: Tensor = x + self.trunk(x) * torch.sigmoid(self.mask(x))
        return out


class ElicAnalysis(nn.Sequential):
    """ELIC's analysis g_a: images [N, 3, H, W] to latents [N, M, H/16, W/16].

    It consists of 5x5 convolutions of stride 2, residual blocks and two attention blocks, and takes 16.7 G multiply-adds at
    256x256.
    """

    def __init__(self, channels: int = CHANNELS, latents: int = LATENTS) -> None:
        n, m = channels, latents
        super().__init__(
            *(conv(3, n), *bottlenecks(n), conv(n, n), *bottlenecks(n), AttentionBlock(n)),
            *(conv(n, n), *bottlenecks(n), conv(n, m), AttentionBlock(m)),
        )


class ElicEntropy(nn.Module):
    """ELIC's entropy networks: hyper-prior, channel context g_ch over uneven groups, and checkerboard context g_sp.

    :meth:`forward` does what an encoder does, group by group: it predicts the anchors from the hyper-prior and the channel
    context, and then the other positions with g_sp of the decoded anchors as well. As in the open re-implementation, the
    aggregation runs twice over all positions and g_ch sees the first and the previous group; with ``all_previous`` it sees
    all earlier groups, as in the paper.
    """

    def __init__(
        self,
        channels: int = CHANNELS,
        latents: int = LATENTS,
        groups: Sequence[int] = ELIC_GROUPS,
        all_previous: bool = False,
    ) -> None:
        """``groups`` are the channels of each group. Raises ValueError where they do not add up to ``latents``."""
        super().__init__()
        n, m = channels, latents
        if sum(groups) != m:
            raise ValueError(f"groups {tuple(groups)} hold {sum(groups)} channels, expected {m}")
        self.groups, self.all_previous = tuple(groups), all_previous
        wide = n * 3 // 2
        self.hyper_analysis = chain(nn.ReLU, conv(m, n, 3, 1), conv(n, n), conv(n, n))
        self.hyper_synthesis = chain(nn.ReLU, deconv(n, n), deconv(n, wide), conv(wide, 2 * m, 3, 1))
        self.channel, self.spatial, self.aggregation = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for k, g in enumerate(self.groups):
            if k:
                seen = sum(self.groups[i] for i in self.context_groups(k))
                net = chain(nn.ReLU, conv(seen, 224, 5, 1), conv(224, 128, 5, 1), conv(128, 2 * g, 5, 1))
                self.channel.append(net)
            self.spatial.append(conv(g, 2 * g, 5, 1))
            given = 2 * m + (4 if k else 2) * g
            net = chain(nn.ReLU, conv(given, 640, 1, 1), conv(640, 512, 1, 1), conv(512, 2 * g, 1, 1))
            self.aggregation.append(net)

    def context_groups(self, k: int) -> list[int]:
        """Return the numbers of the earlier groups that the channel context of group ``k`` looks at."""
        return list(range(k)) if self.all_previous else sorted({0, k - 1})

    def forward(self, y: Tensor) -> Statistics:
        """Return the statistics of latents ``y`` [N, M, H, W], H and W multiples of 4."""
        z = rounded(self.hyper_analysis(y))
        hyper = self.hyper_synthesis(z)
        rows, cols = (torch.arange(size, device=y.device) for size in y.shape[2:])
        anchors = (rows[:, None] + cols) % 2 == 0
        decoded: list[Tensor] = []
        outputs: list[Tensor] = []
        for k, part in enumerate(torch.split(y, list(self.groups), 1)):
            given = [hyper]
            if k:
                given.append(self.channel[k - 1](torch.cat([decoded[i] for i in self.context_groups(k)], 1)))
            first = self.aggregation[k](torch.cat([*given, torch.zeros_like(part).repeat(1, 2, 1, 1)], 1))
            # Only anchors go in and only the other positions are read, which equals masking the kernel's other taps.
            seen = self.spatial[k](around_mean(part, first) * anchors)
            outputs.append(torch.where(anchors, first, self.aggregation[k](torch.cat([*given, seen], 1))))
            decoded.append(around_mean(part, outputs[k]))
        means, scales = zip(*(out.chunk(2, 1) for out in outputs), strict=True)
        return Statistics(z, torch.cat(means, 1), torch.cat(scales, 1))


def around_mean(y: Tensor, output: Tensor) -> Tensor:
    """Quantise ``y`` around the mean, which is the first half of the channels of an aggregation's ``output``."""
    mean = output.chunk(2, 1)[0]
    return mean + rounded(y - mean)


def reference_analysis(
    name: str, channels: int = CHANNELS, latents: int = LATENTS, cam: CamForm | None = "depthwise"
) -> nn.Module:
    """Return the published analysis ``paper`` or ``elic``; only ``paper`` uses ``cam``.

    Raises ValueError for another name.
    """
    if name == "paper":
        return CosmicAnalysis(channels, latents, cam)
    if name == "elic":
        return ElicAnalysis(channels, latents)
    raise ValueError(f"no reference analysis {name!r}: expected one of {', '.join(REFERENCES)}")
