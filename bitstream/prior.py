"""The integer prior: which probability table every symbol is coded with, computed in integers alone.

This module *is* the format: its numpy arithmetic, run with ``dtype=int64``, is the arbiter for every engine. One
differing index or mean would destroy the rest of a patch, so everything that feeds a probability is integer:

* a layer is ``clamp((acc + ((1 << s) >> 1)) >> s, lo, hi)`` with int8 weights, an int32 bias and a shift ``s`` per
  output channel; activations are 0..255, outputs -4096..4095;
* :func:`check_accumulators` proves ``sum|w| * amax + |bias| + 2**(s-1) < 2**24`` for every output channel, so that float32,
  float64 and int32 hold every partial sum exactly and the order of summation, FMA and threads cannot matter.

The structure (:func:`hyper_features`, :func:`pass_outputs`) is written once over a small set of operations, ``Ops``;
numpy here, PyTorch for training and the ONNX writer supply their own. Arrays are ``[N, C, H, W]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.errors import Fault, ProfileError

Tensor = TypeVar("Tensor")

Z_CLAMP = 64
Q_MIN, Q_MAX = -32768, 32767
CONTEXT_CLAMP = 127
DC_CONTEXT_SHIFT = 2
ACTIVATION_MAX = 255
OUTPUT_MIN, OUTPUT_MAX = -4096, 4095
SHIFT_MAX = 23
ACCUMULATOR_LIMIT = 1 << 24
QUALITY_STEPS = 250  # largest quality step
QUALITY_PLANE_MAX = 32
SCALE_COUNT = 64
MEAN_FRACTIONS = 16
PASSES_PER_SLICE = 2


@dataclass(frozen=True)
class Widths:
    """Sizes of the prior's layers; ``slices`` splits the latent channels in coding order.

    ``magnitudes``: how a clamped latent's absolute value 0..127 enters the context beside the latent itself, 128 integers
    0..127 that begin with 0; empty where the prior sees latents alone.
    ``references``: views of components that were coded before at the same place. Each pass sees the channels of its own slice
    in each view. ``planes``: channels beside the hyper features that have one value everywhere. ``scales``: scale indices.
    """

    latents: int = 448
    hyper_latents: int = 64
    hyper: int = 96
    context: int = 96
    head: int = 160
    slices: tuple[int, ...] = (16, 24, 40, 112, 256)
    magnitudes: tuple[int, ...] = ()
    references: int = 0
    planes: int = 1
    scales: int = SCALE_COUNT

    @property
    def passes(self) -> int:
        """Number of coding passes: two checkerboard halves a slice."""
        return PASSES_PER_SLICE * len(self.slices)

    def slice_of(self, k: int) -> tuple[int, int]:
        """First channel and one past the last channel that pass ``k`` codes."""
        start = sum(self.slices[: k // PASSES_PER_SLICE])
        return start, start + self.slices[k // PASSES_PER_SLICE]

    def coded_channels(self, k: int, latents: int | None) -> int:
        """How many channels pass ``k`` codes where only the first ``latents`` channels are (None: all)."""
        start, stop = self.slice_of(k)
        return stop - start if latents is None else min(max(latents - start, 0), stop - start)

    def context_channels(self, k: int) -> int:
        """How many leading latent channels pass ``k`` may look at (its own slice only in odd passes)."""
        start, stop = self.slice_of(k)
        return start if k % 2 == 0 else stop

    def context_inputs(self, k: int) -> int:
        """How many channels the context of pass ``k`` has."""
        return self.view_inputs(k) + self.context_channels(k) * (2 if self.magnitudes else 1)

    def view_inputs(self, k: int) -> int:
        """How many of them come from components that were coded before."""
        start, stop = self.slice_of(k)
        return self.references * (stop - start)


class LayerShape(NamedTuple):
    """Static facts of one layer. Real value = integer * 2**-fraction for inputs and outputs alike."""

    inputs: int
    outputs: int
    kernel: int  # 1, or the side of a depthwise kernel
    depthwise: bool
    input_max: int
    input_fraction: int
    output_fraction: int
    final: bool

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.outputs, 1 if self.depthwise else self.inputs, self.kernel, self.kernel)


def layer_shapes(widths: Widths) -> dict[str, LayerShape]:
    """Every layer of the prior by name, in order of use."""
    h, c, w = widths.hyper, widths.context, widths.head

    def point(i: int, o: int, amax: int = ACTIVATION_MAX, fraction: int = 5, final: bool = False) -> LayerShape:
        return LayerShape(i, o, 1, False, amax, fraction, 4 if final else 5, final)

    def depth(n: int, kernel: int) -> LayerShape:
        return LayerShape(n, n, kernel, True, ACTIVATION_MAX, 5, 5, False)

    shapes = {
        "hyper.up1": point(widths.hyper_latents, 4 * h, Z_CLAMP, 2),
        "hyper.depth1": depth(h, 3),
        "hyper.up2": point(h, 4 * h),
        "hyper.depth2": depth(h, 3),
        "hyper.mix": point(h + widths.planes, h),
    }
    for k in range(widths.passes):
        start, stop = widths.slice_of(k)
        seen = widths.context_inputs(k)
        if seen:
            shapes[f"pass{k}.context"] = point(seen, c, CONTEXT_CLAMP, 2)
            shapes[f"pass{k}.depth"] = depth(c, 5)
        shapes[f"pass{k}.head1"] = point(h + (c if seen else 0), w)
        shapes[f"pass{k}.head2"] = point(w, w)
        shapes[f"pass{k}.out"] = point(w, 2 * (stop - start), final=True)
    return shapes


def macs_per_position(widths: Widths) -> float:
    """Multiply-adds of the complete prior per latent position (16x16 pixels), all passes."""
    total = 0.0
    for name, s in layer_shapes(widths).items():
        per: float = s.outputs * (1 if s.depthwise else s.inputs) * s.kernel * s.kernel
        if name in ("hyper.up1",):
            per /= 16
        elif name in ("hyper.depth1", "hyper.up2"):
            per /= 4
        elif ".head" in name or ".out" in name:
            per /= 2  # only the coded half of the checkerboard
        total += per
    return total


class Ops(Protocol[Tensor]):
    """The operations the prior is made of."""

    def layer(self, name: str, x: Tensor) -> Tensor:
        """Convolution (zero padding), rounding shift and clamp of the named layer."""
        ...

    def shuffle(self, x: Tensor) -> Tensor:
        """Pixel shuffle by 2: [N, 4C, H, W] -> [N, C, 2H, 2W], channel 4c+2i+j to offset (i, j)."""
        ...

    def concat(self, xs: Sequence[Tensor]) -> Tensor:
        """Concatenation over channels."""
        ...

    def half(self, x: Tensor, parity: int) -> Tensor:
        """Positions with (row + col) % 2 == parity: [N, C, H, W] -> [N, C, H, W/2], see :func:`half`."""
        ...


def hyper_features(ops: Ops[Tensor], z: Tensor, quality_plane: Tensor) -> Tensor:
    """Features [N, hyper, H, W] from hyper-latents [N, hyper_latents, H/4, W/4] and the planes [N, planes, H, W]."""
    x = ops.layer("hyper.depth1", ops.shuffle(ops.layer("hyper.up1", z)))
    x = ops.layer("hyper.depth2", ops.shuffle(ops.layer("hyper.up2", x)))
    return ops.layer("hyper.mix", ops.concat([x, quality_plane]))


def pass_outputs(ops: Ops[Tensor], k: int, features_half: Tensor, context: Tensor | None) -> Tensor:
    """Outputs [N, 2 * slice, H, W/2] of pass ``k``: first the means, then the scales, for the half that it codes.

    ``features_half`` is :func:`hyper_features` at the positions of the pass; ``context`` is :func:`context_of_pass`
    [N, context_inputs(k), H, W], None where the pass sees nothing.
    """
    x = features_half
    if context is not None:
        seen = ops.layer(f"pass{k}.depth", ops.layer(f"pass{k}.context", context))
        x = ops.concat([x, ops.half(seen, k % 2)])
    return ops.layer(f"pass{k}.out", ops.layer(f"pass{k}.head2", ops.layer(f"pass{k}.head1", x)))


def half(x: IntArray, parity: int) -> IntArray:
    """Checkerboard half of [N, C, H, W] (H, W even) as [N, C, H, W/2]: first the even rows, then the odd rows."""
    a, b = (0, 1) if parity == 0 else (1, 0)
    return np.concatenate([x[..., 0::2, a::2], x[..., 1::2, b::2]], axis=-2)


def unhalf(values: IntArray, parity: int, out: IntArray) -> None:
    """Write a half [N, C, H, W/2] back to its positions in ``out`` [N, C, H, W]."""
    rows = values.shape[-2] // 2
    a, b = (0, 1) if parity == 0 else (1, 0)
    out[..., 0::2, a::2] = values[..., :rows, :]
    out[..., 1::2, b::2] = values[..., rows:, :]


def quality_plane_value(quality_step: int) -> int:
    """The integer 0..32 that the prior sees for the quality byte Q = 0..250."""
    return (quality_step * QUALITY_PLANE_MAX + QUALITY_STEPS // 2) // QUALITY_STEPS


def context_of(q: IntArray) -> IntArray:
    """Latents as the prior sees them: the first channel shifted right by 2, everything clamped to -127..127."""
    context = q.astype(np.int32)
    context[:, 0] >>= DC_CONTEXT_SHIFT
    np.clip(context, -CONTEXT_CLAMP, CONTEXT_CLAMP, out=context)
    return context


def even_only(context: IntArray, first_channel: int) -> IntArray:
    """Copy of ``context`` whose channels from ``first_channel`` on are zero at odd positions."""
    out = context.copy()
    out[:, first_channel:, 0::2, 1::2] = 0
    out[:, first_channel:, 1::2, 0::2] = 0
    return out


def context_of_pass(widths: Widths, k: int, q: IntArray) -> IntArray | None:
    """What pass ``k`` sees of latents q [N, latents, H, W]: int32 [N, context_inputs(k), H, W], or None for nothing.

    The clamped latents, its own slice's zero at uncoded positions; then their magnitudes where the contract has such.
    """
    seen = widths.context_channels(k)
    if not seen:
        return None
    context = context_of(q[:, :seen])
    if k % 2:
        context = even_only(context, widths.slice_of(k)[0])
    if widths.magnitudes:
        context = np.concatenate([context, np.array(widths.magnitudes, np.int32)[np.abs(context)]], axis=1)
    return context


def scale_index(scale: IntArray) -> IntArray:
    """Scale output (1/16 of a unit) to one of 64 tables."""
    return np.asarray(np.clip((8 * scale + 328) >> 4, 0, SCALE_COUNT - 1))


class Prediction(NamedTuple):
    """What a pass predicts, each int32 [N, slice, H, W/2]: table number 0..1023 and mean in 1/16."""

    table: IntArray
    mean: IntArray

    def first(self, channels: int | None) -> Prediction:
        """The prediction restricted to the first ``channels`` channels."""
        return Prediction(self.table[:, :channels], self.mean[:, :channels])

    def shifted(self, offsets: IntArray) -> Prediction:
        """The prediction with offsets int8 [slice] added to the scale indices of its channels."""
        index, fraction = np.divmod(self.table, MEAN_FRACTIONS)
        moved = np.clip(index + offsets.astype(np.int32)[:, None, None], 0, SCALE_COUNT - 1)
        return Prediction((moved * MEAN_FRACTIONS + fraction).astype(np.int32), self.mean)


def split_outputs(outputs: IntArray) -> Prediction:
    """Outputs of :func:`pass_outputs` as table numbers and means."""
    out = outputs.astype(np.int32, copy=False)
    n = out.shape[1] // 2
    mean = out[:, :n]
    return Prediction(scale_index(out[:, n:]) * MEAN_FRACTIONS + (mean & (MEAN_FRACTIONS - 1)), mean)


@dataclass(frozen=True)
class Layer:
    """One integer layer: weight int8 [O, I, K, K], bias int32 [O], shift uint8 [O]."""

    weight: IntArray
    bias: IntArray
    shift: IntArray


def accumulator_bounds(shape: LayerShape, layer: Layer) -> IntArray:
    """Largest value any partial sum can reach, per output channel (int64)."""
    rounding = (np.int64(1) << layer.shift.astype(np.int64)) >> 1
    weights = np.abs(layer.weight.astype(np.int64)).sum(axis=(1, 2, 3))
    return np.asarray(weights * shape.input_max + np.abs(layer.bias.astype(np.int64)) + rounding)


def check_accumulators(widths: Widths, layers: Mapping[str, Layer]) -> dict[str, int]:
    """Prove that every layer is exact in float32; returns the largest bound of each layer.

    Raises ProfileError for a missing or misshapen layer, a shift above 23 or a bound of 2**24 or more.
    """
    bounds = {}
    table = widths.magnitudes
    if table and (len(table) != CONTEXT_CLAMP + 1 or table[0] or not 0 <= min(table) <= max(table) <= CONTEXT_CLAMP):
        raise ProfileError(
            f"magnitudes must be {CONTEXT_CLAMP + 1} integers 0..{CONTEXT_CLAMP}, the first of them 0",
            Fault.RANGE,
            field="magnitudes",
        )
    shapes = layer_shapes(widths)
    if set(shapes) != set(layers):
        raise ProfileError(
            f"the prior has other layers than its widths ask for: {sorted(set(shapes) ^ set(layers))}",
            Fault.MISSING,
            field="layers",
            expected=", ".join(shapes),
            found=", ".join(layers),
        )
    for name, shape in shapes.items():
        layer = layers[name]
        wrong = [
            f"{part} is {array.dtype}{list(array.shape)}, expected {dtype}{list(expected)}"
            for part, array, dtype, expected in (
                ("weight", layer.weight, "int8", shape.weight_shape),
                ("bias", layer.bias, "int32", (shape.outputs,)),
                ("shift", layer.shift, "uint8", (shape.outputs,)),
            )
            if array.dtype != np.dtype(dtype) or array.shape != tuple(expected)
        ]
        if wrong:
            raise ProfileError(f"prior layer {name}: " + "; ".join(wrong), Fault.SHAPE, field=name)
        if int(layer.shift.max()) > SHIFT_MAX or int(layer.weight.min()) < -127:
            raise ProfileError(
                f"prior layer {name}: shifts must be 0..{SHIFT_MAX} and weights -127..127", Fault.RANGE, field=name
            )
        bound = int(accumulator_bounds(shape, layer).max())
        if bound >= ACCUMULATOR_LIMIT:
            raise ProfileError(
                f"prior layer {name}: an accumulator can reach {bound}, the limit is {ACCUMULATOR_LIMIT - 1}",
                Fault.BOUND,
                field=name,
                expected=f"at most {ACCUMULATOR_LIMIT - 1}",
                found=bound,
            )
        bounds[name] = bound
    return bounds


def folded(layer: Layer) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weights and bias in float32, scaled by 2**-s and with the rounding term in the bias: exact under the proof.

    A layer is then ``clamp(floor(conv(x, weight) + bias), lo, hi)`` in any float type of 24 bits or more.
    """
    scale = np.ldexp(np.ones(len(layer.shift), np.float64), -layer.shift.astype(np.int64))
    rounding = (np.int64(1) << layer.shift.astype(np.int64)) >> 1
    weight = layer.weight.astype(np.float64) * scale[:, None, None, None]
    bias = (layer.bias.astype(np.float64) + rounding) * scale
    return weight.astype(np.float32), bias.astype(np.float32)


