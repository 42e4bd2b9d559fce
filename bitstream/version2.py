"""Format version 2: a scene as spectral components, in strips that own their parameters. ``docs/format2.md``.

A stream is framed as in version 1 (``format.py``): a header, checked chunks, an end mark. Here are the parts that differ
and their writer; ``version2_parsing.py`` is their reader.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.bounded import BandCode, Bound, write_band_codes
from perigee.bitstream.format import (
    CHANNEL_STEP,
    CUT_FLAG,
    DTYPES,
    MAGIC,
    NETWORK,
    QUALITY_STEP_MAX,
    SEGMENT,
    StreamWriter,
    write_chunk,
    write_varint,
)
from perigee.bitstream.records import RecordsOfScene
from perigee.bitstream.spectral import Spectral
from perigee.bitstream.stored import StoredBand, write_stored_bands

VERSION = 2
PARAMETERS, STRIP, PART, PLACES = 0x08, 0x09, 0x0A, 0x0D
ERRORS = 0x84
ERRORS_TYPE = np.dtype([("rms", "<f4"), ("largest", "<u4"), ("bias", "<f4")])  # of one band, in counts
RESERVED_CRITICAL = {
    0x05: "key id",
    0x06: "encrypted packet group",
    0x07: "signature",
    0x0B: "residual layer",
    0x0C: "reference scene",
}
FEATURES = {
    0: "predicted and stored segments",
    1: "residual layers",
    2: "float samples",
    3: "encryption",
    4: "a scene of open height",
    5: "a reference scene",
    6: "fixed spectral matrices",
    7: "bands in places of their own",
}
PLACES_MAX = 1024  # lines or columns of the frame: what bounds the memory of a window
PREDICTING, FLOATS, PLACED = 1 << 0, 1 << 2, 1 << 7  # the features that this reader has
FLOAT = "float32"
SAMPLE_TYPES = DTYPES | {4: FLOAT}
SAMPLE_TYPE_CODES = {name: code for code, name in SAMPLE_TYPES.items()}
PREDICTED, STORED = 1, 4  # modes of a segment, beside those of version 1
QUALITIES_FLAG, PARTS_FLAG = 0x20, 0x40
PARTS_MAX = 15
MATRIX_FLAG, OFFSETS_FLAG = 0x01, 0x02
LATENTS = 256
CODED_MAX = LATENTS // CHANNEL_STEP
HEADER_FIXED = 4 + 1 + 8 + 1 + 1


@dataclass(frozen=True)
class ComponentHeader:
    """What every reader needs before any chunk. ``contract`` is the 8-byte digest of the component profile's contract."""

    contract: bytes
    width: int
    height: int
    bands: int
    dtype: str
    patch_side: int
    placed: bool = False  # whether the bands lie at different places of the frame that is coded
    predicting: bool = False  # whether segments may be predicted or stored; those of float samples are

    @property
    def floats(self) -> bool:
        """Whether samples are floats."""
        return self.dtype == FLOAT

    @property
    def features(self) -> int:
        """What a reader must have, bit by bit."""
        return PLACED * self.placed | PREDICTING * (self.predicting or self.floats) | FLOATS * self.floats

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return -(-self.height // self.patch_side), -(-self.width // self.patch_side)

    @property
    def patches(self) -> int:
        """Number of patches, each with one segment."""
        rows, cols = self.grid
        return rows * cols

    def patch_region(self, patch: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a patch in pixels."""
        row, col = divmod(patch, self.grid[1])
        top, left = row * self.patch_side, col * self.patch_side
        return top, left, min(self.patch_side, self.height - top), min(self.patch_side, self.width - left)


@dataclass(frozen=True)
class Parameters:
    """What a strip codes its patches with: the spectral transform, and int8 ``offsets`` [components, 256] of the scale
    indices."""

    spectral: Spectral
    offsets: IntArray


class BandErrors(NamedTuple):
    """What the encoder has measured of each band on its valid samples, in counts [bands]: root of the mean squared error, largest error,
    and mean of what was decoded less what was encoded. The samples are those of the integers (section 21 of the format)."""

    rms: FloatArray
    largest: IntArray
    bias: FloatArray


class ComponentSegment(NamedTuple):
    """All that is sent of one patch. Without the modes NETWORK, PREDICTED and STORED only ``patch`` and ``mode`` count.

    ``channels`` [components]: how many leading channels of each component are coded, multiples of 8; ``qualities``
    [components]: what is added to the quality step of each component. ``codes`` [bands] are those of a predicted segment, which has beside them
    a checksum and words; ``stored`` [bands] those of a stored one.
    """

    patch: int
    mode: int
    quality_step: int = 0
    checksum: int = 0
    channels: tuple[int, ...] = ()
    qualities: tuple[int, ...] = ()
    words: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
    cut: bool = False
    codes: tuple[BandCode, ...] = ()
    stored: tuple[StoredBand, ...] = ()

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """What is promised of each band, where anything is."""
        return tuple(code.bound for code in self.codes) or tuple(Bound(band.counts) for band in self.stored)

    @property
    def quality_steps(self) -> tuple[int, ...]:
        """The quality step of each component."""
        added = self.qualities or (0,) * len(self.channels)
        return tuple(min(max(self.quality_step + q, 0), QUALITY_STEP_MAX) for q in added)


@dataclass
class ComponentStream:
    """A parsed stream. ``strips`` maps each row of patches to the number of its parameters; ``damage`` lists what was lost."""

    header: ComponentHeader
    segments: dict[int, ComponentSegment] = field(default_factory=dict)
    masks: dict[int, bytes] = field(default_factory=dict)
    metadata: bytes | None = None
    parameters: dict[int, Parameters] = field(default_factory=dict)
    strips: dict[int, int] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    errors: BandErrors | None = None
    places: IntArray | None = None  # [bands, 2]: line and column of the frame at which each band begins
    records: RecordsOfScene | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the scene: those of the frame, less what the bands are apart."""
        lines, columns = (0, 0) if self.places is None else self.places.max(0).tolist()
        return self.header.height - lines, self.header.width - columns

    def parameters_of(self, patch: int) -> Parameters | None:
        """The parameters of a patch, None where they were lost."""
        return self.parameters.get(self.strips.get(patch // self.header.grid[1], 0))


def write_component_header(header: ComponentHeader) -> bytes:
    """The header's bytes."""
    kind = SAMPLE_TYPE_CODES[header.dtype] | (header.patch_side.bit_length() - 1) << 4
    body = MAGIC + bytes([VERSION]) + header.contract + bytes([kind, header.bands])
    body += write_varint(header.features) + write_varint(header.width) + write_varint(header.height)
    return body + zlib.crc32(body).to_bytes(4, "little")


def write_parameters(number: int, parameters: Parameters) -> bytes:
    """The chunk of a set of parameters."""
    spectral, offsets = parameters.spectral, parameters.offsets
    flags = (0 if spectral.is_identity else MATRIX_FLAG) | (OFFSETS_FLAG if offsets.any() else 0)
    payload = write_varint(number) + bytes([flags])
    for mean, scale in zip(spectral.mean.tolist(), spectral.scale.tolist(), strict=True):
        payload += write_varint(2 * mean if mean >= 0 else -2 * mean - 1) + write_varint(scale)
    if flags & MATRIX_FLAG:
        payload += spectral.matrix.astype("<i2").tobytes()
    if flags & OFFSETS_FLAG:
        payload += zlib.compress(offsets.astype(np.int8).tobytes(), 9)
    return write_chunk(PARAMETERS, payload)


def write_strip(first_row: int, rows: int, parameters: int) -> bytes:
    """The chunk that gives rows of patches their parameters."""
    return write_chunk(STRIP, write_varint(first_row) + write_varint(rows) + write_varint(parameters))


def write_places(places: IntArray) -> bytes:
    """The chunk of the places of the bands, [bands, 2], none of them negative."""
    return write_chunk(PLACES, b"".join(write_varint(int(n)) for n in places.reshape(-1)))


def write_errors(errors: BandErrors) -> bytes:
    """The chunk of the errors that the encoder has measured."""
    payload = np.empty(len(errors.rms), ERRORS_TYPE)
    payload["rms"], payload["largest"], payload["bias"] = errors
    return write_chunk(ERRORS, payload.tobytes())


def write_component_segment(segment: ComponentSegment) -> bytes:
    """The chunk of a segment."""
    flags = (CUT_FLAG if segment.cut else 0) | (QUALITIES_FLAG if any(segment.qualities) else 0)
    payload = write_varint(segment.patch) + bytes([segment.mode | flags])
    if segment.mode == NETWORK:
        payload += bytes([segment.quality_step]) + segment.checksum.to_bytes(2, "little")
        if flags & QUALITIES_FLAG:
            payload += np.array(segment.qualities, np.int8).tobytes()
        payload += bytes(channels // CHANNEL_STEP for channels in segment.channels)
        payload += segment.words.astype("<u4").tobytes()
    elif segment.mode == PREDICTED:
        payload += segment.checksum.to_bytes(2, "little") + write_band_codes(segment.codes)
        payload += segment.words.astype("<u4").tobytes()
    elif segment.mode == STORED:
        payload += write_stored_bands(segment.stored)
    return write_chunk(SEGMENT, payload)


def write_component_stream(header: ComponentHeader, chunks: list[bytes]) -> bytes:
    """A whole stream: the header, the chunks in their order, the end mark that counts them."""
    writer = StreamWriter(write_component_header(header))
    writer.add(*chunks)
    return writer.finish()


def checksum_of_components(q: IntArray, channels: tuple[int, ...]) -> int:
    """The low 16 bits of the CRC-32 of the coded latents as little-endian int32 [channel, row, col], component by component."""
    crc = 0
    for latents, count in zip(q, channels, strict=True):
        crc = zlib.crc32(np.ascontiguousarray(latents[:count], dtype="<i4").data, crc)
    return crc & 0xFFFF


def version_of(data: bytes | memoryview) -> int:
    """The format version of a stream, 0 where the bytes do not begin as one."""
    return data[4] if len(data) > 4 and bytes(data[:4]) == MAGIC else 0
