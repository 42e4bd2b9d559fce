"""What a stream holds for others to read as it is: JPEG-LS images of stored segments, and the records of lines."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from perigee.bitstream.errors import Fault, OutputError, UnsupportedError
from perigee.bitstream.stored import JPEG_LS
from perigee.bitstream.version2 import VERSION, ComponentStream, version_of
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.support.files import PREFIX, SUFFIX

INDEX, RECORDS = "index.json", "records.bin"


def extract(data: bytes, folder: Path, damaged: bool = False) -> dict[str, Any]:
    """Write the JPEG-LS images and the records of a stream into a new folder, which appears whole or not at all; the index that lies in it.

    An image is named after its patch and band. The index says where each lies in the scene, and what is added to its samples; where bands have places
    of their own it is the frame of all of them that rows, columns and lines are counted in. Records stand one after
    the other in ``records.bin``, zeros for lines whose records were lost. Raises a BitstreamError, UnsupportedError for a stream of version 1, and
    OutputError where the folder exists or cannot be written.
    """
    if version_of(data) != VERSION:
        raise UnsupportedError(
            "only streams of format version 2 hold JPEG-LS images or records", Fault.VERSION, expected=VERSION
        )
    stream = parse_component_stream(data, damaged=damaged)
    try:
        if folder.exists():
            raise OutputError(f"{folder} exists; what is extracted goes into a new folder")
        with tempfile.TemporaryDirectory(prefix=PREFIX, suffix=SUFFIX, dir=folder.parent) as made:
            whole = Path(made) / folder.name
            whole.mkdir()
            index = _fill(stream, whole)
            whole.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})") from error
    return index


def _fill(stream: ComponentStream, folder: Path) -> dict[str, Any]:
    """Write all files; the index."""
    images = []
    for patch, segment in sorted(stream.segments.items()):
        top, left, rows, cols = stream.header.patch_region(patch)
        for band, stored in enumerate(segment.stored, 1):
            if stored.coding == JPEG_LS:
                name = f"patch{patch:06}_band{band}.jls"
                (folder / name).write_bytes(stored.data)
                place = {"row": top, "column": left, "rows": rows, "columns": cols}
                images.append({"file": name, "band": band, **place, "added": stored.low, "max_error": stored.counts})
    index: dict[str, Any] = {"width": stream.header.width, "height": stream.header.height, "images": images}
    if stream.places is not None:
        index["band_places"] = stream.places.tolist()
    if stream.records is not None:
        (folder / RECORDS).write_bytes(stream.records.data.tobytes())
        known = stream.records.known
        index["records"] = {"file": RECORDS, "lines": len(known), "bytes": stream.records.data.shape[1]}
        index["records"]["lost_lines"] = int((~known).sum())
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index
