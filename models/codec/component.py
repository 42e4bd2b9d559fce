"""The codec of one spectral component as it is trained: hyper-analysis, hyper-latents, integer prior and centroids.

The transform is fixed (``bitstream.lapped``) and one step size serves all channels, so the latents of a training image are
plain integers, and nothing but their prediction is learned here. Planes of coefficients are [N, H/16, W/16, 256], in
quantisation steps; latents are in half steps. Q is a number from 0 to 250.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream import prior as P
from perigee.bitstream.component_prior import MAGNITUDE_MAX, magnitude_table
from perigee.models.codec.analysis import HyperAnalysis
from perigee.models.codec.codec import LOG2, Z_BANDS, HyperPrior
from perigee.models.codec.prior import PriorLayer, TrainedPrior, round_through

SCALES = 128
CROPS_FILE = "crops.npz"  # of a run: coefficients that the export measures centroids on
SPREAD_MIN = 0.045
SPREADS_PER_OCTAVE = 6
WHOLE_STEP, STEPS_PER_OCTAVE = 26, 16  # the step at Q is 2**((26 - Q) / 16) of the range
BITS_MAX = 40.0  # that one latent can cost: an escape
COMPONENT_PLANE = 16  # the plane of component n is 16 * min(n, 15)
HALF_MAGNITUDES = tuple(round(8 * math.log2(1 + n / 2)) for n in range(P.CONTEXT_CLAMP + 1))  # of latents in half steps
WIDTHS = P.Widths(
    latents=256,
    hyper_latents=32,
    hyper=96,
    context=96,
    head=128,
    slices=(1, 2, 3, 6, 12, 24, 48, 64, 96),
    magnitudes=HALF_MAGNITUDES,
    references=2,
    planes=2,
    scales=SCALES,
)


def step_of(quality_step: Tensor) -> Tensor:
    """Return the step size, as a share of the range, at quality steps 0..250."""
    return torch.exp2((WHOLE_STEP - quality_step) / STEPS_PER_OCTAVE)


def spread_of(index: Tensor) -> Tensor:
    """Return the spread of the logistic distribution, in quantisation steps, for scale indices 0..127."""
    return SPREAD_MIN * torch.exp2(index / SPREADS_PER_OCTAVE)


MAGNITUDE_TABLE = torch.from_numpy(magnitude_table(HALF_MAGNITUDES)).float()
TRELLIS_LEVEL = 0.31  # mean magnitude, in steps, from which latents are coded on a trellis


def magnitude_of(q: Tensor) -> Tensor:
    """Return the magnitudes 0..127 by which the prior sees latents of any size: about 8 * log2(1 + |q|)."""
    return MAGNITUDE_TABLE.to(q.device)[q.detach().abs().clamp_max(MAGNITUDE_MAX).long()]


def quantised(y: Tensor, strength: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """Return latents in half steps for values ``y`` in steps, about as the encoder chooses them.

    Where neighbours are large a trellis decides between whole and half steps; here chance does. Elsewhere latents are whole steps,
    and what stands alone among small neighbours falls to 0: the threshold rises from 0.5 by ``strength`` each time that the mean
    magnitude of the neighbourhood halves below 1.
    """
    size = y.abs()
    around = F.avg_pool2d(size.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False).permute(0, 2, 3, 1)
    local = 0.5 * around + 0.5 * F.avg_pool1d(around.flatten(0, 2)[:, None], 9, 1, 4, count_include_pad=False).view_as(
        y
    )
    dead = (-strength * torch.log2(local + 1e-3)).clamp(0, 0.35)
    whole = torch.where(size < 0.5 + dead, 0.0, torch.round(y))
    odd = (torch.rand(y.shape, generator=generator) < 0.5).float()
    return torch.where(local < TRELLIS_LEVEL, 2 * whole, 2 * torch.round(y - odd / 2) + odd)


class Coded(NamedTuple):
    """What a segment carries of N planes: ``bits_y`` and ``bits_z`` [N]; ``mean`` and ``spread`` [N, H, W, 256] in steps."""

    bits_y: Tensor
    bits_z: Tensor
    mean: Tensor
    spread: Tensor


class ComponentPrior(TrainedPrior):
    """The prior of a component: it sees latents of any size, and the components that were coded before at the same place.

    ``base`` int [251, 256] is added to the scale index; latents enter the context shifted right by ``shifts`` [251, 256], and
    the predicted means are shifted back.
    """

    base: Tensor
    shifts: Tensor

    def __init__(self, widths: P.Widths = WIDTHS) -> None:
        super().__init__(widths)
        self.register_buffer("base", torch.zeros(P.QUALITY_STEPS + 1, widths.latents))
        self.register_buffer("shifts", torch.zeros(P.QUALITY_STEPS + 1, widths.latents))

    # The operations of ``bitstream.prior.Ops`` on tensors [N, H, W, C], which two cores multiply fastest.

    def layer(self, name: str, x: Tensor) -> Tensor:
        """Apply the layer of this name to [N, H, W, I]."""
        module = self.layers[name.replace(".", "_")]
        assert isinstance(module, PriorLayer)
        weight, bias = module.constants(self.quantised)
        if module.shape.depthwise:
            out = F.conv2d(
                x.permute(0, 3, 1, 2), weight, bias, padding=module.shape.kernel // 2, groups=len(bias)
            ).permute(0, 2, 3, 1)
        else:
            out = F.linear(x, weight[:, :, 0, 0], bias)
        return module.limited(out, self.quantised)

    def shuffle(self, x: Tensor) -> Tensor:
        """Rearrange [N, H, W, 4C] to [N, 2H, 2W, C]."""
        n, rows, cols, channels = x.shape
        parts = x.reshape(n, rows, cols, channels // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, 2 * rows, 2 * cols, channels // 4)

    def concat(self, xs: Sequence[Tensor]) -> Tensor:
        """Join tensors along their channels."""
        return torch.cat(list(xs), dim=-1)

    def half(self, x: Tensor, parity: int) -> Tensor:  # type: ignore[override]
        """Return one half of the checkerboard of [N, H, W, C]: [N, H, W/2, C]."""
        a, b = (0, 1) if parity == 0 else (1, 0)
        return torch.cat([x[:, 0::2, a::2], x[:, 1::2, b::2]], dim=1)

    def predict(
        self, z: Tensor, q: Tensor, quality_step: Tensor, component: Tensor, references: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return means in steps and scale indices 0..127, both [N, H, W, latents].

        ``z`` [N, H/4, W/4, hyper_latents] and ``q`` [N, H, W, latents] hold integers; ``quality_step`` and ``component`` are
        int64 [N]; ``references`` [N, 2, H, W, latents] are magnitudes of earlier components.
        """
        n, rows, cols, _ = q.shape
        planes = torch.stack([quality_step, COMPONENT_PLANE * component.clamp_max(15)], 1).float()
        planes = (planes / 2.0**5)[:, None, None].expand(n, rows, cols, 2)
        features = P.hyper_features(self, z * 2.0**-2, planes)
        unit = torch.exp2(self.shifts[quality_step])[:, None, None]
        linear = torch.floor(q / unit).clamp(-P.CONTEXT_CLAMP, P.CONTEXT_CLAMP) * 2.0**-2
        views = torch.stack([linear, magnitude_of(q) * 2.0**-2], 3)
        given = references * 2.0**-2
        even = torch.zeros(1, rows, cols, 1, 1, device=q.device, dtype=q.dtype)
        even[:, 0::2, 0::2] = 1
        even[:, 1::2, 1::2] = 1
        halves = [self.half(features, 0), self.half(features, 1)]
        means, scales = [], []
        for index in range(len(self.widths.slices)):
            outs = []
            for parity in (0, 1):
                k = 2 * index + parity
                start, stop = self.widths.slice_of(k)
                parts = [given[:, 0, ..., start:stop], given[:, 1, ..., start:stop]]
                parts += [views[..., view, :start] for view in (0, 1)]
                if parity:
                    own = views[..., start:stop] * even
                    parts = [*parts[:3], own[..., 0, :], parts[3], own[..., 1, :]]
                outs.append(P.pass_outputs(self, k, halves[parity], torch.cat(parts, -1)))
            rest = rows // 2
            (even_rows, odd_rows), (even_rest, odd_rest) = ((out[:, :rest], out[:, rest:]) for out in outs)
            joined = [torch.stack(pair, 3).flatten(2, 3) for pair in ((even_rows, even_rest), (odd_rest, odd_rows))]
            mean, scale = torch.stack(joined, 2).flatten(1, 2).chunk(2, -1)
            means.append(mean)
            scales.append(scale)
        scale_index: Tensor = 20 + 8 * torch.cat(scales, -1)
        if self.quantised:
            scale_index = round_through(scale_index)
        scale_index = scale_index + self.base[quality_step][:, None, None]
        return torch.cat(means, -1) * unit, F.hardtanh(scale_index, 0, SCALES - 1)


