"""The predictive coder: the compiled one and the definition give the same words, and the samples come back."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perigee.bitstream.bounded import (
    BandCode,
    Bound,
    codes_of,
    levels_of,
    read_band_codes,
    samples_of,
    write_band_codes,
)
from perigee.bitstream.compiled import library
from perigee.bitstream.errors import BitstreamError, SymbolError
from perigee.bitstream.predictive import WEIGHTS_SUM_MAX, BandModel, decode_planes, encode_planes, taps_of
from perigee.bitstream.values import floats_of, keys_of, read_values, write_values
from perigee.onboard.prediction import models_of

needs_library = pytest.mark.skipif(library is None, reason="there is no compiled library")
KINDS = ["integer", *(["native"] if library is not None else [])]


def plane(rng, kind: str, rows: int, cols: int, top: int) -> np.ndarray:
    """Samples 0..top of one kind."""
    if kind == "steps":
        found = top // 2 + np.cumsum(rng.integers(-(top // 20) - 1, top // 20 + 2, (rows, cols)), 1)
    elif kind == "noise":
        found = rng.integers(0, top + 1, (rows, cols))
    elif kind == "enlarged":
        found = rng.integers(0, top + 1, (rows // 2 + 1, cols // 2 + 1)).repeat(2, 0).repeat(2, 1)[:rows, :cols]
    elif kind == "checkerboard":
        found = top * (np.add.outer(range(rows), range(cols)) % 2)
    else:
        found = np.full((rows, cols), top)
    return np.clip(found, 0, top).astype(np.int32)


KIND = st.sampled_from(["steps", "noise", "enlarged", "checkerboard", "constant"])
TOP = st.sampled_from([0, 1, 3, 255, 4095, 65535])


@st.composite
def patches(draw, side=12):
    rows, cols, bands = draw(st.integers(1, side)), draw(st.integers(1, side)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    planes, models = [], []
    for number in range(bands):
        top = draw(TOP)
        planes.append(plane(rng, draw(KIND), rows, cols, top))
        before = tuple(rng.permutation(number)[: rng.integers(0, min(number, 3) + 1)].tolist())
        weights = rng.integers(-2000, 2001, taps_of(len(before))) * int(rng.choice([1, 1, 20]))
        weights = np.trunc(weights * min(1, WEIGHTS_SUM_MAX / max(np.abs(weights).sum(), 1))).astype(np.int16)
        models.append(BandModel(before, weights, top, int(rng.integers(0, top + 1)), draw(st.booleans())))
    return planes, models


@settings(max_examples=60, deadline=None)
@given(patches())
def test_both_coders_give_the_same_words_and_the_samples_back(patch):
    planes, models = patch
    words = [encode_planes(planes, models, kind) for kind in KINDS]
    assert all(np.array_equal(words[0], other) for other in words)
    for kind in KINDS:
        for wanted, found in zip(planes, decode_planes(words[0], planes[0].shape, models, kind), strict=True):
            assert np.array_equal(wanted, found)


@needs_library
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), st.integers(1, 5), KIND, TOP)
def test_models_of_the_encoder_bring_images_back(seed, rows, cols, bands, kind, top):
    rng = np.random.default_rng(seed)
    planes = [plane(rng, kind, rows, cols, top) for _ in range(bands)]
    models = models_of(planes)
    words = encode_planes(planes, models)
    assert all(np.array_equal(a, b) for a, b in zip(planes, decode_planes(words, (rows, cols), models), strict=True))


@needs_library
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), patches(30))
def test_any_words_are_read_or_refused_and_alike(data, patch):
    _, models = patch
    words = np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.uint32)
    found = []
    for kind in KINDS:
        try:
            found.append(np.stack(decode_planes(words, (3, 4), models, kind)))
        except SymbolError as error:
            found.append(str(error))
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.parametrize("share", [1, 65, 655, 6553, 32768])
def test_levels_of_a_relative_bound_keep_it_with_as_few_as_can_be(share):
    samples = np.arange(-32768, 65536)[None]
    bound = Bound(share, relative=True)
    codes, low = codes_of(samples, bound)
    found = samples_of(codes, bound, low, (-32768, 65535))
    assert (np.abs(found - samples) <= bound.allowed(samples)).all()
    values, last = levels_of(share)
    for level, end in zip(values[1:].tolist(), last[1:].tolist(), strict=True):
        assert end + 1 - ((end + 1) * share >> 16) > level  # the next sample would break the bound


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 2, 4, 16, 65535]))
def test_a_bound_in_counts_is_kept(seed, counts):
    samples = np.random.default_rng(seed).integers(-32768, 32768, (9, 11))
    codes, low = codes_of(samples, Bound(counts))
    assert np.abs(samples_of(codes, Bound(counts), low, (-32768, 32767)) - samples).max() <= counts


@settings(deadline=None)
@given(patches(), st.binary(max_size=40), st.integers(0, 400), st.booleans())
def test_what_a_segment_says_of_its_bands_comes_back_or_is_refused(patch, noise, at, floats):
    _, models = patch
    codes = []
    for n, model in enumerate(models):
        keys = np.arange(model.top + 1, dtype=np.uint32) * np.uint32(30000) + np.uint32((1 << 24) + n)  # finite
        values = floats_of(keys) if floats else None
        codes.append(BandCode(Bound(n + 1, relative=bool(n % 2)), 0 if floats else 5 - 3 * n, model, values))
    data = write_band_codes(codes)
    found, end = read_band_codes(memoryview(data + b"rest"), 0, len(codes), floats, 0)
    assert end == len(data) and len(found) == len(codes)
    for one, two in zip(codes, found, strict=True):
        assert (one.bound, one.low, one.model.before) == (two.bound, two.low, two.model.before)
        assert not floats or one.values.tobytes() == two.values.tobytes()
        assert np.array_equal(one.model.weights, two.model.weights) and one.model.repeats == two.model.repeats
    place = at % (len(data) + 1)
    hit = data[:place] + noise + data[place + len(noise) :]
    with contextlib.suppress(BitstreamError):
        read_band_codes(memoryview(hit), 0, len(codes), floats, 0)


@given(st.integers(0, 2**32), st.integers(1, 600), st.binary(min_size=1, max_size=6), st.integers(0, 4000))
def test_a_table_of_values_comes_back_or_is_refused(seed, count, noise, at):
    bits = np.random.default_rng(seed).integers(0, 2**32, count).astype(np.uint32)
    keys = np.unique(keys_of(bits.view(np.float32)))
    data = write_values(keys)
    values, end = read_values(memoryview(data + b"rest"), 0, len(keys), 0)
    assert end == len(data) and np.array_equal(keys_of(values), keys)
    assert (np.diff(values[~np.isnan(values)]) >= 0).all()
    for wrong in (len(keys) - 1, len(keys) + 1):
        with pytest.raises(BitstreamError):
            read_values(memoryview(data), 0, wrong, 0)
    place = at % len(data)
    hit = data[:place] + noise + data[place + len(noise) :]
    with contextlib.suppress(BitstreamError):
        read_values(memoryview(hit), 0, len(keys), 0)
