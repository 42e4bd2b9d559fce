"""Patches that threads decode before they are needed: the same results and errors, and nothing left behind."""

import threading
import time

import numpy as np
import pytest
import tifffile

import perigee
from perigee.bitstream.errors import ChecksumError
from perigee.ground.ahead import Ahead
from perigee.ground.library import Library
from perigee.ground.orders import Order, open_source


def ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.fixture(scope="module", params=["flight3", "spectral1"])
def data(request, tiles):
    tile = tifffile.imread(tiles[0]).transpose(2, 0, 1)
    return perigee.encode(np.tile(tile, (1, 3, 9)), 20, request.param)


def source_of(data, **changes):
    source = open_source(Order(), data, Library(threads=2))
    for patch, change in changes.items():
        number = int(patch.removeprefix("patch"))
        source.stream.segments[number] = source.stream.segments[number]._replace(**change)
    return source


def test_blocks_are_those_of_windows_that_are_asked_for_alone(data):
    source, other = source_of(data), source_of(data)
    covered = np.zeros((768, 2304), int)
    for region, block in source.blocks():
        assert np.array_equal(block.samples, other.region(region).samples)
        covered[region.top : region.bottom, region.left : region.right] += 1
    assert (covered == 1).all() and not ahead_threads()


def test_a_bad_patch_is_told_where_it_is_needed(data):
    source = source_of(data, patch25={"checksum": 1})
    with pytest.raises(ChecksumError, match="25"):
        for _ in source.blocks():
            pass
    assert not ahead_threads()


def test_whoever_stops_early_leaves_no_thread(data):
    blocks = source_of(data).blocks()
    next(blocks)
    assert ahead_threads()
    blocks.close()
    assert not ahead_threads()


def test_what_was_not_begun_is_dropped():
    done = []

    def compute(number):
        time.sleep(0.02)
        done.append(number)
        return number

    ahead = Ahead(compute)
    with ahead.threads(2):
        ahead.begin(range(1000))
        assert [ahead.get(n) for n in (3, 1, 2000)] == [3, 1, 2000]
    assert len(done) < 20 and ahead.get(5) == 5
