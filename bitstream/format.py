"""The stream: a header, checked chunks, an end mark. ``docs/format.md`` is the specification; this is its reader and writer.

Every chunk is checked by a CRC of its own, and every size against :class:`Limits` before anything is allocated. Numbers
are little-endian; ``varint`` is unsigned LEB128 of at most five bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import (
    BitstreamError,
    ChecksumError,
    Fault,
    FormatError,
    LimitError,
    TruncatedError,
    UnsupportedError,
)

MAGIC = b"\x89PGE"
VERSION = 1
HEADER_FIXED = struct.Struct("<4sBB8sBB")

END, SEGMENT, MASK, METADATA, RANGE = 0x00, 0x01, 0x02, 0x03, 0x04
RESERVED_CRITICAL = {0x05: "key id", 0x06: "encrypted packet group", 0x07: "signature"}
OPTIONAL_BIT = 0x80

NETWORK, FALLBACK, DROPPED, EMPTY = 0, 1, 2, 3
RESERVED_MODES = {
    FALLBACK: "fall-back coder",
    4: "skip against a reference",
    5: "residual against a reference",
    6: "residual layer",
}
CUT_FLAG = 0x10
LINEAR_FLAG = 0x20  # q is the profile's linear transform, rounded: the ground can project a picture to its cells
FIRST_FLAG = 0x40  # only the first channels are coded: a byte says how many, in steps of CHANNEL_STEP
CHANNEL_STEP = 8

DTYPES = {1: "uint8", 2: "uint16", 3: "int16"}
DTYPE_CODES = {name: code for code, name in DTYPES.items()}
BANDS_PER_GROUP = 3
SPARE_CHUNKS = 1024  # chunks beside segments and masks that a stream may hold
NOTES_MAX = 100  # faults of a damaged stream that are listed
VARINT_MAX = (1 << 32) - 1
QUALITY_STEP_MAX = 250


@dataclass(frozen=True)
class Limits:
    """What a reader accepts. The defaults let an operator decode any scene."""

    samples: int = 1 << 31
    side_px: int = 1 << 20
    bands: int = 32
    chunk_bytes: int = 1 << 26
    metadata_bytes: int = 1 << 20


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """What every reader needs before any chunk. ``contract`` is the 8-byte digest of the profile's contract."""

    contract: bytes
    width: int
    height: int
    bands: int
    dtype: str
    patch_side: int

    def __post_init__(self) -> None:
        if len(self.contract) != 8 or self.dtype not in DTYPE_CODES or self.patch_side not in (64, 128, 256, 512):
            raise LimitError("a header needs a contract of 8 bytes, a known sample type and a patch side of 64 to 512")
        if not (1 <= self.bands <= 255 and 1 <= self.width <= VARINT_MAX and 1 <= self.height <= VARINT_MAX):
            raise LimitError(
                f"{self.width}x{self.height} pixels of {self.bands} bands do not fit a header",
                field="width, height, bands",
                expected=f"1 to {VARINT_MAX} pixels, 1 to 255 bands",
                found=f"{self.width}x{self.height}, {self.bands}",
            )

    @property
    def groups(self) -> int:
        """Groups of up to three bands that are coded together."""
        return -(-self.bands // BANDS_PER_GROUP)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return -(-self.height // self.patch_side), -(-self.width // self.patch_side)

    @property
    def units(self) -> int:
        """Number of segments: patches times groups."""
        rows, cols = self.grid
        return rows * cols * self.groups

    def unit_window(self, unit: int) -> tuple[int, int, int, int, int]:
        """Group, top, left, height and width in pixels of a unit (= patch * groups + group)."""
        patch, group = divmod(unit, self.groups)
        row, col = divmod(patch, self.grid[1])
        top, left = row * self.patch_side, col * self.patch_side
        return group, top, left, min(self.patch_side, self.height - top), min(self.patch_side, self.width - left)

    def group_bands(self, group: int) -> range:
        """Band numbers (from 0) of a group."""
        return range(BANDS_PER_GROUP * group, min(BANDS_PER_GROUP * (group + 1), self.bands))


class Segment(NamedTuple):
    """One patch of one group of bands. ``words`` is empty unless the mode is NETWORK.

    Only the first ``latents`` channels are coded, a multiple of 8; None stands for all.
    """

    unit: int
    mode: int
    quality_step: int = 0
    checksum: int = 0
    words: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
    cut: bool = False
    linear: bool = False
    latents: int | None = None


@dataclass
class Stream:
    """A parsed stream. ``damage`` lists what was lost when reading tolerantly, empty otherwise."""

    header: Header
    segments: dict[int, Segment] = field(default_factory=dict)
    masks: dict[int, bytes] = field(default_factory=dict)  # patch number -> payload, see masks.py
    metadata: bytes | None = None
    ranges: npt.NDArray[np.int32] | None = None  # [bands, 2]: sample values coded as 0 and 1
    damage: list[str] = field(default_factory=list)


def write_varint(value: int) -> bytes:
    """Unsigned LEB128 of 0..2**32-1."""
    if not 0 <= value <= VARINT_MAX:
        raise LimitError(f"{value} does not fit a varint of 32 bits")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, offset: int) -> tuple[int, int]:
    """Value and the offset behind it. Raises TruncatedError or FormatError (longer than needed, over 32 bits)."""
    value = 0
    for i in range(5):
        if offset + i >= len(data):
            raise TruncatedError("the data end inside a varint", field="varint", offset_bytes=offset)
        byte = data[offset + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if (i and not byte) or value > VARINT_MAX:
                break
            return value, offset + i + 1
    raise FormatError(
        "a varint is not in its shortest form or exceeds 32 bits", Fault.VARINT, field="varint", offset_bytes=offset
    )


def write_header(header: Header) -> bytes:
    """Header bytes: 20 plus the two sizes."""
    kind = DTYPE_CODES[header.dtype] | (header.patch_side.bit_length() - 1) << 4
    fixed = HEADER_FIXED.pack(MAGIC, VERSION, 0, header.contract, kind, header.bands)
    body = fixed + write_varint(header.width) + write_varint(header.height)
    return body + zlib.crc32(body).to_bytes(4, "little")


def read_header(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> tuple[Header, int]:
    """Header and the offset behind it. Raises a BitstreamError, or LimitError for sizes beyond the limits."""
    if len(data) < HEADER_FIXED.size:
        if bytes(data[:4]) != MAGIC[: len(data)]:
            raise _not_a_stream(data)
        raise TruncatedError(f"{len(data)} bytes are too few for a header", field="header", offset_bytes=len(data))
    magic, version, flags, contract, kind, bands = HEADER_FIXED.unpack_from(data)
    if magic != MAGIC:
        raise _not_a_stream(data)
    if version != VERSION:
        raise UnsupportedError(
            f"format version {version}, this reader knows {VERSION}",
            Fault.VERSION,
            field="version",
            expected=VERSION,
            found=version,
            offset_bytes=4,
        )
    width, offset = read_varint(data, HEADER_FIXED.size)
    height, offset = read_varint(data, offset)
    if len(data) < offset + 4:
        raise TruncatedError("the data end inside the header", field="header", offset_bytes=len(data))
    stored, computed = int.from_bytes(data[offset : offset + 4], "little"), zlib.crc32(data[:offset])
    if computed != stored:
        raise ChecksumError(
            "the header's CRC differs", field="crc", expected=computed, found=stored, offset_bytes=offset
        )
    if flags:
        raise UnsupportedError(
            f"header flags {flags:#04x}, this reader knows none",
            Fault.FLAGS,
            field="flags",
            expected=0,
            found=flags,
            offset_bytes=5,
        )
    dtype, side = DTYPES.get(kind & 15), 1 << (kind >> 4)
    if dtype is None or not 64 <= side <= 512:
        raise FormatError(
            f"sample type and patch side {kind:#04x}; types are {DTYPES}, sides 64 to 512",
            field="kind",
            expected="types 1 to 3, sides 6 to 9",
            found=kind,
            offset_bytes=14,
        )
    if not 1 <= bands <= limits.bands:
        raise LimitError(
            f"{bands} bands, accepted are 1 to {limits.bands}",
            field="bands",
            expected=f"1 to {limits.bands}",
            found=bands,
            offset_bytes=15,
        )
    if not (1 <= width <= limits.side_px and 1 <= height <= limits.side_px) or width * height * bands > limits.samples:
        raise LimitError(
            f"{width}x{height} pixels of {bands} bands; accepted are sides of 1 to {limits.side_px} and {limits.samples} samples",
            field="width, height",
            expected=f"sides of 1 to {limits.side_px}, {limits.samples} samples",
            found=f"{width}x{height}x{bands}",
            offset_bytes=HEADER_FIXED.size,
        )
    return Header(contract, width, height, bands, dtype, side), offset + 4


def _not_a_stream(data: bytes | memoryview) -> FormatError:
    return FormatError(
        f"not a Perigee stream: it must begin with {MAGIC!r}",
        Fault.MAGIC,
        field="magic",
        expected=MAGIC.hex(" "),
        found=bytes(data[:4]).hex(" "),
        offset_bytes=0,
    )


def write_chunk(kind: int, payload: bytes) -> bytes:
    """A chunk: type, length, payload, CRC-32 of all three."""
    body = bytes([kind]) + write_varint(len(payload)) + payload
    return body + zlib.crc32(body).to_bytes(4, "little")


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


def write_segment(segment: Segment) -> bytes:
    """The chunk of a segment."""
    flags = (CUT_FLAG if segment.cut else 0) | (LINEAR_FLAG if segment.linear else 0)
    flags |= 0 if segment.latents is None else FIRST_FLAG
    payload = write_varint(segment.unit) + bytes([segment.mode | flags])
    if segment.mode == NETWORK:
        payload += bytes([segment.quality_step]) + segment.checksum.to_bytes(2, "little")
        payload += b"" if segment.latents is None else bytes([segment.latents // CHANNEL_STEP])
        payload += segment.words.astype("<u4").tobytes()
    return write_chunk(SEGMENT, payload)


def write_ranges(ranges: npt.NDArray[Any]) -> bytes:
    """The chunk of the coding ranges, int32 [bands, 2]."""
    return write_chunk(RANGE, ranges.astype("<i4").tobytes())


def write_end(chunks: int) -> bytes:
    """The end mark, which counts the chunks before it."""
    return write_chunk(END, write_varint(chunks))


def write_stream(header: Header, chunks: Iterable[bytes]) -> bytes:
    """A whole stream: the header, the chunks in their order, the end mark that counts them."""
    body = list(chunks)
    return b"".join([write_header(header), *body, write_end(len(body))])


def cut_segment(segment: Segment, words: int) -> Segment:
    """The segment shortened to its first ``words`` words: it decodes to a coarser patch and says so."""
    if segment.mode != NETWORK or words >= len(segment.words):
        return segment
    return segment._replace(words=segment.words[: max(words, 0)], cut=True)


def checksum_of(q: npt.NDArray[Any]) -> int:
    """Checksum of latents: the low 16 bits of the CRC-32 of ``q`` as little-endian int16 [latents, H, W]."""
    return zlib.crc32(np.ascontiguousarray(q, dtype="<i2").tobytes()) & 0xFFFF


def parse(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS, damaged: bool = False) -> Stream:
    """Parse a whole stream.

    Strict by default: the first fault raises. With ``damaged`` chunks that fail their check are dropped and listed, as
    is a missing end; only an unusable header and an unknown critical chunk or mode raise then.
    """
    header, offset = read_header(data, limits)
    stream = Stream(header)
    most = header.units + header.units // header.groups + SPARE_CHUNKS
    count, seen = 0, 0
    ended = False
    for start, fault, kind, payload in _chunks(memoryview(data), offset, limits):
        seen += 1
        if seen > most:
            fault = FormatError(
                f"more than {most} chunks, too many for {header.units} segments",
                Fault.COUNT,
                field="chunks",
                expected=f"at most {most}",
                found=seen,
                offset_bytes=start,
            )
            if not damaged:
                raise fault
            stream.damage.append(str(fault))
            break
        if fault is not None:
            if not damaged:
                raise fault
            if len(stream.damage) < NOTES_MAX:
                stream.damage.append(str(fault))
            continue
        if kind == END and not ended:
            ended = True
            announced, stop = _whole_varint(payload, start)
            if announced != count or stop != len(payload):
                fault = FormatError(
                    f"the end mark counts {announced} chunks, {count} were read",
                    Fault.COUNT,
                    field="end mark",
                    expected=count,
                    found=announced,
                    offset_bytes=start,
                )
                if not damaged:
                    raise fault
                stream.damage.append(str(fault))
            continue
        if ended:
            fault = FormatError("data follow the end mark", Fault.PLACE, field="chunk", offset_bytes=start)
            if damaged:
                stream.damage.append(str(fault))
                break
            raise fault
        count += 1
        try:
            _take(stream, kind, payload, start, limits)
        except UnsupportedError:
            raise
        except BitstreamError as error:
            if not damaged:
                raise
            if len(stream.damage) < NOTES_MAX:
                stream.damage.append(str(error))
    if not ended:
        if not damaged:
            raise TruncatedError("the stream has no end mark", field="end mark", offset_bytes=len(data))
        stream.damage.append("the stream has no end mark")
    missing = header.units - len(stream.segments)
    if missing:
        if not damaged:
            raise FormatError(
                f"{missing} of {header.units} segments are missing",
                Fault.MISSING,
                field="segments",
                expected=header.units,
                found=len(stream.segments),
            )
        stream.damage.append(f"{missing} of {header.units} segments are missing")
    return stream


def _leading_varint(payload: memoryview, start: int) -> tuple[int, int]:
    """The number that a payload begins with; errors name the chunk's place in the stream."""
    try:
        return read_varint(payload, 0)
    except BitstreamError as error:
        raise type(error)(
            "a chunk's payload does not begin with a whole number", error.fault, field="varint", offset_bytes=start
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
        patch, at = _leading_varint(payload, start)
        if patch >= header.units // header.groups or patch in stream.masks:
            raise FormatError(
                f"the mask of patch {patch} is out of range or comes twice",
                Fault.REPEATED if patch in stream.masks else Fault.RANGE,
                field="patch",
                expected=f"0 to {header.units // header.groups - 1}, each once",
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
    elif not kind & OPTIONAL_BIT:
        name = RESERVED_CRITICAL.get(kind, "unknown")
        raise UnsupportedError(
            f"critical chunk type {kind:#04x} ({name}), which this reader cannot do without",
            field="chunk type",
            expected="0x00 to 0x04, or an optional type",
            found=kind,
            offset_bytes=start,
        )


def _segment(payload: memoryview, start: int) -> Segment:
    unit, at = _leading_varint(payload, start)
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
