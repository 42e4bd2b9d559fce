"""Reading a stream: every chunk is checked, and every size is compared with the limits before anything is allocated."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import (
    BitstreamError,
    ChecksumError,
    Fault,
    FormatError,
    TruncatedError,
    UnsupportedError,
)
from perigee.bitstream.format import (
    CHANNEL_STEP,
    CUT_FLAG,
    DEFAULT_LIMITS,
    DROPPED,
    EMPTY,
    END,
    FIRST_FLAG,
    LATENTS_MAX,
    LINEAR_FLAG,
    MASK,
    METADATA,
    NETWORK,
    NOTES_MAX,
    OFFSETS,
    OPTIONAL_BIT,
    QUALITY_STEP_MAX,
    RANGE,
    RESERVED_CRITICAL,
    RESERVED_MODES,
    SEGMENT,
    SPARE_CHUNKS,
    Limits,
    Segment,
    Stream,
    read_header,
    read_varint,
    write_varint,
)

Take = Callable[[int, memoryview, int], None]  # stores a sound chunk: its type, payload and place in the stream


def parse_stream(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS, damaged: bool = False) -> Stream:
    """Parse a whole stream into its header, segments, masks, metadata packet and coding ranges.

    Strict by default: the first fault raises. With ``damaged`` chunks that fail their check are dropped and listed, as
    is a missing end; only an unusable header and an unknown critical chunk or mode raise then.
    """
    header, offset = read_header(data, limits)
    stream = Stream(header)
    most = header.units + header.patches + SPARE_CHUNKS

    def take(kind: int, payload: memoryview, start: int) -> None:
        _take(stream, kind, payload, start, limits)

    read_chunks(data, offset, limits, most, take, stream.damage if damaged else None)
    check_missing(header.units, len(stream.segments), stream.damage if damaged else None)
    return stream


def read_chunks(
    data: bytes | memoryview, offset: int, limits: Limits, most: int, take: Take, damage: list[str] | None
) -> None:
    """Read the chunks behind a header up to the end mark, and give each sound one to ``take``.

    Without ``damage`` the first fault raises. With it faults are listed there, but an UnsupportedError raises all the same.
    """

    def note(fault: BitstreamError) -> None:
        if damage is None:
            raise fault
        if len(damage) < NOTES_MAX:
            damage.append(str(fault))

    count, seen = 0, 0
    ended = False
    for start, fault, kind, payload in _chunks(memoryview(data), offset, limits):
        seen += 1
        if seen > most:
            note(
                FormatError(
                    f"more than {most} chunks, too many for this scene",
                    Fault.COUNT,
                    field="chunks",
                    expected=f"at most {most}",
                    found=seen,
                    offset_bytes=start,
                )
            )
            break
        if fault is not None:
            note(fault)
            continue
        if kind == END and not ended:
            ended = True
            announced, stop = _whole_varint(payload, start)
            if announced != count or stop != len(payload):
                note(
                    FormatError(
                        f"the end mark counts {announced} chunks, {count} were read",
                        Fault.COUNT,
                        field="end mark",
                        expected=count,
                        found=announced,
                        offset_bytes=start,
                    )
                )
            continue
        if ended:
            note(FormatError("data follow the end mark", Fault.PLACE, field="chunk", offset_bytes=start))
            break
        count += 1
        try:
            take(kind, payload, start)
        except UnsupportedError:
            raise
        except BitstreamError as error:
            note(error)
    if not ended:
        note(TruncatedError("the stream has no end mark", field="end mark", offset_bytes=len(data)))


def check_missing(wanted: int, found: int, damage: list[str] | None) -> None:
    """Note in ``damage`` that segments are missing. Raises FormatError where there is no such list."""
    if found < wanted:
        text = f"{wanted - found} of {wanted} segments are missing"
        if damage is None:
            raise FormatError(text, Fault.MISSING, field="segments", expected=wanted, found=found)
        damage.append(text)


def leading_varint(payload: memoryview, start: int, at: int = 0) -> tuple[int, int]:
    """The number that stands at ``at`` in a payload; errors name the chunk's place in the stream."""
    try:
        return read_varint(payload, at)
    except BitstreamError as error:
        place = "begin with" if at == 0 else f"have at its byte {at}"
        raise type(error)(
            f"a chunk's payload does not {place} a whole number", error.fault, field="varint", offset_bytes=start
        ) from error


