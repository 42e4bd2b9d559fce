"""The profile's graphs run by PyTorch: for machines where torch is what there is, and as an independent check.

A graph is interpreted node by node from the same ONNX file that the other engines load. TF32 is switched off, since the
prior's integers are carried in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import EngineError, Fault

try:
    import onnx
    import torch
    from onnx import numpy_helper
    from torch.nn import functional as F
except ModuleNotFoundError as missing:  # reported when an engine is asked for
    _missing: str | None = missing.name
else:
    _missing = None


class TorchGraph:
    """One graph on a torch device: a dict of arrays to a list of arrays, as an ONNX Runtime session."""

    engine_name = "torch"

    def __init__(self, path: Path, threads: int | None = None, device: str = "cpu") -> None:
        if _missing:
            raise EngineError(
                f"{_missing} is missing: pip install '.[export]' in Perigee's checkout", Fault.ABSENT, field=_missing
            )
        if threads:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._device = torch.device(device)
        graph = onnx.load(str(path)).graph
        self._constants = {
            c.name: torch.from_numpy(numpy_helper.to_array(c).copy()).to(self._device) for c in graph.initializer
        }
        self._outputs = [o.name for o in graph.output]
        self._nodes = [
            (n.op_type, list(n.input), n.output[0], {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
            for n in graph.node
        ]
        unknown = sorted({op for op, *_ in self._nodes} - set(OPERATORS))
        if unknown:
            raise EngineError(f"{path.name} uses operators that this engine does not know: {unknown}")

    def __call__(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        with torch.no_grad():
            values = dict(self._constants)
            values |= {
                name: torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for name, array in feeds.items()
            }
            for op, inputs, output, attributes in self._nodes:
                values[output] = OPERATORS[op]([values[name] for name in inputs], attributes)
            return [values[name].cpu().numpy() for name in self._outputs]


def _conv(x: list[Any], a: dict[str, Any]) -> Any:
    pads = a.get("pads", [0, 0, 0, 0])
    bias = x[2] if len(x) > 2 else None
    return F.conv2d(x[0], x[1], bias, stride=a.get("strides", [1, 1]), padding=pads[:2], groups=a.get("group", 1))


def _slice(x: list[Any], _: dict[str, Any]) -> Any:
    index = [slice(None)] * x[0].dim()
    for start, stop, axis, step in zip(*(part.tolist() for part in x[1:5]), strict=True):
        index[axis] = slice(start, min(stop, x[0].shape[axis]), step)
    return x[0][tuple(index)]


def _space_to_depth(x: list[Any], a: dict[str, Any]) -> Any:
    n, c, h, w = x[0].shape
    b = a["blocksize"]
    return x[0].reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def _depth_to_space(x: list[Any], a: dict[str, Any]) -> Any:
    if a.get("mode") != b"CRD":
        raise EngineError("DepthToSpace in another order than CRD")
    return F.pixel_shuffle(x[0], a["blocksize"])


def _cast(x: list[Any], a: dict[str, Any]) -> Any:
    return x[0].to({onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.INT32: torch.int32}[a["to"]])


OPERATORS: dict[str, Any] = {
    "Abs": lambda x, _: x[0].abs(),
    "Add": lambda x, _: x[0] + x[1],
    "Cast": _cast,
    "Clip": lambda x, _: torch.minimum(torch.maximum(x[0], x[1]), x[2]),
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "Div": lambda x, _: x[0] / x[1],
    "Exp": lambda x, _: x[0].exp(),
    "Floor": lambda x, _: x[0].floor(),
    "Gather": lambda x, a: x[0].index_select(a["axis"], x[1]),
    "Identity": lambda x, _: x[0],
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a["alpha"]),
    "Log": lambda x, _: x[0].log(),
    "Max": lambda x, _: torch.maximum(x[0], x[1]),
    "MatMul": lambda x, _: x[0] @ x[1],
    "Min": lambda x, _: torch.minimum(x[0], x[1]),
    "Mul": lambda x, _: x[0] * x[1],
    "Neg": lambda x, _: -x[0],
    "Reciprocal": lambda x, _: 1 / x[0],
    "Relu": lambda x, _: x[0].relu(),
    "Round": lambda x, _: x[0].round(),
    "Sigmoid": lambda x, _: x[0].sigmoid(),
    "Sign": lambda x, _: x[0].sign(),
    "Slice": _slice,
    "Softplus": lambda x, _: F.softplus(x[0]),
    "SpaceToDepth": _space_to_depth,
    "Sqrt": lambda x, _: x[0].sqrt(),
    "Sub": lambda x, _: x[0] - x[1],
    "Unsqueeze": lambda x, _: x[0][(...,) + (None,) * len(x[1])],
}
