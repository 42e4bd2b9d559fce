"""Which engine flies here: the one asked for, or the first of several whose self-test passes.

A GPU library that is broken may crash or hang instead of raising. ``auto`` therefore tries an engine that seems to be
there in a process of its own first, and only then loads it. Where its packages are not installed nothing is started, and
an engine asked for by name is loaded straight away.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from perigee.bitstream.contract import PATCH_MULTIPLE
from perigee.bitstream.profile import Profile, find_profile
from perigee.engines import probing
from perigee.engines.flight import FlightEngine
from perigee.engines.probing import PassedOver

GPU_ENGINES = ("tensorrt", "cuda")
ENGINES = (*GPU_ENGINES, "onnxruntime")  # in the order in which auto tries them


class Choice(NamedTuple):
    """The engine that will be used; ``passed_over`` is empty unless the choice was free."""

    engine: FlightEngine
    passed_over: list[PassedOver]


def load(name: str, profile: Profile, threads: int | None = None, analysis: str | None = None) -> FlightEngine:
    """One of ``ENGINES``, after its self-test. Raises EngineError that says what is missing, ProfileError."""
    if name == "tensorrt":
        from perigee.engines.tensorrt import Plans

        return _tried(FlightEngine(profile, threads, Plans(), analysis=analysis))
    if name == "cuda":
        from perigee.engines.cuda import CudaGraph

        return _tried(FlightEngine(profile, threads, CudaGraph, analysis=analysis))
    if name == "onnxruntime":
        return FlightEngine(profile, threads, analysis=analysis)
    raise probing.unknown(name, ENGINES)


def _tried(engine: FlightEngine) -> FlightEngine:
    """The engine, once its analysis has run: the self-test runs the prior only, and a GPU may lack kernels."""
    engine.analyse(np.zeros((1, 3, PATCH_MULTIPLE, PATCH_MULTIPLE), np.float32), 0)
    return engine


def missing(name: str, profile: Profile, analysis: str | None = None) -> str | None:
    """Why a GPU engine cannot be here at all, found without loading a GPU library; None where only trying can tell."""
    from perigee.engines import cuda, tensorrt

    return cuda.missing() if name == "cuda" else tensorrt.missing(profile, analysis)


def failing(name: str, profile: Profile, analysis: str | None = None) -> str | None:
    """Why an engine does not work, tried in a process of its own; None where its self-test passes."""
    return probing.failing(__name__, [name, str(profile.folder), *([analysis] if analysis else [])])


def choose(profile: Profile, wanted: str = "auto", threads: int | None = None, analysis: str | None = None) -> Choice:
    """The engine ``wanted`` (one of ``ENGINES``), or with ``auto`` the first that works.

    Raises EngineError or ProfileError where that engine, or with ``auto`` even ONNX Runtime on the CPU, cannot be used.
    """
    if wanted != "auto":
        return Choice(load(wanted, profile, threads, analysis), [])
    passed_over: list[PassedOver] = []
    for name in GPU_ENGINES:
        reason = missing(name, profile, analysis) or failing(name, profile, analysis)
        if reason is None:
            try:
                return Choice(load(name, profile, threads, analysis), passed_over)
            except Exception as error:  # the probe passed, yet a GPU library may still raise anything
                reason = str(error) or type(error).__name__
        passed_over.append(PassedOver(name, reason))
    return Choice(load(ENGINES[-1], profile, threads, analysis), passed_over)


def _probe(name: str, folder: str, analysis: str | None = None) -> int:
    return probing.tried(lambda: load(name, find_profile(folder), analysis=analysis))


if __name__ == "__main__":
    sys.exit(_probe(*sys.argv[1:]))