class NumpyOps:
    """Reference operations. ``dtype=int64`` uses no BLAS and is the arbiter; ``float64`` is equal and faster."""

    def __init__(self, widths: Widths, layers: Mapping[str, Layer], dtype: type = np.int64) -> None:
        self.dtype = np.dtype(dtype)
        self.shapes = layer_shapes(widths)
        self.layers = layers

    def layer(self, name: str, x: IntArray) -> IntArray:
        shape, layer = self.shapes[name], self.layers[name]
        weight = layer.weight.astype(self.dtype)
        if shape.depthwise:
            reach = shape.kernel // 2
            padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
            rows, cols = x.shape[2:]
            acc = np.zeros(x.shape, self.dtype)
            for i in range(shape.kernel):
                for j in range(shape.kernel):
                    acc += weight[:, 0, i, j][None, :, None, None] * padded[:, :, i : i + rows, j : j + cols]
        else:
            n, c, rows, cols = x.shape
            acc = np.matmul(weight[:, :, 0, 0], x.reshape(n, c, rows * cols)).reshape(n, shape.outputs, rows, cols)
        shift = layer.shift.astype(np.int64)[:, None, None]
        whole = acc.astype(np.int64) + layer.bias.astype(np.int64)[:, None, None]
        low, high = (OUTPUT_MIN, OUTPUT_MAX) if shape.final else (0, ACTIVATION_MAX)
        out = np.clip((whole + ((np.int64(1) << shift) >> 1)) >> shift, low, high)
        return np.asarray(out, self.dtype)

    def shuffle(self, x: IntArray) -> IntArray:
        n, c, h, w = x.shape
        parts = x.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, c // 4, 2 * h, 2 * w)

    def concat(self, xs: Sequence[IntArray]) -> IntArray:
        return np.concatenate(xs, axis=1)

    def half(self, x: IntArray, parity: int) -> IntArray:
        return half(x, parity)


