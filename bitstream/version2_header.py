"""Reading the header of a stream of format version 2."""

from __future__ import annotations

import zlib

from perigee.bitstream.errors import ChecksumError, Fault, FormatError, LimitError, TruncatedError, UnsupportedError
from perigee.bitstream.format import DEFAULT_LIMITS, MAGIC, Limits, not_a_stream, read_varint
from perigee.bitstream.version2 import (
    FEATURES,
    FLOAT,
    FLOATS,
    HEADER_FIXED,
    PLACED,
    PREDICTING,
    SAMPLE_TYPES,
    VERSION,
    ComponentHeader,
    version_of,
)

FLOAT_SIDE_MAX = 256  # so that the values of a patch have numbers of 16 bits


def read_component_header(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> tuple[ComponentHeader, int]:
    """Header and the offset behind it. Raises a BitstreamError, or LimitError for sizes beyond the limits."""
    if len(data) < HEADER_FIXED:
        if bytes(data[:4]) != MAGIC[: len(data)]:
            raise not_a_stream(data)
        raise TruncatedError(f"{len(data)} bytes are too few for a header", field="header", offset_bytes=len(data))
    if version_of(data) != VERSION:
        raise UnsupportedError(
            f"format version {version_of(data)}, this reader knows {VERSION}",
            Fault.VERSION,
            field="version",
            expected=VERSION,
            found=version_of(data),
            offset_bytes=4,
        )
    contract, kind, bands = bytes(data[5:13]), data[13], data[14]
    features, offset = read_varint(data, HEADER_FIXED)
    width, offset = read_varint(data, offset)
    height, offset = read_varint(data, offset)
    if len(data) < offset + 4:
        raise TruncatedError("the data end inside the header", field="header", offset_bytes=len(data))
    stored, computed = int.from_bytes(data[offset : offset + 4], "little"), zlib.crc32(data[:offset])
    if computed != stored:
        raise ChecksumError(
            "the header's CRC differs", field="crc", expected=computed, found=stored, offset_bytes=offset
        )
    lacking = features & ~(PLACED | PREDICTING | FLOATS)
    if lacking:
        needed = [FEATURES.get(bit, f"feature {bit}") for bit in range(32) if lacking >> bit & 1]
        raise UnsupportedError(
            f"the stream needs {', '.join(needed)}, which this reader does not have",
            Fault.FLAGS,
            field="features",
            expected=PLACED | PREDICTING | FLOATS,
            found=features,
            offset_bytes=HEADER_FIXED,
        )
    dtype, side = SAMPLE_TYPES.get(kind & 15), 1 << (kind >> 4)
    if dtype is None or not 64 <= side <= (FLOAT_SIDE_MAX if dtype == FLOAT else 512):
        raise FormatError(
            f"sample type and patch side {kind:#04x}; types are {SAMPLE_TYPES}, sides 64 to 512, of float samples to {FLOAT_SIDE_MAX}",
            field="kind",
            expected="types 1 to 4, sides 6 to 9",
            found=kind,
            offset_bytes=13,
        )
    if not 1 <= bands <= limits.bands:
        raise LimitError(
            f"{bands} bands, accepted are 1 to {limits.bands}",
            field="bands",
            expected=f"1 to {limits.bands}",
            found=bands,
            offset_bytes=14,
        )
    if not (1 <= width <= limits.side_px and 1 <= height <= limits.side_px) or width * height * bands > limits.samples:
        raise LimitError(
            f"{width}x{height} pixels of {bands} bands; accepted are sides of 1 to {limits.side_px} and {limits.samples} samples",
            field="width, height",
            expected=f"sides of 1 to {limits.side_px}, {limits.samples} samples",
            found=f"{width}x{height}x{bands}",
            offset_bytes=HEADER_FIXED,
        )
    placed, predicting, floats = (bool(features & bit) for bit in (PLACED, PREDICTING, FLOATS))
    if floats != (dtype == FLOAT) or floats > predicting:
        raise FormatError(
            f"samples of {dtype} with the features {features:#x}; float samples need the features 0 and 2, and others go without 2",
            Fault.MISFIT,
            field="features",
            offset_bytes=HEADER_FIXED,
        )
    return ComponentHeader(contract, width, height, bands, dtype, side, placed, predicting), offset + 4
