"""Writes ONNX graphs (opset 18, one file each) from trained modules, with the few plain operators that every engine has.

The graphs are written by hand instead of traced, so that they are the same on every machine and contain no shape arithmetic.
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
from perigee.models.checkpoint import HALF_FROM
from perigee.models.codec.analysis import LightBlock
from perigee.models.codec.reference import GDN, CrossAttention, LightConvBlock
from perigee.models.codec.transform import BlockTransform, Gains
from perigee.models.layers import ResidualBlock

OPSET = 18

Array = npt.NDArray[Any]


def round_to_half(module: nn.Module) -> None:
    """Round a module's large weights in place to fp16, as a graph with ``half`` stores them, so that both stay equal."""
    for parameter in module.parameters():
        if parameter.numel() >= HALF_FROM:
            parameter.data.copy_(parameter.data.half())


class GraphWriter:
    """Collects the nodes and constants of a graph.

    The methods take and return the names of tensors. Convolutions and images are [N, C, H, W].
    """

    def __init__(self, name: str, half: bool = False) -> None:
        """``half`` stores constants of at least :data:`HALF_FROM` values in fp16; they are computed with in float32."""
        self.name, self.half = name, half
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """Declare a float32 input; sizes that vary are given by a name."""
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def output(self, x: str, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
        """Declare the tensor ``x`` as the output ``name``."""
        self.nodes.append(helper.make_node("Identity", [x], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def constant(self, value: Array) -> str:
        """Add a constant with the value's own type."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, value: Array) -> str:
        """Add a float32 constant, stored in fp16 where it is large and the graph was made with ``half``."""
        value = np.asarray(value, np.float32)
        if self.half and value.size >= HALF_FROM:
            return self.node("Cast", self.constant(value.astype(np.float16)), to=TensorProto.FLOAT)
        return self.constant(value)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return the name of that output."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def scalar(self, op: str, x: str, value: float) -> str:
        """Append the operation ``op(x, value)`` with a float32 constant."""
        return self.node(op, x, self.constant(np.array(value, np.float32)))

    def clip(self, x: str, low: float, high: float) -> str:
        """Limit the values of ``x`` to the range from ``low`` to ``high``."""
        return self.node("Clip", x, self.constant(np.array(low, np.float32)), self.constant(np.array(high, np.float32)))

    def slice(
        self, x: str, starts: Sequence[int], stops: Sequence[int], axes: Sequence[int], steps: Sequence[int]
    ) -> str:
        """Slice ``x`` along some axes, with one start, stop and step for each of them."""
        parts = [self.constant(np.array(v, np.int64)) for v in (starts, stops, axes, steps)]
        return self.node("Slice", x, *parts)

    def convolution(self, conv: nn.Conv2d, x: str, order: Array | None = None) -> str:
        """Append a torch convolution.

        With ``order``, channel j of its input is found at ``order[j]`` of ``x`` (see :meth:`space_to_depth`). The output of a
        depthwise convolution keeps that order; the output of any other has its natural order.
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
        """Append a PixelUnshuffle by ``side``; return its output and the place of each of torch's channels in it.

        ONNX orders the channels by (offset, channel), torch by (channel, offset).
        """
        order = np.arange(side * side * channels).reshape(side * side, channels).T.reshape(-1)
        return self.node("SpaceToDepth", x, blocksize=side), order

    def depth_to_space(self, x: str, side: int) -> str:
        """Append a PixelShuffle by ``side``."""
        return self.node("DepthToSpace", x, blocksize=side, mode="CRD")

    def module(self, module: nn.Module, x: str, channels: int = 0) -> str:
        """Append any module of the codec's networks.

        ``channels`` is the number of channels of ``x``, which is needed where the module starts with a PixelUnshuffle. Raises
        TypeError for a module that has no form in ONNX here.
        """
        if isinstance(module, nn.Sequential):
            return self._sequence(module, x, channels)
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

    def _sequence(self, modules: nn.Sequential, x: str, channels: int) -> str:
        """Append modules in sequence, keeping track of the order of the channels since the last space-to-depth."""
        order = None
        for part in modules:
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

    def block_transform(self, transform: BlockTransform, x: str) -> str:
        """Append the block transform of ``x`` - 0.5 as two convolutions: colours with rows, then columns.

        This takes a sixth of the multiply-adds of one dense convolution.
        """
        colours, rows, columns = (p.detach().numpy() for p in (transform.colours, transform.rows, transform.columns))
        first = np.einsum("cui,ck->cuki", rows, colours).reshape(-1, 3, BLOCK, 1)
        for filters, size, group in ((first, [BLOCK, 1], 1), (columns.reshape(-1, 1, 1, BLOCK), [1, BLOCK], 3 * BLOCK)):
            parts = [x, self.weight(filters)]
            if group == 1:
                parts.append(self.weight(-0.5 * filters.sum((1, 2, 3))))
            x = self.node("Conv", *parts, kernel_shape=size, strides=size, group=group)
        return self.node("Gather", x, self.constant(transform.order.numpy()), axis=1)

    def gains(self, gains: Gains, quality: str) -> str:
        """Append the gains [N, latents, 1, 1] at quality steps [N, 1]."""
        position = self.scalar("Mul", quality, (KNOTS - 1) / P.QUALITY_STEPS)
        distance = self.node("Abs", self.node("Sub", position, self.constant(np.arange(KNOTS, dtype=np.float32)[None])))
        weights = self.node("Relu", self.node("Sub", self.constant(np.ones((1, 1), np.float32)), distance))
        logs = self.node("MatMul", weights, self.constant(gains.knots.detach().numpy()))
        return self.node("Unsqueeze", self.node("Exp", logs), self.constant(np.array([2, 3], np.int64)))

    def save(self, path: Path) -> None:
        """Check the graph and write it to a file."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="perigee", ir_version=9
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
