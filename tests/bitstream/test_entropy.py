"""The entropy coder: exact, the same bytes from all implementations, robust against cut and hostile words."""

import pickle

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from perigee.bitstream import prior as P
from perigee.bitstream.coders import ConstrictionAns, IntegerAns, NativeAns, available_coders, new_coder
from perigee.bitstream.entropy import decode_symbols, encode_symbols
from perigee.bitstream.errors import ProfileError, SymbolError
from perigee.bitstream.tables import Tables

KINDS = ("native", "constriction", "integer")
LATENTS = P.Widths().latents


def test_every_coder_is_here():
    """Where tests run there is a compiler and constriction; a machine without them would silently test less."""
    assert tuple(available_coders()) == KINDS


@pytest.fixture(scope="module")
def contract(profile):
    return profile.contract


def predicted(contract, q, z, step):
    out = []
    for k, p in enumerate(contract.reference(np.float64).all_passes(z, q, step)):
        start, stop = contract.widths.slice_of(k)
        out.append((P.half(q[:, start:stop], k % 2)[0], P.Prediction(p.table[0], p.mean[0])))
    return out


def symbols(rng, spread, shape=(2, 1)):
    q = (
        np.rint(rng.laplace(0, spread, (1, LATENTS, 4 * shape[0], 4 * shape[1])))
        .astype(np.int32)
        .clip(P.Q_MIN, P.Q_MAX)
    )
    z = np.rint(rng.normal(0, 3, (1, 64, *shape))).astype(np.int32).clip(-64, 64)
    return q, z


def decode(contract, words, step, size, **more):
    prior = contract.reference(np.float64)
    return decode_symbols(contract.widths, contract.tables, prior, words, step, size, **more)


@pytest.mark.parametrize(("spread", "step"), [(0.2, 10), (3, 125), (60, 250), (9000, 0)])
def test_all_coders_write_the_same_bytes_and_read_them_back(contract, rng, spread, step):
    q, z = symbols(rng, spread)
    q[0, 3, 2, 1], q[0, LATENTS - 1, 0, 0] = P.Q_MAX, P.Q_MIN  # far outside every table: escapes
    passes = predicted(contract, q, z, step)
    words = {kind: encode_symbols(contract.widths, contract.tables, z[0], passes, step, kind) for kind in KINDS}
    assert words["integer"].tobytes() == words["constriction"].tobytes() == words["native"].tobytes()
    for kind in KINDS:
        decoded = decode(contract, words[kind], step, z.shape[2:], kind=kind)
        assert np.array_equal(decoded.q, q[0])
        assert decoded.passes == contract.widths.passes


