"""The graphs of a codec's networks: analysis, consistency with the symbols, reconstruction and synthesis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto
from torch import nn

from perigee.bitstream import prior as P
from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.export.graph import GraphWriter
from perigee.models.codec.analysis import NO_LINEAR_PATH, Analysis, HyperAnalysis, ResidualAnalysis
from perigee.models.codec.synthesis import CENTROID_REACH, Reconstruction, Synthesis
from perigee.models.codec.transform import BlockTransform, Gains


def channels_of(layer: nn.Module) -> int:
    """Return the number of output channels of a convolution."""
    assert isinstance(layer, nn.Conv2d)
    return layer.out_channels


def write_analysis(analysis: Analysis, name: str, gains: Gains, hyper: HyperAnalysis, path: Path) -> None:
    """Write the graph of one analysis with gains, hyper-analysis and rounding; its weights are stored in fp16.

    Inputs are ``image`` [N, 3, H, W] in 0..1 and ``quality_step`` [N, 1]; outputs are the int32 symbols ``q``
    [N, latents, H/16, W/16] and ``z`` [N, hyper_latents, H/64, W/64].
    """
    writer = GraphWriter("analysis", half=True)
    image = writer.input("image", ["N", 3, "H", "W"])
    quality = writer.input("quality_step", ["N", 1])
    y = "" if name in NO_LINEAR_PATH else writer.block_transform(analysis.linear, image)
    if name in analysis.networks:
        inner = writer.scalar("Mul", writer.clip(writer.scalar("Sub", image, 0.5), -0.75, 0.75), 4.0)
        network = analysis.networks[name]
        layers = network.layers if isinstance(network, ResidualAnalysis) else network
        detail = writer.scalar("Mul", writer.module(layers, inner, 3), 4.0)
        y = writer.node("Add", y, detail) if y else detail
    gained = writer.node("Mul", y, writer.gains(gains, quality))
    z = writer.module(hyper.layers, writer.node("Log", writer.scalar("Add", writer.node("Abs", gained), 1.0)))
    for x, low, high, output, channels in (
        (gained, P.Q_MIN, P.Q_MAX, "q", analysis.linear.latents),
        (z, -P.Z_CLAMP, P.Z_CLAMP, "z", channels_of(hyper.layers[-1])),
    ):
        whole = writer.node("Cast", writer.clip(writer.node("Round", x), low, high), to=TensorProto.INT32)
        writer.output(whole, output, ["N", channels, f"{output}H", f"{output}W"], TensorProto.INT32)
    writer.save(path)


def write_consistency(linear: BlockTransform, path: Path) -> None:
    """Write the graph that moves an image to where its linear transform lies within bounds; its weights are stored in fp16.

    Inputs are ``image`` [N, 3, 16H, 16W] and the bounds ``low`` and ``high`` [N, latents, H, W]; the output is ``consistent``
    [N, 3, 16H, 16W].
    """
    writer = GraphWriter("consistency", half=True)
    latents = linear.latents
    image = writer.input("image", ["N", 3, "Y", "X"])
    low, high = (writer.input(name, ["N", latents, "H", "W"]) for name in ("low", "high"))
    y = writer.block_transform(linear, image)
    missing = writer.node("Sub", writer.node("Max", writer.node("Min", y, high), low), y)
    inverse = np.linalg.pinv(linear.weight.detach().double().numpy().reshape(latents, -1))
    change = writer.node("Conv", missing, writer.weight(inverse[:, :, None, None]), kernel_shape=[1, 1])
    writer.output(writer.node("Add", image, writer.depth_to_space(change, BLOCK)), "consistent", ["N", 3, "Y", "X"])
    writer.save(path)


def write_reconstruction(reconstruction: Reconstruction, spread_min: float, log_step: float, path: Path) -> None:
    """Write the graph of the reconstruction.

    Inputs are ``q``, ``mean`` (in quantisation steps) and ``scale_index``, all [N, latents, H, W], and ``quality_step``
    [N, 1]; the output is ``latents`` [N, latents + 1, H, W] with the quality plane last. ``spread_min`` is the spread at scale
    index 0 and ``log_step`` the difference of log spreads between two indices.
    """
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
    """Write the graph of the synthesis; its weights are stored in fp16.

    The input is ``latents`` [N, latents + 1, H, W] with the quality plane last, the output ``image`` [N, 3, 16H, 16W],
    nominally in 0..1.
    """
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
    # every pixel of a block has the same strength
    logs = np.repeat(synthesis.strength.detach().numpy()[None, :, None, None], BLOCK**2, 0)
    strength = writer.node("Exp", writer.node("Conv", weights, writer.constant(logs), kernel_shape=[1, 1]))
    detail = writer.node("Mul", detail, writer.depth_to_space(writer.scalar("Mul", strength, 0.25), BLOCK))
    out = writer.scalar("Add", writer.node("Add", image, detail), 0.5)
    writer.output(out, "image", ["N", 3, "Y", "X"])
    writer.save(path)
