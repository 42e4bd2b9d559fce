"""Which implementation of the integer prior an engine uses. All give the same integers; they differ in speed."""

from __future__ import annotations

import numpy as np

from perigee.bitstream import compiled
from perigee.bitstream.prior import PriorEngine
from perigee.bitstream.profile import Profile
from perigee.engines.graph import GraphLoader
from perigee.engines.onnxruntime import OnnxRuntimeGraph


def prior_without(graph_file: str, profile: Profile, graph: GraphLoader, use_compiled: bool) -> PriorEngine | None:
    """The prior that makes the graph ``graph_file`` unnecessary, or None where that graph has to serve.

    Beside ONNX Runtime on a CPU the compiled prior is the fastest, where there was a compiler; other engines run the graphs.
    Superseded profiles come without graphs, to keep them small: then it is the compiled prior for every engine, or numpy.
    """
    has_graph = profile.manifest.has(graph_file)
    on_cpu = graph.engine_name == OnnxRuntimeGraph.engine_name
    if use_compiled and compiled.library is not None and (on_cpu or not has_graph):
        return compiled.NativePrior(profile.contract.widths, profile.contract.layers)
    return None if has_graph else profile.contract.reference(np.float32)
