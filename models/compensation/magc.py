"""MAGC at its published size, to count it and to train it where there are GPUs for weeks; it has no trained weights here.

On board a VAE's encoder, a codec for its latents and a reader of the map (142.5 G multiply-adds a tile); on the ground 50 steps of a diffusion that
sees the decoded latents and, by an adapter, the map (5.4 T). Ye et al. 2024, section III; where the paper and the authors' code differ, the
code counts, except that latents are the VAE's mean and not a random sample, so that the bits depend on the image alone.

What the project trains and ships is another, small network (``map_guide``). A map is a picture or planes [N, M, 256, 256].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.errors import CompensationError, Fault
from perigee.models.codec.reference import rounded
from perigee.models.compensation.latent import CHANNELS
from perigee.models.compensation.paper import stable_diffusion
from perigee.models.enhancement.network import ChannelNorm

WIDTH, LATENTS, MAP_WIDTH = 128, 64, 192
SLICES = 8  # of the latents, each predicted from those before
CONTEXT = (128, 64, 32, 16)  # channels of a slice's networks, before the slice itself
STEPS = 50  # of 1,000, on the ground
MAP_PICTURE = 3  # the published maps are RGB pictures
SLOPE = 0.1


class _Unit(nn.Module):
    """RB: twice a convolution, a norm over channels and an activation, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = (nn.Conv2d(width, width, 3, padding=1), ChannelNorm(width), nn.LeakyReLU(SLOPE))
        again = (nn.Conv2d(width, width, 3, padding=1), ChannelNorm(width), nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers, *again)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class MapNorm(nn.Module):
    """SPADE (Park et al. 2019): features without mean and deviation, scaled and shifted by what they and the map say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.shared = nn.Sequential(nn.Conv2d(width + MAP_WIDTH, width, 3, padding=1), nn.LeakyReLU(SLOPE))
        self.scale, self.shift = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x`` [N, width, h, w]; ``seen`` [N, MAP_WIDTH, h, w] are the map's features."""
        both = self.shared(torch.cat([x, seen], 1))
        out: Tensor = (1 + self.scale(both)) * self.norm(x) + self.shift(both)
        return out


