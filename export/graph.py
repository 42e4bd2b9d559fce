"""Writes ONNX graphs (opset 18, one file each) from the trained modules: few, plain operators that every engine has.

Written by hand rather than traced, so that graphs are the same on every machine and no shape arithmetic creeps in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from perigee.bitstream import prior as P
from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.models.codec.codec import CENTROID_REACH, Reconstruction
from perigee.models.codec.flight import (
    NO_LINEAR_PATH,
    Analysis,
    BlockTransform,
    Gains,
    HyperAnalysis,
    LightBlock,
    ResidualAnalysis,
    ResidualBlock,
    Synthesis,
)
from perigee.models.codec.reference import GDN, CrossAttention, LightConvBlock

OPSET = 18
HALF_FROM = 4096  # constants of so many values or more are stored in fp16
Array = npt.NDArray[Any]


def round_to_half(module: nn.Module) -> None:
    """Give the weights the values that a graph with ``half`` stores, so that module and graph stay equal."""
    for parameter in module.parameters():
        if parameter.numel() >= HALF_FROM:
            parameter.data.copy_(parameter.data.half())


class GraphWriter:
    """Collects nodes and constants; tensors are known by their names. ``half`` stores large constants in fp16."""

    def __init__(self, name: str, half: bool = False) -> None:
        self.name, self.half = name, half
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """Declare a float32 input."""
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def output(self, x: str, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
        """Declare ``x`` as output ``name``."""
        self.nodes.append(helper.make_node("Identity", [x], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def constant(self, value: Array) -> str:
        """A constant as it is."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, value: Array) -> str:
        """A float constant, stored in fp16 where the graph says so."""
        value = np.asarray(value, np.float32)
        if self.half and value.size >= HALF_FROM:
            return self.node("Cast", self.constant(value.astype(np.float16)), to=TensorProto.FLOAT)
        return self.constant(value)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return its name."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def scalar(self, op: str, x: str, value: float) -> str:
        """``op(x, value)``."""
        return self.node(op, x, self.constant(np.array(value, np.float32)))

    def clip(self, x: str, low: float, high: float) -> str:
        return self.node("Clip", x, self.constant(np.array(low, np.float32)), self.constant(np.array(high, np.float32)))

    def slice(
        self, x: str, starts: Sequence[int], stops: Sequence[int], axes: Sequence[int], steps: Sequence[int]
    ) -> str:
        parts = [self.constant(np.array(v, np.int64)) for v in (starts, stops, axes, steps)]
        return self.node("Slice", x, *parts)

    def convolution(self, conv: nn.Conv2d, x: str, order: Array | None = None) -> str:
        """A torch convolution; with ``order``, its input's channel j is found at ``order[j]`` (see ``space_to_depth``).

        A depthwise convolution leaves its output in that order, any other in its own.
        """
        place = slice(None) if order is None else np.argsort(order)
        depthwise = conv.groups > 1
        weight = conv.weight.detach().numpy()
        parts = [x, self.weight(weight[place] if depthwise else weight[:, place])]
        if conv.bias is not None:
            bias = conv.bias.detach().numpy()
            parts.append(self.weight(bias[place] if depthwise else bias))
        pads = [int(p) for p in conv.padding] * 2  # rows, columns; before, after
        return self.node(
            "Conv", *parts, strides=list(conv.stride), pads=pads, group=conv.groups, kernel_shape=list(conv.kernel_size)
        )

    def space_to_depth(self, x: str, side: int, channels: int) -> tuple[str, Array]:
        """PixelUnshuffle, and where ONNX puts torch's channels: it orders (offset, channel), torch (channel, offset)."""
        order = np.arange(side * side * channels).reshape(side * side, channels).T.reshape(-1)
        return self.node("SpaceToDepth", x, blocksize=side), order

    def depth_to_space(self, x: str, side: int) -> str:
        return self.node("DepthToSpace", x, blocksize=side, mode="CRD")

    def module(self, module: nn.Module, x: str, channels: int = 0) -> str:
        """Any of the flight networks' modules."""
        if isinstance(module, nn.Sequential):
            order = None  # of the channels, since the last space-to-depth
            for part in module:
                if isinstance(part, nn.PixelUnshuffle):
                    x, order = self.space_to_depth(x, part.downscale_factor, channels)
                elif isinstance(part, nn.Conv2d):
                    x = self.convolution(part, x, order)
                    order = order if part.groups > 1 else None
                    channels = part.out_channels
                elif order is None:
                    x = self.module(part, x, channels)
                else:
                    raise TypeError(f"a space-to-depth must be followed by convolutions, not {type(part).__name__}")
            return x
        if isinstance(module, nn.Conv2d):
            return self.convolution(module, x)
        if isinstance(module, nn.LeakyReLU):
            return self.node("LeakyRelu", x, alpha=module.negative_slope)
        if isinstance(module, LightBlock):
            inner = self.convolution(module.point1, self.convolution(module.depth, x))
            return self.node("Add", x, self.convolution(module.point2, self.node("LeakyRelu", inner, alpha=0.1)))
        if isinstance(module, ResidualBlock):
            inner = self.node("LeakyRelu", self.convolution(module.conv1, x), alpha=0.1)
            return self.node("Add", x, self.convolution(module.conv2, inner))
        if isinstance(module, LightConvBlock):
            half = self.convolution(module.point, self.convolution(module.depth, x))
            return self.node("Concat", half, self.convolution(module.cheap, half), axis=1)
        if isinstance(module, GDN):
            gamma = self.weight(nn.functional.softplus(module.raw_gamma.detach())[:, :, None, None].numpy())
            beta = self.weight((nn.functional.softplus(module.raw_beta.detach()) + 1e-6).numpy())
            squares = self.node("Conv", self.node("Mul", x, x), gamma, beta, kernel_shape=[1, 1])
            return self.node("Div", x, self.node("Sqrt", squares))
        if isinstance(module, CrossAttention) and module.mix is None:
            weight = self.convolution(module.vertical, self.convolution(module.horizontal, x))
            return self.node("Mul", self.module(module.local, x), self.node("Sigmoid", weight))
        raise TypeError(f"no ONNX form for {type(module).__name__}")

    def block_transform(self, transform: BlockTransform, x: str) -> str:
        """The transform of ``x`` - 0.5 in two steps, colours with rows and columns: a sixth of the dense one's multiply-adds."""
        colours, rows, columns = (p.detach().numpy() for p in (transform.colours, transform.rows, transform.columns))
        first = np.einsum("cui,ck->cuki", rows, colours).reshape(-1, 3, BLOCK, 1)
        for filters, size, group in ((first, [BLOCK, 1], 1), (columns.reshape(-1, 1, 1, BLOCK), [1, BLOCK], 3 * BLOCK)):
            parts = [x, self.weight(filters)]
            if group == 1:
                parts.append(self.weight(-0.5 * filters.sum((1, 2, 3))))
            x = self.node("Conv", *parts, kernel_shape=size, strides=size, group=group)
        return self.node("Gather", x, self.constant(transform.order.numpy()), axis=1)

    def gains(self, gains: Gains, quality: str) -> str:
        """Gains [N, latents, 1, 1] at Q [N, 1]."""
        position = self.scalar("Mul", quality, (KNOTS - 1) / P.QUALITY_STEPS)
        distance = self.node("Abs", self.node("Sub", position, self.constant(np.arange(KNOTS, dtype=np.float32)[None])))
        weights = self.node("Relu", self.node("Sub", self.constant(np.ones((1, 1), np.float32)), distance))
        logs = self.node("MatMul", weights, self.constant(gains.knots.detach().numpy()))
        return self.node("Unsqueeze", self.node("Exp", logs), self.constant(np.array([2, 3], np.int64)))

    def save(self, path: Path) -> None:
        """Check and write the graph."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="perigee", ir_version=9
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


class OnnxOps:
    """``bitstream.prior.Ops`` that write a graph; weights are stored as int8 and scaled by a power of two."""

    def __init__(self, writer: GraphWriter, widths: P.Widths, layers: dict[str, P.Layer]) -> None:
        self.writer, self.layers, self.shapes = writer, layers, P.layer_shapes(widths)

    def layer(self, name: str, x: str) -> str:
        w, shape, layer = self.writer, self.shapes[name], self.layers[name]
        _, bias = P.folded(layer)
        scale = np.ldexp(np.float32(1), -layer.shift.astype(np.int32)).astype(np.float32)[:, None, None, None]
        weight = w.node("Mul", w.node("Cast", w.constant(layer.weight), to=TensorProto.FLOAT), w.constant(scale))
        reach = shape.kernel // 2
        group = shape.inputs if shape.depthwise else 1
        conv = w.node(
            "Conv", x, weight, w.constant(bias), pads=[reach] * 4, group=group, kernel_shape=[shape.kernel] * 2
        )
        low, high = (P.OUTPUT_MIN, P.OUTPUT_MAX) if shape.final else (0, P.ACTIVATION_MAX)
        return w.clip(w.node("Floor", conv), low, high)

    def shuffle(self, x: str) -> str:
        return self.writer.depth_to_space(x, 2)

    def concat(self, xs: Sequence[str]) -> str:
        return self.writer.node("Concat", *xs, axis=1)

    def half(self, x: str, parity: int) -> str:
        a, b = (0, 1) if parity == 0 else (1, 0)
        end = np.iinfo(np.int64).max
        first = self.writer.slice(x, [0, a], [end, end], [2, 3], [2, 2])
        second = self.writer.slice(x, [1, b], [end, end], [2, 3], [2, 2])
        return self.writer.node("Concat", first, second, axis=2)


def write_prior(widths: P.Widths, layers: dict[str, P.Layer], folder: Path) -> list[str]:
    """``prior.onnx`` (all passes, for encoding), ``prior_hyper.onnx`` and ``prior_pass<k>.onnx`` (for decoding)."""
    names = ["prior.onnx", "prior_hyper.onnx"]

    def hyper(writer: GraphWriter, ops: OnnxOps) -> list[str]:
        z = writer.input("z", ["N", widths.hyper_latents, "h", "w"])
        plane = writer.input("quality_plane", ["N", 1, "H", "W"])
        features = P.hyper_features(ops, z, plane)
        return [ops.half(features, 0), ops.half(features, 1)]

    writer = GraphWriter("prior")
    ops = OnnxOps(writer, widths, layers)
    halves = hyper(writer, ops)
    views = [writer.input("context", ["N", widths.latents, "H", "W"])]
    even = writer.input("even", ["1", 1, "H", "W"])
    if widths.magnitudes:
        views.append(writer.input("magnitudes", ["N", widths.latents, "H", "W"]))
    for k in range(widths.passes):
        start, stop = widths.slice_of(k)
        parts = []
        for view in views:
            if start:
                parts.append(writer.slice(view, [0], [start], [1], [1]))
            if k % 2:
                parts.append(writer.node("Mul", writer.slice(view, [start], [stop], [1], [1]), even))
        given = ops.concat(parts) if len(parts) > 1 else parts[0] if parts else None
        out = P.pass_outputs(ops, k, halves[k % 2], given)
        writer.output(out, f"pass{k}", ["N", 2 * (stop - start), "H", "V"])
    writer.save(folder / names[0])

    writer = GraphWriter("prior_hyper")
    for parity, features in enumerate(hyper(writer, OnnxOps(writer, widths, layers))):
        writer.output(features, f"features{parity}", ["N", widths.hyper, "H", "V"])
    writer.save(folder / names[1])

    for k in range(widths.passes):
        writer = GraphWriter(f"prior_pass{k}")
        features = writer.input("features", ["N", widths.hyper, "H", "V"])
        seen = widths.context_inputs(k)
        given = writer.input("context", ["N", seen, "H", "W"]) if seen else None
        start, stop = widths.slice_of(k)
        out = P.pass_outputs(OnnxOps(writer, widths, layers), k, features, given)
        writer.output(out, "out", ["N", 2 * (stop - start), "H", "V"])
        names.append(f"prior_pass{k}.onnx")
        writer.save(folder / names[-1])
    return names


def channels_of(layer: nn.Module) -> int:
    """Output channels of a convolution."""
    assert isinstance(layer, nn.Conv2d)
    return layer.out_channels


def write_analysis(analysis: Analysis, preset: str, gains: Gains, hyper: HyperAnalysis, path: Path) -> None:
    """Image [N, 3, H, W] in 0..1 and Q [N, 1] to integers ``q`` [N, latents, H/16, W/16] and ``z``, both int32."""
    writer = GraphWriter("analysis", half=True)
    image = writer.input("image", ["N", 3, "H", "W"])
    quality = writer.input("quality_step", ["N", 1])
    y = "" if preset in NO_LINEAR_PATH else writer.block_transform(analysis.linear, image)
    if preset in analysis.networks:
        inner = writer.scalar("Mul", writer.clip(writer.scalar("Sub", image, 0.5), -0.75, 0.75), 4.0)
        network = analysis.networks[preset]
        layers = network.layers if isinstance(network, ResidualAnalysis) else network
        detail = writer.scalar("Mul", writer.module(layers, inner, 3), 4.0)
        y = writer.node("Add", y, detail) if y else detail
    gained = writer.node("Mul", y, writer.gains(gains, quality))
    z = writer.module(hyper.layers, writer.node("Log", writer.scalar("Add", writer.node("Abs", gained), 1.0)))
    for x, low, high, name, channels in (
        (gained, P.Q_MIN, P.Q_MAX, "q", analysis.linear.latents),
        (z, -P.Z_CLAMP, P.Z_CLAMP, "z", channels_of(hyper.layers[-1])),
    ):
        whole = writer.node("Cast", writer.clip(writer.node("Round", x), low, high), to=TensorProto.INT32)
        writer.output(whole, name, ["N", channels, f"{name}H", f"{name}W"], TensorProto.INT32)
    writer.save(path)


def write_consistency(linear: BlockTransform, path: Path) -> None:
    """Image [N, 3, 16H, 16W] and bounds [N, latents, H, W] of its linear transform to the nearest image within them."""
    writer = GraphWriter("consistency", half=True)
    latents = linear.latents
    image = writer.input("image", ["N", 3, "Y", "X"])
    low, high = (writer.input(name, ["N", latents, "H", "W"]) for name in ("low", "high"))
    y = writer.block_transform(linear, image)
    missing = writer.node("Sub", writer.node("Max", writer.node("Min", y, high), low), y)
    inverse = np.linalg.pinv(linear.weight.detach().double().numpy().reshape(latents, -1))
    step = writer.node("Conv", missing, writer.weight(inverse[:, :, None, None]), kernel_shape=[1, 1])
    writer.output(writer.node("Add", image, writer.depth_to_space(step, BLOCK)), "consistent", ["N", 3, "Y", "X"])
    writer.save(path)


def write_reconstruction(reconstruction: Reconstruction, spread_min: float, log_step: float, path: Path) -> None:
    """q, mean (latent steps), scale index [N, latents, H, W] and Q [N, 1] to latents and quality plane [N, latents + 1, H, W]."""
    writer = GraphWriter("reconstruction")
    latents = len(reconstruction.narrowing)
    q, mean, index = (writer.input(name, ["N", latents, "H", "W"]) for name in ("q", "mean", "scale_index"))
    quality = writer.input("quality_step", ["N", 1])
    narrowing = reconstruction.narrowing.detach().numpy()[None, :, None, None] + np.float32(np.log(spread_min))
    spread = writer.node("Exp", writer.node("Add", writer.scalar("Mul", index, log_step), writer.constant(narrowing)))
    distance = writer.node("Sub", q, mean)
    near = writer.node("Div", writer.scalar("Sub", writer.node("Abs", distance), 0.5), spread)
    near = writer.node("Min", near, writer.constant(np.array(CENTROID_REACH, np.float32)))
    far = writer.node("Add", near, writer.node("Reciprocal", spread))
    ends = []
    for end in (near, far):
        minus = writer.node("Neg", end)
        share = writer.node("Sigmoid", minus)
        ends.append((share, writer.node("Add", writer.node("Softplus", minus), writer.node("Mul", end, share))))
    share, part = (writer.node("Sub", a, b) for a, b in zip(*ends, strict=True))
    inside = writer.node("Mul", writer.node("Sub", writer.node("Div", part, share), near), spread)
    offset = writer.node("Mul", writer.node("Sign", distance), writer.scalar("Sub", inside, 0.5))
    y = writer.node("Mul", writer.node("Add", q, offset), writer.gains(reconstruction.inverse_gains, quality))
    plane = writer.scalar(
        "Div", writer.node("Unsqueeze", quality, writer.constant(np.array([2, 3], np.int64))), P.QUALITY_STEPS
    )
    zeros = writer.scalar("Mul", writer.slice(q, [0], [1], [1], [1]), 0.0)
    writer.output(
        writer.node("Concat", y, writer.node("Add", zeros, plane), axis=1), "latents", ["N", latents + 1, "H", "W"]
    )
    writer.save(path)


def write_synthesis(synthesis: Synthesis, path: Path) -> None:
    """Latents and quality plane [N, latents + 1, H, W] to the image [N, 3, 16H, 16W], nominally 0..1; weights in fp16."""
    writer = GraphWriter("synthesis", half=True)
    count = synthesis.linear.in_channels
    latents = writer.input("latents", ["N", count + 1, "H", "W"])
    y = writer.slice(latents, [0], [count], [1], [1])
    plane = writer.slice(latents, [count], [count + 1], [1], [1])
    basis = synthesis.linear.weight.detach().numpy().reshape(count, 3 * BLOCK * BLOCK).T[:, :, None, None]
    image = writer.depth_to_space(writer.node("Conv", y, writer.weight(basis)), BLOCK)
    scale = writer.constant(synthesis.input_scale.detach().numpy()[None, :, None, None])
    scaled = writer.node("Concat", writer.clip(writer.node("Mul", y, scale), -20, 20), plane, axis=1)
    filtered = writer.scalar("Mul", writer.clip(image, -0.75, 0.75), 4.0)
    x = writer.depth_to_space(writer.module(synthesis.level16, scaled), 2)
    x = writer.depth_to_space(writer.module(synthesis.level8, x), 2)
    x = writer.node("Add", x, writer.convolution(synthesis.image4, *writer.space_to_depth(filtered, 4, 3)))
    x = writer.depth_to_space(writer.module(synthesis.level4, x), 2)
    x = writer.node("Add", x, writer.convolution(synthesis.image2, *writer.space_to_depth(filtered, 2, 3)))
    detail = writer.depth_to_space(writer.module(synthesis.level2, x), 2)
    knots = writer.constant(np.arange(KNOTS, dtype=np.float32)[None, :, None, None])
    distance = writer.node("Abs", writer.node("Sub", writer.scalar("Mul", plane, KNOTS - 1.0), knots))
    weights = writer.node("Relu", writer.node("Sub", writer.constant(np.ones((1, 1, 1, 1), np.float32)), distance))
    logs = np.repeat(
        synthesis.strength.detach().numpy()[None, :, None, None], BLOCK**2, 0
    )  # the same for all of a block
    strength = writer.node("Exp", writer.node("Conv", weights, writer.constant(logs), kernel_shape=[1, 1]))
    detail = writer.node("Mul", detail, writer.depth_to_space(writer.scalar("Mul", strength, 0.25), BLOCK))
    out = writer.scalar("Add", writer.node("Add", image, detail), 0.5)
    writer.output(out, "image", ["N", 3, "Y", "X"])
    writer.save(path)
