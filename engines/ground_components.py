"""What the ground runs of a component profile: the prior, and the synthesis where the profile has one."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.component_profile import SYNTHESIS_FILE, ComponentProfile
from perigee.bitstream.reconstruction import STEP_BITS
from perigee.engines.backend import CPU_BACKEND, Backend
from perigee.engines.components import ComponentEngine
from perigee.engines.graph import Graph
from perigee.support.cores import usable_cores


class GroundComponents(ComponentEngine):
    """A component profile as the ground runs it."""

    def __init__(
        self,
        profile: ComponentProfile,
        threads: int | None = None,
        synthesis: bool = True,
        backend: Backend = CPU_BACKEND,
    ) -> None:
        """``threads`` None takes all cores for the synthesis, which runs on the ``backend``; without ``synthesis`` the samples are those of
        the integers. Raises ProfileError or EngineError."""
        super().__init__(profile)
        self.backend = backend
        self.threads = threads or usable_cores()
        self._synthesis: Graph | None = None
        if synthesis and profile.manifest.has(SYNTHESIS_FILE):
            self._synthesis = backend.batched(profile.file(SYNTHESIS_FILE), threads)

    @property
    def can_synthesise(self) -> bool:
        """Whether the profile has a synthesis."""
        return self._synthesis is not None

    def step(self, quality_step: int) -> float:
        """The step size at Q, as a share of the range."""
        return float(self.profile.contract.steps[quality_step]) * 2.0**-STEP_BITS

    def synthesise(
        self, latents: FloatArray, index: FloatArray, plane: FloatArray, guide: FloatArray, quality: FloatArray
    ) -> FloatArray:
        """What is to be added to the plane of a component, float32 [1, 1, 16 H, 16 W] in steps.

        The inputs are those of ``models.codec.component_synthesis``, float32 with N = 1. Raises EngineError without a synthesis.
        """
        assert self._synthesis is not None
        inputs = {"latents": latents, "index": index, "plane": plane, "guide": guide, "quality": quality}
        (out,) = self._synthesis(inputs)
        return np.asarray(out, np.float32)
