"""Seams: which pixels are compared, what the ratio says, and a halo that other readers need not know of."""

import sys

import numpy as np
import pytest
from PIL import Image

from perigee.benchmarks import seams
from perigee.benchmarks.codec import ArrayCodec
from perigee.bitstream.parsing import parse_stream
from perigee.engines.flight import FlightEngine

SIDE = 256
SHIFT = SIDE // 2


@pytest.fixture(scope="module")
def codec(profile):
    return ArrayCodec(profile, threads=1)


@pytest.fixture(scope="module")
def halo(profile):
    return seams.HaloCodec(profile, 64, threads=1)


@pytest.fixture(scope="module")
def scene(tiles):
    """Two real tiles side by side and mirrored beyond them, 400 x 600: sides that are no multiple of anything."""
    pixels = np.concatenate([np.asarray(Image.open(tiles[i]).convert("RGB")) for i in (0, 4)], 1)
    return np.pad(pixels, ((64, 80), (40, 48), (0, 0)), mode="symmetric")


def test_the_compared_pixels_are_at_borders_first_and_inside_patches_then():
    chosen = seams.compared_pixels((700, 900, 3), SIDE)
    rows, cols = np.nonzero(chosen)

    def nearest(position, borders):  # pixels between a position and the nearest border: 0 for the two beside it
        gaps = [np.where(position < b, b - 1 - position, position - b) for b in borders]
        return np.min(gaps, 0)

    assert (np.minimum(nearest(rows, (256, 512)), nearest(cols, (256, 512, 768))) < 4).all()
    assert (rows >= SHIFT).all() and (cols >= SHIFT).all()
    assert min(nearest(rows, (128, 384, 640)).min(), nearest(cols, (128, 384, 640, 896)).min()) == 64
    for row, col in ((252, 300), (259, 300), (300, 252), (300, 515), (256, 256), (500, 771)):
        assert chosen[row, col]
    for row, col in ((251, 300), (260, 300), (256, 384), (256, 191), (320, 320), (64, 256)):
        assert not chosen[row, col]


def test_a_scene_of_one_patch_has_nothing_to_compare(rng):
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    assert not seams.compared_pixels(pixels.shape, SIDE).any()
    with pytest.raises(ValueError, match="256x256 has no pixels to compare"):
        seams.seam_ratio(pixels, pixels, pixels[SHIFT:, SHIFT:], SIDE)


def test_the_same_pixels_are_compared(rng):
    """One error of the same scene pixel on both sides cancels, however the two arrays are cut."""
    pixels = rng.integers(50, 200, (600, 520, 3), np.uint8)
    decoded = pixels + np.uint8(1)
    shifted = decoded[SHIFT:, SHIFT:].copy()
    assert seams.seam_ratio(pixels, decoded, shifted, SIDE) == 1
    decoded[257, 300] += 40
    shifted[257 - SHIFT, 300 - SHIFT] += 40
    assert seams.seam_ratio(pixels, decoded, shifted, SIDE) == 1
    shifted[258 - SHIFT, 300 - SHIFT] += 40
    assert seams.seam_ratio(pixels, decoded, shifted, SIDE) < 1
    decoded[330, 330] += 40  # inside a patch: not compared
    assert seams.seam_ratio(pixels, decoded, shifted, SIDE) < 1
    with pytest.raises(ValueError, match="without error"):
        seams.seam_ratio(pixels, decoded, pixels[SHIFT:, SHIFT:], SIDE)


def test_an_artificial_seam_shows(codec, scene):
    """Real streams, real errors; the first grid's patches then get a step of brightness of their own."""
    decoded, shifted = (codec.decode(codec.encode(p, 30)) for p in (scene, scene[SHIFT:, SHIFT:]))
    before = seams.seam_ratio(scene, decoded, shifted, SIDE)
    stepped = decoded.astype(np.int64)
    stepped[:, SIDE : 2 * SIDE] += 25
    after = seams.seam_ratio(scene, np.clip(stepped, 0, 255).astype(np.uint8), shifted, SIDE)
    assert after > before and after > 1


