"""What every engine offers: a graph of the profile as a function of arrays, and the integer prior run from its graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from perigee.bitstream.arrays import Array, FloatArray, IntArray
from perigee.bitstream.errors import EngineError, Fault
from perigee.bitstream.prior import (
    Prediction,
    RunPass,
    Widths,
    coded_passes,
    context_of,
    context_of_pass,
    quality_plane_value,
    split_outputs,
)

WHOLE_PRIOR, HYPER_PRIOR = "prior.onnx", "prior_hyper.onnx"


class Graph(Protocol):
    """A loaded graph: named input arrays to the list of its outputs, in the order of the ONNX file. Raises EngineError."""

    def __call__(self, feeds: dict[str, Array], /) -> list[Array]: ...


class GraphLoader(Protocol):
    """Makes a runnable graph from a checked ONNX file. ``engine_name`` is what products and reports call the engine."""

    @property
    def engine_name(self) -> str: ...

    def __call__(self, path: Path, threads: int | None = None, /) -> Graph: ...


def quality_plane(z: IntArray, quality_step: int) -> FloatArray:
    """The prior's quality input, float32 [N, 1, H, W], for hyper-latents [N, C, H/4, W/4]."""
    n, _, h, w = z.shape
    return np.full((n, 1, 4 * h, 4 * w), quality_plane_value(quality_step), np.float32)


class GraphPrior:
    """``prior.PriorEngine`` from the profile's graphs: all passes at once, or pass by pass.

    Of the graphs only those that the caller will use have to be given: ``whole`` for :meth:`all_passes`, ``hyper`` and
    ``passes`` for :meth:`start`.
    """

    def __init__(
        self,
        widths: Widths,
        whole: Graph | None = None,
        hyper: Graph | None = None,
        passes: Sequence[Graph] = (),
    ) -> None:
        self.widths = widths
        self._whole, self._hyper, self._passes = whole, hyper, passes

    def memory(self) -> Sequence[IntArray]:
        """Nothing: the memory of a session is out of reach."""
        return []

    def all_passes(self, z: IntArray, q: IntArray, quality_step: int, latents: int | None = None) -> list[Prediction]:
        """As ``prior.PriorEngine``, in one run where the whole graph is loaded."""
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

    def start(self, z: IntArray, quality_step: int) -> RunPass:
        """As ``prior.PriorEngine``. Raises EngineError where the graphs of the passes are not loaded."""
        if self._hyper is None:
            raise EngineError("the decoding graphs of the prior are not loaded", Fault.ABSENT, field=HYPER_PRIOR)
        features = self._hyper({"z": z.astype(np.float32), "quality_plane": quality_plane(z, quality_step)})

        def step(k: int, q: IntArray, channels: int | None = None) -> Prediction:
            feeds = {"features": features[k % 2]}
            context = context_of_pass(self.widths, k, q)
            if context is not None:
                feeds["context"] = context.astype(np.float32)
            return split_outputs(self._passes[k](feeds)[0]).first(channels)

        return step
