"""The integer prior: every implementation gives the integers of the int64 reference, and the proof rejects what would not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perigee.bitstream import compiled
from perigee.bitstream import prior as P
from perigee.bitstream.errors import EngineError, ProfileError
from perigee.models.codec.prior import TrainedPrior, half, unhalf

MAGNITUDES = tuple(n * n * 127 // 127**2 for n in range(128))
SMALL = P.Widths(latents=24, hyper_latents=8, hyper=12, context=10, head=14, slices=(8, 16))
SEEING = replace(SMALL, magnitudes=MAGNITUDES)


def small_layers(seed=3, widths=SMALL):
    """Layers with weights over the whole range and shifts that keep activations alive."""
    rng = np.random.default_rng(seed)
    layers = {}
    for name, shape in P.layer_shapes(widths).items():
        weight = rng.integers(-127, 128, shape.weight_shape).astype(np.int8)
        shift = rng.integers(5, 9, shape.outputs).astype(np.uint8)
        layers[name] = P.Layer(weight, rng.integers(-3000, 3000, shape.outputs).astype(np.int32), shift)
    return layers


def case(rng, n=2):
    z = rng.integers(-64, 65, (n, 8, 2, 3)).astype(np.int32)
    q = np.rint(rng.laplace(0, 20, (n, 24, 8, 12))).astype(np.int32)
    q[0, 0, 0, 0], q[0, 5, 1, 1] = P.Q_MAX, P.Q_MIN
    return z, q


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("widths", [SMALL, SEEING])
def test_blas_gives_the_integers_of_the_reference(rng, dtype, widths):
    layers = small_layers(widths=widths)
    z, q = case(rng)
    for step in (0, 77, 250):
        wanted = P.NumpyPrior(widths, layers).all_passes(z, q, step)
        found = P.NumpyPrior(widths, layers, dtype).all_passes(z, q, step)
        for a, b in zip(wanted, found, strict=True):
            assert np.array_equal(a.table, b.table) and np.array_equal(a.mean, b.mean)
    assert len(np.unique(wanted[-1].table)) > 50, "the case must not be trivial"


PACKINGS = compiled.packings()
ODD = P.Widths(latents=7, hyper_latents=3, hyper=5, context=33, head=11, slices=(1, 2, 4))


def test_compiled_library_is_here():
    """Where tests run there is a compiler; elsewhere the library is optional."""
    assert compiled.library is not None and len(PACKINGS) > 0


def test_a_library_of_other_sources_is_refused(monkeypatch):
    """Its number or the size of any struct that it is given tells."""
    monkeypatch.setattr(compiled, "ABI", compiled.ABI + 1)
    assert compiled._load() is None
    monkeypatch.undo()
    larger = type("Larger", (compiled._Patch,), {"_fields_": [("more", compiled.ctypes.c_uint64)]})
    monkeypatch.setattr(compiled, "_Patch", larger)
    assert compiled._load() is None
    monkeypatch.undo()
    assert compiled._load() is not None


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "widths", [SMALL, SEEING, ODD, replace(ODD, magnitudes=MAGNITUDES), P.Widths(64, 16, 40, 24, 48, (8, 24, 32))]
)
def test_compiled_prior_gives_the_integers_of_the_reference(rng, packing, widths):
    """Any widths, not only multiples of what vectors hold; sides that are not powers of two; a batch; extreme values."""
    layers = small_layers(widths=widths)
    native = compiled.NativePrior(widths, layers, packing)
    z = rng.integers(-64, 65, (2, widths.hyper_latents, 1, 3)).astype(np.int32)
    q = np.rint(rng.laplace(0, 60, (2, widths.latents, 4, 12))).astype(np.int32)
    q[0, 0, 0, :4], q[1, 5, 1, 1] = (P.Q_MAX, P.Q_MIN, -1, -5), P.Q_MIN
    for step in (0, 101, 250):
        wanted = P.NumpyPrior(widths, layers).all_passes(z, q, step)
        for a, b in zip(wanted, native.all_passes(z, q, step), strict=True):
            assert np.array_equal(a.table, b.table) and np.array_equal(a.mean, b.mean)
        for latents in (1, widths.slices[0] + 1, widths.latents - 1):
            found = native.all_passes(z, q, step, latents)
            assert sum(p.mean.shape[1] for p in found) == 2 * latents
            for a, b in zip(wanted, found, strict=False):
                n = b.mean.shape[1]
                assert np.array_equal(a.table[:, :n], b.table) and np.array_equal(a.mean[:, :n], b.mean)
    assert len(np.unique(wanted[-1].table)) > 20, "the case must not be trivial"


@pytest.mark.parametrize("packing", PACKINGS)
def test_compiled_prior_is_exact_up_to_the_proofs_limit(packing):
    """Context and hyper-latents at their extremes against weights whose sums come just below 2^24, in both signs."""
    widths = P.Widths(latents=1050, hyper_latents=8, hyper=4, context=4, head=4, slices=(1040, 10))
    layers = small_layers(widths=widths)
    layer = layers["pass2.context"]
    weight = np.full_like(layer.weight, 127)
    weight[1::2] = -127
    layers["pass2.context"] = P.Layer(weight, np.full(4, 1234, np.int32), np.full(4, 17, np.uint8))
    bound = P.accumulator_bounds(P.layer_shapes(widths)["pass2.context"], layers["pass2.context"]).max()
    assert 0.99 < bound / P.ACCUMULATOR_LIMIT < 1.02
    native, reference = compiled.NativePrior(widths, layers, packing), P.NumpyPrior(widths, layers)
    z = np.full((1, 8, 1, 1), 64, np.int32)
    for value in (P.Q_MAX, P.Q_MIN):
        q = np.full((1, 1050, 4, 4), value, np.int32)
        q[0, ::7] = 3
        for a, b in zip(reference.all_passes(z, q, 9), native.all_passes(z, q, 9), strict=True):
            assert np.array_equal(a.table, b.table) and np.array_equal(a.mean, b.mean)


def test_compiled_prior_refuses_other_shapes():
    """It is given memory by address: what does not fit must not reach it."""
    native = compiled.NativePrior(SMALL, small_layers())
    z, q = np.zeros((1, 8, 1, 1), np.int32), np.zeros((1, 24, 4, 4), np.int32)
    for wrong in (z[:, :7], z[0], z + 65):
        with pytest.raises(EngineError, match="hyper-latents"):
            native.start(wrong, 10)
    for wrong in (q[:, :8], q[..., :2], np.concatenate([q, q])):
        with pytest.raises(EngineError, match="latents of shape"):
            native.start(z, 10)(0, wrong)
    with pytest.raises(EngineError, match="quality step"):
        native.start(z, 251)


def test_packings_beyond_the_machine_are_refused():
    with pytest.raises(EngineError, match="cannot multiply packing"):
        compiled.NativePrior(SMALL, small_layers(), len(compiled.PACKINGS))


@pytest.mark.parametrize("widths", [SMALL, SEEING])
def test_a_pass_sees_only_what_is_decoded_before_it(rng, widths):
    """Changing latents that a decoder does not have yet must not change a prediction."""
    prior = P.NumpyPrior(widths, small_layers(widths=widths), np.float64)
    z, q = case(rng)
    for k, wanted in enumerate(prior.all_passes(z, q, 100)):
        start, stop = SMALL.slice_of(k)
        known = np.zeros_like(q)
        known[:, :start] = q[:, :start]
        if k % 2:
            P.unhalf(P.half(q[:, start:stop], 0), 0, known[:, start:stop])
        found = prior.start(z, 100)(k, known)
        assert np.array_equal(found.table, wanted.table) and np.array_equal(found.mean, wanted.mean)


@pytest.mark.parametrize("widths", [SMALL, SEEING])
def test_trained_form_rounds_to_the_same_integers(rng, widths):
    torch.manual_seed(0)
    trained = TrainedPrior(widths)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    trained.quantised = True
    layers = trained.to_integers()
    P.check_accumulators(widths, layers)
    z, q = case(rng)
    q = q.clip(-400, 400)
    with torch.no_grad():
        mean, index = trained(torch.from_numpy(z).float(), torch.from_numpy(q).float(), torch.full((2,), 130.0))
    for k, p in enumerate(P.NumpyPrior(widths, layers).all_passes(z, q, 130)):
        start, stop = SMALL.slice_of(k)
        assert np.array_equal(P.half(16 * mean[:, start:stop].numpy(), k % 2), p.mean)
        assert np.array_equal(P.half(index[:, start:stop].numpy(), k % 2), p.table // 16)


def test_halves_cover_every_position_once(rng):
    x = rng.integers(0, 1000, (2, 3, 4, 8))
    out = np.full_like(x, -1)
    for parity in (0, 1):
        P.unhalf(P.half(x, parity), parity, out)
    assert np.array_equal(out, x)
    rows, cols = np.indices((4, 8))
    assert np.array_equal(P.half(((rows + cols) % 2)[None, None], 1), np.ones((1, 1, 4, 4)))
    tensor = torch.from_numpy(x)
    assert torch.equal(unhalf(half(tensor, 0), half(tensor, 1)), tensor)
    assert np.array_equal(half(tensor, 1).numpy(), P.half(x, 1))


def test_shift_rounds_half_up_for_negative_numbers_too():
    layers = small_layers()
    name = "pass0.out"
    shape = P.layer_shapes(SMALL)[name]
    bias, shift = np.full(shape.outputs, -7, np.int32), np.full(shape.outputs, 1, np.uint8)
    layers[name] = P.Layer(np.ones(shape.weight_shape, np.int8), bias, shift)
    out = P.NumpyOps(SMALL, layers).layer(name, np.zeros((1, shape.inputs, 2, 2), np.int64))
    assert (out == -3).all()  # -3.5 rounds up


def test_scale_index_and_quality_plane_at_their_ends():
    assert P.scale_index(np.array([-4096, -40, 0, 1, 86, 4095])).tolist() == [0, 0, 20, 21, 63, 63]
    assert [P.quality_plane_value(q) for q in (0, 3, 4, 125, 250)] == [0, 0, 1, 16, 32]


def test_the_proof_refuses_a_reachable_overflow():
    layers = small_layers()
    assert max(P.check_accumulators(SMALL, layers).values()) < 1 << 24
    layer = layers["hyper.mix"]
    bias = layer.bias.copy()
    bias[3] = (1 << 24) - 1
    layers["hyper.mix"] = P.Layer(layer.weight, bias, layer.shift)
    with pytest.raises(ProfileError, match=r"hyper\.mix.*16777215"):
        P.check_accumulators(SMALL, layers)


@pytest.mark.parametrize("broken", ["shape", "dtype", "shift", "missing"])
def test_inconsistent_layers_are_refused(broken):
    layers = small_layers()
    layer = layers["pass1.depth"]
    changed = {
        "shape": P.Layer(layer.weight[:-1], layer.bias, layer.shift),
        "dtype": P.Layer(layer.weight, layer.bias.astype(np.int64), layer.shift),
        "shift": P.Layer(layer.weight, layer.bias, layer.shift + np.uint8(30)),
    }
    if broken == "missing":
        del layers["pass1.depth"]
    else:
        layers["pass1.depth"] = changed[broken]
    with pytest.raises(ProfileError):
        P.check_accumulators(SMALL, layers)


@pytest.mark.parametrize("table", [(1, *range(1, 128)), tuple(range(127)), (0,) * 127 + (128,)])
def test_magnitudes_that_break_the_proof_or_the_unknown_are_refused(table):
    widths = replace(SMALL, magnitudes=table)
    with pytest.raises(ProfileError, match="magnitudes"):
        P.check_accumulators(widths, small_layers(widths=widths))


def test_export_gives_up_weight_bits_until_the_proof_holds():
    torch.manual_seed(1)
    trained = TrainedPrior(P.Widths(latents=8, hyper_latents=8, hyper=700, context=8, head=8, slices=(8,)))
    module = trained.layers["hyper_mix"]
    with torch.no_grad():
        module.weight.fill_(0.9)
    layer = module.to_integers()
    assert int(P.accumulator_bounds(module.shape, layer).max()) < 1 << 24
    assert int(np.abs(layer.weight.astype(int)).max()) < 115  # 0.9 at full width would be 0.9 * 128 = 115
