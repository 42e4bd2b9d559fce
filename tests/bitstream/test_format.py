"""Streams, metadata packets and masks: literal bytes, round trips, and every way in which bytes can be wrong."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from perigee.bitstream import format as fmt
from perigee.bitstream import masks
from perigee.bitstream import metadata as meta
from perigee.bitstream.errors import (
    BitstreamError,
    ChecksumError,
    FormatError,
    LimitError,
    MetadataError,
    PerigeeError,
    TruncatedError,
    UnsupportedError,
)
from perigee.bitstream.format import Header, Limits, Segment, read_header, read_varint, write_varint
from perigee.bitstream.metadata import Acquisition, GeoKeys, Metadata, pack_metadata, unpack_metadata
from perigee.bitstream.parsing import parse_stream

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

CONTRACT = bytes(range(0xA0, 0xA8))
ONE = Header(CONTRACT, 1, 1, 1, "uint8", 64)
SCENE = Header(CONTRACT, 130, 70, 4, "uint16", 64)  # 2 x 3 patches of 2 groups
WORDS = np.array([0x04030201, 0x08070605, 0xFFFFFFFF], np.uint32)
NETWORK = Segment(0, fmt.NETWORK, 125, 0xBEEF, WORDS)
EMPTY_ONE = fmt.write_segment(Segment(0, fmt.EMPTY))


def named(*cases: tuple[Any, ...]) -> list[Any]:
    """Test cases whose first element is their name."""
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def with_crc(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def join(header: Header, *chunks: bytes) -> bytes:
    """A stream of these chunks with a right end mark."""
    return fmt.write_header(header) + b"".join(chunks) + fmt.write_end(len(chunks))


def scene_chunks() -> list[bytes]:
    """A chunk of every kind that version 1 defines but the end mark, and an unknown optional one."""
    valid = np.ones((4, 6, 2), bool)
    valid[2, 3, 1] = False
    chunks = [
        fmt.write_chunk(fmt.METADATA, pack_metadata(Metadata(epsg=32633, nodata=7.0))),
        fmt.write_ranges(np.array([[-12, 4000], [0, 1], [5, 65535], [1, 2]])),
        fmt.write_chunk(0xC1, b"from the future"),
        fmt.write_chunk(fmt.MASK, masks.pack_mask(5, valid)),
    ]
    modes = [fmt.EMPTY, fmt.DROPPED] * 6
    chunks += [fmt.write_segment(Segment(u, modes[u])) for u in range(12) if u != 7]
    chunks.append(fmt.write_segment(NETWORK._replace(unit=7)))
    return chunks


def same_segment(a: Segment, b: Segment) -> bool:
    return a[:4] == b[:4] and a.cut == b.cut and np.array_equal(a.words, b.words)


class TestVarint:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "00"),
            (1, "01"),
            (127, "7f"),
            (128, "80 01"),
            (300, "ac 02"),
            (16383, "ff 7f"),
            (16384, "80 80 01"),
            (2**32 - 1, "ff ff ff ff 0f"),
        ],
    )
    def test_bytes(self, value: int, text: str) -> None:
        data = bytes.fromhex(text)
        assert write_varint(value) == data
        assert read_varint(b"\xff" + data + b"\xff", 1) == (value, 1 + len(data))

    @quick
    @given(st.integers(0, 2**32 - 1))
    def test_round_trip(self, value: int) -> None:
        data = write_varint(value)
        assert read_varint(data, 0) == (value, len(data))
        assert len(data) == max(1, -(-value.bit_length() // 7))

    @pytest.mark.parametrize("text", ["80 00", "ff 00", "80 80 00", "80 80 80 80 00"])
    def test_only_the_shortest_form(self, text: str) -> None:
        with pytest.raises(FormatError, match="shortest"):
            read_varint(bytes.fromhex(text), 0)

    @pytest.mark.parametrize("text", ["80 80 80 80 10", "ff ff ff ff 7f", "ff ff ff ff ff 01", "80 80 80 80 80 80 80"])
    def test_at_most_32_bits(self, text: str) -> None:
        with pytest.raises(FormatError, match="32 bits"):
            read_varint(bytes.fromhex(text), 0)

    @pytest.mark.parametrize("text", ["", "80", "ff ff ff ff"])
    def test_truncated(self, text: str) -> None:
        with pytest.raises(TruncatedError):
            read_varint(bytes.fromhex(text), 0)

    @pytest.mark.parametrize("value", [-1, 2**32])
    def test_unwritable(self, value: int) -> None:
        with pytest.raises(LimitError):
            write_varint(value)


class TestHeader:
    def test_bytes(self) -> None:
        body = bytes.fromhex("89504745 01 00 a0a1a2a3a4a5a6a7 62 04 8201 46")
        assert fmt.write_header(SCENE) == with_crc(body)

    @quick
    @given(
        st.binary(min_size=8, max_size=8),
        st.integers(1, 1 << 20),
        st.integers(1, 1 << 20),
        st.integers(1, 32),
        st.sampled_from(["uint8", "uint16", "int16"]),
        st.sampled_from([64, 128, 256, 512]),
    )
    def test_round_trip(self, contract: bytes, width: int, height: int, bands: int, dtype: str, side: int) -> None:
        assume(width * height * bands <= 1 << 31)
        header = Header(contract, width, height, bands, dtype, side)
        data = fmt.write_header(header)
        assert read_header(data + b"more") == (header, len(data))
        assert len(data) == 20 + len(write_varint(width)) + len(write_varint(height))

    def test_width_is_not_height(self) -> None:
        header, _ = read_header(fmt.write_header(SCENE))
        assert (header.width, header.height, header.bands, header.grid, header.units) == (130, 70, 4, (2, 3), 12)

    @quick
    @given(
        st.integers(1, 400),
        st.integers(1, 400),
        st.integers(1, 9),
        st.sampled_from([64, 128, 256, 512]),
    )
    def test_units_tile_the_scene(self, width: int, height: int, bands: int, side: int) -> None:
        header = Header(CONTRACT, width, height, bands, "uint8", side)
        seen = np.zeros((bands, height, width), np.int64)
        for unit in range(header.units):
            group, top, left, rows, cols = header.unit_region(unit)
            assert 1 <= rows <= side and 1 <= cols <= side and len(header.group_bands(group)) in (1, 2, 3)
            seen[list(header.group_bands(group)), top : top + rows, left : left + cols] += 1
        assert (seen == 1).all()

    def test_unit_is_patch_times_groups_plus_group(self) -> None:
        assert SCENE.unit_region(2 * 5 + 1) == (1, 64, 128, 6, 2)
        assert list(SCENE.group_bands(0)) == [0, 1, 2] and list(SCENE.group_bands(1)) == [3]

    @staticmethod
    def broken(at: int, value: int) -> bytes:
        body = bytearray(fmt.write_header(SCENE)[:-4])
        body[at] = value
        return with_crc(bytes(body))

    @pytest.mark.parametrize(
        ("data", "error"),
        named(
            ("wrong magic", b"\x89PGF" + fmt.write_header(SCENE)[4:], FormatError),
            ("a TIFF", b"II*\0" + bytes(40), FormatError),
            ("a short file of another kind", b"II*\0", FormatError),
            ("one wrong byte", b"P", FormatError),
            ("nothing", b"", TruncatedError),
            ("half the magic", b"\x89PG", TruncatedError),
            ("cut inside the sizes", fmt.write_header(SCENE)[:17], TruncatedError),
            ("cut inside the CRC", fmt.write_header(SCENE)[:-1], TruncatedError),
            ("version 2", broken(4, 2), UnsupportedError),
            ("version 0", broken(4, 0), UnsupportedError),
            ("a flag", broken(5, 1), UnsupportedError),
            ("the top flag", broken(5, 0x80), UnsupportedError),
            ("CRC", fmt.write_header(SCENE)[:-1] + b"\0", ChecksumError),
            ("sample type 0", broken(14, 0x60), FormatError),
            ("sample type 4", broken(14, 0x64), FormatError),
            ("side 32", broken(14, 0x52), FormatError),
            ("side 1024", broken(14, 0xA2), FormatError),
            ("no bands", broken(15, 0), LimitError),
            ("33 bands", broken(15, 33), LimitError),
            ("no rows", broken(18, 0), LimitError),
            ("long form of the width", with_crc(fmt.write_header(SCENE)[:16] + b"\x82\x81\0\x46"), FormatError),
            ("width 2^20 + 1", fmt.write_header(Header(CONTRACT, (1 << 20) + 1, 1, 1, "uint8", 64)), LimitError),
            ("height 2^20 + 1", fmt.write_header(Header(CONTRACT, 1, (1 << 20) + 1, 1, "uint8", 64)), LimitError),
            ("2^31 + samples", fmt.write_header(Header(CONTRACT, 1 << 20, 1 << 11, 2, "uint8", 64)), LimitError),
            ("largest sizes", fmt.write_header(Header(CONTRACT, 2**32 - 1, 2**32 - 1, 32, "uint8", 512)), LimitError),
        ),
    )
    def test_refused(self, data: bytes, error: type[PerigeeError]) -> None:
        with pytest.raises(PerigeeError) as caught:
            read_header(data)
        assert type(caught.value) is error

    def test_limits_are_the_callers(self) -> None:
        data = fmt.write_header(SCENE)
        assert read_header(data, Limits(samples=130 * 70 * 4, side_px=130, bands=4))[0] == SCENE
        for limits in (Limits(samples=130 * 70 * 4 - 1), Limits(side_px=129), Limits(bands=3)):
            with pytest.raises(LimitError):
                read_header(data, limits)


class TestChunks:
    def test_bytes(self) -> None:
        assert fmt.write_chunk(0x85, b"abc") == with_crc(b"\x85\x03abc")
        assert fmt.write_chunk(0x85, bytes(200)) == with_crc(b"\x85\xc8\x01" + bytes(200))
        assert fmt.write_end(300) == with_crc(b"\x00\x02\xac\x02")
        assert fmt.write_ranges(np.array([[-2, 3]])) == with_crc(b"\x04\x08\xfe\xff\xff\xff\x03\0\0\0")

    def test_segment_bytes(self) -> None:
        body = bytes.fromhex("01 12 ac02 00 7d efbe 01020304 05060708 ffffffff")
        assert fmt.write_segment(NETWORK._replace(unit=300)) == with_crc(body)
        assert fmt.write_segment(Segment(300, fmt.DROPPED)) == with_crc(bytes.fromhex("01 03 ac02 02"))
        assert fmt.write_segment(Segment(2, fmt.EMPTY)) == with_crc(bytes.fromhex("01 02 02 03"))
        cut = fmt.cut_segment(NETWORK, 1)
        assert fmt.write_segment(cut) == with_crc(bytes.fromhex("01 09 00 10 7d efbe 01020304"))

    def test_whole_stream(self) -> None:
        stream = parse_stream(join(SCENE, *scene_chunks()))
        assert stream.header == SCENE and stream.damage == []
        assert sorted(stream.segments) == list(range(12))
        assert same_segment(stream.segments[7], NETWORK._replace(unit=7))
        assert [stream.segments[u].mode for u in (0, 1, 2)] == [fmt.EMPTY, fmt.DROPPED, fmt.EMPTY]
        assert stream.ranges is not None and stream.ranges.dtype == np.int32
        assert stream.ranges.tolist() == [[-12, 4000], [0, 1], [5, 65535], [1, 2]]
        assert stream.metadata is not None and unpack_metadata(stream.metadata).epsg == 32633
        assert list(stream.masks) == [5]

    @quick
    @given(st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, random: Any) -> None:
        chunks = scene_chunks()
        random.shuffle(chunks)
        stream = parse_stream(join(SCENE, *chunks))
        assert sorted(stream.segments) == list(range(12)) and stream.metadata and list(stream.masks) == [5]

    def test_memoryview_is_accepted(self) -> None:
        assert parse_stream(memoryview(join(ONE, EMPTY_ONE))).segments[0].mode == fmt.EMPTY

    @quick
    @given(
        st.integers(0, 11),
        st.integers(0, 250),
        st.integers(0, 65535),
        st.lists(st.integers(0, 2**32 - 1), max_size=20),
        st.booleans(),
    )
    def test_segment_round_trip(self, unit: int, step: int, checksum: int, words: list[int], cut: bool) -> None:
        segment = Segment(unit, fmt.NETWORK, step, checksum, np.array(words, np.uint32), cut)
        others = [fmt.write_segment(Segment(u, fmt.EMPTY)) for u in range(12) if u != unit]
        assert same_segment(parse_stream(join(SCENE, *others, fmt.write_segment(segment))).segments[unit], segment)

    @pytest.mark.parametrize("kind", [0x80, 0x81, 0x85, 0xC0, 0xFF])
    def test_unknown_optional_chunks_are_skipped(self, kind: int) -> None:
        stream = parse_stream(join(ONE, fmt.write_chunk(kind, b"x" * 300), EMPTY_ONE, fmt.write_chunk(kind, b"")))
        assert list(stream.segments) == [0] and stream.damage == []

    @pytest.mark.parametrize("kind", [0x05, 0x06, 0x07, 0x09, 0x40, 0x7F])
    @pytest.mark.parametrize("damaged", [False, True])
    def test_unknown_critical_chunks_are_refused(self, kind: int, damaged: bool) -> None:
        with pytest.raises(UnsupportedError, match=f"{kind:#04x}"):
            parse_stream(join(ONE, fmt.write_chunk(kind, b"x"), EMPTY_ONE), damaged=damaged)

    def test_reserved_names_are_told(self) -> None:
        for kind, name in fmt.RESERVED_CRITICAL.items():
            with pytest.raises(UnsupportedError, match=name):
                parse_stream(join(ONE, fmt.write_chunk(kind, b""), EMPTY_ONE))

    @pytest.mark.parametrize("cut", [False, True])
    def test_a_linear_segment_says_so(self, cut: bool) -> None:
        segment = Segment(0, fmt.NETWORK, 7, 3, np.array([5], np.uint32), cut, True)
        chunk = fmt.write_segment(segment)
        assert (
            parse_stream(join(ONE, chunk)).segments[0].linear and parse_stream(join(ONE, chunk)).segments[0].cut is cut
        )
        flagged = fmt.write_chunk(fmt.SEGMENT, bytes([0, 0x80, 7, 3, 0]))
        with pytest.raises(UnsupportedError, match="flags 0x80, this reader knows 0x70"):
            parse_stream(join(ONE, flagged))

    @pytest.mark.parametrize("latents", [None, 8, 440, 2040])
    def test_a_segment_says_how_many_channels_are_coded(self, latents: int | None) -> None:
        segment = Segment(0, fmt.NETWORK, 7, 3, np.array([5], np.uint32), latents=latents)
        chunk = fmt.write_segment(segment)
        assert parse_stream(join(ONE, chunk)).segments[0].latents == latents
        assert len(chunk) == len(fmt.write_segment(segment._replace(latents=None))) + (latents is not None)

    def test_no_coded_channel_is_refused(self) -> None:
        with pytest.raises(FormatError, match="without a coded channel"):
            parse_stream(join(ONE, fmt.write_chunk(fmt.SEGMENT, bytes([0, 0x40, 7, 3, 0, 0]))))

    @pytest.mark.parametrize("mode", [1, *range(4, 16)])
    def test_reserved_and_unknown_modes_are_refused(self, mode: int) -> None:
        with pytest.raises(UnsupportedError, match=f"mode {mode}"):
            parse_stream(join(ONE, fmt.write_chunk(fmt.SEGMENT, bytes([0, mode]))))

    HEAD = fmt.write_header(ONE)
    NET = fmt.write_segment(NETWORK)

    @pytest.mark.parametrize(
        ("data", "error"),
        named(
            ("no chunks", HEAD, TruncatedError),
            ("no end", HEAD + EMPTY_ONE, TruncatedError),
            ("only a type", HEAD + EMPTY_ONE + b"\0", TruncatedError),
            ("a chunk longer than the data", HEAD + b"\x01\x7f\0\x03" + bytes(20), TruncatedError),
            ("a length of 64 MiB without data", HEAD + b"\x01\x80\x80\x80\x20", TruncatedError),
            ("a length of 35 bits", HEAD + b"\x01\xff\xff\xff\xff\x7f" + bytes(20), FormatError),
            ("chunk CRC", HEAD + EMPTY_ONE[:-1] + b"\0" + fmt.write_end(1), ChecksumError),
            ("end CRC", HEAD + EMPTY_ONE + b"\0\x01\x01\0\0\0\0", ChecksumError),
            ("a segment twice", join(ONE, EMPTY_ONE, EMPTY_ONE), FormatError),
            ("a segment twice, otherwise", join(ONE, EMPTY_ONE, NET), FormatError),
            ("a missing segment", join(ONE), FormatError),
            ("a unit beyond the last", join(ONE, EMPTY_ONE, fmt.write_segment(Segment(1, fmt.EMPTY))), FormatError),
            ("a segment without a unit", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"")), TruncatedError),
            ("a segment without a mode", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"\0")), FormatError),
            ("an unknown segment flag", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"\0\x80\0\0\0")), UnsupportedError),
            ("a flag on an empty segment", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"\0\x13")), FormatError),
            ("data in a dropped segment", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"\0\x02\0")), FormatError),
            ("a network segment too short", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"\0\0\0\0")), FormatError),
            ("three quarters of a word", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"\0\0\0\0\0abc")), FormatError),
            ("quality step 251", join(ONE, fmt.write_chunk(fmt.SEGMENT, b"\0\0\xfb\0\0")), FormatError),
            ("a count too high", HEAD + EMPTY_ONE + fmt.write_end(2), FormatError),
            ("a count too low", HEAD + EMPTY_ONE + fmt.write_end(0), FormatError),
            ("an empty end", HEAD + EMPTY_ONE + fmt.write_chunk(fmt.END, b""), FormatError),
            ("an end with more", HEAD + EMPTY_ONE + fmt.write_chunk(fmt.END, b"\x01\0"), FormatError),
            ("a chunk after the end", join(ONE, EMPTY_ONE) + fmt.write_chunk(0x80, b""), FormatError),
            ("a segment after the end", HEAD + fmt.write_end(0) + EMPTY_ONE, FormatError),
            ("junk after the end", join(ONE, EMPTY_ONE) + b"junk", BitstreamError),
            ("a second stream after the end", 2 * join(ONE, EMPTY_ONE), BitstreamError),
            ("a mask of patch 1", join(ONE, EMPTY_ONE, fmt.write_chunk(fmt.MASK, b"\x01\0")), FormatError),
            ("a mask twice", join(ONE, EMPTY_ONE, *[fmt.write_chunk(fmt.MASK, b"\0\0")] * 2), FormatError),
            ("a mask of nothing", join(ONE, EMPTY_ONE, fmt.write_chunk(fmt.MASK, b"")), TruncatedError),
            ("metadata twice", join(ONE, EMPTY_ONE, *[fmt.write_chunk(fmt.METADATA, b"")] * 2), FormatError),
            ("ranges twice", join(ONE, EMPTY_ONE, *[fmt.write_ranges(np.array([[0, 1]]))] * 2), FormatError),
            ("ranges of two bands", join(ONE, EMPTY_ONE, fmt.write_ranges(np.zeros((2, 2)))), FormatError),
            ("an empty range", join(ONE, EMPTY_ONE, fmt.write_ranges(np.array([[5, 5]]))), FormatError),
            ("a range upside down", join(ONE, EMPTY_ONE, fmt.write_ranges(np.array([[5, -5]]))), FormatError),
        ),
    )
    def test_refused(self, data: bytes, error: type[PerigeeError]) -> None:
        with pytest.raises(error) as caught:
            parse_stream(data)
        assert error is BitstreamError or type(caught.value) is error

    def test_the_widest_range_is_no_overflow(self) -> None:
        stream = parse_stream(join(ONE, EMPTY_ONE, fmt.write_ranges(np.array([[-(2**31), 2**31 - 1]]))))
        assert stream.ranges is not None and stream.ranges.tolist() == [[-(2**31), 2**31 - 1]]

    @pytest.mark.parametrize("limits", [Limits(chunk_bytes=15), Limits(metadata_bytes=13)])
    def test_chunk_limits(self, limits: Limits) -> None:
        data = join(SCENE, *scene_chunks())
        assert len(pack_metadata(Metadata(epsg=32633, nodata=7.0))) == 15
        with pytest.raises(PerigeeError, match="limit|exceed"):
            parse_stream(data, limits)

    def test_announced_sizes_are_not_allocated(self) -> None:
        header = fmt.write_header(Header(CONTRACT, 1 << 20, 1 << 11, 1, "uint8", 64))
        tracemalloc.start()
        for data in (header + b"\x01\x80\x80\x80\x20", header + EMPTY_ONE, b"\x89PGE" + b"\xff" * 40):
            with pytest.raises(PerigeeError):
                parse_stream(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
        tracemalloc.stop()

    def test_every_truncation_is_truncated(self) -> None:
        data = join(SCENE, *scene_chunks())
        for size in range(len(data)):
            with pytest.raises(TruncatedError):
                parse_stream(data[:size])

    def test_every_flipped_bit_is_found(self) -> None:
        data = join(ONE, fmt.write_chunk(fmt.METADATA, b"\x01\x01\x07"), fmt.write_segment(NETWORK))
        for bit in range(8 * len(data)):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises((BitstreamError, LimitError)):
                parse_stream(bytes(broken))

    @quick
    @given(st.binary(max_size=200), st.booleans())
    def test_any_bytes_raise_only_our_errors(self, tail: bytes, damaged: bool) -> None:
        for data in (tail, fmt.write_header(SCENE) + tail):
            with suppress(PerigeeError):
                parse_stream(data, damaged=damaged)

    @quick
    @given(st.integers(0, 7), st.binary(max_size=40))
    def test_any_payload_raises_only_our_errors(self, kind: int, payload: bytes) -> None:
        with suppress(PerigeeError):
            parse_stream(join(ONE, EMPTY_ONE, fmt.write_chunk(kind, payload)))


class TestDamage:
    @quick
    @given(st.data())
    def test_exactly_the_broken_chunk_is_dropped(self, data: st.DataObject) -> None:
        chunks = scene_chunks()
        victim = data.draw(st.integers(0, len(chunks) - 1))
        at = data.draw(st.sampled_from([0, *range(2, len(chunks[victim]))]))  # the length byte is a case of its own
        broken = bytearray(chunks[victim])
        broken[at] ^= data.draw(st.integers(1, 255))
        stream = parse_stream(join(SCENE, *chunks[:victim], bytes(broken), *chunks[victim + 1 :]), damaged=True)
        whole = parse_stream(join(SCENE, *chunks))
        kind = chunks[victim][0]
        assert (stream.metadata is None) == (kind == fmt.METADATA)
        assert (stream.ranges is None) == (kind == fmt.RANGE)
        assert (not stream.masks) == (kind == fmt.MASK)
        lost = set(whole.segments) - set(stream.segments)
        assert lost == ({read_varint(chunks[victim], 2)[0]} if kind == fmt.SEGMENT else set())
        assert all(same_segment(stream.segments[u], whole.segments[u]) for u in stream.segments)
        assert "CRC of a chunk" in stream.damage[0]
        assert "end mark counts 16" in stream.damage[1]
        assert len(stream.damage) == (3 if kind == fmt.SEGMENT else 2)

    def test_a_sound_stream_has_no_damage(self) -> None:
        assert parse_stream(join(SCENE, *scene_chunks()), damaged=True).damage == []

    def test_a_truncated_stream_keeps_what_came(self) -> None:
        chunks = scene_chunks()
        data = join(SCENE, *chunks)
        start = len(fmt.write_header(SCENE)) + sum(map(len, chunks[:10]))
        stream = parse_stream(data[: start + 3], damaged=True)
        assert sorted(stream.segments) == [0, 1, 2, 3, 4, 5] and stream.metadata is not None
        assert len(stream.damage) == 3  # the half chunk, the end mark, the segments

    def test_a_broken_length_ends_the_reading(self) -> None:
        chunks = scene_chunks()
        chunks[4] = bytes([fmt.SEGMENT, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0, 0])
        stream = parse_stream(join(SCENE, *chunks), damaged=True)
        assert stream.segments == {} and list(stream.masks) == [5]

    @pytest.mark.parametrize(
        ("extra", "words"),
        [
            (EMPTY_ONE, "comes twice"),
            (fmt.write_chunk(fmt.SEGMENT, b"\x01\x03"), "out of range"),
            (fmt.write_chunk(fmt.SEGMENT, b"\0\0\xfb\0\0"), "quality step 251"),
            (fmt.write_chunk(fmt.MASK, b"\x09\0"), "patch 9"),
        ],
    )
    def test_an_illegal_chunk_is_dropped(self, extra: bytes, words: str) -> None:
        stream = parse_stream(join(ONE, EMPTY_ONE, extra), damaged=True)
        assert list(stream.segments) == [0] and stream.masks == {}
        assert len(stream.damage) == 1 and words in stream.damage[0]

    def test_what_follows_the_end_is_dropped(self) -> None:
        stream = parse_stream(fmt.write_header(ONE) + fmt.write_end(0) + EMPTY_ONE, damaged=True)
        assert stream.segments == {} and "follow" in stream.damage[0]

    def test_an_unusable_header_still_raises(self) -> None:
        data = bytearray(join(ONE, EMPTY_ONE))
        data[16] ^= 1
        with pytest.raises(ChecksumError):
            parse_stream(bytes(data), damaged=True)
        with pytest.raises(LimitError):
            parse_stream(join(SCENE, *scene_chunks()), Limits(samples=100), damaged=True)


class TestCut:
    @pytest.mark.parametrize("words", [0, 1, 2])
    def test_shorter(self, words: int) -> None:
        cut = fmt.cut_segment(NETWORK, words)
        assert cut.cut and np.array_equal(cut.words, WORDS[:words])
        assert cut[:4] == NETWORK[:4]
        assert len(fmt.write_segment(cut)) == len(fmt.write_segment(NETWORK)) - 4 * (3 - words)
        assert same_segment(parse_stream(join(ONE, fmt.write_segment(cut))).segments[0], cut)

    @pytest.mark.parametrize("words", [3, 4, 1000])
    def test_long_enough_already(self, words: int) -> None:
        assert fmt.cut_segment(NETWORK, words) is NETWORK

    def test_never_below_nothing(self) -> None:
        assert fmt.cut_segment(NETWORK, -5).words.size == 0

    def test_a_cut_can_be_cut_again(self) -> None:
        assert same_segment(fmt.cut_segment(fmt.cut_segment(NETWORK, 2), 1), fmt.cut_segment(NETWORK, 1))

    @pytest.mark.parametrize("mode", [fmt.DROPPED, fmt.EMPTY])
    def test_other_modes_have_nothing_to_cut(self, mode: int) -> None:
        assert not fmt.cut_segment(Segment(0, mode), 0).cut


def test_checksum_is_the_low_half_of_a_crc() -> None:
    q = np.array([[[1, -2], [300, -32768]]], np.int32)
    assert fmt.checksum_of(q) == zlib.crc32(bytes.fromhex("0100 feff 2c01 0080")) & 0xFFFF
    assert fmt.checksum_of(np.asfortranarray(q)) == fmt.checksum_of(q)


finite = st.floats(allow_nan=False, allow_infinity=False)


def doubles(count: int) -> st.SearchStrategy[tuple[float, ...]]:
    return st.lists(finite, min_size=count, max_size=count).map(tuple)


ACQUISITIONS = st.builds(
    lambda position, **others: Acquisition(*position, **others),
    st.none().map(lambda _: (None, None)) | st.tuples(st.floats(-180, 180), st.floats(-90, 90)),
    timestamp=st.none()
    | st.datetimes(
        datetime(1900, 1, 1),
        datetime(2200, 1, 1),
        timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=-7)), timezone(timedelta(minutes=345))]),
    ),
    gsd_m=st.none() | st.floats(0.001, 1e6),
    cloud_cover_percent=st.none() | st.floats(0, 100),
    off_nadir_deg=st.none() | st.floats(0, 90),
    target_azimuth_deg=st.none() | st.floats(0, 360),
    sun_azimuth_deg=st.none() | st.floats(0, 360),
    sun_elevation_deg=st.none() | st.floats(-90, 90),
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
METADATA = st.builds(
    Metadata,
    epsg=st.none() | st.integers(0, 2**32 - 1),
    geokeys=st.none()
    | st.builds(
        GeoKeys,
        st.lists(st.integers(0, 65535), min_size=4, max_size=20).map(tuple),
        st.integers(0, 3).flatmap(doubles),
        st.binary(max_size=30),
    ),
    transform=st.none()
    | doubles(6)
    | st.tuples(finite, st.just(0.0), finite, st.just(0.0), finite, finite)
    | st.tuples(finite, st.just(0.0), finite, finite, finite, finite),
    gcps=st.lists(doubles(5), max_size=4).map(tuple),
    rpc=st.none() | st.lists(finite, min_size=1, max_size=5).map(lambda v: tuple((v * 92)[:92])),
    pixel_is_point=st.booleans(),
    nodata=st.none() | finite,
    masked=st.booleans(),
    alpha_band=st.none() | st.integers(0, 255),
    colour=st.none() | st.booleans(),
    scales=st.lists(doubles(2), max_size=4).map(tuple),
    band_names=st.lists(NAMES, max_size=4).map(tuple),
    acquisition=st.none() | ACQUISITIONS,
    ancillary=st.binary(max_size=50),
)


def field(tag: int, value: bytes) -> bytes:
    return bytes([tag]) + write_varint(len(value)) + value


class TestMetadata:
    @quick
    @given(METADATA)
    def test_round_trip(self, source: Metadata) -> None:
        found = unpack_metadata(pack_metadata(source))
        for name in Metadata.__dataclass_fields__:
            if name != "acquisition":
                assert getattr(found, name) == getattr(source, name), name
        a, b = source.acquisition, found.acquisition
        if a is None or a == Acquisition():
            assert b is None
            return
        assert b is not None
        for name in Acquisition.__dataclass_fields__:
            before, after = getattr(a, name), getattr(b, name)
            if before is None:
                assert after is None, name
            elif name == "timestamp":
                assert timedelta(0) <= before - after < timedelta(milliseconds=1) and after.utcoffset() == timedelta(0)
                assert after.microsecond % 1000 == 0
            elif name in ("longitude_deg", "latitude_deg"):
                assert abs(after - before) <= 0.5e-7 * (1 + 1e-6), name
            else:
                assert after == float(np.float32(before)), name
        assert pack_metadata(found) == pack_metadata(source)

    def test_nothing_is_no_bytes(self) -> None:
        assert pack_metadata(Metadata()) == b"" and unpack_metadata(b"") == Metadata()
        assert pack_metadata(Metadata(acquisition=Acquisition())) == b""

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            (Metadata(epsg=4326), "01 02 e6 21"),
            (Metadata(pixel_is_point=True), "0c 00"),
            (Metadata(masked=True), "0e 00"),
            (Metadata(alpha_band=3), "0d 01 03"),
            (Metadata(colour=True), "0f 01 01"),
            (Metadata(colour=False), "0f 01 00"),
            (Metadata(nodata=-1.5), "07 08 000000000000f8bf"),
            (Metadata(band_names=("a", "", "\u00e9")), "0b 05 61 00 00 c3 a9"),
            (Metadata(band_names=("",)), "0b 00"),
            (Metadata(ancillary=b"\x01\x02"), "0a 02 01 02"),
            (Metadata(geokeys=GeoKeys((1, 1, 0, 0), (), b"z\0")), "02 0e 0400 0000 0100 0100 0000 0000 7a 00"),
            (Metadata(acquisition=Acquisition(cloud_cover_percent=0.0)), "09 05 08 00000000"),
            (Metadata(acquisition=Acquisition(-1e-7, 2e-7)), "09 09 01 ffffffff 02000000"),
            (
                Metadata(acquisition=Acquisition(timestamp=datetime(1969, 12, 31, 23, 59, 59, tzinfo=timezone.utc))),
                "09 09 02 18fcffffffffffff",
            ),
            (Metadata(acquisition=Acquisition(sun_elevation_deg=-0.5)), "09 05 80 000000bf"),
        ],
    )
    def test_bytes(self, source: Metadata, text: str) -> None:
        data = bytes.fromhex(text)
        assert pack_metadata(source) == data
        assert unpack_metadata(data) == source

    def test_a_north_up_transform_is_shorter(self) -> None:
        assert len(pack_metadata(Metadata(transform=(0.5, 0.0, 1.0, 0.0, -0.5, 2.0)))) == 34
        assert len(pack_metadata(Metadata(transform=(0.5, 0.1, 1.0, 0.0, -0.5, 2.0)))) == 50
        assert len(pack_metadata(Metadata(transform=(0.5, 0.0, 1.0, 0.1, -0.5, 2.0)))) == 50

    def test_zero_is_not_absent(self) -> None:
        zeros = Acquisition(0.0, 0.0, datetime(1970, 1, 1, tzinfo=timezone.utc), 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        source = Metadata(epsg=0, nodata=0.0, alpha_band=0, colour=False, acquisition=zeros)
        assert unpack_metadata(pack_metadata(source)) == source

    @pytest.mark.parametrize("tag", [0, *range(meta.COLOUR + 1, 128)])
    def test_unknown_tags_below_128_are_refused(self, tag: int) -> None:
        with pytest.raises(UnsupportedError, match=str(tag)):
            unpack_metadata(field(meta.EPSG, b"\x05") + field(tag, b"abc"))

    @pytest.mark.parametrize("tag", [meta.PALETTE + 1, 200, 255])
    def test_unknown_tags_from_128_are_skipped(self, tag: int) -> None:
        assert unpack_metadata(field(tag, b"a" * 200) + field(meta.EPSG, b"\x05")) == Metadata(epsg=5)

    def test_ancillary_limit(self) -> None:
        full = Metadata(ancillary=bytes(65536))
        assert unpack_metadata(pack_metadata(full)) == full
        with pytest.raises(MetadataError, match="65536"):
            Metadata(ancillary=bytes(65537))
        with pytest.raises(FormatError, match="65536"):
            unpack_metadata(field(meta.ANCILLARY, bytes(65537)))

    @pytest.mark.parametrize(
        ("packet", "error"),
        named(
            ("only a tag", b"\x01", TruncatedError),
            ("a field beyond the end", b"\x07\x08\0\0", FormatError),
            ("a length of 35 bits", b"\x0a\xff\xff\xff\xff\x7f", FormatError),
            ("a field twice", field(meta.POINT, b"") * 2, FormatError),
            ("an optional field twice", field(200, b"") * 2, FormatError),
            ("EPSG without a value", field(meta.EPSG, b""), TruncatedError),
            ("EPSG in long form", field(meta.EPSG, b"\x85\0"), FormatError),
            ("a short transform", field(meta.NORTH_UP, bytes(24)), FormatError),
            ("a long transform", field(meta.AFFINE, bytes(56)), FormatError),
            ("half a double", field(meta.NODATA, bytes(4)), FormatError),
            ("two nodata values", field(meta.NODATA, bytes(16)), FormatError),
            ("a GCP of four", field(meta.GCPS, bytes(32)), FormatError),
            ("an odd scale", field(meta.SCALES, bytes(24)), FormatError),
            ("91 RPC values", field(meta.RPC, bytes(8 * 91)), FormatError),
            ("GeoKeys without a count", field(meta.GEOKEYS, b"\x04\0"), FormatError),
            ("GeoKeys of three shorts", field(meta.GEOKEYS, struct.pack("<5H", 3, 0, 1, 1, 0)), FormatError),
            ("GeoKeys too short", field(meta.GEOKEYS, struct.pack("<5H", 4, 0, 1, 1, 0)), FormatError),
            ("GeoKeys that promise doubles", field(meta.GEOKEYS, struct.pack("<6H", 4, 9, 1, 1, 0, 0)), FormatError),
            ("names that are no UTF-8", field(meta.BAND_NAMES, b"\xff"), FormatError),
            ("no alpha position", field(meta.ALPHA, b""), FormatError),
            ("no colour", field(meta.COLOUR, b""), FormatError),
            ("no bits", field(meta.ACQUISITION, b""), FormatError),
            ("a missing acquisition value", field(meta.ACQUISITION, b"\x04\0\0"), FormatError),
            ("one acquisition value too many", field(meta.ACQUISITION, b"\x04" + bytes(8)), FormatError),
            ("cloud cover 101", field(meta.ACQUISITION, b"\x08" + struct.pack("<f", 101)), FormatError),
            ("an azimuth that is no number", field(meta.ACQUISITION, b"\x20" + struct.pack("<f", np.nan)), FormatError),
            ("longitude 181", field(meta.ACQUISITION, b"\x01" + struct.pack("<ii", 1810000000, 0)), FormatError),
            ("latitude 91", field(meta.ACQUISITION, b"\x01" + struct.pack("<ii", 0, 910000000)), FormatError),
            ("a time beyond year 9999", field(meta.ACQUISITION, b"\x02" + struct.pack("<q", 1 << 60)), FormatError),
        ),
    )
    def test_refused(self, packet: bytes, error: type[PerigeeError]) -> None:
        with pytest.raises(BitstreamError) as caught:
            unpack_metadata(packet)
        assert type(caught.value) is error

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Acquisition(longitude_deg=1.0),
            lambda: Acquisition(latitude_deg=1.0),
            lambda: Acquisition(181.0, 0.0),
            lambda: Acquisition(0.0, -90.5),
            lambda: Acquisition(gsd_m=0.0),
            lambda: Acquisition(off_nadir_deg=-1.0),
            lambda: Acquisition(sun_azimuth_deg=361.0),
            lambda: Acquisition(sun_elevation_deg=float("nan")),
            lambda: Acquisition(timestamp=datetime(2024, 1, 1)),
            lambda: Metadata(transform=(1.0, 2.0)),
            lambda: Metadata(rpc=(1.0,) * 91),
        ],
    )
    def test_what_cannot_be_carried_is_refused_at_once(self, make: Callable[[], object]) -> None:
        with pytest.raises(MetadataError):
            make()

    @quick
    @given(METADATA, st.data())
    def test_cut_packets_raise_only_our_errors(self, source: Metadata, data: st.DataObject) -> None:
        packet = pack_metadata(source)
        with suppress(BitstreamError):
            unpack_metadata(packet[: data.draw(st.integers(0, len(packet)))])

    @quick
    @given(st.integers(0, 255), st.binary(max_size=60))
    def test_any_field_raises_only_our_errors(self, tag: int, value: bytes) -> None:
        for packet in (value, field(tag, value), field(meta.ACQUISITION, value)):
            with suppress(BitstreamError):
                unpack_metadata(packet)


def unpacked(payload: bytes, patch: int, bands: int, rows: int, cols: int, dtype: str = "uint8") -> tuple[Any, Any]:
    found, at = read_varint(payload, 0)
    assert found == patch
    return masks.unpack_mask(payload[at:], bands, rows, cols, dtype)


class TestMasks:
    @quick
    @given(st.integers(0, 500), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
    def test_per_band_round_trip(self, patch: int, bands: int, rows: int, cols: int, seed: int) -> None:
        valid = np.random.default_rng(seed).random((bands, rows, cols)) < 0.7
        payload = masks.pack_mask(patch, valid)
        shared = bool((valid == valid[:1]).all())
        assert payload[len(write_varint(patch))] == (masks.SHARED if shared else masks.PER_BAND)
        found, alpha = unpacked(payload, patch, bands, rows, cols)
        assert alpha is None and found.dtype == bool and np.array_equal(found, valid)

    @quick
    @given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
    def test_shared_round_trip(self, bands: int, rows: int, cols: int, seed: int) -> None:
        plane = np.random.default_rng(seed).random((1, rows, cols)) < 0.5
        valid = np.repeat(plane, bands, 0)
        payload = masks.pack_mask(0, valid)
        assert payload[1] == masks.SHARED
        found, alpha = unpacked(payload, 0, bands, rows, cols, dtype="uint16")
        assert alpha is None and np.array_equal(found, valid)

    @quick
    @given(
        st.sampled_from(["uint8", "uint16", "int16"]),
        st.integers(1, 4),
        st.integers(1, 40),
        st.integers(1, 40),
        st.integers(0, 2**32 - 1),
    )
    def test_alpha_round_trip(self, dtype: str, bands: int, rows: int, cols: int, seed: int) -> None:
        info = np.iinfo(dtype)
        rng = np.random.default_rng(seed)
        alpha = rng.choice(np.array([0, 1, info.min, info.max, 77], dtype), (rows, cols))
        valid = np.broadcast_to(alpha != 0, (bands, rows, cols))
        payload = masks.pack_mask(200, valid, alpha)
        assert payload[2] == masks.ALPHA
        found, stored = unpacked(payload, 200, bands, rows, cols, dtype=dtype)
        assert stored is not None and stored.dtype == np.dtype(dtype)
        assert np.array_equal(stored, alpha) and np.array_equal(found, valid)

    def test_big_endian_alpha_is_stored_little_endian(self) -> None:
        alpha = np.array([[0x0102, 0]], ">u2")
        payload = masks.pack_mask(0, (alpha != 0)[None], alpha)
        assert zlib.decompress(payload[2:]) == b"\x02\x01\0\0"

    def test_bytes(self) -> None:
        valid = np.ones((2, 2, 9), bool)
        valid[:, 1, 0] = valid[:, 1, 8] = False
        assert masks.pack_mask(3, valid)[:2] == b"\x03\x00"
        assert zlib.decompress(masks.pack_mask(3, valid)[2:]) == bytes([0xFF, 0x80, 0x80, 0x80])
        valid[1, 1, 0] = True
        payload = masks.pack_mask(3, valid)
        assert payload[1] == 1 and zlib.decompress(payload[2:]) == bytes([0xFF, 0x80, 0x80, 0x80, 0xFF, 0x80, 0, 0x80])
        alpha = np.array([[1, 256], [1, 0]], np.uint16)
        payload = masks.pack_mask(3, (alpha != 0)[None], alpha)
        assert payload[1] == 2 and zlib.decompress(payload[2:]) == bytes([1, 0, 0, 1, 0, 0, 0, 1])

    def test_bits_behind_the_last_column_are_ignored(self) -> None:
        found, _ = masks.unpack_mask(b"\0" + zlib.compress(b"\x7f\xff"), 1, 1, 9, "uint8")
        assert found.tolist() == [[[False] + [True] * 8]]

    @pytest.mark.parametrize(
        "payload",
        named(
            ("nothing", b""),
            ("only a kind", b"\0"),
            ("kind 3", b"\3" + zlib.compress(bytes(16))),
            ("not zlib", b"\0abcdefgh"),
            ("too few bytes", b"\0" + zlib.compress(bytes(15))),
            ("too many bytes", b"\0" + zlib.compress(bytes(17))),
            ("another kind's size", b"\1" + zlib.compress(bytes(16))),
            ("cut", b"\0" + zlib.compress(bytes(range(16)))[:-1]),
            ("a wrong Adler-32", b"\0" + zlib.compress(bytes(16))[:-1] + b"\xee"),
            ("data behind", b"\0" + zlib.compress(bytes(16)) + b"\0"),
            ("two streams", b"\0" + 2 * zlib.compress(bytes(8))),
            ("raw deflate", b"\0" + zlib.compress(bytes(16))[2:-4]),
        ),
    )
    def test_refused(self, payload: bytes) -> None:
        with pytest.raises(FormatError):
            masks.unpack_mask(payload, 2, 8, 16, "uint8")

    @pytest.mark.parametrize("kind", [masks.SHARED, masks.PER_BAND, masks.ALPHA])
    def test_a_bomb_is_refused_without_inflating_it(self, kind: int) -> None:
        bomb = bytes([kind]) + zlib.compress(bytes(64 << 20), 9)
        assert len(bomb) < 1 << 17
        tracemalloc.start()
        with pytest.raises(FormatError, match="inflate"):
            masks.unpack_mask(bomb, 3, 256, 256, "uint16")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()

    @quick
    @given(st.binary(max_size=80), st.booleans())
    def test_any_bytes_raise_only_our_errors(self, data: bytes, compress: bool) -> None:
        payload = data[:1] + (zlib.compress(data[1:]) if compress else data[1:])
        with suppress(BitstreamError):
            masks.unpack_mask(payload, 2, 4, 11, "uint8")
