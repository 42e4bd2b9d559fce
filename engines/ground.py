"""The engine of the ground: the integer prior pass by pass, reconstruction, synthesis and the projection to cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perigee.bitstream.arrays import Array, FloatArray, IntArray
from perigee.bitstream.prior import MEAN_FRACTIONS, PriorEngine, unhalf
from perigee.bitstream.profile import CONSISTENCY_FILE, Profile
from perigee.engines.backend import CPU_BACKEND, Backend
from perigee.engines.graph import HYPER_PRIOR, Graph, GraphPrior
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.engines.prior import prior_without
from perigee.support.cores import usable_cores


class Predicted(NamedTuple):
    """Means (1/16 of a latent step) and scale indices of a whole patch, int32 [N, latents, H, W]."""

    mean: IntArray
    scale_index: IntArray


class GroundEngine:
    """What stays on the ground.

    The synthesis and the projection run on the ``backend``. The prior and the reconstruction, which is a few operations on each
    latent, run on CPU threads patch by patch; ``prior`` replaces the engine's own prior.
    """

    def __init__(
        self,
        profile: Profile,
        threads: int | None = None,
        backend: Backend = CPU_BACKEND,
        prior: PriorEngine | None = None,
        check: bool = True,
        use_compiled_prior: bool = True,
    ) -> None:
        """``threads`` None takes all cores. The prior must pass the profile's self-test. Raises ProfileError, EngineError."""
        self.profile = profile
        self.backend = backend
        self.name = backend.engine_name
        self.threads = threads or usable_cores()
        widths = profile.contract.widths
        prior = prior or prior_without(HYPER_PRIOR, profile, OnnxRuntimeGraph, use_compiled_prior)
        if prior is None:
            passes = [OnnxRuntimeGraph(profile.file(f"prior_pass{k}.onnx"), threads) for k in range(widths.passes)]
            prior = GraphPrior(widths, hyper=OnnxRuntimeGraph(profile.file(HYPER_PRIOR), threads), passes=passes)
        self.prior: PriorEngine = prior
        if check:
            profile.self_test(self.prior)
        self._reconstruction = OnnxRuntimeGraph(profile.file("reconstruction.onnx"), threads)
        self._synthesis = backend.batched(profile.file("synthesis.onnx"), threads)
        self._consistency: Graph | None = None
        if profile.manifest.has(CONSISTENCY_FILE):
            self._consistency = backend.batched(profile.file(CONSISTENCY_FILE), threads)

    def predict(self, z: IntArray, q: IntArray, quality_step: int) -> Predicted:
        """The prior's means and scale indices where all latents are known."""
        widths = self.profile.contract.widths
        mean, index = np.zeros_like(q), np.zeros_like(q)
        for k, prediction in enumerate(self.prior.all_passes(z, q, quality_step)):
            start, stop = widths.slice_of(k)
            unhalf(prediction.mean, k % 2, mean[:, start:stop])
            unhalf(prediction.table // MEAN_FRACTIONS, k % 2, index[:, start:stop])
        return Predicted(mean, index)

    def reconstruct(self, q: IntArray, mean: IntArray, scale_index: IntArray, quality_step: int) -> FloatArray:
        """Dequantised latents and the quality plane, float32 [N, latents + 1, H, W], of integers [N, latents, H, W]."""
        feeds: dict[str, Array] = {
            "q": q.astype(np.float32),
            "mean": mean.astype(np.float32) / 16,
            "scale_index": scale_index.astype(np.float32),
            "quality_step": np.full((len(q), 1), quality_step, np.float32),
        }
        out: FloatArray = self._reconstruction(feeds)[0]
        return out

    def synthesise(self, latents: FloatArray) -> FloatArray:
        """Images float32 [N, 3, 16H, 16W], nominally 0..1, of latents [N, latents + 1, H, W]."""
        out: FloatArray = self._synthesis({"latents": latents})[0]
        return out

    @property
    def can_project(self) -> bool:
        """Whether the profile has a linear analysis, so that :meth:`project_to_cells` does something."""
        return self._consistency is not None

    def project_to_cells(self, image: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
        """The image moved to where its linear transform lies within ``low``..``high``, float32 [N, latents, H/16, W/16].

        ``image`` is float32 [N, 3, H, W] in 0..1. The original lies there too, so each such move is towards it (projection onto
        convex sets). The image comes back unchanged where the profile has no linear analysis.
        """
        if self._consistency is None:
            return image
        out: FloatArray = self._consistency({"image": image, "low": low, "high": high})[0]
        return out
