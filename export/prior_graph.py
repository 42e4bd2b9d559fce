"""The graphs of the integer prior: one for encoding with all passes, and one for each pass for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto

from perigee.bitstream import prior as P
from perigee.export.graph import GraphWriter


class OnnxOps:
    """The operations of ``bitstream.prior.Ops`` as nodes of a graph; weights are stored as int8 and scaled by a power of two."""

    def __init__(self, writer: GraphWriter, widths: P.Widths, layers: dict[str, P.Layer]) -> None:
        self.writer, self.layers, self.shapes = writer, layers, P.layer_shapes(widths)

    def layer(self, name: str, x: str) -> str:
        """Append the layer of this name."""
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
        """Rearrange [N, 4C, H, W] to [N, C, 2H, 2W]."""
        return self.writer.depth_to_space(x, 2)

    def concat(self, xs: Sequence[str]) -> str:
        """Join tensors along their channels."""
        return self.writer.node("Concat", *xs, axis=1)

    def half(self, x: str, parity: int) -> str:
        """Return one half [N, C, H, W/2] of a checkerboard."""
        a, b = (0, 1) if parity == 0 else (1, 0)
        end = np.iinfo(np.int64).max
        first = self.writer.slice(x, [0, a], [end, end], [2, 3], [2, 2])
        second = self.writer.slice(x, [1, b], [end, end], [2, 3], [2, 2])
        return self.writer.node("Concat", first, second, axis=2)


def write_prior(widths: P.Widths, layers: dict[str, P.Layer], folder: Path) -> list[str]:
    """Write the graphs of a prior to a folder and return their file names.

    ``prior.onnx`` computes all passes, for encoding; ``prior_hyper.onnx`` and ``prior_pass<k>.onnx`` are for decoding. Inputs
    and outputs are float32 with values that are exact integers.
    """
    names = ["prior.onnx", "prior_hyper.onnx"]
    _write_whole(widths, layers, folder / names[0])
    writer = GraphWriter("prior_hyper")
    for parity, features in enumerate(_hyper_halves(writer, OnnxOps(writer, widths, layers), widths)):
        writer.output(features, f"features{parity}", ["N", widths.hyper, "H", "V"])
    writer.save(folder / names[1])
    for k in range(widths.passes):
        names.append(f"prior_pass{k}.onnx")
        _write_pass(k, widths, layers, folder / names[-1])
    return names


def _hyper_halves(writer: GraphWriter, ops: OnnxOps, widths: P.Widths) -> list[str]:
    """Append the hyper-features and return the two halves of their checkerboard."""
    z = writer.input("z", ["N", widths.hyper_latents, "h", "w"])
    plane = writer.input("quality_plane", ["N", 1, "H", "W"])
    features = P.hyper_features(ops, z, plane)
    return [ops.half(features, 0), ops.half(features, 1)]


def _write_whole(widths: P.Widths, layers: dict[str, P.Layer], path: Path) -> None:
    """Write the graph with all passes."""
    writer = GraphWriter("prior")
    ops = OnnxOps(writer, widths, layers)
    halves = _hyper_halves(writer, ops, widths)
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
    writer.save(path)


def _write_pass(k: int, widths: P.Widths, layers: dict[str, P.Layer], path: Path) -> None:
    """Write the graph of pass ``k`` alone."""
    writer = GraphWriter(f"prior_pass{k}")
    features = writer.input("features", ["N", widths.hyper, "H", "V"])
    seen = widths.context_inputs(k)
    given = writer.input("context", ["N", seen, "H", "W"]) if seen else None
    start, stop = widths.slice_of(k)
    out = P.pass_outputs(OnnxOps(writer, widths, layers), k, features, given)
    writer.output(out, "out", ["N", 2 * (stop - start), "H", "V"])
    writer.save(path)
