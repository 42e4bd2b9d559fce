"""What runs the networks of the ground: an engine on a device. The exact prior runs on CPU threads whatever the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perigee.engines.batching import Batched
from perigee.engines.graph import Graph
from perigee.engines.onnxruntime import OnnxRuntimeGraph

CPU_DEVICE = "cpu"
GPU_BATCH = 4


@dataclass(frozen=True)
class Backend:
    """Loads graphs for one engine and device.

    ``device`` is ``cpu``, or the number of a GPU with its model where that is known. ``batch`` is how many images a graph takes at a time.
    ``precision`` is that of convolutions and matrix products.
    """

    engine_name: str
    device: str
    make: Callable[[Path, int | None], Graph]
    batch: int = 1
    precision: str = "float32"

    def __call__(self, path: Path, threads: int | None = None, /) -> Graph:
        """A runnable graph of an ONNX file. Raises EngineError."""
        return self.make(path, threads)

    def batched(self, path: Path, threads: int | None = None) -> Graph:
        """A graph that takes one image from each of several threads and runs them together. Raises EngineError."""
        graph = self(path, threads)
        return Batched(graph, self.batch) if self.batch > 1 else graph

    @property
    def on_cpu(self) -> bool:
        """Whether the networks run on the CPU."""
        return self.device == CPU_DEVICE


CPU_BACKEND = Backend(OnnxRuntimeGraph.engine_name, CPU_DEVICE, OnnxRuntimeGraph)
