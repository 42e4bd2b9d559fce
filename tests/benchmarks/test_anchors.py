"""The standards are really run: real bytes, decoded again, settings that can be read off the streams."""

import re

import numpy as np
import pytest

from perigee.benchmarks import video
from perigee.benchmarks.anchors import ANCHORS, DEFAULT_ANCHORS
from perigee.benchmarks.common import psnr, read_rgb
from perigee.benchmarks.metrics import luma, luma_psnr
from perigee.benchmarks.rate_distortion import available

MIDDLE = {"jpeg2000": 0.5, "avif": 50, "jpegxl": 5.5, "webp": 35, "hevc": 33, "vvc": 33}


@pytest.fixture(scope="module")
def tile(tiles):
    """A real tile, 256x256."""
    return read_rgb(tiles[0])


def installed(name):
    try:
        ANCHORS[name].check()
    except video.MissingAnchorError as error:
        pytest.skip(str(error))
    return ANCHORS[name]


def nal_types(data, byte, shift):
    return [data[m.end() + byte] >> shift & 63 for m in re.finditer(b"\0\0\1", data)]


@pytest.mark.parametrize("name", [name for name in ANCHORS if name != "vvc"])
def test_an_anchor_codes_a_tile(name, tile):
    anchor = installed(name)
    data = anchor.encode(tile, MIDDLE[name])
    decoded = anchor.decode(data)
    assert decoded.shape == tile.shape and decoded.dtype == np.uint8
    assert 0.2 < 8 * len(data) / 65536 < 2
    assert 22 < psnr(tile, decoded) < 38
    more = anchor.encode(tile, anchor.settings[-1])
    assert len(anchor.encode(tile, anchor.settings[0])) < len(data) < len(more)
    assert psnr(tile, anchor.decode(more)) > psnr(tile, decoded)


def test_ladders_rise():
    for name, anchor in ANCHORS.items():
        rising = list(anchor.settings) == sorted(anchor.settings)
        falling = list(anchor.settings) == sorted(anchor.settings, reverse=True)
        assert len(set(anchor.settings)) == len(anchor.settings) >= 8
        assert falling if name in ("jpegxl", "hevc", "vvc") else rising


def test_colour_conversion_alone_loses_little(tiles):
    for path in tiles:
        pixels = read_rgb(path)
        stored = np.clip(np.rint(video.rgb_to_ycbcr(pixels)), 0, 255).astype(np.uint8)
        assert psnr(pixels, video.ycbcr_to_rgb(stored)) > 50


def test_colour_conversion_is_jfif():
    colours = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]]], np.uint8)
    wanted = [[255, 128, 128], [0, 128, 128], [76.245, 84.972, 255.5], [29.07, 255.5, 107.265]]
    assert np.allclose(video.rgb_to_ycbcr(colours)[0], wanted, atol=1e-3)
    assert np.array_equal(video.ycbcr_to_rgb(video.rgb_to_ycbcr(colours)), colours)


def test_hevc_is_one_intra_picture_without_text(tile):
    installed("hevc")
    data = video.encode_hevc(tile, 33)
    assert nal_types(data, 0, 1) == [32, 33, 34, 20]  # VPS, SPS, PPS, IDR: no SEI (39, 40)
    assert b"x265" not in data


def test_hevc_keeps_odd_sizes(tile):
    installed("hevc")
    cut = tile[:37, :51]
    decoded = video.decode_hevc(video.encode_hevc(cut, 30))
    assert decoded.shape == cut.shape and psnr(cut, decoded) > 28


def test_hevc_refusals_are_typed(tile):
    installed("hevc")
    with pytest.raises(video.AnchorError, match="9x9"):
        video.encode_hevc(tile[:9, :9], 30)
    with pytest.raises(video.AnchorError):
        video.decode_hevc(b"no stream at all")


def test_vvc_codes_luma(tile):
    installed("vvc")
    cut = tile[:79, :81]
    data = video.encode_vvc(cut, 33)
    types = nal_types(data, 1, 3)
    assert types[:2] == [15, 16] and types[-1] == 8  # SPS, PPS, with or without filter parameters (17), IDR
    assert set(types) <= {15, 16, 17, 8}  # no delimiter (20), no SEI (23, 24)
    decoded = video.decode_vvc(data)
    assert decoded.shape == (80, 82)  # even sides; the caller cuts
    assert 27 < luma_psnr(luma(cut), decoded[:79, :81]) < 42
    assert len(video.encode_vvc(cut, 43)) < len(data) < cut.size / 4
    with pytest.raises(video.AnchorError):
        video.decode_vvc(b"no stream at all")


def test_a_missing_library_skips_the_anchor_with_one_line(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    video.ffmpeg_with_vvenc.cache_clear()
    try:
        assert available(["jpeg2000", "hevc", "vvc"]) == ["jpeg2000"]
    finally:
        video.ffmpeg_with_vvenc.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["hevc", "vvc"]
    assert all("pip install '.[bench]'" in line for line in lines)


def test_vvc_is_opt_in():
    assert set(ANCHORS) - set(DEFAULT_ANCHORS) == {"vvc"}
