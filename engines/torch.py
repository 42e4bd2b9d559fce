"""Graphs run by PyTorch: for machines where torch is what there is, and as an independent check.

A graph is interpreted node by node from the same ONNX file that the other engines load. TF32 is switched off, since the
prior's integers are carried in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import DeviceMemoryError, EngineError, Fault

try:
    import onnx
    import torch
    from onnx import numpy_helper

    from perigee.engines.torch_operators import OPERATORS
except ModuleNotFoundError as missing:  # reported when an engine is asked for
    _missing: str | None = missing.name
else:
    _missing = None
    HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchGraph:
    """One graph on a torch device: a dict of arrays to a list of arrays, as an ONNX Runtime session."""

    engine_name = "torch"

    def __init__(self, path: Path, threads: int | None = None, device: str = "cpu", half: bool = False) -> None:
        """``half`` computes convolutions and matrix products in :func:`half_of` the device. Raises EngineError for an operator that is not known."""
        if _missing:
            raise EngineError(
                f"{_missing} is missing: pip install '.[torch]' in Perigee's checkout", Fault.ABSENT, field=_missing
            )
        if threads:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._device, self._half = torch.device(device), half
        graph = onnx.load(str(path)).graph
        self._constants = {
            c.name: torch.from_numpy(numpy_helper.to_array(c).copy()).to(self._device) for c in graph.initializer
        }
        self._outputs = [o.name for o in graph.output]
        self._nodes = [
            (n.op_type, list(n.input), n.output[0], {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
            for n in graph.node
        ]
        last = {name: i for i, (_, inputs, *_) in enumerate(self._nodes) for name in inputs}
        kept = {*self._outputs, *self._constants}
        self._done = [
            [name for name, i in last.items() if i == n and name not in kept] for n in range(len(self._nodes))
        ]
        unknown = sorted({op for op, *_ in self._nodes} - set(OPERATORS))
        if unknown:
            raise EngineError(f"{path.name} uses operators that this engine does not know: {unknown}")

    def __call__(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        try:
            return self._run(feeds)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"PyTorch has no memory left for a graph of the profile ({error})") from error
        except RuntimeError as error:
            raise EngineError(f"PyTorch cannot run a graph of the profile ({error})") from error

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        half = HALVES[half_of(self._device.type)]
        with torch.no_grad(), torch.autocast(self._device.type, half, enabled=self._half):
            values = dict(self._constants)
            values |= {
                name: torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for name, array in feeds.items()
            }
            for (op, inputs, output, attributes), done in zip(self._nodes, self._done, strict=True):
                values[output] = OPERATORS[op]([values.get(name) for name in inputs], attributes)
                for name in done:  # what no other node reads, so that its memory serves the next ones
                    values.pop(name, None)
            found = [values[name].cpu() for name in self._outputs]
            return [(x.float() if x.dtype == half else x).numpy() for x in found]


def half_of(device: str) -> str:
    """The half precision of a device: ``bfloat16`` on the CPU, where processors have no arithmetic in float16, ``float16`` on GPUs."""
    return "bfloat16" if device == "cpu" else "float16"


def device_named(device: str) -> tuple[str, str]:
    """The name by which PyTorch knows a device (``cpu`` or the number of a GPU), and what products call it.

    Raises EngineError where PyTorch is missing or does not see it.
    """
    if _missing:
        raise EngineError(
            f"{_missing} is missing: pip install '.[torch]' in Perigee's checkout", Fault.ABSENT, field=_missing
        )
    if device == "cpu":
        return device, device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device) >= count:
        seen = f"GPUs 0 to {count - 1}" if count else "no GPU"
        raise EngineError(
            f"PyTorch sees {seen}; --device cpu runs it on the CPU",
            Fault.ABSENT,
            field="device",
            expected=seen,
            found=device,
        )
    return f"cuda:{device}", f"GPU {device}, {torch.cuda.get_device_name(int(device))}"
