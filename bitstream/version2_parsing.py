"""Reading a stream of format version 2: every chunk is checked, and every size is compared with the limits first."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from perigee.bitstream.bounded import read_band_codes
from perigee.bitstream.errors import Fault, FormatError, UnsupportedError
from perigee.bitstream.format import (
    CHANNEL_STEP,
    CUT_FLAG,
    DEFAULT_LIMITS,
    DROPPED,
    EMPTY,
    MASK,
    METADATA,
    NETWORK,
    OPTIONAL_BIT,
    QUALITY_STEP_MAX,
    SEGMENT,
    SPARE_CHUNKS,
    Limits,
)
from perigee.bitstream.parsing import check_missing, leading_varint, read_chunks
from perigee.bitstream.records import RECORDS, RecordsOfScene, read_records
from perigee.bitstream.spectral import SCALE_MAX, Spectral, identity
from perigee.bitstream.stored import read_stored_bands
from perigee.bitstream.version2 import (
    CODED_MAX,
    ERRORS,
    ERRORS_TYPE,
    LATENTS,
    MATRIX_FLAG,
    OFFSETS_FLAG,
    PARAMETERS,
    PART,
    PARTS_FLAG,
    PARTS_MAX,
    PLACES,
    PLACES_MAX,
    PREDICTED,
    QUALITIES_FLAG,
    RESERVED_CRITICAL,
    STORED,
    STRIP,
    BandErrors,
    ComponentSegment,
    ComponentStream,
    Parameters,
)
from perigee.bitstream.version2_header import read_component_header


def parse_component_stream(
    data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS, damaged: bool = False
) -> ComponentStream:
    """Parse a whole stream of version 2. Strict, or with ``damaged`` as tolerant as ``parsing.parse_stream``."""
    header, offset = read_component_header(data, limits)
    reader = _Reader(ComponentStream(header), limits)
    stream = reader.stream
    most = (2 + PARTS_MAX) * header.patches + 4 * header.grid[0] + SPARE_CHUNKS
    damage = stream.damage if damaged else None
    read_chunks(data, offset, limits, most, reader.take, damage)
    reader.join_parts(damage)
    check_missing(header.patches, len(stream.segments), damage)
    if header.placed and stream.places is None:
        raise FormatError("the places of the bands are missing", Fault.MISSING, field="places")
    rows = {patch // header.grid[1] for patch in range(header.patches) if _needs_parameters(stream, patch)}
    wanted = {stream.strips.get(row, 0) for row in rows}
    lost = sorted(wanted - set(stream.parameters))
    if lost:
        text = f"parameters {', '.join(map(str, lost[:10]))} are missing"
        if damage is None:
            raise FormatError(text, Fault.MISSING, field="parameters", expected=lost[0])
        damage.append(text)
    return stream


def _needs_parameters(stream: ComponentStream, patch: int) -> bool:
    """Whether a patch is coded as components, or is missing and may have been."""
    segment = stream.segments.get(patch)
    return segment is None or segment.mode == NETWORK


class _Reader:
    """Stores the chunks of a stream as they come."""

    def __init__(self, stream: ComponentStream, limits: Limits) -> None:
        self.stream, self._limits = stream, limits
        self._raw: dict[int, bytes] = {}  # parameters as they came, to compare repetitions
        self._announced: dict[int, int] = {}  # parts of each patch that has any
        self._parts: dict[tuple[int, int], npt.NDArray[np.uint32]] = {}

    def take(self, kind: int, payload: memoryview, start: int) -> None:
        """Store one sound chunk. Raises a BitstreamError where it does not belong."""
        if kind == SEGMENT:
            self._segment(payload, start)
        elif kind == PART:
            self._part(payload, start)
        elif kind == MASK:
            patch, at = leading_varint(payload, start)
            self._once(patch, self.stream.masks, "mask", start)
            self.stream.masks[patch] = bytes(payload[at:])
        elif kind == METADATA:
            if self.stream.metadata is not None or len(payload) > self._limits.metadata_bytes:
                raise FormatError(
                    f"metadata come twice or exceed {self._limits.metadata_bytes} bytes",
                    Fault.REPEATED if self.stream.metadata is not None else Fault.LIMIT,
                    field="metadata",
                    expected=f"at most {self._limits.metadata_bytes} bytes, once",
                    found=len(payload),
                    offset_bytes=start,
                )
            self.stream.metadata = bytes(payload)
        elif kind == PARAMETERS:
            self._parameters(payload, start)
        elif kind == STRIP:
            self._strip(payload, start)
        elif kind == ERRORS:
            self._errors(payload, start)
        elif kind == RECORDS:
            records = read_records(payload, self.stream.header.height, start)
            self.stream.records = self.stream.records or RecordsOfScene(self.stream.header.height)
            self.stream.records.add(records, start)
        elif kind == PLACES and self.stream.header.placed:
            self._places(payload, start)
        elif not kind & OPTIONAL_BIT:
            raise UnsupportedError(
                f"critical chunk type {kind:#04x} ({RESERVED_CRITICAL.get(kind, 'unknown')}), which this reader cannot do without",
                field="chunk type",
                expected="0x00 to 0x03, 0x08 to 0x0a, 0x0d with its feature, or an optional type",
                found=kind,
                offset_bytes=start,
            )

    def _places(self, payload: memoryview, start: int) -> None:
        header = self.stream.header
        numbers: list[int] = []
        at = 0
        while at < len(payload) and len(numbers) < 2 * header.bands:
            value, at = leading_varint(payload, start, at)
            numbers.append(value)
        places = np.array(numbers, np.int64)
        if len(numbers) != 2 * header.bands or at != len(payload):
            raise FormatError(
                f"places of bands of {len(payload)} bytes",
                Fault.SIZE,
                field="places",
                expected=f"{2 * header.bands} whole numbers",
                found=len(numbers),
                offset_bytes=start,
            )
        places = places.reshape(-1, 2)
        if (places.max(0) >= [header.height, header.width]).any() or places.max() > PLACES_MAX:
            raise FormatError(
                f"bands {places.max(0).tolist()} lines and columns apart in a frame of {header.height} x {header.width}",
                field="places",
                expected=f"less than the frame, at most {PLACES_MAX}",
                offset_bytes=start,
            )
        known = self.stream.places
        if known is not None and not np.array_equal(known, places):
            raise FormatError(
                "places of bands that differ from those before", Fault.REPEATED, field="places", offset_bytes=start
            )
        self.stream.places = places

    def _errors(self, payload: memoryview, start: int) -> None:
        size = self.stream.header.bands * ERRORS_TYPE.itemsize
        if self.stream.errors is not None or len(payload) != size:
            raise FormatError(
                f"measured errors come twice or have {len(payload)} bytes",
                Fault.REPEATED if self.stream.errors is not None else Fault.SIZE,
                field="errors",
                expected=f"{size} bytes, once",
                found=len(payload),
                offset_bytes=start,
            )
        found = np.frombuffer(bytes(payload), ERRORS_TYPE)
        if not (np.isfinite(found["rms"]).all() and np.isfinite(found["bias"]).all()):
            raise FormatError("measured errors that are not finite", Fault.RANGE, field="errors", offset_bytes=start)
        self.stream.errors = BandErrors(found["rms"], found["largest"], found["bias"])

    def _once(self, patch: int, known: dict[int, object] | dict[int, bytes], name: str, start: int) -> None:
        if patch >= self.stream.header.patches or patch in known:
            raise FormatError(
                f"the {name} of patch {patch} is out of range or comes twice",
                Fault.REPEATED if patch in known else Fault.RANGE,
                field="patch",
                expected=f"0 to {self.stream.header.patches - 1}, each once",
                found=patch,
                offset_bytes=start,
            )

    def _segment(self, payload: memoryview, start: int) -> None:
        patch, at = leading_varint(payload, start)
        self._once(patch, self.stream.segments, "segment", start)  # type: ignore[arg-type]
        if at >= len(payload):
            raise FormatError("a segment without a mode", Fault.SIZE, field="mode", offset_bytes=start)
        mode, flags = payload[at] & 15, payload[at] & 0xF0
        header = self.stream.header
        modes = [DROPPED, EMPTY]
        modes += [PREDICTED] * header.predicting + [STORED] * (header.predicting and not header.floats)
        modes += [NETWORK] * (not header.floats)
        if mode not in modes or flags & 0x80:
            raise UnsupportedError(
                f"patch mode {payload[at]:#04x}",
                field="mode",
                expected=f"{', '.join(map(str, sorted(modes)))} and the flags 0x10, 0x20, 0x40",
                found=payload[at],
                offset_bytes=start,
            )
        at += 1
        if mode == PREDICTED and not flags:
            self._predicted(patch, payload, at, start)
            return
        if mode == STORED and not flags:
            stored = read_stored_bands(payload, at, header.bands, start)
            self.stream.segments[patch] = ComponentSegment(patch, mode, stored=stored)
            return
        if mode != NETWORK:
            if flags or at != len(payload):
                raise FormatError(
                    f"a segment of mode {mode} carries no data and no flags",
                    Fault.SIZE,
                    field="mode",
                    expected=0,
                    found=len(payload) - at,
                    offset_bytes=start,
                )
            self.stream.segments[patch] = ComponentSegment(patch, mode)
            return
        bands = self.stream.header.bands
        has_parts, has_qualities = bool(flags & PARTS_FLAG), bool(flags & QUALITIES_FLAG)
        fixed = has_parts + 3 + (bands if has_qualities else 0) + bands
        if len(payload) < at + fixed or (len(payload) - at - fixed) % 4:
            raise FormatError(
                f"a network segment of {len(payload) - at} bytes; it has {fixed} and whole 32-bit words",
                Fault.SIZE,
                field="words",
                expected=f"{fixed} + 4n",
                found=len(payload) - at,
                offset_bytes=start,
            )
        if has_parts:
            if not 1 <= payload[at] <= PARTS_MAX:
                raise FormatError(
                    f"a segment with {payload[at]} parts, accepted are 1 to {PARTS_MAX}",
                    field="parts",
                    expected=f"1 to {PARTS_MAX}",
                    found=payload[at],
                    offset_bytes=start,
                )
            self._announced[patch] = payload[at]
            at += 1
        quality_step, checksum = payload[at], int.from_bytes(payload[at + 1 : at + 3], "little")
        at += 3
        qualities: tuple[int, ...] = ()
        if has_qualities:
            qualities = tuple(np.frombuffer(payload[at : at + bands], np.int8).tolist())
            at += bands
        coded = tuple(payload[at : at + bands])
        at += bands
        if quality_step > QUALITY_STEP_MAX or max(coded) > CODED_MAX:
            raise FormatError(
                f"quality step {quality_step} or {max(coded)} times {CHANNEL_STEP} channels; accepted are 0 to "
                f"{QUALITY_STEP_MAX} and at most {CODED_MAX}",
                field="quality_step" if quality_step > QUALITY_STEP_MAX else "coded",
                expected=f"0 to {QUALITY_STEP_MAX}, 0 to {CODED_MAX}",
                found=f"{quality_step}, {max(coded)}",
                offset_bytes=start,
            )
        words = np.frombuffer(payload[at:], "<u4").astype(np.uint32)
        channels = tuple(CHANNEL_STEP * count for count in coded)
        self.stream.segments[patch] = ComponentSegment(
            patch, mode, quality_step, checksum, channels, qualities, words, bool(flags & CUT_FLAG)
        )

    def _predicted(self, patch: int, payload: memoryview, at: int, start: int) -> None:
        codes, words_at = read_band_codes(payload, at + 2, self.stream.header.bands, self.stream.header.floats, start)
        if (len(payload) - words_at) % 4:
            raise FormatError(
                f"a predicted segment whose words are {len(payload) - words_at} bytes",
                Fault.SIZE,
                field="words",
                expected="whole 32-bit words",
                found=len(payload) - words_at,
                offset_bytes=start,
            )
        words = np.frombuffer(payload[words_at:], "<u4").astype(np.uint32)
        checksum = int.from_bytes(payload[at : at + 2], "little")
        self.stream.segments[patch] = ComponentSegment(patch, PREDICTED, checksum=checksum, words=words, codes=codes)

    def _part(self, payload: memoryview, start: int) -> None:
        patch, at = leading_varint(payload, start)
        number = payload[at] if at < len(payload) else 0
        fits = patch < self.stream.header.patches and 1 <= number <= PARTS_MAX and (len(payload) - at - 1) % 4 == 0
        if not fits or (patch, number) in self._parts:
            raise FormatError(
                f"part {number} of patch {patch} is out of range, comes twice or has no whole words",
                Fault.REPEATED if (patch, number) in self._parts else Fault.RANGE,
                field="part",
                expected=f"1 to {PARTS_MAX}, each once",
                found=number,
                offset_bytes=start,
            )
        self._parts[patch, number] = np.frombuffer(payload[at + 1 :], "<u4").astype(np.uint32)

    def join_parts(self, damage: list[str] | None) -> None:
        """Give each segment the words of its parts, as far as they came without a gap. Raises FormatError in strict reading."""
        for patch, count in self._announced.items():
            segment = self.stream.segments[patch]
            words = [segment.words]
            for number in range(1, count + 1):
                found = self._parts.pop((patch, number), None)
                if found is None:
                    text = f"part {number} of {count} of patch {patch} is missing"
                    if damage is None:
                        raise FormatError(text, Fault.MISSING, field="part", expected=count, found=number - 1)
                    damage.append(text)
                    segment = segment._replace(cut=True)
                    break
                words.append(found)
            self.stream.segments[patch] = segment._replace(words=np.concatenate(words))
        left = [key for key in self._parts if key[0] not in self._announced or key[1] > self._announced[key[0]]]
        if left and damage is None:
            patch, number = left[0]
            raise FormatError(f"part {number} of patch {patch} belongs to no segment", Fault.PLACE, field="part")

    def _parameters(self, payload: memoryview, start: int) -> None:
        number, at = leading_varint(payload, start)
        raw = bytes(payload)
        if number in self._raw:
            if self._raw[number] != raw:
                raise FormatError(
                    f"parameters {number} come twice and differ", Fault.REPEATED, field="parameters", offset_bytes=start
                )
            return
        self.stream.parameters[number] = _read_parameters(payload, at, self.stream.header.bands, start)
        self._raw[number] = raw

    def _strip(self, payload: memoryview, start: int) -> None:
        numbers: list[int] = []
        at = 0
        while at < len(payload) and len(numbers) < 3:
            value, at = leading_varint(payload, start, at)
            numbers.append(value)
        if len(numbers) < 3 or at != len(payload):
            raise FormatError("a strip is three whole numbers", Fault.SIZE, field="strip", offset_bytes=start)
        first, rows, parameters = numbers
        if not 1 <= rows <= self.stream.header.grid[0] or first + rows > self.stream.header.grid[0]:
            raise FormatError(
                f"a strip of {rows} rows of patches from row {first}; the scene has {self.stream.header.grid[0]}",
                field="strip",
                expected=f"rows 0 to {self.stream.header.grid[0] - 1}",
                found=f"{first}, {rows}",
                offset_bytes=start,
            )
        for row in range(first, first + rows):
            if self.stream.strips.setdefault(row, parameters) != parameters:
                raise FormatError(
                    f"row {row} of patches has two sets of parameters",
                    Fault.REPEATED,
                    field="strip",
                    offset_bytes=start,
                )


def _read_parameters(payload: memoryview, at: int, bands: int, start: int) -> Parameters:
    def wrong(text: str, name: str) -> FormatError:
        return FormatError(f"parameters: {text}", field=name, offset_bytes=start)

    flags = payload[at] if at < len(payload) else 0xFF
    if flags & ~(MATRIX_FLAG | OFFSETS_FLAG):
        raise UnsupportedError(
            f"parameters with the flags {flags:#04x}, this reader knows 0x03",
            Fault.FLAGS,
            field="flags",
            expected=3,
            found=flags,
            offset_bytes=start,
        )
    at += 1
    mean, scale = np.zeros(bands, np.int32), np.zeros(bands, np.uint32)
    for band in range(bands):
        folded, at = leading_varint(payload, start, at)
        mean[band] = folded >> 1 ^ -(folded & 1)
        scale[band], at = leading_varint(payload, start, at)
    if not scale.all() or scale.max() > SCALE_MAX:
        raise wrong(f"scales of {scale.min()} to {scale.max()}, accepted are 1 to {SCALE_MAX}", "scale")
    matrix = identity(bands)
    if flags & MATRIX_FLAG:
        size = 2 * bands * bands
        if len(payload) < at + size:
            raise wrong(f"a matrix of {bands}x{bands} does not fit the chunk", "matrix")
        matrix = np.frombuffer(payload[at : at + size], "<i2").astype(np.int16).reshape(bands, bands)
        at += size
    offsets = np.zeros((bands, LATENTS), np.int8)
    if flags & OFFSETS_FLAG:
        engine = zlib.decompressobj()
        try:
            raw = engine.decompress(bytes(payload[at:]), offsets.size + 1)
        except zlib.error as error:
            raise wrong(f"the offsets cannot be inflated ({error})", "offsets") from error
        if len(raw) != offsets.size or not engine.eof or engine.unused_data:
            raise wrong(f"the offsets do not inflate to {offsets.size} bytes", "offsets")
        offsets = np.frombuffer(raw, np.int8).reshape(bands, LATENTS)
    elif at != len(payload):
        raise wrong(f"{len(payload) - at} bytes follow", "size")
    return Parameters(Spectral(mean, scale, matrix), offsets)