class RunPass(Protocol):
    """One pass: (k, q) with q int [N, latents, 4h, 4w] complete for the earlier passes to the prediction of pass k, of its
    first ``channels`` channels if not of all."""

    def __call__(self, k: int, q: IntArray, channels: int | None = None) -> Prediction: ...


class PriorEngine(Protocol):
    """What an engine offers for the prior; every implementation returns the integers of ``NumpyPrior(int64)``."""

    def start(self, z: IntArray, quality_step: int) -> RunPass:
        """Begin a patch batch: z int [N, hyper_latents, h, w], Q = 0..250."""
        ...

    def all_passes(self, z: IntArray, q: IntArray, quality_step: int, latents: int | None = None) -> list[Prediction]:
        """The passes of the first ``latents`` channels (None: all), for the encoder that knows ``q`` already."""
        ...

    def memory(self) -> Sequence[IntArray]:
        """The arrays that it reads and that a check of memory can reach: weights, biases, shifts."""
        ...


def coded_passes(widths: Widths, step: RunPass, q: IntArray, latents: int | None) -> list[Prediction]:
    """``PriorEngine.all_passes`` one by one: passes that code no channel are left out."""
    counts = [widths.coded_channels(k, latents) for k in range(widths.passes)]
    return [step(k, q, count) for k, count in enumerate(counts) if count]


