"""Decoding scenes: seams, windows, cut and damaged streams, engines."""

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from perigee.benchmarks.codec import ArrayCodec
from perigee.bitstream import format as fmt
from perigee.bitstream.errors import ChecksumError, SymbolError
from perigee.bitstream.parsing import parse_stream
from perigee.engines.backend import Backend
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.engines.torch import TorchGraph
from perigee.ground import decoder as decoder_module
from perigee.ground.decoder import WINDOW_PATCHES, SceneDecoder, synthesis_windows
from perigee.ground.regions import Region
from perigee.onboard.encoder import Encoder


@pytest.fixture(scope="module")
def codec(profile):
    return ArrayCodec(profile, threads=2)


@pytest.fixture(scope="module")
def mosaic(tiles):
    """A scene of 2x3 patches, one of them partial, from real tiles."""
    t = [tifffile.imread(path) for path in tiles]
    return np.concatenate([np.concatenate(t[:3], 1), np.concatenate(t[3:6], 1)], 0)[:460, :700]


@pytest.fixture(scope="module")
def stream(codec, mosaic):
    return codec.encode(mosaic, 45)


def test_any_window_equals_the_whole(stream, ground):
    """Within one grey level: the grid of synthesis windows does not show."""
    whole = SceneDecoder(parse_stream(stream), ground).region(Region(0, 0, 460, 700)).samples
    for window in [(0, 0, 64, 64), (200, 250, 60, 20), (255, 255, 3, 3), (450, 690, 10, 10), (100, 0, 300, 700)]:
        part = SceneDecoder(parse_stream(stream), ground).region(Region(*window)).samples
        top, left, rows, cols = window
        difference = np.abs(part.astype(int) - whole[:, top : top + rows, left : left + cols])
        assert difference.max() <= 1 and (difference == 0).mean() > 0.99, window


def test_blocks_cover_the_scene_once(stream, ground, codec, mosaic):
    decoder = SceneDecoder(parse_stream(stream), ground)
    seen = np.zeros((460, 700), int)
    for region, block in decoder.blocks():
        seen[region.top : region.top + region.rows, region.left : region.left + region.cols] += 1
        assert block.samples.shape == (3, region.rows, region.cols)
    assert (seen == 1).all()
    assert np.abs(codec.decode(stream).astype(float) - mosaic).mean() < 12


def test_wide_scenes_are_decoded_in_stripes_that_do_not_show(ground, codec, mosaic, monkeypatch):
    """Memory does not grow with the width, and the samples are those of rows from the left to the right."""
    stream = codec.encode(np.tile(mosaic[:200, :600], (1, 4, 1)), 30)
    found, most = [], []
    for stripe in (1, 100):
        monkeypatch.setattr(decoder_module, "STRIPE", stripe)
        decoder = SceneDecoder(parse_stream(stream), ground)
        out, kept = np.zeros((3, 200, 2400), np.uint8), 0
        for region, block in decoder.blocks():
            out[(slice(None), *region.within(Region(0, 0, 200, 2400)))] = block.samples
            kept = max(kept, decoder.units_kept)
        found.append(out)
        most.append(kept)
    assert np.array_equal(*found) and most[0] <= 8 < most[1]


@given(start=st.integers(0, 5000), length=st.integers(1, 20_000), patch=st.sampled_from((128, 256)))
def test_windows_cover_an_axis_once_within_bounds(start, length, patch):
    """Memory is bounded by the largest, and no narrow rest is synthesised for the sake of its margins."""
    found = list(synthesis_windows(start, length, patch))
    ends = [a + n for a, n in found]
    assert [a for a, _ in found] == [start, *ends[:-1]] and ends[-1] == start + length
    assert all(0 < n <= (WINDOW_PATCHES + 1) * patch for _, n in found)
    assert len(found) == 1 or min(n for _, n in found) > patch