def test_patches_alone_differ_from_stitched_ones_only_near_borders(codec, scene):
    data = codec.encode(scene, 30)
    stitched, alone = codec.decode(data).astype(int), seams.decode_alone(codec, data).astype(int)
    assert alone.shape == scene.shape
    difference = np.abs(stitched - alone).max(2)
    assert difference[:, 254:258].max() > 1
    assert difference[:96, 120:136].max() <= 1  # farther than the synthesis reaches
    single = scene[:SIDE, :200]
    data = codec.encode(single, 30)
    assert np.abs(codec.decode(data).astype(int) - seams.decode_alone(codec, data)).max() <= 1


@pytest.mark.parametrize("halo_px", [32, 64])
def test_latents_with_a_halo_are_those_of_the_neighbourhood(two_analyses, scene, halo_px):
    """Far from the border as without; at the border nearer to an analysis of everything around."""
    image = scene[:384, :384].transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    patch = image[..., 64:320, 64:320]
    window = image[..., 64 - halo_px : 320 + halo_px, 64 - halo_px : 320 + halo_px]
    flight = FlightEngine(two_analyses, 1, analysis="lite")  # the linear analysis has no border
    engine = seams.HaloEngine(two_analyses, halo_px, threads=1, analysis="lite")
    whole = flight.analyse(image, 125)[0][..., 4:20, 4:20]
    alone, z_alone = flight.analyse(patch, 125)
    found, z = engine.analyse(np.ascontiguousarray(window), 125)
    assert found.shape == alone.shape and z.shape == z_alone.shape and found.dtype == alone.dtype
    assert (found != whole).mean() < (alone != whole).mean()
    assert np.abs(found - alone)[..., 7:9, 7:9].max() <= 1
    assert np.array_equal(z, flight.analyse(image, 125)[1][..., 1:5, 1:5] if halo_px == 64 else z_alone)


@pytest.mark.parametrize("halo_px", [0, 16, -32])
def test_a_halo_that_does_not_fit_is_refused(profile, halo_px):
    with pytest.raises(ValueError, match="multiples of 32"):
        seams.HaloEngine(profile, halo_px)


def test_streams_with_a_halo_decode_like_any_other(codec, halo, scene):
    """Symbols are checked against the encoder's while decoding; windows of the last patches have the right size."""
    for part in (scene[:300, :330], scene[:10, :70]):
        data = halo.encode(part, 50)
        with_halo, without = parse_stream(data), parse_stream(codec.encode(part, 50))
        assert with_halo.header == without.header and with_halo.segments.keys() == without.segments.keys()
        error, usual = (np.abs(part.astype(int) - codec.decode(d)).mean() for d in (data, codec.encode(part, 50)))
        assert error < 1.5 * usual  # a window in the wrong place would be all wrong


def test_measure_reports_every_codec_against_the_default(codec, halo, scene):
    rows = seams.measure("x", scene, 30, {"default": codec, "halo 64": halo})
    assert [row["codec"] for row in rows] == ["default", "independent", "halo 64"]
    assert rows[0]["bytes"] == rows[1]["bytes"] == len(codec.encode(scene, 30))
    assert rows[0]["bytes %"] == rows[0]["psnr dB"] == 0
    lines = seams.summarise(rows)
    assert [line.get("limit") for line in lines] == [1.03, None, 1.02]
    assert lines[0]["verdict"] == ("pass" if rows[0]["ratio"] <= 1.03 else "miss")


def test_too_small_images_are_refused_with_what_is_needed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["seams"])
    with pytest.raises(SystemExit, match="--scenes FOLDER with images of at least 384 px"):
        seams.main()


def test_patches_of_a_scene_with_offsets_of_the_tables_decode_alone(codec, scene):
    image = np.tile(scene, (3, 2, 1))
    data = codec.encode(image, 30)
    assert parse_stream(data).offsets is not None, "a scene of at least ten patches carries them"
    alone = seams.decode_alone(codec, data).astype(int)
    assert np.abs(alone - codec.decode(data)).mean() < 2
