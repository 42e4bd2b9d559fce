"""The integer prior as it is trained: the structure of ``bitstream.prior`` in PyTorch, with simulated quantisation.

Real values stand for integers times 2**-fraction (see ``LayerShape``): activations are multiples of 1/32 up to 255/32, means
and scales multiples of 1/16. With ``quantised=False`` weights and activations are real numbers inside the same limits. With
``quantised=True`` they pass through the exact integer arithmetic with straight-through gradients, so that training sees the
prior that flies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream import prior as P

# The logarithm of the magnitudes around a latent predicts its own magnitude.
MAGNITUDES = tuple(round(8 * math.log2(1 + n)) for n in range(P.CONTEXT_CLAMP + 1))
PRIORS = {
    "small": P.Widths(),
    "large": P.Widths(context=128, head=192, slices=(3, 5, 8, 24, 40, 48, 64, 96, 160), magnitudes=MAGNITUDES),
}


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest integer, halves up, with the gradient of the identity."""
    return x + (torch.floor(x + 0.5) - x).detach()


class PriorLayer(nn.Module):
    """One layer of the prior: real weights [O, I, K, K] and biases [O], and the rule by which they become integers.

    ``gain`` scales the random start of the weights.
    """

    def __init__(self, shape: P.LayerShape, gain: float = 1.0) -> None:
        super().__init__()
        self.shape = shape
        fan_in = (1 if shape.depthwise else shape.inputs) * shape.kernel**2
        self.weight = nn.Parameter(torch.randn(shape.weight_shape) * gain * (2.0 / fan_in) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(shape.outputs))
        if shape.depthwise:
            with torch.no_grad():
                self.weight.mul_(0.3)
                self.weight[:, 0, shape.kernel // 2, shape.kernel // 2] += 0.7

    def weight_bits(self) -> Tensor:
        """Return the exponents k [O]: the weights of an output channel are integers times 2**-k.

        Each k is as large as int8 weights and the legal shifts allow.
        """
        peak = self.weight.detach().abs().amax(dim=(1, 2, 3)).clamp_min(1e-6)
        bits = torch.floor(torch.log2(127.0 / peak))
        offset = self.shape.input_fraction - self.shape.output_fraction
        return bits.clamp(-offset, P.SHIFT_MAX - offset)

    def constants(self, quantised: bool) -> tuple[Tensor, Tensor]:
        """Return weights and biases, as whole numbers of their units where ``quantised``."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if quantised:
            weight_unit = torch.exp2(-self.weight_bits())
            whole = round_through(weight / weight_unit[:, None, None, None]).clamp(-127, 127)
            weight = whole * weight_unit[:, None, None, None]
            bias_unit = weight_unit * 2.0**-self.shape.input_fraction
            bias = round_through(bias / bias_unit) * bias_unit
        return weight, bias

    def limited(self, out: Tensor, quantised: bool) -> Tensor:
        """Return the sums of a layer as its outputs: rounded where ``quantised``, and within the limits."""
        s = self.shape
        whole_per_one = 2.0**s.output_fraction
        low, high = (P.OUTPUT_MIN, P.OUTPUT_MAX) if s.final else (0, P.ACTIVATION_MAX)
        if quantised:
            out = round_through(out * whole_per_one) / whole_per_one
        return F.hardtanh(out, low / whole_per_one, high / whole_per_one)

    def forward(self, x: Tensor, quantised: bool) -> Tensor:
        """Map activations [N, I, H, W] to [N, O, H, W], in integer arithmetic where ``quantised``."""
        weight, bias = self.constants(quantised)
        groups = self.shape.inputs if self.shape.depthwise else 1
        return self.limited(F.conv2d(x, weight, bias, padding=self.shape.kernel // 2, groups=groups), quantised)

    def to_integers(self) -> P.Layer:
        """Return the layer in integers, as it flies.

        A channel whose accumulator could reach 2**24 loses bits of its weights until it cannot.
        """
        s = self.shape
        weight = self.weight.detach().double().cpu().numpy()
        bias = self.bias.detach().double().cpu().numpy()
        bits = self.weight_bits().cpu().numpy().astype(np.int64)
        offset = s.input_fraction - s.output_fraction
        while True:
            layer = P.Layer(
                np.clip(np.floor(weight * np.exp2(bits)[:, None, None, None] + 0.5), -127, 127).astype(np.int8),
                np.floor(bias * np.exp2(bits + s.input_fraction) + 0.5).astype(np.int32),
                (bits + offset).astype(np.uint8),
            )
            too_large = P.accumulator_bounds(s, layer) >= P.ACCUMULATOR_LIMIT
            if not too_large.any():
                return layer
            bits = bits - too_large


class TrainedPrior(nn.Module):
    """Predicts a mean (in quantisation steps) and a continuous scale index for every latent.

    It implements the operations of ``bitstream.prior.Ops``, so that training, reference and export share one description of
    the network.
    """

    def __init__(self, widths: P.Widths) -> None:
        super().__init__()
        self.widths = widths
        shapes = P.layer_shapes(widths)
        self.layers = nn.ModuleDict(
            {name.replace(".", "_"): PriorLayer(s, 0.1 if s.final else 1.0) for name, s in shapes.items()}
        )
        self.quantised = False

    def layer(self, name: str, x: Tensor) -> Tensor:
        """Apply the layer of this name, as named in ``bitstream.prior``."""
        module = self.layers[name.replace(".", "_")]
        assert isinstance(module, PriorLayer)
        out: Tensor = module(x, self.quantised)
        return out

    def shuffle(self, x: Tensor) -> Tensor:
        """Rearrange [N, 4C, H, W] to [N, C, 2H, 2W]."""
        return F.pixel_shuffle(x, 2)

    def concat(self, xs: Sequence[Tensor]) -> Tensor:
        """Join tensors along their channels."""
        return torch.cat(list(xs), dim=1)

    def half(self, x: Tensor, parity: int) -> Tensor:  # type: ignore[override]  # nn.Module.half converts to float16
        """Return one half of the checkerboard, see :func:`half`."""
        return half(x, parity)

    def forward(self, z: Tensor, q: Tensor, quality_step: Tensor) -> tuple[Tensor, Tensor]:
        """Return means (in quantisation steps) and scale indices 0..63, both [N, latents, H, W].

        ``z`` [N, hyper_latents, H/4, W/4] and ``q`` [N, latents, H, W] hold integers; ``quality_step`` [N] is 0..250. Scale
        indices are whole numbers only where the prior is quantised.
        """
        n, _, rows, cols = q.shape
        plane = torch.floor((quality_step * P.QUALITY_PLANE_MAX + P.QUALITY_STEPS // 2) / P.QUALITY_STEPS)
        plane = (plane / 2.0**5).reshape(n, 1, 1, 1).expand(n, 1, rows, cols)
        features = P.hyper_features(self, z * 2.0**-2, plane)
        dc = q[:, :1] * 2.0**-P.DC_CONTEXT_SHIFT
        dc = dc + (torch.floor(dc) - dc).detach()
        context = torch.cat([dc, q[:, 1:]], 1).clamp(-P.CONTEXT_CLAMP, P.CONTEXT_CLAMP)
        views = [context * 2.0**-2]
        if self.widths.magnitudes:
            table = torch.tensor(self.widths.magnitudes, dtype=q.dtype, device=q.device)
            views.append(table[context.detach().abs().long()] * 2.0**-2)
        even = torch.zeros(1, 1, rows, cols, device=q.device, dtype=q.dtype)
        even[..., 0::2, 0::2] = 1
        even[..., 1::2, 1::2] = 1
        halves = [half(features, 0), half(features, 1)]
        means, scales = [], []
        for index in range(len(self.widths.slices)):
            outs = []
            for parity in (0, 1):
                k = 2 * index + parity
                start, _ = self.widths.slice_of(k)
                seen = self.widths.context_channels(k)
                parts = []
                for view in views if seen else []:
                    parts += [view[:, :start], view[:, start:seen] * even] if parity else [view[:, :seen]]
                given = torch.cat(parts, 1) if parts else None
                outs.append(P.pass_outputs(self, k, halves[parity], given))
            whole = unhalf(outs[0], outs[1])
            mean, scale = whole.chunk(2, 1)
            means.append(mean)
            scales.append(scale)
        scale_index: Tensor = 20 + 8 * torch.cat(scales, 1)
        if self.quantised:
            scale_index = round_through(scale_index)
        return torch.cat(means, 1), scale_index.clamp(0, P.SCALE_COUNT - 1)

    def to_integers(self) -> dict[str, P.Layer]:
        """Return all layers in integers, as they fly, by their names in ``bitstream.prior``."""
        out = {}
        for name in P.layer_shapes(self.widths):
            module = self.layers[name.replace(".", "_")]
            assert isinstance(module, PriorLayer)
            out[name] = module.to_integers()
        return out


def half(x: Tensor, parity: int) -> Tensor:
    """Return the even (``parity`` 0) or odd positions of a checkerboard: [N, C, H, W] to [N, C, H, W/2].

    The rows are in the order of ``bitstream.prior.half``: all even rows, then all odd ones.
    """
    a, b = (0, 1) if parity == 0 else (1, 0)
    return torch.cat([x[..., 0::2, a::2], x[..., 1::2, b::2]], dim=-2)


def unhalf(even: Tensor, odd: Tensor) -> Tensor:
    """Interleave the two halves [N, C, H, W/2] of a checkerboard to [N, C, H, W]: the inverse of :func:`half`."""
    n, c, rows, cols = even.shape
    e0, e1 = even.reshape(n, c, 2, rows // 2, cols).unbind(2)
    o0, o1 = odd.reshape(n, c, 2, rows // 2, cols).unbind(2)
    row0 = torch.stack([e0, o0], dim=-1).reshape(n, c, rows // 2, 2 * cols)
    row1 = torch.stack([o1, e1], dim=-1).reshape(n, c, rows // 2, 2 * cols)
    return torch.stack([row0, row1], dim=-2).reshape(n, c, rows, 2 * cols)
