"""Engines: refused when they are not what they claim, equal where they must be."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from perigee.bitstream import compiled
from perigee.bitstream.errors import EngineError, ProfileError
from perigee.bitstream.prior import Widths
from perigee.engines.flight import FlightEngine
from perigee.engines.graph import GraphPrior
from perigee.engines.ground import GroundEngine
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.engines.torch import TorchGraph

LATENTS = Widths().latents


def test_an_engine_whose_prior_is_off_is_refused(profile):
    class Biased(OnnxRuntimeGraph):
        """A runtime that gets one activation in a million wrong."""

        def __call__(self, feeds):
            out = super().__call__(feeds)
            if "context" in feeds:
                out[5] = out[5].copy()
                out[5][0, 0, 0, 0] += 1
            return out

    with pytest.raises(ProfileError, match=r"self-test 0 .* pass \[5\]"):
        FlightEngine(profile, 1, graph=Biased, use_compiled_prior=False)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("optimise", [True, False])
def test_prior_graph_equals_the_reference(profile, rng, threads, optimise):
    graph = GraphPrior(profile.contract.widths, OnnxRuntimeGraph(profile.file("prior.onnx"), threads, optimise))
    q = np.rint(rng.laplace(0, 5, (3, LATENTS, 8, 12))).astype(np.int32)
    z = rng.integers(-64, 65, (3, 64, 2, 3)).astype(np.int32)
    wanted = profile.contract.reference(np.float64).all_passes(z, q, 200)
    for a, b in zip(wanted, graph.all_passes(z, q, 200), strict=True):
        assert np.array_equal(a.table, b.table) and np.array_equal(a.mean, b.mean)


def test_the_compiled_prior_serves_where_it_was_built(profile, flight, ground, monkeypatch):
    assert isinstance(flight.prior, compiled.NativePrior) and isinstance(ground.prior, compiled.NativePrior)
    assert isinstance(FlightEngine(profile, 1, use_compiled_prior=False).prior, GraphPrior)
    monkeypatch.setattr(compiled, "library", None)
    assert isinstance(FlightEngine(profile, 1).prior, GraphPrior)
    with pytest.raises(EngineError, match="C compiler"):
        compiled.NativePrior(profile.contract.widths, profile.contract.layers)


def test_pass_by_pass_equals_all_passes(profile, rng):
    flight, ground = (
        FlightEngine(profile, 2, use_compiled_prior=False),
        GroundEngine(profile, 2, use_compiled_prior=False),
    )
    q = np.rint(rng.laplace(0, 2, (1, LATENTS, 16, 16))).astype(np.int32)
    z = rng.integers(-9, 10, (1, 64, 4, 4)).astype(np.int32)
    for a, b in zip(flight.prior.all_passes(z, q, 99), ground.prior.all_passes(z, q, 99), strict=True):
        assert np.array_equal(a.table, b.table) and np.array_equal(a.mean, b.mean)


def test_analyses_of_engines_differ_at_most_rarely(profile, flight, rng):
    image = rng.random((2, 3, 128, 64), np.float32)
    other = FlightEngine(profile, 2, TorchGraph)
    for step in (20, 120, 240):
        (q1, z1), (q2, z2) = flight.analyse(image, step), other.analyse(image, step)
        assert (q1 != q2).mean() < 1e-4 and np.abs(q1 - q2).max() <= 1 and (z1 != z2).mean() < 1e-2
        assert q1.dtype == np.int32 and q1.shape == (2, LATENTS, 8, 4) and z1.shape == (2, 64, 2, 1)


def test_unknown_operators_are_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Tan", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "g.onnx")
    with pytest.raises(EngineError, match="Tan"):
        TorchGraph(tmp_path / "g.onnx")