def _whole_varint(payload: memoryview, start: int) -> tuple[int, int]:
    try:
        return read_varint(payload, 0)
    except BitstreamError:
        return -1, start


def _chunks(
    data: memoryview, offset: int, limits: Limits
) -> Iterator[tuple[int, BitstreamError | None, int, memoryview]]:
    """Chunks as (offset, fault or None, type, payload); ends where the length of a chunk cannot be trusted."""
    nothing = memoryview(b"")
    fault: BitstreamError
    while offset < len(data):
        start = offset
        try:
            length, body = read_varint(data, start + 1)
        except BitstreamError as error:
            yield start, error, 0, nothing
            return
        if length > limits.chunk_bytes:
            fault = FormatError(
                f"a chunk of {length} bytes, the limit is {limits.chunk_bytes}",
                Fault.LIMIT,
                field="length",
                expected=f"at most {limits.chunk_bytes}",
                found=length,
                offset_bytes=start,
            )
            yield start, fault, 0, nothing
            return
        stop = body + length
        if stop + 4 > len(data):
            left = len(data) - body
            fault = TruncatedError(
                f"a chunk announces {length} bytes, {left} are left",
                field="length",
                expected=f"at most {max(left - 4, 0)}",
                found=length,
                offset_bytes=start,
            )
            yield start, fault, 0, nothing
            return
        stored, computed = int.from_bytes(data[stop : stop + 4], "little"), zlib.crc32(data[start:stop])
        if computed != stored:
            fault = ChecksumError(
                "the CRC of a chunk differs", field="crc", expected=computed, found=stored, offset_bytes=start
            )
            yield start, fault, 0, nothing
        else:
            yield start, None, data[start], data[body:stop]
        offset = stop + 4


def _take(stream: Stream, kind: int, payload: memoryview, start: int, limits: Limits) -> None:
    """Store one sound chunk. Raises a BitstreamError where it does not belong."""
    header = stream.header
    if kind == SEGMENT:
        segment = _segment(payload, start)
        if segment.unit >= header.units or segment.unit in stream.segments:
            raise FormatError(
                f"segment {segment.unit} of {header.units} is out of range or comes twice",
                Fault.REPEATED if segment.unit in stream.segments else Fault.RANGE,
                field="unit",
                expected=f"0 to {header.units - 1}, each once",
                found=segment.unit,
                offset_bytes=start,
            )
        stream.segments[segment.unit] = segment
    elif kind == MASK:
        patch, at = leading_varint(payload, start)
        if patch >= header.patches or patch in stream.masks:
            raise FormatError(
                f"the mask of patch {patch} is out of range or comes twice",
                Fault.REPEATED if patch in stream.masks else Fault.RANGE,
                field="patch",
                expected=f"0 to {header.patches - 1}, each once",
                found=patch,
                offset_bytes=start,
            )
        stream.masks[patch] = bytes(payload[at:])
    elif kind == METADATA:
        if stream.metadata is not None or len(payload) > limits.metadata_bytes:
            raise FormatError(
                f"metadata come twice or exceed {limits.metadata_bytes} bytes",
                Fault.REPEATED if stream.metadata is not None else Fault.LIMIT,
                field="metadata",
                expected=f"at most {limits.metadata_bytes} bytes, once",
                found=len(payload),
                offset_bytes=start,
            )
        stream.metadata = bytes(payload)
    elif kind == RANGE:
        if stream.ranges is not None or len(payload) != 8 * header.bands:
            raise FormatError(
                f"coding ranges come twice or are not {8 * header.bands} bytes",
                Fault.REPEATED if stream.ranges is not None else Fault.SIZE,
                field="coding ranges",
                expected=8 * header.bands,
                found=len(payload),
                offset_bytes=start,
            )
        ranges = np.frombuffer(payload, "<i4").astype(np.int32).reshape(header.bands, 2)
        if (ranges[:, 1].astype(np.int64) <= ranges[:, 0]).any():
            raise FormatError(
                "a coding range is empty", field="coding ranges", expected="high > low", offset_bytes=start
            )
        stream.ranges = ranges
    elif kind == OFFSETS:
        offsets = _offsets(payload, start, header.groups)
        if stream.offsets is not None and not np.array_equal(stream.offsets, offsets):
            raise FormatError(
                "offsets of the tables that differ from those before",
                Fault.REPEATED,
                field="offsets",
                expected="the same offsets again",
                offset_bytes=start,
            )
        stream.offsets = offsets
    elif not kind & OPTIONAL_BIT:
        name = RESERVED_CRITICAL.get(kind, "unknown")
        raise UnsupportedError(
            f"critical chunk type {kind:#04x} ({name}), which this reader cannot do without",
            field="chunk type",
            expected="0x00 to 0x04, 0x08, or an optional type",
            found=kind,
            offset_bytes=start,
        )