class NumpyPrior:
    """The prior in numpy: the arbiter (int64), or the same integers through BLAS (float64, float32)."""

    def __init__(self, widths: Widths, layers: Mapping[str, Layer], dtype: type = np.int64) -> None:
        self.widths = widths
        self.ops = NumpyOps(widths, layers, dtype)

    def memory(self) -> Sequence[IntArray]:
        return [part for layer in self.ops.layers.values() for part in (layer.weight, layer.bias, layer.shift)]

    def start(self, z: IntArray, quality_step: int) -> RunPass:
        n, _, rows, cols = z.shape
        dtype = self.ops.dtype
        plane = np.full((n, 1, 4 * rows, 4 * cols), quality_plane_value(quality_step), dtype)
        features = hyper_features(self.ops, z.astype(dtype), plane)
        halves = [half(features, 0), half(features, 1)]

        def step(k: int, q: IntArray, channels: int | None = None) -> Prediction:
            context = context_of_pass(self.widths, k, q)
            context = None if context is None else context.astype(dtype)
            outputs = pass_outputs(self.ops, k, halves[k % 2], context).astype(np.int32)
            return split_outputs(outputs).first(channels)

        return step

    def all_passes(self, z: IntArray, q: IntArray, quality_step: int, latents: int | None = None) -> list[Prediction]:
        return coded_passes(self.widths, self.start(z, quality_step), q, latents)
