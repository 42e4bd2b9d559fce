"""The engine that flies: one of the profile's analyses and the whole integer prior."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.prior import PriorEngine
from perigee.bitstream.profile import Profile, load_profile
from perigee.engines.graph import WHOLE_PRIOR, GraphLoader, GraphPrior
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.engines.prior import prior_without


class FlightEngine:
    """What flies. ``graph`` makes a runnable graph from a file of the profile; it decides on which hardware the engine runs.

    The prior must pass the profile's self-test before it is used (``check``). With ``use_compiled_prior`` it is the compiled
    one where there is one; the integers are the same.
    """

    def __init__(
        self,
        profile: Profile,
        threads: int | None = None,
        graph: GraphLoader = OnnxRuntimeGraph,
        check: bool = True,
        analysis: str | None = None,
        use_compiled_prior: bool = True,
    ) -> None:
        """``threads`` None takes all cores; ``analysis`` None the profile's default. Raises ProfileError, EngineError."""
        self.profile = profile
        self.name = graph.engine_name
        self._arguments = (threads, graph, check, analysis, use_compiled_prior)
        self.analysis, file = profile.analysis(analysis)
        self.linear = profile.is_linear(self.analysis)
        self._analysis = graph(file, threads)
        prior = prior_without(WHOLE_PRIOR, profile, graph, use_compiled_prior)
        self.prior: PriorEngine = prior or GraphPrior(
            profile.contract.widths, graph(profile.file(WHOLE_PRIOR), threads)
        )
        if check:
            profile.self_test(self.prior)

    def renewed(self) -> FlightEngine:
        """The same engine, loaded again from the profile's files. Raises ProfileError or EngineError as at the start."""
        again = object.__new__(type(self))
        FlightEngine.__init__(again, load_profile(self.profile.folder), *self._arguments)
        return again

    def analyse(self, image: FloatArray, quality_step: int) -> tuple[IntArray, IntArray]:
        """Latents q [N, latents, H/16, W/16] and hyper-latents z [N, hyper_latents, H/64, W/64], integers.

        ``image`` is float32 [N, 3, H, W], nominally 0..1, with sides that are multiples of 64; ``quality_step`` is 0..250.
        """
        quality = np.full((len(image), 1), quality_step, np.float32)
        q, z = self._analysis({"image": image, "quality_step": quality})
        return q, z