def _offsets(payload: memoryview, start: int, groups: int) -> npt.NDArray[np.int8]:
    """Offsets of the tables int8 [groups, latents], of as many latents as the payload has."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(payload, groups * LATENTS_MAX + 1)
    except zlib.error as error:
        raise FormatError(
            f"offsets of the tables do not inflate: {error}", Fault.SIZE, field="offsets", offset_bytes=start
        ) from error
    size = len(inflated)
    if not inflater.eof or inflater.unused_data or not 0 < size <= groups * LATENTS_MAX or size % groups:
        raise FormatError(
            f"offsets of the tables of {size} bytes for {groups} groups of bands",
            Fault.SIZE,
            field="offsets",
            expected=f"one zlib stream of 1 to {LATENTS_MAX} bytes for each group",
            found=size,
            offset_bytes=start,
        )
    return np.frombuffer(inflated, np.int8).reshape(groups, -1)


def _segment(payload: memoryview, start: int) -> Segment:
    unit, at = leading_varint(payload, start)
    if at >= len(payload):
        raise FormatError("a segment without a mode", Fault.SIZE, field="mode", offset_bytes=start)
    mode, flags = payload[at] & 15, payload[at] & 0xF0
    if mode in RESERVED_MODES or mode > max(RESERVED_MODES):
        raise UnsupportedError(
            f"patch mode {mode} ({RESERVED_MODES.get(mode, 'unknown')})",
            field="mode",
            expected=f"{NETWORK}, {DROPPED}, {EMPTY}",
            found=mode,
            offset_bytes=start,
        )
    known = CUT_FLAG | LINEAR_FLAG | FIRST_FLAG
    if flags & ~known:
        raise UnsupportedError(
            f"segment flags {flags:#04x}, this reader knows {known:#04x}",
            Fault.FLAGS,
            field="flags",
            expected=known,
            found=flags,
            offset_bytes=start,
        )
    body = payload[at + 1 :]
    if mode != NETWORK:
        if len(body) or flags:
            raise FormatError(
                f"a segment of mode {mode} carries no data and no flags",
                Fault.SIZE,
                field="mode",
                expected=0,
                found=len(body),
                offset_bytes=start,
            )
        return Segment(unit, mode)
    fixed = 4 if flags & FIRST_FLAG else 3
    if len(body) < fixed or (len(body) - fixed) % 4:
        raise FormatError(
            f"a network segment of {len(body)} bytes; it has {fixed} and whole 32-bit words",
            Fault.SIZE,
            field="words",
            expected=f"{fixed} + 4n",
            found=len(body),
            offset_bytes=start,
        )
    if body[0] > QUALITY_STEP_MAX:
        raise FormatError(
            f"quality step {body[0]}, accepted are 0 to {QUALITY_STEP_MAX}",
            field="quality_step",
            expected=f"0 to {QUALITY_STEP_MAX}",
            found=body[0],
            offset_bytes=start,
        )
    latents = CHANNEL_STEP * body[3] if flags & FIRST_FLAG else None
    if latents == 0:
        raise FormatError(
            "a network segment without a coded channel",
            field="coded",
            expected="at least 1",
            found=0,
            offset_bytes=start,
        )
    words = np.frombuffer(body[fixed:], "<u4").astype(np.uint32)
    checksum = int.from_bytes(body[1:3], "little")
    return Segment(unit, mode, body[0], checksum, words, bool(flags & CUT_FLAG), bool(flags & LINEAR_FLAG), latents)


def read_chunk(data: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[int, bytes]:
    """Type and payload of a chunk that travels alone. Raises a BitstreamError."""
    for _, fault, kind, payload in _chunks(memoryview(data), 0, limits):
        if fault is not None:
            raise fault
        stop = 1 + len(write_varint(len(payload))) + len(payload) + 4
        if stop != len(data):
            raise FormatError(
                f"{len(data) - stop} bytes follow the chunk",
                Fault.PLACE,
                expected=stop,
                found=len(data),
                offset_bytes=stop,
            )
        return kind, bytes(payload)
    raise TruncatedError("no chunk: the data are empty", field="chunk", offset_bytes=0)
