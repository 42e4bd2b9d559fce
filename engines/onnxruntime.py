"""ONNX Runtime on a CPU: the default engine of satellite and ground.

Sessions are made from files whose hashes were checked, and the integer prior must pass the profile's self-test before it
is used. The provider is asserted, never assumed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream import compiled
from perigee.bitstream.errors import EngineError
from perigee.bitstream.prior import (
    MEAN_FRACTIONS,
    Q_MAX,
    Q_MIN,
    IntArray,
    Prediction,
    PriorEngine,
    Step,
    Widths,
    coded_passes,
    context_of,
    context_of_pass,
    quality_plane_value,
    split_outputs,
    unhalf,
)
from perigee.bitstream.profile import CONSISTENCY_FILE, Profile, load_profile

FloatArray = npt.NDArray[np.float32]
HALF_STEP = 0.49  # of quantisation: a little inside, where rounding of floats cannot tip it over
ROUNDING = 12**-0.5  # deviation of a rounded sample
PROJECTIONS = 2  # of an image with generated detail, in turn onto what a product can show and onto its symbols
HALF_STEP_MIN = 0.25  # however coarsely samples are rounded
WHOLE_PRIOR, HYPER_PRIOR = "prior.onnx", "prior_hyper.onnx"
Graph = Any  # callable: dict of arrays -> list of arrays


def cells_of(
    q: npt.NDArray[Any], gains: FloatArray, reach: float | FloatArray = HALF_STEP
) -> tuple[FloatArray, FloatArray]:
    """Bounds of the latents that are rounded to ``q`` [latents, H, W], for gains [latents]; ``reach``: half a step at most."""
    gains = gains[:, None, None]
    low = np.where(q == Q_MIN, -np.inf, (q - reach) / gains)  # a clipped symbol says "at least so far out"
    high = np.where(q == Q_MAX, np.inf, (q + reach) / gains)
    return low.astype(np.float32), high.astype(np.float32)


class Predicted(NamedTuple):
    """Means (1/16 of a latent step) and scale indices of a whole patch, int32 [N, latents, H, W]."""

    mean: IntArray
    scale_index: IntArray


class OnnxRuntimeGraph:
    """One graph as a session on the CPU; a subclass may name another execution provider, which then runs all of it."""

    provider: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})

    def __init__(self, path: Path, threads: int | None = None, optimise: bool = True) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: nothing that flies calls home
        try:
            import onnxruntime as ort
        except ModuleNotFoundError as error:
            raise EngineError("onnxruntime is missing: pip install '.[onboard]' in Perigee's checkout") from error
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        wanted = self.provider[0]
        if wanted != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[self.provider])
        except Exception as error:  # ONNX Runtime's exceptions have no common ancestor of their own
            raise EngineError(f"{path.name}: ONNX Runtime cannot load it ({error})") from error
        self._session.disable_fallback()
        if self._session.get_providers()[0] != wanted:
            raise EngineError(f"ONNX Runtime chose {self._session.get_providers()} instead of {wanted}")

    def __call__(self, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        try:
            out: list[npt.NDArray[Any]] = self._session.run(None, feeds)
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot run a graph of the profile ({error})") from error
        return out


def quality_plane(z: IntArray, quality_step: int) -> FloatArray:
    """The prior's quality input [N, 1, H, W] for hyper-latents [N, C, H/4, W/4]."""
    n, _, h, w = z.shape
    return np.full((n, 1, 4 * h, 4 * w), quality_plane_value(quality_step), np.float32)


class GraphPrior:
    """The prior from its graphs: all passes at once, or pass by pass. Whichever graphs are given can be used."""

    def __init__(
        self, widths: Widths, whole: Graph = None, hyper: Graph = None, steps: list[Graph] | None = None
    ) -> None:
        self.widths = widths
        self._whole, self._hyper, self._steps = whole, hyper, steps or []

    def memory(self) -> Sequence[IntArray]:
        """Nothing: a session's memory is out of reach."""
        return []

    def all_passes(self, z: IntArray, q: IntArray, quality_step: int, latents: int | None = None) -> list[Prediction]:
        if self._whole is None:
            return coded_passes(self.widths, self.start(z, quality_step), q, latents)
        rows, cols = q.shape[2:]
        even = ((np.arange(rows)[:, None] + np.arange(cols)) % 2 == 0).astype(np.float32)[None, None]
        feeds = {
            "z": z.astype(np.float32),
            "quality_plane": quality_plane(z, quality_step),
            "context": context_of(q).astype(np.float32),
            "even": even,
        }
        if self.widths.magnitudes:
            table = np.array(self.widths.magnitudes, np.float32)
            feeds["magnitudes"] = table[np.abs(context_of(q))]
        counts = [self.widths.coded_channels(k, latents) for k in range(self.widths.passes)]
        outputs = self._whole(feeds)
        return [split_outputs(out).first(n) for out, n in zip(outputs, counts, strict=True) if n]

    def start(self, z: IntArray, quality_step: int) -> Step:
        if self._hyper is None:
            raise EngineError("the decoding graphs of the prior are not loaded")
        features = self._hyper({"z": z.astype(np.float32), "quality_plane": quality_plane(z, quality_step)})

        def step(k: int, q: IntArray, channels: int | None = None) -> Prediction:
            feeds = {"features": features[k % 2]}
            context = context_of_pass(self.widths, k, q)
            if context is not None:
                feeds["context"] = context.astype(np.float32)
            return split_outputs(self._steps[k](feeds)[0]).first(channels)

        return step


