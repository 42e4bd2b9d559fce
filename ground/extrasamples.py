"""The one tag of a COG that GDAL cannot set: that its alpha band is premultiplied (ExtraSamples 1, TIFF 6.0 page 31).

GDAL's COG driver writes every alpha band as unassociated. The value is replaced where it stands, in every directory of the file, so
neither sizes nor the order of the blocks change.
"""

from __future__ import annotations

import struct
from pathlib import Path

EXTRA_SAMPLES, ASSOCIATED, UNASSOCIATED = 338, 1, 2
DIRECTORIES_MAX = 64


def mark_premultiplied(path: Path) -> int:
    """Turn every unassociated alpha band of a TIFF into an associated one; how many directories were changed.

    Raises OSError, and struct.error for a file that is no TIFF.
    """
    changed = 0
    with path.open("r+b") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        count, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
        at = struct.unpack(order + pointer, head[8:16] if big else head[4:8])[0]
        for _ in range(DIRECTORIES_MAX):
            if not at:
                break
            file.seek(at)
            entries = struct.unpack(order + count, file.read(struct.calcsize("=" + count)))[0]
            size = 20 if big else 12
            start = file.tell()
            table = file.read(entries * size)
            at = struct.unpack(order + pointer, file.read(struct.calcsize("=" + pointer)))[0]
            for i in range(entries):
                code, _, values = struct.unpack_from(order + entry, table, i * size)
                if code != EXTRA_SAMPLES:
                    continue
                inline = size - (8 if big else 4)
                place = start + i * size + inline
                if 2 * values > size - inline:
                    place = struct.unpack_from(order + pointer, table, i * size + inline)[0]
                file.seek(place)
                kinds = struct.unpack(f"{order}{values}H", file.read(2 * values))
                file.seek(place)
                file.write(struct.pack(f"{order}{values}H", *(ASSOCIATED if k == UNASSOCIATED else k for k in kinds)))
                changed += UNASSOCIATED in kinds
    return changed
