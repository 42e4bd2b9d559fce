"""Graphs in the precision that a TensorRT plan is to have: TensorRT 10 and 11 read the precision of every tensor from them.

Only the network layers of an analysis may be made coarser. Its linear block transform, its gains, the hyper-analysis (a
few percent of the work, and up to 1 % of the bytes if it were int8), the rounding and the inputs and outputs stay float32;
the integer prior stays float32 as a whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import EngineError
from perigee.engines.onnxruntime import OnnxRuntimeGraph

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as missing:  # reported when a graph is asked for
    _missing: str | None = missing.name
else:
    _missing = None

Model = Any  # onnx.ModelProto
Array = npt.NDArray[Any]
FOLDED = {"Cast", "Mul"}  # what the exporter writes between a stored weight and its layer
# fp16 where their inputs are
FOLLOWING = {"Add", "DepthToSpace", "LeakyRelu", "Mul", "Relu", "Sigmoid", "SpaceToDepth"}
INT8_MAX = 127


def folded(path: Path) -> Model:
    """The graph of a file with the arithmetic of its weights done: every layer finds a float32 constant.

    Profiles store weights as int8 or fp16 with a Cast, which TensorRT's parser does not take for int8; bounds of a Clip
    become true scalars. The values are those that ONNX Runtime computes. Raises EngineError where onnx is missing or fails.
    """
    if _missing:
        raise EngineError(f"{_missing} is missing: pip install '.[tensorrt]' in Perigee's checkout")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's errors have no ancestor that onnx exports
        raise EngineError(f"{path.name}: onnx cannot read it ({error})") from error
    constants, nodes = _constants(model), []
    for node in model.graph.node:
        if node.op_type in FOLDED and all(name in constants for name in node.input):
            values = [constants[name] for name in node.input]
            constants[node.output[0]] = values[0] * values[1] if node.op_type == "Mul" else values[0].astype(np.float32)
            continue
        if node.op_type == "Clip":
            constants |= {name: constants[name].reshape(()) for name in node.input[1:]}
        nodes.append(node)
    return _rebuilt(model, nodes, constants)


def halved(model: Model) -> Model:
    """A folded graph whose network layers, and what lies between them, are fp16."""
    constants, nodes = _constants(model), []
    layers, half = _network(model), set[str]()
    cast: dict[str, str] = {}

    def converted(name: str, inside: bool) -> str:
        """``name`` in the type of the node that reads it; integers and what fits already stay as they are."""
        if name in constants:
            if not inside or constants[name].dtype != np.float32:
                return name
            constants[f"{name}_half"] = constants[name].astype(np.float16)
            return f"{name}_half"
        if (name in half) == inside:
            return name
        if name not in cast:
            cast[name] = f"{name}_{'half' if inside else 'single'}"
            to = TensorProto.FLOAT16 if inside else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [name], [cast[name]], to=to))
        return cast[name]

    for node in model.graph.node:
        data = [name for name in node.input if name not in constants]
        inside = node.output[0] in layers or (node.op_type in FOLLOWING and bool(data) and half.issuperset(data))
        nodes.append(_with_inputs(node, [converted(name, inside) for name in node.input]))
        if inside:
            half.update(node.output)
    return _rebuilt(model, nodes, constants)


def activation_ranges(model: Model, batches: Iterable[dict[str, Array]]) -> dict[str, float]:
    """Largest magnitude of every tensor that a network layer of a folded graph reads, over all batches of inputs."""
    layers = _network(model)
    names = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.output[0] in layers))
    if not names:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        path.write_bytes(watched.SerializeToString())
        graph = OnnxRuntimeGraph(path)
    largest = np.zeros(len(names))
    for feeds in batches:
        largest = np.maximum(largest, [np.abs(value).max() for value in graph(feeds)[-len(names) :]])
    return dict(zip(names, largest.tolist(), strict=True))


def quantised(model: Model, ranges: dict[str, float]) -> Model:
    """A folded graph whose network layers compute in int8: explicit QuantizeLinear and DequantizeLinear before each.

    Zero points are 0, one scale an activation (``ranges``, see :func:`activation_ranges`) and one an output channel.
    """
    constants, nodes, layers = _constants(model), [], _network(model)
    done: dict[str, str] = {}

    def pair(name: str) -> str:
        if name not in done:
            if not ranges.get(name):
                raise EngineError(f"the calibration saw nothing but zeros in {name}: give it other tiles")
            constants[f"{name}_scale"] = np.array(ranges[name] / INT8_MAX, np.float32)
            constants[f"{name}_zero"] = np.array(0, np.int8)
            rest = [f"{name}_scale", f"{name}_zero"]
            nodes.append(helper.make_node("QuantizeLinear", [name, *rest], [f"{name}_int8"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_int8", *rest], [f"{name}_coarse"]))
            done[name] = f"{name}_coarse"
        return done[name]

    def weight(name: str) -> str:
        value = constants[name]
        scale = np.maximum(np.abs(value).max(axis=(1, 2, 3)) / INT8_MAX, np.finfo(np.float32).tiny).astype(np.float32)
        constants[f"{name}_int8"] = np.rint(value / scale[:, None, None, None]).astype(np.int8)
        constants[f"{name}_scale"], constants[f"{name}_zero"] = scale, np.zeros(len(scale), np.int8)
        rest = [f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_int8", *rest], [f"{name}_coarse"], axis=0))
        return f"{name}_coarse"

    for node in model.graph.node:
        if node.output[0] in layers:
            node = _with_inputs(node, [pair(node.input[0]), weight(node.input[1]), *node.input[2:]])
        nodes.append(node)
    return _rebuilt(model, nodes, constants)


def _network(model: Model) -> set[str]:
    """Outputs of the network's layers: convolutions that do not go from block to block and do not follow the hyper-analysis' Log."""
    layers: set[str] = set()
    hyper: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Log" or hyper.intersection(node.input):
            hyper.update(node.output)
        elif node.op_type == "Conv" and not any(a.name == "strides" and BLOCK in a.ints for a in node.attribute):
            layers.add(node.output[0])
    return layers


def _constants(model: Model) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _with_inputs(node: Any, inputs: Sequence[str]) -> Any:
    out = onnx.NodeProto()
    out.CopyFrom(node)
    out.input[:] = inputs
    return out


def _rebuilt(model: Model, nodes: Sequence[Any], constants: dict[str, Array]) -> Model:
    """The model with other nodes and those of the constants that they use; all types are checked."""
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, tensors)
    out = helper.make_model(
        graph, opset_imports=model.opset_import, producer_name=model.producer_name, ir_version=model.ir_version
    )
    onnx.checker.check_model(out, full_check=True)
    return out