class _MapUnit(nn.Module):
    """SPADE-RB: as ``_Unit``, with map norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(MapNorm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(F.leaky_relu(norm(out, seen), SLOPE))
        return x + out


class MapReader(nn.Module):
    """The codec's map features at 1/8, 1/16 and 1/32 of the image's resolution, without activations, as in the authors' code."""

    def __init__(self, planes: int = MAP_PICTURE) -> None:
        super().__init__()
        sizes = ((64, WIDTH), (WIDTH, MAP_WIDTH), (MAP_WIDTH, MAP_WIDTH))
        near = (nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in sizes)
        self.enter = nn.Sequential(nn.Conv2d(planes, 64, 5, padding=2), *near)
        self.further = nn.ModuleList(nn.Conv2d(MAP_WIDTH, MAP_WIDTH, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, drawn: Tensor) -> list[Tensor]:
        """Return features [N, MAP_WIDTH, h, w] of a map [N, planes, H, W], finest first."""
        out = [self.enter(drawn)]
        for layer in self.further:
            out.append(layer(out[-1]))
        return out


class Coded(NamedTuple):
    """What the codec would send: latents and hyper-latents, rounded, and the mean and scale of each latent."""

    y: Tensor
    z: Tensor
    mean: Tensor
    scale: Tensor


class LatentCompression(nn.Module):
    """LCM: codes a VAE's latents [N, 4, 32, 32] to [N, 64, 8, 8] with a map on both sides, and predicts these slice by slice."""

    def __init__(self, planes: int = MAP_PICTURE) -> None:
        super().__init__()
        self.maps = MapReader(planes)
        self.enter, self.leave = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, LATENTS, 3, padding=1)
        self.analysis = nn.ModuleList(nn.Sequential(_Unit(WIDTH), _Unit(WIDTH)) for _ in range(3))
        self.analysis_maps = nn.ModuleList(_MapUnit(WIDTH) for _ in range(3))
        self.down = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1) for _ in range(2))
        self.return_enter, self.return_leave = (
            nn.Conv2d(LATENTS, WIDTH, 3, padding=1),
            nn.Conv2d(WIDTH, CHANNELS, 3, padding=1),
        )
        self.synthesis = nn.ModuleList(nn.Sequential(_Unit(WIDTH), _Unit(WIDTH)) for _ in range(3))
        self.synthesis_maps = nn.ModuleList(_MapUnit(WIDTH) for _ in range(3))
        self.up = nn.ModuleList(nn.Conv2d(WIDTH, 4 * WIDTH, 1) for _ in range(2))
        self.hyper_analysis = nn.Sequential(
            nn.Conv2d(LATENTS, LATENTS, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(LATENTS, LATENTS, 3, stride=2, padding=1),
        )
        self.hyper_synthesis = nn.Sequential(
            nn.Conv2d(LATENTS, 4 * LATENTS, 1),
            nn.PixelShuffle(2),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(LATENTS, 2 * LATENTS, 3, padding=1),
        )
        each = LATENTS // SLICES
        self.means = nn.ModuleList(_slice_network(LATENTS + each * i, each) for i in range(SLICES))
        self.scales = nn.ModuleList(_slice_network(LATENTS + each * i, each) for i in range(SLICES))

    def encode(self, latents: Tensor, drawn: Tensor) -> Coded:
        """Return what would be sent of latents [N, 4, H/8, W/8] with a map [N, planes, H, W]."""
        x, seen = self.enter(latents), self.maps(drawn)
        for i, (units, mapped) in enumerate(zip(self.analysis, self.analysis_maps, strict=True)):
            x = mapped(units(x if i == 0 else self.down[i - 1](x)), seen[i])
        y = self.leave(x)
        z = rounded(self.hyper_analysis(y))
        hyper_mean, hyper_scale = self.hyper_synthesis(z).chunk(2, 1)
        done: list[Tensor] = []
        means, scales = [], []
        for part, mean_of, scale_of in zip(y.chunk(SLICES, 1), self.means, self.scales, strict=True):
            mean, scale = mean_of(torch.cat([hyper_mean, *done], 1)), scale_of(torch.cat([hyper_scale, *done], 1))
            done.append(rounded(part - mean) + mean)
            means.append(mean)
            scales.append(F.softplus(scale))
        return Coded(torch.cat(done, 1), z, torch.cat(means, 1), torch.cat(scales, 1))

    def decode(self, y: Tensor, drawn: Tensor) -> Tensor:
        """Return the latents [N, 4, H/8, W/8] that a decoder has."""
        x, seen = self.return_enter(y), self.maps(drawn)
        for i, (units, mapped) in enumerate(zip(self.synthesis, self.synthesis_maps, strict=True)):
            x = mapped(units(x if i == 0 else F.pixel_shuffle(self.up[i - 1](x), 2)), seen[2 - i])
        out: Tensor = self.return_leave(x)
        return out


def _slice_network(inputs: int, outputs: int) -> nn.Sequential:
    """Five convolutions that predict the means or the scales of a slice."""
    sizes = (inputs, *CONTEXT)
    layers = [
        m for a, b in zip(sizes, CONTEXT, strict=False) for m in (nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(SLOPE))
    ]
    return nn.Sequential(*layers, nn.Conv2d(CONTEXT[-1], outputs, 3, padding=1))


class _WideUnit(nn.Module):
    """The adapter's block: two convolutions beside the identity, or beside a 1x1 where the width changes."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.same = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.same(x) + self.layers(x)
        return out


class SemanticAdapter(nn.Module):
    """SAM: what a map and the noisy latents add to each level of the U-Net, by a T2I-adapter (Mou et al. 2023)."""

    def __init__(self, widths: tuple[int, ...], planes: int = MAP_PICTURE) -> None:
        super().__init__()
        sizes = ((64, 128), (128, MAP_WIDTH))
        further = (m for a, b in sizes for m in (nn.GELU(), nn.Conv2d(a, b, 3, stride=2, padding=1)))
        self.maps = nn.Sequential(nn.Conv2d(planes, 64, 5, stride=2, padding=2), *further)
        self.levels = nn.ModuleList([_WideUnit(MAP_WIDTH + CHANNELS, widths[0])])
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            down = nn.Conv2d(a, b, 3, stride=2, padding=1)
            self.levels.append(nn.Sequential(down, _WideUnit(b, b), _WideUnit(b, b)))

    def forward(self, drawn: Tensor, noisy: Tensor) -> list[Tensor]:
        """Return what is added to each level, finest first."""
        x, out = torch.cat([self.maps(drawn), noisy], 1), []
        for level in self.levels:
            x = level(x)
            out.append(x)
        return out


class Magc(nn.Module):
    """All of MAGC: the VAE of Stable Diffusion, the codec of its latents, the adapter, and the U-Net with four further inputs."""

    def __init__(self, vae: Any, unet: Any, planes: int = MAP_PICTURE) -> None:
        """``vae`` and ``unet`` are those of diffusers; the U-Net's first layer is widened, by zeros, for the decoded latents."""
        super().__init__()
        self.vae, self.unet = vae, unet
        self.unet.conv_in = _widened(unet.conv_in)
        self.codec = LatentCompression(planes)
        self.adapter = SemanticAdapter(tuple(unet.config.block_out_channels), planes)

    def latents(self, image: Tensor) -> Tensor:
        """Return the VAE's latents [N, 4, H/8, W/8] of images [N, 3, H, W] in 0..1."""
        out: Tensor = self.vae.encode(2 * image - 1).latent_dist.mean * self.vae.config.scaling_factor
        return out

    def encode(self, image: Tensor, drawn: Tensor) -> Coded:
        """Return what the satellite would send."""
        return self.codec.encode(self.latents(image), drawn)

    def denoise(self, noisy: Tensor, step: Tensor, decoded: Tensor, drawn: Tensor, prompt: Tensor) -> Tensor:
        """Return the noise in ``noisy`` [N, 4, H/8, W/8] at diffusion steps [N]; ``prompt`` is the empty prompt, [N, 77, width of attention]."""
        added = self.adapter(drawn, noisy)
        out: Tensor = self.unet(
            torch.cat([noisy, decoded], 1), step, prompt, down_intrablock_additional_residuals=added, return_dict=False
        )[0]
        return out

    def image(self, latents: Tensor) -> Tensor:
        """Return the image in 0..1 of denoised latents."""
        out: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor).sample / 2 + 0.5
        return out


def _widened(first: nn.Conv2d) -> nn.Conv2d:
    """The U-Net's first layer with as many inputs again, whose weights are zero."""
    if first.in_channels != CHANNELS:
        raise CompensationError(
            f"the U-Net has {first.in_channels} inputs, expected {CHANNELS}",
            Fault.SHAPE,
            field="in_channels",
            expected=CHANNELS,
        )
    wide = nn.Conv2d(2 * CHANNELS, first.out_channels, 3, padding=1, device=first.weight.device)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, :CHANNELS] = first.weight
        if first.bias is not None and wide.bias is not None:
            wide.bias.copy_(first.bias)
    return wide


def magc_from(folder: Path, planes: int = MAP_PICTURE) -> Magc:
    """Return MAGC with the weights of Stable Diffusion in a local folder and random ones beside them.

    Raises CompensationError where the folder has no weights that fit, and ModuleNotFoundError without diffusers.
    """
    return Magc(*stable_diffusion(folder), planes)
