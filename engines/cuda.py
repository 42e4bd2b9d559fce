"""ONNX Runtime on an NVIDIA GPU: through its CUDA provider, and on the ground also through its TensorRT provider.

TF32 is off, since the prior's integers are carried in float32. Convolutions use cuDNN's fixed choice of algorithm instead of
a search for every new shape. Nodes that the GPU cannot run are an error, not a silent detour over the CPU.

Written from the documented interface and tested with stand-ins for the providers; it has not run on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path

from perigee.bitstream.errors import EngineError, Fault
from perigee.engines.onnxruntime import OnnxRuntimeGraph, load_onnxruntime

PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"
INSTALL, GROUND_INSTALL = (
    "pip install '.[cuda]' in Perigee's checkout",
    "pip install '.[ground-cuda]' in Perigee's checkout",
)


def missing(provider: str = PROVIDER, install: str = INSTALL) -> str | None:
    """What is missing for a provider, as far as can be told without loading a GPU library, or None."""
    try:
        ort = load_onnxruntime()
    except EngineError as error:
        return f"{error}; with a GPU: {install}, into a fresh environment"
    if provider in ort.get_available_providers():
        return None
    name = "CUDA" if provider == PROVIDER else "TensorRT"
    return f"this onnxruntime has no {name} provider; on a machine with an NVIDIA GPU: pip uninstall onnxruntime, then {install}"


class CudaGraph(OnnxRuntimeGraph):
    """One graph as a session on a GPU: a dict of arrays to a list of arrays. Raises EngineError where there is none."""

    engine_name = "cuda"

    def __init__(self, path: Path, threads: int | None = None, device: int = 0) -> None:
        """``device`` is the number of the GPU."""
        reason = missing()
        if reason:
            raise EngineError(reason, Fault.ABSENT, field="cuda")
        options = {"device_id": str(device), "use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
        super().__init__(path, threads, providers=[(PROVIDER, options)])


class TensorRTSession(OnnxRuntimeGraph):
    """One graph as a session of the TensorRT provider, which builds its plans when a shape comes for the first time."""

    engine_name = "tensorrt"

    def __init__(self, path: Path, threads: int | None = None, device: int = 0, plans: Path | None = None) -> None:
        """``plans`` is the folder in which plans are kept for the next start. Nodes that TensorRT does not take run in the CUDA provider."""
        options = {"device_id": str(device), "trt_fp16_enable": "0"}
        if plans is not None:
            options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(plans)}
        cuda = {"device_id": str(device), "use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
        super().__init__(path, threads, providers=[(TENSORRT_PROVIDER, options), (PROVIDER, cuda)])
