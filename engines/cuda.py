"""ONNX Runtime on an NVIDIA GPU through its CUDA provider.

TF32 is off, since the prior's integers are carried in float32. Convolutions use cuDNN's fixed choice of algorithm instead of
a search for every new shape. Nodes that the GPU cannot run are an error, not a silent detour over the CPU.

Written from the documented interface and tested with a stand-in for the provider; it has not run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path

from perigee.bitstream.errors import EngineError, Fault
from perigee.engines.onnxruntime import OnnxRuntimeGraph, load_onnxruntime

PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install '.[cuda]' in Perigee's checkout"


def missing() -> str | None:
    """What is missing for this engine, as far as can be told without loading a GPU library, or None."""
    try:
        ort = load_onnxruntime()
    except EngineError as error:
        return f"{error}; with a GPU: {INSTALL}, into a fresh environment"
    if PROVIDER in ort.get_available_providers():
        return None
    return f"this onnxruntime has no CUDA provider; on a machine with an NVIDIA GPU: pip uninstall onnxruntime, then {INSTALL}"


class CudaGraph(OnnxRuntimeGraph):
    """One graph as a session on the GPU: a dict of arrays to a list of arrays. Raises EngineError where there is none."""

    engine_name = "cuda"
    provider = (PROVIDER, {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"})

    def __init__(self, path: Path, threads: int | None = None) -> None:
        reason = missing()
        if reason:
            raise EngineError(reason, Fault.ABSENT, field="cuda")
        super().__init__(path, threads)