def _other_prior(profile: Profile, graph: Any, compiled_wanted: bool, file: str) -> PriorEngine | None:
    """The prior without its graph ``file``, or None where the graph is to serve.

    The compiled prior stands beside ONNX Runtime where it was built; other engines bring their own graphs. Superseded
    profiles come without graphs, to keep them small: then it is the compiled one for every engine, or numpy.
    """
    has_graph = file in profile.manifest["files"]
    if compiled_wanted and compiled.library is not None and (graph is OnnxRuntimeGraph or not has_graph):
        return compiled.NativePrior(profile.contract.widths, profile.contract.layers)
    return None if has_graph else profile.contract.reference(np.float32)


class FlightEngine:
    """What flies: one of the profile's analyses and the whole prior. ``graph`` makes a runnable graph from a file.

    The prior is the compiled one where there is one, unless ``compiled_prior`` is False: the integers are the same.
    """

    name = "onnxruntime"

    def __init__(
        self,
        profile: Profile,
        threads: int | None = None,
        graph: Any = OnnxRuntimeGraph,
        check: bool = True,
        analysis: str | None = None,
        compiled_prior: bool = True,
    ) -> None:
        self.profile = profile
        self._arguments = (threads, graph, check, analysis, compiled_prior)
        self.analysis, file = profile.analysis(analysis)
        self.linear = profile.is_linear(self.analysis)
        self._analysis = graph(file, threads)
        prior = _other_prior(profile, graph, compiled_prior, WHOLE_PRIOR)
        self.prior = prior or GraphPrior(profile.contract.widths, graph(profile.file(WHOLE_PRIOR), threads))
        if check:
            profile.self_test(self.prior)

    def renewed(self) -> FlightEngine:
        """The same engine, loaded again from the profile's files. Raises ProfileError or EngineError as at the start."""
        again = object.__new__(type(self))
        FlightEngine.__init__(again, load_profile(self.profile.folder), *self._arguments)
        return again

    def analyse(self, image: FloatArray, quality_step: int) -> tuple[IntArray, IntArray]:
        """Integers q [N, latents, H/16, W/16] and z of images float32 [N, 3, H, W], nominally 0..1, sides multiples of 64."""
        quality = np.full((len(image), 1), quality_step, np.float32)
        q, z = self._analysis({"image": image, "quality_step": quality})
        return q, z


class GroundEngine:
    """What stays: the prior pass by pass, reconstruction and synthesis. ``prior`` replaces the engine's own by another."""

    name = "onnxruntime"

    def __init__(
        self,
        profile: Profile,
        threads: int | None = None,
        graph: Any = OnnxRuntimeGraph,
        prior: PriorEngine | None = None,
        check: bool = True,
        compiled_prior: bool = True,
    ) -> None:
        self.profile = profile
        widths = profile.contract.widths
        prior = prior or _other_prior(profile, graph, compiled_prior, HYPER_PRIOR)
        if prior is None:
            steps = [graph(profile.file(f"prior_pass{k}.onnx"), threads) for k in range(widths.passes)]
            prior = GraphPrior(widths, hyper=graph(profile.file(HYPER_PRIOR), threads), steps=steps)
        self.prior = prior
        if check:
            profile.self_test(self.prior)
        self._reconstruction = graph(profile.file("reconstruction.onnx"), threads)
        self._synthesis = graph(profile.file("synthesis.onnx"), threads)
        self._consistency = None
        if CONSISTENCY_FILE in profile.manifest["files"]:
            self._consistency = graph(profile.file(CONSISTENCY_FILE), threads)

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
        """Dequantised latents and the quality plane, float32 [N, latents + 1, H, W]."""
        feeds = {
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
    def can_hold(self) -> bool:
        """Whether :meth:`consistent` does anything."""
        return self._consistency is not None

    def consistent(self, image: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
        """The image moved to where its linear transform lies within ``low``..``high``, float32 [N, latents, H/16, W/16].

        The original lies there too, so each step is towards it (projection onto convex sets). Unchanged where the profile
        has no linear analysis.
        """
        if self._consistency is None:
            return image
        out: FloatArray = self._consistency({"image": image, "low": low, "high": high})[0]
        return out