def test_a_patch_decodes_alone(stream, ground):
    """Only the segments that a window touches are needed."""
    parsed = parse_stream(stream)
    alone = fmt.Stream(parsed.header, {0: parsed.segments[0]})
    decoder = SceneDecoder(alone, ground)
    first = decoder.region(Region(0, 0, 100, 100))
    assert not decoder.report.lost
    assert first.valid.all()


def test_cut_segments_decode_coarser_and_say_so(stream, ground, codec, mosaic):
    errors = []
    full = parse_stream(stream)
    for share in (0.02, 0.3, 0.6, 1.0):
        parsed = parse_stream(stream)
        parsed.segments = {u: fmt.cut_segment(s, int(len(s.words) * share)) for u, s in full.segments.items()}
        rewritten = (
            fmt.write_header(full.header)
            + b"".join(map(fmt.write_segment, parsed.segments.values()))
            + fmt.write_end(6)
        )
        decoder = SceneDecoder(parse_stream(rewritten), ground)
        out = decoder.region(Region(0, 0, 460, 700)).samples.transpose(1, 2, 0)
        assert (len(decoder.report.cut) == 6) == (share < 1)
        errors.append(np.mean((out.astype(float) - mosaic) ** 2))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.5 * errors[-1]


def test_damage_costs_its_patch_alone(stream, ground):
    data = bytearray(stream)
    header, offset = fmt.read_header(data)
    data[offset + 400] ^= 0x20  # inside the first segment
    with pytest.raises(ChecksumError):
        parse_stream(bytes(data))
    decoder = SceneDecoder(parse_stream(bytes(data), damaged=True), ground, damaged=True)
    out = decoder.region(Region(0, 0, 460, 700))
    assert set(decoder.report.lost) == {0} and decoder.stream.damage
    assert not out.valid[:, :256, :256].any() and out.valid[:, 256:, :].all() and out.valid[:, :, 256:].all()
    whole = SceneDecoder(parse_stream(stream), ground).region(Region(0, 0, 460, 700)).samples
    moved = np.abs(out.samples[:, :, 384:].astype(int) - whole[:, :, 384:])
    assert moved.max() <= 1 and (moved > 0).mean() < 1e-4  # beyond the margin
    assert not moved[:, :, 464 - 384 :].any()  # beyond all that the synthesis sees


def test_a_wrong_checksum_of_symbols_is_found(stream, ground):
    parsed = parse_stream(stream)
    parsed.segments[2] = parsed.segments[2]._replace(checksum=parsed.segments[2].checksum ^ 1)
    with pytest.raises(ChecksumError, match="segment 2"):
        SceneDecoder(parsed, ground).symbols(2)
    parsed.segments[2] = parse_stream(stream).segments[2]._replace(quality_step=3)
    with pytest.raises((SymbolError, ChecksumError)):
        SceneDecoder(parsed, ground).symbols(2)


def test_engines_agree_on_symbols_and_nearly_on_pixels(profile, stream, tiles):
    decoders = [
        SceneDecoder(parse_stream(stream), engine)
        for engine in (GroundEngine(profile, 1), GroundEngine(profile, 1, Backend("torch", "cpu", TorchGraph)))
    ]
    for prior in (profile.contract.reference(np.int64), profile.contract.reference(np.float32)):
        decoders.append(SceneDecoder(parse_stream(stream), GroundEngine(profile, 1, prior=prior, check=False)))
    symbols = [d.symbols(1).q for d in decoders]
    assert all(np.array_equal(symbols[0], other) for other in symbols[1:])
    one, two = (d.region(Region(0, 0, 256, 256)).samples.astype(int) for d in decoders[:2])
    assert np.abs(one - two).max() <= 1 and (one == two).mean() >= 0.999


