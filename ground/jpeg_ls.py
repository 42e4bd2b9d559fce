"""JPEG-LS images (ISO/IEC 14495-1) of stored segments: decoded here, and written as files that anybody can decode."""

from __future__ import annotations

import struct

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.errors import Fault, FormatError

START, FRAME = b"\xff\xd8", 0xFFF7


def shape_of(data: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of a JPEG-LS image, from its frame header. Raises FormatError."""
    at = 2
    while data[:2] == START and at + 10 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == FRAME:
            rows, cols, components = struct.unpack_from(">HHB", data, at + 5)
            return rows, cols, components
        at += 2 + length
    raise FormatError("a stored band is no JPEG-LS image", field="band")


def decode_jpeg_ls(data: bytes, shape: tuple[int, int]) -> IntArray:
    """The samples [rows, cols] of an image that has to have a known shape. Raises FormatError."""
    if shape_of(data) != (*shape, 1):
        raise FormatError(
            f"a JPEG-LS image of {shape_of(data)} rows, columns and components in a patch of {shape}",
            Fault.MISFIT,
            field="band",
            expected=(*shape, 1),
            found=shape_of(data),
        )
    import imagecodecs

    try:
        samples: IntArray = imagecodecs.jpegls_decode(data)
    except imagecodecs.JpeglsError as error:
        raise FormatError(f"a stored band is no sound JPEG-LS image ({error})", field="band") from error
    return samples
