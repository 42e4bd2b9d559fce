"""Components as a stream carries them: the wide tables, the prior, the integers that lead back to samples, and version 2."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perigee.bitstream import format as fmt
from perigee.bitstream import version2 as v2
from perigee.bitstream import version2_parsing as v2_parsing
from perigee.bitstream.coders import IntegerAns, available_coders, new_coder
from perigee.bitstream.compiled import NativePrior, library, packings
from perigee.bitstream.component_coding import CodedComponents, decode_components, encode_components
from perigee.bitstream.component_contract import ComponentContract, load_component_contract
from perigee.bitstream.component_prior import Sight, magnitude_table, magnitudes_of
from perigee.bitstream.component_profile import ComponentProfile, find_component_profile
from perigee.bitstream.errors import (
    ChecksumError,
    FormatError,
    LimitError,
    ProfileError,
    SymbolError,
    TruncatedError,
    UnsupportedError,
)
from perigee.bitstream.format import read_header
from perigee.bitstream.lapped import analyse
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.prior import Prediction, half
from perigee.bitstream.reconstruction import Reconstruction, centroids_of, coefficients_of, mixed_of, plane_of
from perigee.bitstream.rounding import Rounding
from perigee.bitstream.spectral import Spectral, identity, klt
from perigee.bitstream.version2_header import read_component_header

MOST = (1 << 23) - 1


@pytest.fixture(scope="module")
def profile() -> ComponentProfile:
    return find_component_profile("spectral1")


@pytest.fixture(scope="module")
def contract(profile: ComponentProfile) -> ComponentContract:
    return profile.contract


def patch_of(contract: ComponentContract, seed: int, components: int, size: float, side: int = 8) -> CodedComponents:
    """Random latents of about this size, chosen as an encoder does."""
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.arange(256) / 40)[:, None, None]
    y = (
        rng.laplace(0, size * falling, (components, 256, side, side))
        .clip(9 - MOST / 2, MOST / 2 - 9)
        .astype(np.float32)
    )
    channels = tuple(int(rng.integers(0, 33)) * 8 for _ in range(components))
    z = rng.integers(-4, 5, (components, contract.widths.hyper_latents, side // 4, side // 4)).astype(np.int32)
    z[np.array(channels) == 0] = 0
    offsets = rng.integers(-6, 7, (components, 256)).astype(np.int8)
    steps = tuple(rng.integers(0, 251, components).tolist())
    patch = CodedComponents(np.zeros(y.shape, np.int32), z, channels, steps, offsets)
    rounding = Rounding(contract)

    def choose(component: int, k: int, prediction: Prediction) -> np.ndarray:
        start, _ = contract.widths.slice_of(k)
        return rounding.choose(half(y[component][None], k % 2)[0][start : start + len(prediction.mean)], prediction)

    encode_components(contract, contract.reference(np.float64), patch, choose=choose)
    return patch


class TestCoding:
    @pytest.mark.parametrize("size", [0.2, 3.0, 500.0, 3e6])
    @pytest.mark.parametrize("components", [1, 4])
    def test_what_is_encoded_comes_back_with_every_coder_and_prior(self, contract, components, size):
        patch = patch_of(contract, components, components, size)
        priors = [contract.reference(np.float64)]
        priors += [NativePrior(contract.widths, contract.layers, packing) for packing in packings()]
        words = [encode_components(contract, prior, patch, kind) for prior in priors for kind in available_coders(True)]
        assert all(np.array_equal(words[0], other) for other in words)
        arguments = (patch.channels, patch.quality_steps, patch.offsets, (2, 2))
        for kind in available_coders(True):
            found = decode_components(contract, priors[-1], words[0], *arguments, kind=kind)
            assert np.array_equal(found.q, patch.q)

    def test_the_arbiter_agrees(self, contract):
        patch = patch_of(contract, 5, 3, 20.0)
        arbiter, fast = contract.reference(np.int64), contract.reference(np.float32)
        assert np.array_equal(encode_components(contract, arbiter, patch), encode_components(contract, fast, patch))

    def test_the_largest_latents_come_back(self, contract):
        """A whole patch at the ends of the range, chosen as an encoder does: nothing is clipped on the way back."""
        patch = patch_of(contract, 11, 1, 1.0)
        y = np.where(np.indices((256, 8, 8)).sum(0) % 2, MOST / 2, -MOST / 2).astype(np.float32)
        patch = replace(patch, q=np.zeros((1, 256, 8, 8), np.int32), channels=(256,), quality_steps=(250,))
        rounding = Rounding(contract)

        def choose(component: int, k: int, prediction: Prediction) -> np.ndarray:
            start, _ = contract.widths.slice_of(k)
            chosen = rounding.choose(half(y[None], k % 2)[0][start : start + len(prediction.mean)], prediction)
            return np.clip(chosen, -MOST - 1 + (chosen & 1), MOST - 1 + (chosen & 1))

        prior = contract.reference(np.float64)
        words = encode_components(contract, prior, patch, choose=choose)
        assert patch.q.max() >= MOST - 1 and patch.q.min() <= -MOST
        found = decode_components(contract, prior, words, patch.channels, patch.quality_steps, patch.offsets, (2, 2))
        assert np.array_equal(found.q, patch.q)

    def test_latents_beyond_24_bits_are_refused(self, contract):
        patch = patch_of(contract, 1, 1, 1.0)
        patch = replace(patch, q=np.full_like(patch.q, MOST + 1), channels=(256,))
        for kind in available_coders(True):
            with pytest.raises(SymbolError, match=r"outside -8388608\.\.8388607"):
                encode_components(contract, contract.reference(np.float64), patch, kind)

    def test_a_cut_segment_keeps_the_coarse_picture_of_all_components(self, contract):
        patch = next(p for p in (patch_of(contract, seed, 3, 10.0) for seed in range(99)) if min(p.channels) > 160)
        prior = contract.reference(np.float64)
        words = encode_components(contract, prior, patch)
        arguments = (patch.channels, patch.quality_steps, patch.offsets, (2, 2))
        passes = []
        for kept in (0, 3, len(words) // 4, len(words) // 2, len(words) - 1, len(words)):
            found = decode_components(contract, prior, words[:kept], *arguments, cut=True)
            passes.append(found.passes)
            right = (found.q == patch.q).all((0, 2, 3))
            whole = min(found.passes // 6, 7)  # slices of which both passes of all three components count
            assert right[: contract.widths.slice_of(2 * whole)[0]].all()
        assert passes == sorted(passes) and passes[0] == 0 < passes[-2] <= passes[-1] < 54

    def test_words_too_many_or_too_few_are_refused(self, contract):
        patch = patch_of(contract, 4, 2, 10.0)
        prior = contract.reference(np.float64)
        words = encode_components(contract, prior, patch)
        arguments = (patch.channels, patch.quality_steps, patch.offsets, (2, 2))
        with pytest.raises(SymbolError):
            decode_components(contract, prior, np.append(words, np.uint32(5)), *arguments)


class TestPrior:
    def test_every_packing_gives_the_arbiters_integers_at_the_extremes(self, contract):
        rng = np.random.default_rng(0)
        q = rng.choice([-MOST - 1, -1, 0, 1, 200, MOST], (1, 256, 8, 8)).astype(np.int32)
        views = magnitudes_of(contract.widths, rng.choice([0, 1, MOST], (2, 256, 8, 8)).astype(np.int32))
        z = rng.choice([-64, 64], (1, contract.widths.hyper_latents, 2, 2)).astype(np.int32)
        for quality_step, component in ((0, 0), (250, 31)):
            sight = Sight(contract.shifts[quality_step], contract.base[quality_step].astype(np.int16) + 127, views)
            arbiter = contract.reference(np.int64).start_component(z, quality_step, component, sight)
            for packing in packings():
                step = NativePrior(contract.widths, contract.layers, packing).start_component(
                    z, quality_step, component, sight
                )
                for k in range(contract.widths.passes):
                    wanted, found = arbiter(k, q), step(k, q)
                    assert np.array_equal(wanted.table, found.table) and np.array_equal(wanted.mean, found.mean)
                    assert found.table.min() >= 0 and found.table.max() < 2048

    def test_magnitudes_never_fall_and_end_at_the_largest(self, contract):
        table = magnitude_table(contract.widths.magnitudes)
        assert table[0] == 0 and table[-1] == table.max() and (np.diff(table.astype(int)) >= 0).all()
        assert magnitudes_of(contract.widths, np.array([-MOST - 1]))[0] == table[-1]


class TestContract:
    def test_a_contract_that_breaks_a_rule_is_refused(self, contract, tmp_path):
        good = contract.arrays()
        for name, wrong in {
            "steps": good["steps"][::-1],
            "order": np.zeros(256, np.uint8),
            "shifts": np.full((251, 256), 14, np.uint8),
            "centroids": np.full((64, 32), 65, np.int8),
            "lap": good["lap"].astype(np.int32),
            "base": good["base"][:250],
        }.items():
            np.savez(tmp_path / "contract.npz", **{**good, name: wrong})
            with pytest.raises(ProfileError, match=name):
                load_component_contract(tmp_path / "contract.npz")
        np.savez(tmp_path / "contract.npz", **{name: a for name, a in good.items() if name != "cosine"})
        with pytest.raises(ProfileError, match="incomplete"):
            load_component_contract(tmp_path / "contract.npz")

    def test_stored_and_loaded_it_is_the_same(self, contract, tmp_path):
        np.savez_compressed(tmp_path / "contract.npz", **contract.arrays())
        assert load_component_contract(tmp_path / "contract.npz").digest == contract.digest


class TestReconstruction:
    @pytest.mark.parametrize("shape", [(64, 64), (256, 128), (16, 256)])
    def test_the_transform_comes_back(self, contract, shape):
        rng = np.random.default_rng(1)
        plane = rng.normal(0, 0.3, (1, *shape)).astype(np.float32)
        order = contract.order.astype(int)
        coefficients = np.rint(analyse(plane, order)[0].astype(np.float64) * 2**20).astype(np.int64)
        assert np.abs(plane_of(contract, coefficients) / 2**20 - plane[0]).max() < 2e-5

    def test_a_constant_plane_is_one_coefficient_a_block(self, contract):
        found = analyse(np.ones((1, 64, 64), np.float32), contract.order.astype(int))[0]
        assert np.allclose(found[0], 16, atol=2e-3) and np.abs(found[1:]).max() < 2e-3

    def test_large_and_small_values_take_the_same_way(self, contract):
        rng = np.random.default_rng(2)
        small = rng.integers(-(1 << 20), 1 << 20, (256, 4, 4))
        huge = small * 0 + (1 << 34) * rng.choice([-1, 1], small.shape)
        exact = synthesis_of(contract, huge)
        assert np.array_equal(plane_of(contract, huge), exact)
        assert np.array_equal(plane_of(contract, small), synthesis_of(contract, small))

    def test_centroids_lie_within_half_a_step_and_towards_the_mean(self, contract):
        q = 2 * np.arange(-5, 6, dtype=np.int32)[:, None, None] * np.ones((11, 4, 4), np.int32)
        for index in (0, 20, 63, 64, 127):
            found = centroids_of(contract, q, np.zeros_like(q), np.full_like(q, index))
            assert (np.abs(found - 64 * q) <= 64).all()
            assert (np.abs(found) <= np.abs(64 * q) + 3).all()
            if index >= 64:
                assert np.array_equal(found, 64 * q)

    def test_hostile_latents_do_not_overflow(self, contract):
        q = np.full((256, 4, 4), -MOST - 1, np.int32)
        q[::2] = MOST
        mean = np.full_like(q, 4095 << 13)
        planes = plane_of(contract, coefficients_of(contract, centroids_of(contract, q, mean, q * 0), 0))
        assert np.abs(planes).max() <= 1 << 34
        scale = np.full(32, (1 << 25) - 1, np.uint32)
        spectral = Spectral(np.full(32, 2**31 - 1, np.int32), scale, np.full((32, 32), -32768, np.int16))
        samples = mixed_of(spectral, np.stack([planes] * 32), 0, 65535)
        assert set(np.unique(samples)) <= {63, 65535}  # -2**34 * (2**25 - 1) / 2**28 + 2**31 - 1 = 63
        assert np.array_equal(Reconstruction(contract).samples(spectral, np.stack([planes] * 32), "uint16"), samples)

    @given(st.integers(1, 6), st.integers(0, 1000))
    @settings(max_examples=20, deadline=None)
    def test_bands_come_back_from_their_components(self, bands, seed):
        rng = np.random.default_rng(seed)
        samples = rng.integers(0, 4096, (bands, 16, 16)).astype(np.uint16)
        matrix = np.rint(klt(samples.reshape(bands, -1) / 4096).T * 16384).astype(np.int16)
        spectral = Spectral(
            rng.integers(0, 4096, bands).astype(np.int32), np.full(bands, 4096 * 256, np.uint32), matrix
        )
        planes = np.rint(spectral.components_of(samples).astype(np.float64) * 2**20).astype(np.int64)
        assert np.abs(mixed_of(spectral, planes, 0, 65535) - samples.astype(int)).max() <= 1

    @pytest.mark.skipif(library is None, reason="the compiled library is not installed")
    @given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 5), st.integers(0, 23), st.integers(0, 250))
    @settings(max_examples=60, deadline=None)
    def test_compiled_and_numpy_give_the_same_planes(self, contract, seed, rows, cols, bits, step):
        rng = np.random.default_rng(seed)
        q = rng.integers(-(1 << bits), 1 << bits, (256, rows, cols), dtype=np.int32)
        mean = rng.integers(-(8 << bits), 8 << bits, q.shape, dtype=np.int32)
        index = rng.integers(0, 128, q.shape, dtype=np.int32)
        planes = [Reconstruction(contract, compiled).plane(q, mean, index, step) for compiled in (False, True)]
        assert np.array_equal(*planes)

    @pytest.mark.skipif(library is None, reason="the compiled library is not installed")
    @given(st.integers(0, 2**32), st.integers(1, 32), st.integers(0, 31), st.sampled_from(["uint8", "uint16", "int16"]))
    @settings(max_examples=60, deadline=None)
    def test_compiled_and_numpy_give_the_same_samples(self, contract, seed, bands, bits, dtype):
        rng = np.random.default_rng(seed)
        matrix = rng.integers(-32768, 32768, (bands, bands)).astype(np.int16)
        mean, scale = rng.integers(-(2**31), 2**31, bands), rng.integers(0, 2**25, bands)
        spectral = Spectral(mean.astype(np.int32), scale.astype(np.uint32), matrix)
        planes = rng.integers(-(1 << bits), 1 << bits, (bands, 7, 300)).astype(np.int32)
        limits = None if seed % 2 else (0, 1023 if dtype != "uint8" else 63)
        samples = [Reconstruction(contract, c).samples(spectral, planes, dtype, limits) for c in (False, True)]
        assert np.array_equal(*samples)


def synthesis_of(contract: ComponentContract, coefficients: np.ndarray) -> np.ndarray:
    """Section 21 of the format in Python's own integers, which cannot overflow."""
    _, rows, cols = coefficients.shape
    x = np.zeros((16 * rows, 16 * cols), object)
    for k, place in enumerate(contract.order.tolist()):
        x[place // 16 :: 16, place % 16 :: 16] = coefficients[k].astype(object)

    def along(values: np.ndarray) -> np.ndarray:
        out = np.concatenate(
            [contract.cosine.T.astype(object) @ values[i : i + 16] + 8192 >> 14 for i in range(0, len(values), 16)]
        )
        for border in range(16, len(out), 16):
            out[border - 8 : border + 8] = contract.lap.T.astype(object) @ out[border - 8 : border + 8] + 8192 >> 14
        return out

    return np.clip(along(along(x).T).T, -(1 << 31), (1 << 31) - 1).astype(np.int64)


class TestRounding:
    def test_the_trellis_halves_no_cell_and_beats_rounding(self, contract):
        """Latents on the trellis keep their rate and have about a decibel less error; those with narrow tables are whole steps."""
        rng = np.random.default_rng(3)
        y = rng.laplace(0, 30, (96, 16, 8)).astype(np.float32)
        table, mean = np.full(y.shape, 16 * 50, np.int32), np.zeros(y.shape, np.int32)
        chosen = Rounding(contract).choose(y, Prediction(table, mean))
        assert np.square(chosen / 2 - y).mean() < 0.85 * np.square(np.rint(y) - y).mean()
        for narrow in (0, 16 * 10, 16 * 64, 2047):
            whole = Rounding(contract).choose(y / 10, Prediction(np.full_like(table, narrow), mean))
            assert not (whole & 1).any()

    def test_without_the_compiled_library_the_trellis_is_kept_to(self, contract):
        rng = np.random.default_rng(4)
        y = rng.laplace(0, 3, (64, 8, 4)).astype(np.float32)
        table, mean = rng.integers(0, 2048, y.shape).astype(np.int32), rng.integers(-60, 60, y.shape).astype(np.int32)
        table = table // 16 * 16 + np.where(table >= 1024, 0, mean & 15)
        chosen = Rounding(contract)._choose(y, table, mean)
        assert (np.abs(chosen / 2 - y)[table >= 16 * 11] <= 0.5).all()
        coder = IntegerAns(contract.tables)
        coder.push_passes([(chosen, Prediction(table, mean))])
        assert np.array_equal(IntegerAns(contract.tables, coder.to_words()).pop_pass(Prediction(table, mean)), chosen)

    def test_a_latent_off_the_trellis_is_refused(self, contract):
        table = np.full((1, 4, 4), 16 * 30, np.int32)
        for kind in available_coders(True):
            coder = new_coder(contract.tables, kind=kind, symbols=16)
            with pytest.raises(SymbolError, match="not on its trellis"):
                coder.push_passes([(np.ones_like(table), Prediction(table, table * 0))])


class TestKlt:
    def test_rows_are_orthonormal_and_in_falling_order(self):
        rng = np.random.default_rng(4)
        bands = rng.normal(0, 1, (1, 5000)) * np.arange(1, 6)[:, None] + rng.normal(0, 0.1, (5, 5000))
        matrix = klt(bands)
        assert np.allclose(matrix @ matrix.T, np.eye(5))
        variances = (matrix @ bands).var(1)
        assert (np.diff(variances) <= 0).all() and variances[0] > 100 * variances[1]


HEADER = v2.ComponentHeader(bytes(range(8)), 300, 270, 2, "uint16", 256)
PARAMETERS = v2.Parameters(
    Spectral(np.array([5, -7], np.int32), np.array([256, 1000], np.uint32), identity(2)), np.zeros((2, 256), np.int8)
)


def segment(patch: int, **values: object) -> v2.ComponentSegment:
    words = np.arange(1, 9, dtype=np.uint32)
    return v2.ComponentSegment(patch, fmt.NETWORK, 100, 7, (16, 0), (), words)._replace(**values)  # type: ignore[arg-type]


def stream(*chunks: bytes, header: v2.ComponentHeader = HEADER) -> bytes:
    return v2.write_component_stream(header, list(chunks))


WHOLE = [v2.write_parameters(0, PARAMETERS), *(v2.write_component_segment(segment(n)) for n in range(4))]


class TestStream:
    def test_what_is_written_is_read(self):
        offsets = np.arange(512).reshape(2, 256).astype(np.int8)
        rich = v2.Parameters(Spectral(*PARAMETERS.spectral.__dict__.values()), offsets)
        rich = replace(rich, spectral=replace(rich.spectral, matrix=np.array([[3, -4], [-32768, 5]], np.int16)))
        data = stream(
            v2.write_parameters(0, PARAMETERS), v2.write_parameters(9, rich), v2.write_strip(1, 1, 9), *WHOLE[2:],
            v2.write_component_segment(segment(0, qualities=(-3, 120), cut=True)),
        )  # fmt: skip
        found = v2_parsing.parse_component_stream(data)
        assert found.header == HEADER and found.strips == {1: 9} and len(found.segments) == 4
        assert found.segments[0].qualities == (-3, 120) and found.segments[0].quality_steps == (97, 220)
        assert found.segments[0].cut and not found.segments[1].cut
        assert found.parameters_of(1) is found.parameters[0]
        second = found.parameters_of(2)
        assert second is found.parameters[9]
        assert np.array_equal(second.offsets, offsets) and np.array_equal(second.spectral.matrix, rich.spectral.matrix)
        assert np.array_equal(found.parameters[0].spectral.mean, [5, -7]) and found.parameters[0].spectral.is_identity

    def test_older_readers_refuse_it_by_its_version(self):
        with pytest.raises(UnsupportedError, match="format version 2, this reader knows 1"):
            parse_stream(stream(*WHOLE))
        with pytest.raises(UnsupportedError, match="format version 1, this reader knows 2"):
            v2_parsing.parse_component_stream(fmt.write_stream(fmt.Header(bytes(8), 1, 1, 1, "uint8", 64), []))
        assert v2.version_of(stream()) == 2 and v2.version_of(b"\x89PG") == 0
        with pytest.raises(FormatError):
            read_header(b"no stream at all, only text of some length")

    def test_a_feature_that_is_missing_is_named(self):
        data = bytearray(v2.write_component_header(HEADER))
        data[15] = 0x22
        data[-4:] = fmt.zlib.crc32(data[:-4]).to_bytes(4, "little")
        with pytest.raises(
            UnsupportedError, match="needs residual layers, a reference scene, which this reader does not have"
        ):
            read_component_header(bytes(data))

    def test_parts_are_joined_and_a_missing_one_cuts(self):
        words = np.arange(1, 13, dtype=np.uint32)
        head = bytearray(v2.write_component_segment(segment(0, words=words[:4])))

        def with_parts(count: int) -> bytes:
            payload = bytes([0, 0x40, count, 100, 7, 0, 2, 0]) + words[:4].astype("<u4").tobytes()
            return fmt.write_chunk(fmt.SEGMENT, payload)

        def part(number: int) -> bytes:
            return fmt.write_chunk(
                v2.PART, bytes([0, number]) + words[4 * number : 4 * number + 4].astype("<u4").tobytes()
            )

        assert head
        rest = [WHOLE[0], *WHOLE[2:]]
        whole = v2_parsing.parse_component_stream(stream(*rest, part(2), with_parts(2), part(1)))
        assert np.array_equal(whole.segments[0].words, words) and not whole.segments[0].cut
        for missing in ([part(2)], [part(1), part(1)], [part(1), part(2), part(3)], []):
            with pytest.raises(FormatError):
                v2_parsing.parse_component_stream(stream(*rest, with_parts(2), *missing))
        saved = v2_parsing.parse_component_stream(stream(*rest, with_parts(2), part(2)), damaged=True)
        assert np.array_equal(saved.segments[0].words, words[:4]) and saved.segments[0].cut
        assert any("part 1 of 2" in note for note in saved.damage)

    @pytest.mark.parametrize(
        "chunks",
        [
            WHOLE[:-1],
            [*WHOLE, WHOLE[1]],
            WHOLE[1:],
            [*WHOLE, v2.write_component_segment(segment(4))],
            [*WHOLE, v2.write_parameters(0, replace(PARAMETERS, offsets=np.ones((2, 256), np.int8)))],
            [*WHOLE, v2.write_strip(0, 3, 0)],
            [*WHOLE, v2.write_strip(1, 0, 0)],
            [*WHOLE, v2.write_strip(0, 1, 5)],
            [*WHOLE, v2.write_strip(0, 2, 0), v2.write_strip(1, 1, 1), v2.write_parameters(1, PARAMETERS)],
            [*WHOLE, fmt.write_chunk(v2.STRIP, b"\x00\x01")],
            [*WHOLE, fmt.write_chunk(v2.STRIP, b"\x00\x01\x00\x00")],
            [*WHOLE, fmt.write_chunk(v2.PARAMETERS, b"\x05\x00\x00\x01\x00")],
            [*WHOLE, fmt.write_chunk(v2.PARAMETERS, b"\x05\x00\x00\x00\x00\x01")],
            [*WHOLE, fmt.write_chunk(v2.PARAMETERS, b"\x05\x01\x00\x01\x00\x01\x00\x00")],
            [*WHOLE, fmt.write_chunk(v2.PARAMETERS, b"\x05\x02\x00\x01\x00\x01\x78\x9c\x03\x00\x00\x00\x00\x01")],
            [*WHOLE, fmt.write_chunk(v2.PARAMETERS, b"\x05\x00\x00\x01\x00\x01\x00")],
            [*WHOLE, fmt.write_chunk(v2.ERRORS, bytes(23))],
            [*WHOLE, fmt.write_chunk(v2.ERRORS, bytes(24)), fmt.write_chunk(v2.ERRORS, bytes(24))],
            [*WHOLE, fmt.write_chunk(v2.ERRORS, b"\x00\x00\xc0\x7f" + bytes(20))],
            [*WHOLE[:-1], fmt.write_chunk(fmt.SEGMENT, b"\x03\x00\xfb\x00\x00\x02\x00")],
            [*WHOLE[:-1], fmt.write_chunk(fmt.SEGMENT, b"\x03\x00\x64\x00\x00\x21\x00")],
            [*WHOLE[:-1], fmt.write_chunk(fmt.SEGMENT, b"\x03\x00\x64\x00\x00\x02\x00\x01")],
            [*WHOLE[:-1], fmt.write_chunk(fmt.SEGMENT, b"\x03\x02\x00")],
            [*WHOLE[:-1], fmt.write_chunk(fmt.SEGMENT, b"\x03")],
        ],
    )
    def test_what_breaks_a_rule_is_refused(self, chunks):
        with pytest.raises((FormatError, TruncatedError)):
            v2_parsing.parse_component_stream(stream(*chunks))

    @pytest.mark.parametrize(
        "chunk",
        [
            fmt.write_chunk(0x05, b""),
            fmt.write_chunk(0x0B, b"x"),
            fmt.write_chunk(0x04, b""),
            fmt.write_chunk(fmt.SEGMENT, b"\x03\x01"),
            fmt.write_chunk(fmt.SEGMENT, b"\x03\x80\x64\x00\x00\x02\x00"),
            fmt.write_chunk(v2.PARAMETERS, b"\x05\x04\x00\x01\x00\x01"),
        ],
    )
    def test_what_this_reader_does_not_know_is_unsupported(self, chunk):
        for damaged in (False, True):
            with pytest.raises(UnsupportedError):
                v2_parsing.parse_component_stream(stream(*WHOLE[:-1], chunk), damaged=damaged)

    def test_optional_chunks_are_skipped(self):
        assert len(v2_parsing.parse_component_stream(stream(*WHOLE, fmt.write_chunk(0x83, b"a map"))).segments) == 4

    def test_a_damaged_stream_loses_what_was_hit_alone(self):
        data = stream(v2.write_parameters(0, PARAMETERS), *WHOLE)
        for place in range(len(v2.write_component_header(HEADER)), len(data) - 20, 5):
            hit = bytearray(data)
            hit[place] ^= 0x10
            with pytest.raises((ChecksumError, FormatError, TruncatedError, UnsupportedError)):
                v2_parsing.parse_component_stream(bytes(hit))
            try:
                saved = v2_parsing.parse_component_stream(bytes(hit), damaged=True)
            except UnsupportedError:
                continue
            assert saved.damage

    def test_limits_come_before_memory(self):
        wide = replace(HEADER, width=1 << 21)
        with pytest.raises(LimitError):
            v2_parsing.parse_component_stream(stream(header=wide))
        with pytest.raises(LimitError):
            v2_parsing.parse_component_stream(stream(header=replace(HEADER, bands=200)))

    @given(st.binary(max_size=60), st.sampled_from([*range(13), v2.ERRORS]))
    @settings(max_examples=300, deadline=None)
    def test_any_payload_is_read_or_refused(self, payload, kind):
        data = stream(*WHOLE, fmt.write_chunk(kind, payload))
        for damaged in (False, True):
            try:
                v2_parsing.parse_component_stream(data, damaged=damaged)
            except (FormatError, UnsupportedError, TruncatedError, ChecksumError, LimitError):
                continue
