"""How an image file was coded: the codec, its rate, and whether its transform is reversible, read from the file's own headers.

JPEG 2000: ITU-T T.800, annexes A (code-stream markers) and I (boxes of a JP2 file). JPEG: ITU-T T.81, annex B.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from pathlib import Path

from perigee.bitstream import format as fmt
from perigee.bitstream.conditions import BandScale, coding_condition, typical_step
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.profile import Profile
from perigee.engines.jpeg2000_step import step_of
from perigee.engines.jpeg_cells import HEAD_MAX_BYTES, cells_of

JPEG2000, JPEG, PERIGEE = "jpeg2000", "jpeg", "perigee"
CODESTREAM, SIGNATURE = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n"
SIZ, COD, FIRST_TILE_PART, REVERSIBLE = 0xFF51, 0xFF52, 0xFF90, 1
BOX_CODESTREAM = b"jp2c"


@dataclass(frozen=True)
class Coding:
    """``codec`` is ``jpeg2000``, ``jpeg``, or None where the file does not tell. ``bits_per_pixel`` counts every byte of the file, or of its
    code-stream, over its pixels. ``reversible`` says that the transform loses nothing (the file still may, where it was cut to a rate).
    ``layers`` and ``levels`` are those of JPEG 2000. ``step`` is the quantisation step that was left in effect, in grey levels of an image of 8 bits,
    where the file tells it, ``depth`` the number of bits of its samples."""

    codec: str | None
    bits_per_pixel: float
    reversible: bool = False
    layers: int = 0
    levels: int = 0
    step: float | None = None
    depth: int = 8

    def of_bands(self, scale: BandScale, chosen: int, bands: int) -> Coding:
        """The coding of some of an image's bands, brought to grey levels by ``scale``."""
        share = self.bits_per_pixel * chosen / bands
        if self.step is None:
            return replace(self, bits_per_pixel=share)
        return replace(self, bits_per_pixel=share, step=self.step * 2.0 ** (self.depth - 8) * scale.gain)

    @property
    def coarseness(self) -> float:
        """The step, or where it is not known the one that is typical of the rate."""
        return typical_step(self.bits_per_pixel) if self.step is None else self.step

    @property
    def condition(self) -> list[float]:
        """What an enhancer's network is told."""
        return coding_condition(self.bits_per_pixel, self.codec, self.step)


def coding_of(path: Path, pixels: int) -> Coding:
    """The coding of a file of so many pixels. Raises RasterError for one whose headers end early or contradict themselves, and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_MAX_BYTES)
        if head.startswith((CODESTREAM, SIGNATURE)):
            offset, length = (0, size) if head.startswith(CODESTREAM) else _codestream_box(head, size)
            coding = _of_codestream(head, offset, length, pixels)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as data:
                return replace(coding, step=step_of(data[offset : offset + length]))
    if head.startswith(b"\xff\xd8\xff"):
        cells = cells_of(head)
        return Coding(JPEG, 8 * size / pixels, step=cells.step if cells else None)
    return Coding(None, 8 * size / pixels)


def coding_of_stream(stream: fmt.Stream, size_bytes: int, profile: Profile) -> Coding:
    """The coding of a stream of format version 1 and so many bytes: its step is that of the profile's first latent, at the stream's median
    quality."""
    header, steps = stream.header, [s.quality_step for s in stream.segments.values() if s.mode != fmt.DROPPED]
    quality_step = sorted(steps)[len(steps) // 2] if steps else 0
    step = 255 / float(profile.contract.gains(quality_step)[0])
    return Coding(PERIGEE, 8 * size_bytes / (header.width * header.height), step=step)


def _ends(what: str) -> RasterError:
    return RasterError(f"the JPEG 2000 headers end inside {what}", Fault.ENDS_EARLY, field=what)


def _codestream_box(head: bytes, size: int) -> tuple[int, int]:
    """Offset and length of the code-stream in a JP2 file of ``size`` bytes that begins with ``head``."""
    at = 0
    while at + 8 <= len(head):
        length, kind, first = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8], 8
        if length == 1:
            length, first = int.from_bytes(head[at + 8 : at + 16], "big"), 16
        elif length == 0:
            length = size - at
        if length < first or at + length > size:
            raise RasterError(
                f"box {kind!r} of {length} bytes at {at} does not fit the file of {size} bytes",
                Fault.SIZE,
                field="box",
                expected=f"{first} to {size - at} bytes",
                found=length,
                offset_bytes=at,
            )
        if kind == BOX_CODESTREAM:
            return at + first, length - first
        at += length
    raise _ends("the boxes before the code-stream")


def _of_codestream(head: bytes, start: int, size: int, pixels: int) -> Coding:
    """The coding of a code-stream of ``size`` bytes that begins at ``start``."""
    at, depth = start + 2, 8
    while at + 4 <= len(head):
        marker, length = int.from_bytes(head[at : at + 2], "big"), int.from_bytes(head[at + 2 : at + 4], "big")
        if marker < 0xFF00 or length < 2:
            raise RasterError(
                f"no marker of a code-stream at byte {at}: {marker:#06x}", Fault.KIND, field="marker", offset_bytes=at
            )
        if marker == SIZ and at + 40 < len(head):
            depth = (head[at + 40] & 127) + 1  # of the first component
        if marker == COD:
            if at + 14 > len(head):
                raise _ends("the coding style")
            layers, levels, transform = int.from_bytes(head[at + 6 : at + 8], "big"), head[at + 9], head[at + 13]
            return Coding(JPEG2000, 8 * size / pixels, transform == REVERSIBLE, layers, levels, depth=depth)
        if marker == FIRST_TILE_PART:
            break
        at += 2 + length
    raise _ends("the main header")
