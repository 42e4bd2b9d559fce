"""What runs the networks of the ground: an engine on a device. The exact prior runs on CPU threads whatever the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perigee.engines.graph import Graph
from perigee.engines.onnxruntime import OnnxRuntimeGraph

CPU_DEVICE = "cpu"


@dataclass(frozen=True)
class Backend:
    """Loads graphs for one engine and device. ``device`` is ``cpu``, or the number of a GPU with its model where that is known."""

    engine_name: str
    device: str
    make: Callable[[Path, int | None], Graph]

    def __call__(self, path: Path, threads: int | None = None, /) -> Graph:
        """A runnable graph of an ONNX file. Raises EngineError."""
        return self.make(path, threads)

    @property
    def on_cpu(self) -> bool:
        """Whether the networks run on the CPU."""
        return self.device == CPU_DEVICE


CPU_BACKEND = Backend(OnnxRuntimeGraph.engine_name, CPU_DEVICE, OnnxRuntimeGraph)
