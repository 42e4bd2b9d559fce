"""Sessions of ONNX Runtime on a CPU, the default engine of satellite and ground.

The execution provider is asserted, never assumed. ONNX Runtime is imported in one place, after the switch that keeps it from
reporting home was set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from perigee.bitstream.arrays import Array
from perigee.bitstream.errors import DeviceMemoryError, EngineError, Fault

CPU = "CPUExecutionProvider"
OUT_OF_MEMORY = ("out of memory", "failed to allocate memory")  # in the words of CUDA and of ONNX Runtime's arenas
Providers = Sequence[tuple[str, dict[str, str]]]  # names and options, the preferred one first


def load_onnxruntime() -> Any:
    """The module ``onnxruntime`` with its telemetry off. Raises EngineError where it is missing or broken."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read while the library is loaded, so it must come before the import
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise EngineError(
            "onnxruntime is missing: in Perigee's checkout, pip install '.[onboard]' for a satellite or '.[ground]' for the "
            "ground",
            Fault.ABSENT,
            field="onnxruntime",
        ) from error
    except Exception as error:  # a broken package raises anything
        raise EngineError(
            f"onnxruntime cannot be imported ({error}); install it again in a fresh environment",
            Fault.FAILED,
            field="onnxruntime",
        ) from error
    ort.disable_telemetry_events()
    return ort


class OnnxRuntimeGraph:
    """One graph as a session. A subclass may name other execution providers, which then run all of the graph."""

    engine_name: ClassVar[str] = "onnxruntime"

    def __init__(
        self, path: Path, threads: int | None = None, optimise: bool = True, providers: Providers = ((CPU, {}),)
    ) -> None:
        """``threads`` None takes all cores. Raises EngineError where ONNX Runtime cannot load the file."""
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        wanted = providers[0][0]
        if wanted != CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's exceptions have no common ancestor of their own
            raise EngineError(f"{path.name}: ONNX Runtime cannot load it ({error})", field=path.name) from error
        self._session.disable_fallback()
        chosen = self._session.get_providers()
        if chosen[0] != wanted:
            raise EngineError(
                f"ONNX Runtime chose {chosen} instead of {wanted}",
                Fault.ABSENT,
                field="provider",
                expected=wanted,
                found=", ".join(chosen),
            )

    def __call__(self, feeds: dict[str, Array]) -> list[Array]:
        try:
            out: list[Array] = self._session.run(None, feeds)
        except Exception as error:
            full = any(words in str(error).lower() for words in OUT_OF_MEMORY)
            kind = DeviceMemoryError if full else EngineError
            raise kind(f"ONNX Runtime cannot run a graph of the profile ({error})") from error
        return out
