"""Offsets of the tables of format version 1: they save bytes on scenes that the prior did not expect, and change no sample."""

import numpy as np
import pytest
import rasterio
import tifffile

import perigee
from perigee.bitstream import format as fmt
from perigee.bitstream.parsing import parse_stream
from perigee.onboard.cli import main


@pytest.fixture(scope="module")
def smooth(tmp_path_factory, tiles):
    """A faint scene of 12 patches."""
    tile = tifffile.imread(tiles[0]).transpose(2, 0, 1) // 8 + 100
    path = tmp_path_factory.mktemp("offsets") / "smooth.tif"
    with rasterio.open(path, "w", driver="GTiff", width=1024, height=768, count=3, dtype="uint8") as out:
        out.write(np.tile(tile, (1, 3, 4)))
    return path


def encoded(path, out, *more):
    assert main([str(path), "-o", str(out), "-q", "30", *more]) == 0
    return out.read_bytes()


def test_they_save_bytes_and_change_no_sample(smooth, tmp_path):
    plain, data = encoded(smooth, tmp_path / "1", "--format", "1"), encoded(smooth, tmp_path / "auto")
    assert parse_stream(plain).offsets is None and parse_stream(data).offsets.any()
    assert len(data) < 0.97 * len(plain)
    assert np.array_equal(perigee.decode(data).samples, perigee.decode(plain).samples)
    window = perigee.decode(data, (300, 500, 99, 120)).samples.astype(int)
    assert np.abs(window - perigee.decode(plain).samples[:, 300:399, 500:620]).max() <= 1


def test_a_small_image_has_none(tmp_path, tiles):
    pixels = tifffile.imread(tiles[0]).transpose(2, 0, 1)
    assert parse_stream(perigee.encode(pixels, 30)).offsets is None


def test_of_several_chunks_one_is_enough(smooth):
    """A lost chunk costs nothing where the offsets come again; where none is left, no patch decodes to something wrong."""
    data = perigee.encode(smooth, 30)
    stream = parse_stream(data)
    chunk = fmt.write_offsets(stream.offsets)
    place = data.index(chunk)
    twice = data[: place + len(chunk)] + chunk + data[place + len(chunk) :]
    whole = perigee.decode(data).samples
    broken = bytearray(twice)
    broken[place + 5] ^= 1
    rescued = perigee.decode(bytes(broken), damaged=True)
    assert np.array_equal(rescued.samples, whole) and not rescued.report.lost
    without = data[:place] + data[place + len(chunk) :]
    ruined = perigee.decode(without, damaged=True)
    assert len(ruined.report.lost) + len(ruined.report.cut) > 0
    kept = [patch for patch in range(12) if patch not in ruined.report.lost]
    for patch in kept:  # patches whose channels have no offset
        top, left = 256 * (patch // 4), 256 * (patch % 4)
        inside = np.s_[:, top + 130 : top + 134, left + 130 : left + 134]  # far from patches that were lost
        assert np.array_equal(ruined.samples[inside], whole[inside])


def test_verification_uses_them(smooth, tmp_path):
    assert encoded(smooth, tmp_path / "verified", "--verify") == perigee.encode(smooth, 30)
