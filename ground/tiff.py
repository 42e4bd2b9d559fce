"""The directories of a tiled, uncompressed TIFF: read from a file that GDAL has described, and written so that every tile has a known place.

TIFF 6.0; BigTIFF as libtiff defines it. Tiles of a directory have one size, so that an offset names a tile.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}  # of the types, in bytes
SHORT, LONG, LONG8 = 3, 4, 16
SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR = 254, 256, 257, 258, 259, 262, 277, 284
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
IN_STRIPS = (273, 278, 279)
CLASSIC_MAX_BYTES = (1 << 32) - (1 << 16)
TAGS_MAX_BYTES = 64 << 20
ALIGNED = 1 << 16  # bytes, of the first tile: what programs read at once to see the directories holds no tile

Tags = dict[int, tuple[int, int, bytes]]  # by number: type, count and little-endian values


@dataclass(frozen=True)
class Directory:
    """An image of ``rows`` x ``cols`` pixels in tiles of ``side`` pixels, each of ``tile_bytes``; ``tags`` are all others than those of its tiles."""

    rows: int
    cols: int
    side: int
    tile_bytes: int
    tags: Tags

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.cols // self.side)

    @property
    def tiles(self) -> int:
        """All tiles."""
        return self.across * -(-self.rows // self.side)


def number(kind: int, *values: int) -> tuple[int, int, bytes]:
    """A tag's value: whole numbers of the type ``SHORT``, ``LONG`` or ``LONG8``."""
    return kind, len(values), struct.pack(f"<{len(values)}{ {SHORT: 'H', LONG: 'I', LONG8: 'Q'}[kind] }", *values)


def first_directory(path: Path) -> Tags:
    """The tags of a little-endian TIFF's first directory, without those of its strips or tiles. Raises ValueError and struct.error for another."""
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] not in (b"II*\0", b"II+\0"):
            raise ValueError(f"{path} is no little-endian TIFF")
        big = head[2] == 43
        count, pointer, inline = ("<Q", "<Q", 8) if big else ("<H", "<I", 4)
        file.seek(struct.unpack_from(pointer, head, 8 if big else 4)[0])
        (entries,) = struct.unpack(count, file.read(struct.calcsize(count)))
        size = 4 + 2 * inline
        table = file.read(entries * size)
        found: Tags = {}
        for at in range(0, entries * size, size):
            tag, kind = struct.unpack_from("<HH", table, at)
            (values,) = struct.unpack_from(pointer, table, at + 4)
            length = values * SIZES.get(kind, 1)
            if length > TAGS_MAX_BYTES:
                raise ValueError(f"tag {tag} of {path} takes {length} bytes")
            data = table[at + 4 + inline : at + 4 + 2 * inline][:length]
            if length > inline:
                file.seek(struct.unpack_from(pointer, table, at + 4 + inline)[0])
                data = file.read(length)
            if tag not in (*IN_STRIPS, TILE_OFFSETS, TILE_BYTES):
                found[tag] = (kind, values, data)
    return found


def header_of(directories: list[Directory]) -> tuple[bytes, list[int], int]:
    """The bytes in front of the tiles, the offset of each directory's first tile, and the size of the whole file in bytes."""
    data = sum(d.tiles * d.tile_bytes for d in directories)
    big, length = False, len(_written(directories, [0] * len(directories), False)) if data <= CLASSIC_MAX_BYTES else 0
    if not length or length + ALIGNED + data > CLASSIC_MAX_BYTES:
        big, length = True, len(_written(directories, [0] * len(directories), True))
    starts, at = [], -(-length // ALIGNED) * ALIGNED
    for directory in directories:
        starts.append(at)
        at += directory.tiles * directory.tile_bytes
    header = _written(directories, starts, big)
    return header + bytes((starts[0] if starts else at) - len(header)), starts, at


def _written(directories: list[Directory], starts: list[int], big: bool) -> bytes:
    pointer, inline, count, size = ("<Q", 8, "<Q", 20) if big else ("<I", 4, "<H", 12)
    out = bytearray(b"II+\0\x08\0\0\0" if big else b"II*\0")
    out += struct.pack(pointer, len(out) + inline)
    for place, (directory, start) in enumerate(zip(directories, starts, strict=True)):
        offsets = range(start, start + directory.tiles * directory.tile_bytes, directory.tile_bytes)
        tags = directory.tags | {
            WIDTH: number(LONG, directory.cols),
            LENGTH: number(LONG, directory.rows),
            TILE_WIDTH: number(LONG, directory.side),
            TILE_LENGTH: number(LONG, directory.side),
            TILE_OFFSETS: number(LONG8 if big else LONG, *offsets),
            TILE_BYTES: number(LONG, *[directory.tile_bytes] * directory.tiles),
        }
        behind = len(out) + struct.calcsize(count) + len(tags) * size + inline
        table, data = bytearray(struct.pack(count, len(tags))), bytearray()
        for tag in sorted(tags):
            kind, values, raw = tags[tag]
            table += struct.pack("<HH", tag, kind) + struct.pack(pointer, values)
            if len(raw) > inline:
                data += bytes(-(behind + len(data)) % 8)
                table += struct.pack(pointer, behind + len(data))
                data += raw
            else:
                table += raw.ljust(inline, b"\0")
        data += bytes(-(behind + len(data)) % 8)
        last = place + 1 == len(directories)
        out += table + struct.pack(pointer, 0 if last else behind + len(data)) + data
    return bytes(out)
