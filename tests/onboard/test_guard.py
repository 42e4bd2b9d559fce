"""Flipped bits: found by the sums, by the memory's CRC or by verification, and mended from the profile's files."""

import numpy as np
import pytest

from perigee.bitstream import compiled
from perigee.bitstream.coders import memory_of
from perigee.bitstream.errors import EngineError, UpsetError
from perigee.bitstream.prior import Widths
from perigee.bitstream.profile import load_profile
from perigee.engines.flight import FlightEngine
from perigee.onboard import guard
from perigee.onboard.encoder import Encoder
from perigee.onboard.guard import texture

STEP = 125


@pytest.fixture
def fresh(profile):
    return Encoder(profile, FlightEngine(profile, 1))


@pytest.fixture(scope="module")
def image():
    return texture(128)


@pytest.fixture(scope="module")
def clean(profile, image):
    return Encoder(profile, FlightEngine(profile, 1)).encode_image(image, STEP)


def flip(array, rng):
    """One bit of an array."""
    data = array.reshape(-1).view(np.uint8)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)


@pytest.mark.parametrize("packing", compiled.packings())
def test_no_flip_in_the_prior_passes_unseen(profile, rng, packing):
    """Each array that its code reads, in turn: either the sums tell, or no prediction has changed."""
    prior = compiled.NativePrior(profile.contract.widths, profile.contract.layers, packing)
    q = np.rint(rng.laplace(0, 3, (1, Widths().latents, 8, 8))).astype(np.int32)
    z = rng.integers(-9, 10, (1, 64, 2, 2)).astype(np.int32)
    wanted = prior.all_passes(z, q, STEP)
    found = 0
    for array in prior.memory():
        if array.size < 40:  # not a layer's: the starts of the slices, the magnitudes
            continue
        before = array.copy()
        flip(array, rng)
        try:
            same = prior.all_passes(z, q, STEP)
        except UpsetError:
            found += 1
        else:
            assert all(
                np.array_equal(a.table, b.table) and np.array_equal(a.mean, b.mean)
                for a, b in zip(wanted, same, strict=True)
            )
        array[...] = before
    assert found > len(prior.memory()) // 2
    assert len(prior.all_passes(z, q, STEP)) == len(wanted)


def test_a_weight_that_flips_is_mended_and_the_patch_computed_again(fresh, image, clean, rng):
    heaviest = max(fresh.engine.prior.memory(), key=lambda a: a.size)
    heaviest.reshape(-1).view(np.uint8)[:4096] ^= 64
    segment = fresh.encode_image(image, STEP)
    assert fresh.guard.upsets == 1
    assert np.array_equal(segment.words, clean.words) and segment.checksum == clean.checksum
    assert np.array_equal(fresh.encode_image(image, STEP).words, clean.words) and fresh.guard.upsets == 1


def test_a_table_that_flips_is_found_before_the_next_patch(profile, image, clean, rng):
    own = load_profile(profile.folder)  # tables are kept with their profile, and others use the shared one
    encoder = Encoder(own, FlightEngine(own, 1))
    for array in memory_of(own.contract.tables):
        flip(array, rng)
        assert np.array_equal(encoder.encode_image(image, STEP).words, clean.words)
    assert encoder.guard.upsets == 1, "the tables in use are new after the first"
    flip(memory_of(encoder.engine.profile.contract.tables)[0], rng)
    assert np.array_equal(encoder.encode_image(image, STEP).words, clean.words) and encoder.guard.upsets == 2


def test_memory_that_a_patch_does_not_use_is_looked_through_now_and_then(fresh, image, monkeypatch):
    monkeypatch.setattr(guard, "CHECK_EVERY", 2)
    coarse = fresh.encode_image(image, 10)
    assert coarse.latents is not None and coarse.latents < Widths().latents // 2
    heaviest = max(fresh.engine.prior.memory(), key=lambda a: a.size)  # of a late pass, which codes nothing here
    heaviest.reshape(-1)[0] ^= 1
    assert np.array_equal(fresh.encode_image(image, 10).words, coarse.words) and fresh.guard.upsets == 0
    assert np.array_equal(fresh.encode_image(image, 10).words, coarse.words) and fresh.guard.upsets == 1


def test_verification_finds_what_is_written_wrongly_and_encodes_again(fresh, image, clean):
    damaged = clean.words.copy()
    damaged[len(damaged) // 2] ^= 1 << 7
    with pytest.raises(UpsetError, match="segment 0 does not decode"):
        fresh.verify(clean._replace(words=damaged), (128, 128))
    fresh.verify(clean, (128, 128))


def test_an_upset_that_stays_is_an_error(fresh, monkeypatch):
    """Files that have changed since the start must not fly on quietly."""
    monkeypatch.setattr(guard, "KNOWN_STEP", 60)  # now the known patch gives other integers than at the start
    with pytest.raises(EngineError, match="not what it was"):
        fresh.guard.renew()
