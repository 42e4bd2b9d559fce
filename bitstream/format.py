"""The stream: a header, checked chunks, an end mark. ``docs/format.md`` is the specification; here are its parts and its writer,
``parsing.py`` is its reader.

Every chunk is checked by a CRC of its own, and every size against :class:`Limits` before anything is allocated. Numbers
are little-endian; ``varint`` is unsigned LEB128 of at most five bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import (
    ChecksumError,
    Fault,
    FormatError,
    LimitError,
    OutputError,
    TruncatedError,
    UnsupportedError,
)

MAGIC = b"\x89PGE"
VERSION = 1
HEADER_FIXED = struct.Struct("<4sBB8sBB")

END, SEGMENT, MASK, METADATA, RANGE, OFFSETS = 0x00, 0x01, 0x02, 0x03, 0x04, 0x08
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
LATENTS_MAX = 2048  # of a group, in the offsets of the tables
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
    def patches(self) -> int:
        """Number of patches."""
        rows, cols = self.grid
        return rows * cols

    @property
    def units(self) -> int:
        """Number of segments: patches times groups."""
        return self.patches * self.groups

    def unit_region(self, unit: int) -> tuple[int, int, int, int, int]:
        """Group, top, left, height and width in pixels of a unit (= patch * groups + group)."""
        patch, group = divmod(unit, self.groups)
        return group, *self.patch_region(patch)

    def patch_region(self, patch: int) -> tuple[int, int, int, int]:
        """Top, left, height and width in pixels of a patch."""
        row, col = divmod(patch, self.grid[1])
        top, left = row * self.patch_side, col * self.patch_side
        return top, left, min(self.patch_side, self.height - top), min(self.patch_side, self.width - left)

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
    offsets: npt.NDArray[np.int8] | None = None  # [groups, latents]: added to the scale indices
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
            raise not_a_stream(data)
        raise TruncatedError(f"{len(data)} bytes are too few for a header", field="header", offset_bytes=len(data))
    magic, version, flags, contract, kind, bands = HEADER_FIXED.unpack_from(data)
    if magic != MAGIC:
        raise not_a_stream(data)
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


def not_a_stream(data: bytes | memoryview) -> FormatError:
    """The error of bytes that do not begin as a stream does."""
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


def write_offsets(offsets: npt.NDArray[np.int8]) -> bytes:
    """The chunk of the offsets of the tables, int8 [groups, latents]."""
    return write_chunk(OFFSETS, zlib.compress(offsets.astype(np.int8).tobytes(), 9))


def write_end(chunks: int) -> bytes:
    """The end mark, which counts the chunks before it."""
    return write_chunk(END, write_varint(chunks))


class StreamWriter:
    """Writes a stream as it comes: the header, the chunks in their order, the end mark that counts them.

    ``header`` may change up to the end. The chunks go to ``out``, a file that is open for writing and gets no header, or into memory. All
    methods raise OutputError where the file cannot be written.
    """

    def __init__(self, header: bytes, out: IO[bytes] | None = None) -> None:
        self.header = header
        self._kept = io.BytesIO() if out is None else None
        self._out = self._kept or out
        self._chunks = self._written = 0

    @property
    def size(self) -> int:
        """Bytes of the header and of what was written."""
        return len(self.header) + self._written

    def _write(self, data: bytes) -> None:
        assert self._out is not None
        try:
            self._out.write(data)
        except OSError as error:
            raise OutputError(f"the stream cannot be written ({error.strerror})", field="stream") from error
        self._written += len(data)

    def add(self, *chunks: bytes) -> None:
        """Append chunks."""
        for chunk in chunks:
            self._write(chunk)
        self._chunks += len(chunks)

    def finish(self) -> bytes:
        """Write the end mark; returns the whole stream where it was kept in memory, else nothing."""
        self._write(write_end(self._chunks))
        return b"" if self._kept is None else self.header + self._kept.getvalue()


def write_stream(header: Header, chunks: Iterable[bytes]) -> bytes:
    """A whole stream: the header, the chunks in their order, the end mark that counts them."""
    writer = StreamWriter(write_header(header))
    writer.add(*chunks)
    return writer.finish()


def cut_segment(segment: Segment, words: int) -> Segment:
    """The segment shortened to its first ``words`` words: it decodes to a coarser patch and says so."""
    if segment.mode != NETWORK or words >= len(segment.words):
        return segment
    return segment._replace(words=segment.words[: max(words, 0)], cut=True)


def checksum_of(q: npt.NDArray[Any]) -> int:
    """Checksum of latents: the low 16 bits of the CRC-32 of ``q`` as little-endian int16 [latents, H, W]."""
    return zlib.crc32(np.ascontiguousarray(q, dtype="<i2").tobytes()) & 0xFFFF
