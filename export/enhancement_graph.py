"""Writes an enhancer as one ONNX graph for windows of a fixed size, so that attention sees the same pixels in training and on the ground."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from torch import nn

from perigee.bitstream.conditions import CODING_CONDITIONS
from perigee.export.graph import GraphWriter
from perigee.models.enhancement.network import (
    DOUBT_START,
    REDUCTION,
    ChannelAttention,
    ChannelNorm,
    Conditioned,
    EnhancementNetwork,
    GatedUnit,
    PriorFusion,
    TransformerBlock,
)
from perigee.models.enhancement.prior import BETAS, STEPS, TOKEN, Enhancer, PriorReader, TokenDenoiser
from perigee.models.enhancement.prior import REDUCTION as READER_REDUCTION

WINDOW = 256  # pixels on the side


class EnhancementWriter(GraphWriter):
    """Adds the modules of an enhancer to a graph. Methods take and return the names of tensors."""

    def __init__(self) -> None:
        super().__init__("enhancer", half=True)

    def _mean(self, x: str) -> str:
        return self.node("ReduceMean", x, self.constant(np.array([1], np.int64)), keepdims=1)

    def _numbers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def norm(self, norm: ChannelNorm, x: str) -> str:
        """LayerNorm over the channels."""
        apart = self.node("Sub", x, self._mean(x))
        spread = self._mean(self.node("Mul", apart, apart))
        scaled = self.node("Div", apart, self.node("Sqrt", self.scalar("Add", spread, 1e-5)))
        scale, shift = (self.weight(p.detach().numpy()[None, :, None, None]) for p in (norm.scale, norm.shift))
        return self.node("Add", self.node("Mul", scaled, scale), shift)

    def attention(self, attention: ChannelAttention, x: str, side: int) -> str:
        """Attention between the channels of a square of ``side`` positions."""
        channels, heads = attention.project.out_channels, attention.heads
        y = self.convolution(attention.depth, self.convolution(attention.expand, x))
        parts = self.node("Reshape", y, self._numbers(0, 3 * heads, channels // heads, side * side))
        query, key, value = (self.slice(parts, [i * heads], [(i + 1) * heads], [1], [1]) for i in range(3))

        def unit(z: str) -> str:
            length = self.node("ReduceL2", z, self._numbers(3), keepdims=1)
            return self.node("Div", z, self.scalar("Max", length, 1e-12))

        turned = self.node("Transpose", unit(key), perm=[0, 1, 3, 2])
        sharpness = self.constant(attention.sharpness.detach().numpy()[None])
        weights = self.node("Mul", self.node("MatMul", unit(query), turned), sharpness)
        mixed = self.node("MatMul", self.node("Softmax", weights, axis=-1), value)
        return self.convolution(attention.project, self.node("Reshape", mixed, self._numbers(0, channels, side, side)))

    def gated(self, unit: GatedUnit, x: str) -> str:
        """The gated unit; GELU by the error function."""
        y = self.convolution(unit.depth, self.convolution(unit.expand, x))
        half = unit.project.in_channels
        gate, value = self.slice(y, [0], [half], [1], [1]), self.slice(y, [half], [2 * half], [1], [1])
        bent = self.scalar("Add", self.node("Erf", self.scalar("Mul", gate, math.sqrt(0.5))), 1.0)
        active = self.scalar("Mul", self.node("Mul", gate, bent), 0.5)
        return self.convolution(unit.project, self.node("Mul", active, value))

    def transformer(self, block: TransformerBlock, x: str, side: int) -> str:
        """A Transformer block."""
        x = self.node("Add", x, self.attention(block.attention, self.norm(block.norm1, x), side))
        return self.node("Add", x, self.gated(block.unit, self.norm(block.norm2, x)))

    def fusion(self, fusion: PriorFusion, x: str, prior: str, factor: int) -> str:
        """The fusion with a prior, which is enlarged by ``factor``."""
        scales = self.constant(np.array([1, 1, factor, factor], np.float32))
        spread = self.node("Resize", prior, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        both = self.node("Concat", spread, self.norm(fusion.norm1, x), axis=1)
        first, second = fusion.weigh[0], fusion.weigh[2]
        weights = []
        for pool in ("GlobalAveragePool", "GlobalMaxPool"):
            hidden = self.node("Relu", self.module(first, self.node(pool, both)))
            weights.append(self.node("Sigmoid", self.module(second, hidden)))
        x = self.node("Add", x, self.convolution(fusion.mix, self.node("Mul", both, self.node("Add", *weights))))
        channels = fusion.mix.out_channels
        both = self.convolution(fusion.modulate, spread)
        scale, shift = (
            self.slice(both, [0], [channels], [1], [1]),
            self.slice(both, [channels], [2 * channels], [1], [1]),
        )
        inner = self.node("Mul", self.norm(fusion.norm2, x), self.scalar("Add", scale, 1.0))
        return self.node("Add", x, self.gated(fusion.unit, self.node("Add", inner, shift)))

    def conditioned(self, part: Conditioned, x: str, condition: str) -> str:
        """Residual blocks behind a scale and a shift."""
        channels = part.modulate.out_features // 2
        weight, bias = (self.weight(p.detach().numpy()) for p in (part.modulate.weight.T, part.modulate.bias))
        both = self.node("Add", self.node("MatMul", condition, weight), bias)
        both = self.node("Unsqueeze", both, self._numbers(2, 3))
        scale, shift = (
            self.slice(both, [0], [channels], [1], [1]),
            self.slice(both, [channels], [2 * channels], [1], [1]),
        )
        x = self.node("Add", self.node("Mul", x, self.scalar("Add", scale, 1.0)), shift)
        return self.module(part.blocks, x) if len(part.blocks) else x

    def unshuffled(self, conv: nn.Conv2d, image: str, side: int, channels: int) -> str:
        """A convolution of the image, minus 0.5 and with so many pixels on the side in its channels."""
        return self.convolution(conv, *self.space_to_depth(self.scalar("Sub", image, 0.5), side, channels))

    def network(self, network: EnhancementNetwork, image: str, condition: str, prior: str | None) -> tuple[str, str]:
        """The enhancement network: what is added, and the expected error."""
        side = WINDOW // (4 * REDUCTION)
        x1 = self.conditioned(network.encode1, self.unshuffled(network.enter, image, REDUCTION, 3), condition)
        x2 = self.conditioned(network.encode2, self.convolution(network.down1, x1), condition)
        x3 = self.conditioned(network.condition, self.convolution(network.down2, x2), condition)
        if network.fusion is not None and prior is not None:
            x3 = self.fusion(network.fusion, x3, prior, TOKEN // (4 * REDUCTION))
        for block in network.bottleneck:
            assert isinstance(block, TransformerBlock)
            x3 = self.transformer(block, x3, side)
        up2 = self.depth_to_space(self.convolution(network.up2, x3), 2)
        x2 = self.conditioned(network.decode2, self.node("Add", x2, up2), condition)
        up1 = self.depth_to_space(self.convolution(network.up1, x2), 2)
        x1 = self.conditioned(network.decode1, self.node("Add", x1, up1), condition)
        doubt = self.scalar("Add", self.depth_to_space(self.convolution(network.doubt, x1), REDUCTION), DOUBT_START)
        return self.depth_to_space(self.convolution(network.leave, x1), REDUCTION), self.node("Exp", doubt)

    def reader(self, reader: PriorReader, image: str, condition: str) -> str:
        """The tokens of a decoded image."""
        inner = WINDOW // READER_REDUCTION
        place = self.node("Unsqueeze", condition, self._numbers(2, 3))
        planes = self.node("Expand", place, self._numbers(1, CODING_CONDITIONS, inner, inner))
        pixels, order = self.space_to_depth(self.scalar("Sub", image, 0.5), READER_REDUCTION, 3)
        order = np.concatenate([order, len(order) + np.arange(CODING_CONDITIONS)])
        x = self.convolution(reader.enter, self.node("Concat", pixels, planes, axis=1), order)
        x = self.module(reader.blocks, self.node("LeakyRelu", x, alpha=0.1))
        x = self.node("LeakyRelu", self.convolution(reader.down, x), alpha=0.1)
        side = TOKEN // READER_REDUCTION // 2
        pooled = self.node(
            "AveragePool", self.convolution(reader.leave, x), kernel_shape=[side] * 2, strides=[side] * 2
        )
        return self.module(reader.head, pooled)

    def generated(self, denoiser: TokenDenoiser, noise: str, known: str) -> str:
        """The prior that four steps make of noise."""
        x = noise
        for step in range(STEPS, 0, -1):
            time = self.scalar("Add", self.scalar("Mul", self.slice(known, [0], [1], [1], [1]), 0.0), step / STEPS)
            predicted = self.module(denoiser.layers, self.node("Concat", x, known, time, axis=1))
            if step > 1:
                alphas = np.cumprod([1.0, *(1 - beta for beta in BETAS)])
                before, now, beta = alphas[step - 1], alphas[step], BETAS[step - 1]
                kept = self.scalar("Mul", x, math.sqrt(1 - beta) * (1 - before) / (1 - now))
                predicted = self.node("Add", self.scalar("Mul", predicted, math.sqrt(before) * beta / (1 - now)), kept)
            x = predicted
        return x


def write_enhancer(enhancer: Enhancer, path: Path) -> None:
    """Write the graph of an enhancer that the ground can run; weights are stored in fp16.

    Inputs are ``image`` [N, 3, 256, 256] in 0..1, ``condition`` [N, 4], and ``noise`` [N, tokens, 4, 4] where the prior is generated; the
    output ``added`` has the shape of the image,
    ``expected`` [N, 1, 256, 256] is the mean absolute error
    over the colours that is left. Raises ValueError for the oracle, which needs the original.
    """
    if enhancer.kind == "oracle":
        raise ValueError("the oracle's prior needs the original, which the ground does not have")
    writer = EnhancementWriter()
    image, condition = (
        writer.input("image", ["N", 3, WINDOW, WINDOW]),
        writer.input("condition", ["N", CODING_CONDITIONS]),
    )
    prior = None
    if enhancer.reader is not None:
        prior = writer.reader(enhancer.reader, image, condition)
    if enhancer.denoiser is not None and prior is not None:
        side = WINDOW // TOKEN
        prior = writer.generated(enhancer.denoiser, writer.input("noise", ["N", enhancer.tokens, side, side]), prior)
    added, expected = writer.network(enhancer.network, image, condition, prior)
    writer.output(added, "added", ["N", 3, WINDOW, WINDOW])
    writer.output(expected, "expected", ["N", 1, WINDOW, WINDOW])
    writer.save(path)
