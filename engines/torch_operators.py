"""The operators of ONNX that the shipped graphs use, in PyTorch: from the values of the inputs and the attributes to the output.

An input that is left out is None. Shapes and axes are tensors too, as in the graph.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F

from perigee.bitstream.errors import EngineError

TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


def _conv(x: list[Any], a: dict[str, Any]) -> Any:
    pads = a.get("pads", [0, 0, 0, 0])
    bias = x[2] if len(x) > 2 else None
    return F.conv2d(x[0], x[1], bias, stride=a.get("strides", [1, 1]), padding=pads[:2], groups=a.get("group", 1))


def _slice(x: list[Any], _: dict[str, Any]) -> Any:
    starts, stops = x[1].tolist(), x[2].tolist()
    axes = x[3].tolist() if len(x) > 3 else range(len(starts))
    steps = x[4].tolist() if len(x) > 4 else [1] * len(starts)
    index = [slice(None)] * x[0].dim()
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
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


def _average(x: list[Any], a: dict[str, Any]) -> Any:
    size = a["kernel_shape"]
    pads = a.get("pads", [0, 0, 0, 0])
    return F.avg_pool2d(
        x[0], size, a.get("strides", [1, 1]), pads[:2], count_include_pad=bool(a.get("count_include_pad", 0))
    )


def _constant_of_shape(x: list[Any], a: dict[str, Any]) -> Any:
    value = torch.from_numpy(numpy_helper.to_array(a["value"]).copy()) if "value" in a else torch.zeros(1)
    return value.to(x[0].device).expand(x[0].tolist())


def _divide(x: list[Any], _: dict[str, Any]) -> Any:
    return torch.div(*x, rounding_mode=None if x[0].is_floating_point() else "trunc")


def _expand(x: list[Any], _: dict[str, Any]) -> Any:
    return torch.broadcast_tensors(x[0], x[0].new_empty(x[1].tolist()))[0]  # type: ignore[no-untyped-call]


def _gather(x: list[Any], a: dict[str, Any]) -> Any:
    axis = a.get("axis", 0) % x[0].dim()
    places = x[1] % x[0].shape[axis]  # negative ones count from the end
    found = x[0].index_select(axis, places.reshape(-1))
    return found.reshape(*x[0].shape[:axis], *x[1].shape, *x[0].shape[axis + 1 :])


def _gemm(x: list[Any], a: dict[str, Any]) -> Any:
    left, right = (m.T if a.get(name) else m for m, name in ((x[0], "transA"), (x[1], "transB")))
    out = a.get("alpha", 1.0) * (left @ right)
    return out + a.get("beta", 1.0) * x[2] if len(x) > 2 else out


def _layer_norm(x: list[Any], a: dict[str, Any]) -> Any:
    if a.get("axis", -1) != -1:
        raise EngineError("LayerNormalization over more than the last axis")
    return F.layer_norm(x[0], x[0].shape[-1:], x[1], x[2] if len(x) > 2 else None, a.get("epsilon", 1e-5))


def _reshape(x: list[Any], a: dict[str, Any]) -> Any:
    shape = x[1].tolist()
    if not a.get("allowzero", 0):
        shape = [x[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x[0].reshape(shape)


def _resize(x: list[Any], a: dict[str, Any]) -> Any:
    mode, transform = a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel")
    factors = x[2].tolist()[2:]
    if mode == b"nearest" and transform == b"asymmetric" and a.get("nearest_mode") == b"floor":
        return F.interpolate(x[0], scale_factor=factors, mode="nearest")
    if mode == b"linear" and transform == b"half_pixel":
        return F.interpolate(x[0], scale_factor=factors, mode="bilinear", align_corners=False)
    raise EngineError(f"Resize as {mode.decode()}, {transform.decode()}")


def _unsqueeze(x: list[Any], _: dict[str, Any]) -> Any:
    out, axes = x[0], x[1].tolist()
    for axis in sorted(axis % (out.dim() + len(axes)) for axis in axes):
        out = out.unsqueeze(axis)
    return out


def _cast(x: list[Any], a: dict[str, Any]) -> Any:
    return x[0].to(TYPES[a["to"]])


OPERATORS: dict[str, Any] = {
    "Abs": lambda x, _: x[0].abs(),
    "Add": lambda x, _: x[0] + x[1],
    "AveragePool": _average,
    "Cast": _cast,
    "Clip": lambda x, _: torch.minimum(torch.maximum(x[0], x[1]), x[2]),
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Constant": lambda _, a: torch.from_numpy(numpy_helper.to_array(a["value"]).copy()),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Cos": lambda x, _: x[0].cos(),
    "DepthToSpace": _depth_to_space,
    "Div": _divide,
    "Einsum": lambda x, a: torch.einsum(a["equation"].decode(), *x),
    "Equal": lambda x, _: x[0] == x[1],
    "Erf": lambda x, _: x[0].erf(),
    "Exp": lambda x, _: x[0].exp(),
    "Expand": _expand,
    "Floor": lambda x, _: x[0].floor(),
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": lambda x, _: x[0] > x[1],
    "Identity": lambda x, _: x[0],
    "InstanceNormalization": lambda x, a: F.instance_norm(x[0], weight=x[1], bias=x[2], eps=a.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a["alpha"]),
    "Log": lambda x, _: x[0].log(),
    "MatMul": lambda x, _: x[0] @ x[1],
    "Max": lambda x, _: torch.maximum(x[0], x[1]),
    "Min": lambda x, _: torch.minimum(x[0], x[1]),
    "Mul": lambda x, _: x[0] * x[1],
    "Neg": lambda x, _: -x[0],
    "Reciprocal": lambda x, _: 1 / x[0],
    "ReduceL2": lambda x, a: x[0].norm(dim=x[1].tolist(), keepdim=bool(a.get("keepdims", 1))),
    "ReduceMean": lambda x, a: x[0].mean(dim=x[1].tolist(), keepdim=bool(a.get("keepdims", 1))),
    "Relu": lambda x, _: x[0].relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": lambda x, _: x[0].round(),
    "Shape": lambda x, _: torch.tensor(x[0].shape, device=x[0].device),
    "Sigmoid": lambda x, _: x[0].sigmoid(),
    "Sign": lambda x, _: x[0].sign(),
    "Sin": lambda x, _: x[0].sin(),
    "Slice": _slice,
    "Softmax": lambda x, a: x[0].softmax(a.get("axis", -1)),
    "Softplus": lambda x, _: F.softplus(x[0]),
    "SpaceToDepth": _space_to_depth,
    "Sqrt": lambda x, _: x[0].sqrt(),
    "Sub": lambda x, _: x[0] - x[1],
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda x, _: torch.where(x[0], x[1], x[2]),
}