def test_torch_encodes_streams_that_onnxruntime_decodes(profile, codec, ground, tiles):
    tile = tifffile.imread(tiles[2])
    other = ArrayCodec(profile, threads=1)
    other.encoder = Encoder(profile, FlightEngine(profile, graph=TorchGraph))
    data = other.encode(tile, 55)
    assert np.abs(codec.decode(data).astype(float) - tile).mean() < 10


def saturated():
    """Quarters and stripes of pure colours: nothing that a landscape shows, and what a test card does."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[:128, :100], image[:128, 100:, 1], image[128:, :140, 2], image[128:, 140:] = (
        (255, 0, 0),
        255,
        255,
        (255, 255, 0),
    )
    image[60:90, ::7] = 255
    return image


@pytest.mark.parametrize("quality", [20, 60, 95])
def test_a_linear_segment_decodes_to_a_picture_of_the_same_symbols(profile, ground, tiles, quality):
    """Coding the decoded picture again gives what was received, and the picture is nearer to the original for it."""
    codec = ArrayCodec(profile, threads=1, analysis="swift")
    for pixels in (tifffile.imread(tiles[1]), saturated()):
        parsed = parse_stream(codec.encode(pixels, quality))
        assert parsed.segments[0].linear
        held = SceneDecoder(parsed, ground)
        image = held.image(0, Region(0, 0, 256, 256))
        again, _ = codec.encoder.engine.analyse(image[None], parsed.segments[0].quality_step)
        assert (again[0] != held.symbols(0).q).mean() < 1e-4  # ties of rounding
        parsed.segments[0] = parsed.segments[0]._replace(linear=False)
        free = SceneDecoder(parsed, ground).image(0, Region(0, 0, 256, 256))
        original = pixels.transpose(2, 0, 1) / 255
        assert np.square(image - original).mean() <= np.square(free - original).mean()


def test_only_whole_linear_segments_are_held_to_their_symbols(profile, two_analyses, tiles):
    ground = GroundEngine(profile, threads=1)
    swift, lite = ArrayCodec(profile, threads=1), ArrayCodec(two_analyses, threads=1, analysis="lite")
    tile = tifffile.imread(tiles[0])
    assert not parse_stream(lite.encode(tile, 50)).segments[0].linear
    parsed = parse_stream(swift.encode(np.tile(tile, (1, 2, 1)), 50))
    whole = SceneDecoder(parsed, ground).image(0, Region(0, 0, 256, 512))
    parsed.segments[1] = fmt.cut_segment(parsed.segments[1], len(parsed.segments[1].words) // 2)
    cut = SceneDecoder(parsed, ground)
    assert np.abs(cut.image(0, Region(0, 0, 256, 140))[:, :, :120] - whole[:, :, :120]).max() < 1e-3
    assert list(cut.report.cut) == [1]
    part = SceneDecoder(parse_stream(swift.encode(np.tile(tile, (1, 2, 1)), 50)), ground).image(
        0, Region(37, 41, 100, 333)
    )
    assert np.abs(part - whole[:, 37:137, 41:374]).max() < 1e-3


def test_lean_streams(codec, tiles):
    """All that is not coded symbols: at most 72 bytes for a plain tile, 20 a further patch on average."""
    tile = tifffile.imread(tiles[0])
    for quality in (5, 50, 95):
        stream = parse_stream(codec.encode(tile, quality))
        words = 4 * len(stream.segments[0].words)
        assert len(codec.encode(tile, quality)) - words + 8 <= 56
    four = codec.encode(np.tile(tile, (2, 2, 1)), 50)
    words = sum(4 * len(s.words) for s in parse_stream(four).segments.values())
    assert len(four) - words <= 48 + 3 * 16


def test_quality_orders_size_and_error(codec, tiles):
    tile = tifffile.imread(tiles[0])
    sizes, errors = [], []
    for quality in range(0, 101, 20):
        data = codec.encode(tile, quality)
        sizes.append(len(data))
        errors.append(np.mean((codec.decode(data).astype(float) - tile) ** 2))
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