DRAWS = st.lists(st.tuples(st.integers(0, 1087), st.integers(0, 2**31)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(DRAWS, st.lists(st.integers(0, 1), max_size=40))
def test_run_coders_agree_on_any_sequence(profile, draws, bits):
    tables = profile.contract.tables
    runs = []
    for table, seed in draws:
        size = len(tables.row(table))
        runs.append((table, np.random.default_rng(seed).integers(0, size, 1 + seed % 7).astype(np.int32)))
    coders = [IntegerAns(tables), ConstrictionAns(tables)]
    for coder in coders:
        coder.push_bits(bits)
        for table, entries in reversed(runs):
            coder.push_run(entries, table)
    words = [coder.to_words() for coder in coders]
    assert words[0].tobytes() == words[1].tobytes()
    for kind in (IntegerAns, ConstrictionAns):
        coder = kind(tables, words[0])
        assert coder.words_left == len(words[0])
        for table, entries in runs:
            assert np.array_equal(coder.pop_run(table, len(entries)), entries)
        assert [coder.pop_bit() for _ in bits] == bits
        assert coder.words_left == 0


PREDICTED = st.tuples(st.integers(-32768, 32767), st.integers(0, 1023), st.integers(-4096, 4095))


@settings(max_examples=100, deadline=None)
@given(st.lists(PREDICTED, min_size=1, max_size=60), st.lists(st.integers(0, 1000), max_size=20))
def test_coders_agree_on_any_pass(profile, latents, near):
    """Values anywhere: far from the mean they are escapes, close to it (``near``) they are in the tables."""
    tables = profile.contract.tables
    latents = latents + [(mean // 16 + n % 3, table, mean) for n, (_, table, mean) in zip(near, latents, strict=False)]
    values, table, mean = (np.array(part, np.int32) for part in zip(*latents, strict=True))
    prediction = P.Prediction(table, mean)
    words = []
    for kind in KINDS:
        coder = new_coder(tables, kind=kind, symbols=values.size)
        coder.push_passes([(values, prediction)])
        words.append(coder.to_words())
    assert words[0].tobytes() == words[1].tobytes() == words[2].tobytes()
    for kind in KINDS:
        coder = new_coder(tables, words[0], kind)
        assert coder.words_left == len(words[0])
        assert np.array_equal(coder.pop_pass(prediction), values)
        assert coder.words_left == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(PREDICTED, min_size=1, max_size=40), st.lists(st.integers(0, 2**32 - 1), max_size=12))
def test_coders_read_the_same_from_any_words(profile, latents, words):
    """Also past the end, and what is refused is refused by all."""
    _, table, mean = (np.array(part, np.int32) for part in zip(*latents, strict=True))
    words = np.array([1, *words], np.uint32)
    found = []
    for kind in KINDS:
        coder = new_coder(profile.contract.tables, words, kind)
        try:
            found.append((coder.pop_pass(P.Prediction(table, mean)).tolist(), coder.words_left))
        except SymbolError:
            found.append("refused")
    assert found[0] == found[1] == found[2]


def test_native_coder_refuses_what_it_cannot_code(profile):
    tables = profile.contract.tables
    coder = NativeAns(tables, symbols=4)
    with pytest.raises(SymbolError, match="not in its table"):
        coder.push(np.array([[len(tables.row(5))]], np.int32), 5)
    with pytest.raises(SymbolError, match="table number"):
        coder.push_passes([(np.zeros(1, np.int32), P.Prediction(np.array([1024], np.int32), np.zeros(1, np.int32)))])
    with pytest.raises(SymbolError, match="more words"):
        coder.push_passes([(np.full(40, 30000, np.int32), P.Prediction(*np.zeros((2, 40), np.int32)))])


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_stream_can_carry_is_refused(contract, kind):
    """An encoder whose analysis went wrong (a NaN becomes the smallest integer) gets an error, not a hang."""
    q, z = np.zeros((1, LATENTS, 4, 4), np.int32), np.zeros((1, 64, 1, 1), np.int32)
    passes = predicted(contract, q, z, 9)
    for value in (-(2**31), 2**31 - 1, P.Q_MAX + 1):
        passes[3][0][0, 0, 0] = value
        with pytest.raises(SymbolError, match="outside -32768..32767"):
            encode_symbols(contract.widths, contract.tables, z[0], passes, 9, kind)
    with pytest.raises(SymbolError, match="hyper-latent"):
        encode_symbols(contract.widths, contract.tables, z[0] + 65, predicted(contract, q, z, 9), 9, kind)


def test_tables_can_be_copied_after_use(contract):
    new_coder(contract.tables, kind="native", symbols=1)
    assert np.array_equal(pickle.loads(pickle.dumps(contract)).tables.frequencies, contract.tables.frequencies)


def test_code_length_is_close_to_the_information(contract, flight, tiles):
    image = tifffile.imread(tiles[0]).transpose(2, 0, 1)[None].astype(np.float32) / 255
    q, z = flight.analyse(image, 100)
    passes = predicted(contract, q, z, 100)
    words = encode_symbols(contract.widths, contract.tables, z[0], passes, 100)
    bits = 0.0
    for values, p in passes:
        radius = contract.tables.table_radius[p.table]
        entry = np.clip(values - (p.mean >> 4) + radius, 0, 2 * radius + 2)
        start = contract.tables.starts[p.table]
        bits -= np.log2(contract.tables.frequencies[start + entry] / 65536).sum()
    first = contract.tables.first_z_table(100, 64)
    for c in range(64):
        bits -= np.log2(contract.tables.row(first + c)[z[0, c] + 64] / 65536).sum()
    assert 0 < 32 * len(words) - bits < 64 + 0.005 * bits  # the state's last word, and the bits of escapes


def test_every_cut_decodes_to_whole_passes(contract, rng):
    q, z = symbols(rng, 3)
    words = encode_symbols(contract.widths, contract.tables, z[0], predicted(contract, q, z, 120), 120)
    passes_seen = []
    for count in sorted({0, 1, 2, *np.linspace(3, len(words), 12).astype(int).tolist()}):
        results = [decode(contract, words[:count], 120, z.shape[2:], cut=True, kind=kind) for kind in KINDS]
        assert all(np.array_equal(results[0].q, r.q) and results[0].passes == r.passes for r in results)
        for k in range(results[0].passes):
            start, stop = contract.widths.slice_of(k)
            assert np.array_equal(P.half(results[0].q[None, start:stop], k % 2), P.half(q[:, start:stop], k % 2))
        passes_seen.append(results[0].passes)
    assert passes_seen == sorted(passes_seen)
    assert passes_seen[0] == 0 and passes_seen[-1] == contract.widths.passes - 1 and len(set(passes_seen)) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_words_are_refused(contract, rng, kind):
    """Random words never end with an empty coder."""
    for _ in range(20):
        words = rng.integers(1, 1 << 32, int(rng.integers(300, 600))).astype(np.uint32)
        with pytest.raises(SymbolError):
            decode(contract, words, 120, (1, 1), kind=kind)


@pytest.mark.parametrize("fault", ["sum", "zero", "length", "z"])
def test_broken_tables_are_refused(contract, fault):
    t = contract.tables
    frequencies, z = t.frequencies.copy(), t.z_frequencies.copy()
    if fault == "sum":
        frequencies[5] += 1
    elif fault == "zero":
        frequencies[2] += frequencies[1]
        frequencies[1] = 0
    elif fault == "length":
        frequencies = frequencies[:-1]
    else:
        z[3, 0] += 1
    with pytest.raises(ProfileError):
        Tables(t.radius, frequencies, z)


@pytest.mark.parametrize("latents", [8, 16, 64, LATENTS - 8])
def test_only_the_first_channels_are_coded(contract, rng, latents):
    q, z = symbols(rng, 2)
    q[:, latents:] = 0
    everything = encode_symbols(contract.widths, contract.tables, z[0], predicted(contract, q, z, 90), 90)
    predictions = contract.reference(np.float64).all_passes(z, q, 90, latents)
    assert len(predictions) == sum(
        contract.widths.coded_channels(k, latents) > 0 for k in range(contract.widths.passes)
    )
    passes = []
    for k, p in enumerate(predictions):
        start, _ = contract.widths.slice_of(k)
        channels = P.half(q[:, start : start + p.mean.shape[1]], k % 2)[0]
        passes.append((channels, P.Prediction(p.table[0], p.mean[0])))
    for kind in KINDS:
        words = encode_symbols(contract.widths, contract.tables, z[0], passes, 90, kind)
        assert len(words) <= len(everything)
        decoded = decode(contract, words, 90, z.shape[2:], kind=kind, latents=latents)
        assert np.array_equal(decoded.q, q[0]) and decoded.passes == len(predictions)
    with pytest.raises(SymbolError, match=f"coded channels, accepted are 1 to {LATENTS}"):
        decode(contract, words, 90, z.shape[2:], latents=LATENTS + 8)


def test_hyper_latent_tables_go_by_quality(contract, rng):
    """Two bands: the second band's tables are used from Q = 126 on, by every coder."""
    t = contract.tables
    swapped = np.concatenate([t.z_frequencies[:64], t.z_frequencies[:64, ::-1]])
    tables = Tables(t.radius, t.frequencies, np.ascontiguousarray(swapped))
    assert [tables.first_z_table(step, 64) for step in (0, 125, 126, 250)] == [1024, 1024, 1088, 1088]
    q, z = symbols(rng, 1)
    mirrored = -z
    for kind in KINDS:
        words = encode_symbols(contract.widths, tables, mirrored[0], predicted(contract, q, mirrored, 200), 200, kind)
        again = decode_symbols(
            contract.widths, tables, contract.reference(np.float64), words, 200, z.shape[2:], kind=kind
        )
        assert np.array_equal(again.q, q[0])
        first = new_coder(tables, words, kind).pop(1088, 64, 2)
        assert np.array_equal(first, mirrored[0].reshape(64, 2) + 64)