class ComponentCodec(nn.Module):
    """All trained parts that the rate of a component depends on."""

    order: Tensor

    def __init__(self, widths: P.Widths = WIDTHS) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(widths.latents))
        self.hyper = HyperAnalysis(widths.latents, widths.hyper_latents)
        self.hyper_prior = HyperPrior(widths.hyper_latents)
        self.prior = ComponentPrior(widths)
        self.narrowing = nn.Parameter(torch.zeros(widths.latents))

    def forward(
        self, y: Tensor, q: Tensor, quality_step: Tensor, component: Tensor, references: Tensor, noise: bool = True
    ) -> Coded:
        """Return the cost and the prediction of planes of coefficients ``y``, in steps, whose latents are ``q``, in half steps."""
        z = self.hyper(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        z_hat = z + (torch.round(z).clamp(-P.Z_CLAMP, P.Z_CLAMP) - z).detach()
        mean, index = self.prior.predict(z_hat, q, quality_step, component, references)
        spread = spread_of(index)
        distance = (q / 2 - mean).abs()
        # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), which keeps its tails in float32
        log_p = F.logsigmoid((0.5 - distance) / spread) + F.logsigmoid((0.5 + distance) / spread)
        log_p = log_p + torch.log(-torch.expm1(-1 / spread))
        bits_y = -log_p.clamp_min(-BITS_MAX * LOG2).flatten(1).sum(1) / LOG2
        bands = torch.div(quality_step * Z_BANDS, P.QUALITY_STEPS + 1, rounding_mode="floor")
        rated = z + torch.rand_like(z) - 0.5 if noise else z_hat
        bits_z = -torch.log(self.hyper_prior.likelihood(rated.permute(0, 3, 1, 2), bands)).flatten(1).sum(1) / LOG2
        return Coded(bits_y, bits_z, mean, spread)

    def reconstructed(self, q: Tensor, mean: Tensor, spread: Tensor, narrow: bool = True) -> Tensor:
        """Return the centroid of the predicted distribution in the cell of each latent ``q``, in half steps; all else in steps."""
        width = 1 / (spread * torch.exp(self.narrowing) if narrow else spread)
        distance = q / 2 - mean
        near = ((distance.abs() - 0.5) * width).clamp_max(8.0)
        far = near + width
        part = F.softplus(-near) - F.softplus(-far) + near * torch.sigmoid(-near) - far * torch.sigmoid(-far)
        inside = part / (torch.sigmoid(-near) - torch.sigmoid(-far)).clamp_min(1e-6) - near
        return q / 2 + torch.where(spread > 8.0, 0.0, torch.sign(distance) * (inside / width - 0.5))


def references_of(q: Tensor) -> Tensor:
    """Return the views [N, 2, H, W, latents] of earlier components for the N components ``q`` of one patch.

    The first view is the largest magnitude of all earlier components, the second that of the component before.
    """
    magnitudes = magnitude_of(q)
    before = torch.cat([torch.zeros_like(magnitudes[:1]), magnitudes[:-1]])
    return torch.stack([before.cummax(0).values, before], 1)


def tables_from(amplitudes: np.ndarray, levels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return ``base`` and ``shifts`` of a prior from what latents do, by Q.

    ``levels`` [251, latents] are typical magnitudes and ``amplitudes`` [251, latents] large ones, in steps.
    """
    spread = np.maximum(levels / (2 * math.log(2)), SPREAD_MIN)
    base = np.rint(SPREADS_PER_OCTAVE * np.log2(spread / SPREAD_MIN)) - 20
    shifts = np.maximum(np.ceil(np.log2(np.maximum(amplitudes, 1) / 100)), 0)
    return torch.from_numpy(base).float(), torch.from_numpy(shifts).float()
