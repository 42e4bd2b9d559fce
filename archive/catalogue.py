"""The STAC collection of an archive's products: its extent, and a link to every item. A run adds to what earlier runs have left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import perigee
from perigee.archive.records import FAILED, Record
from perigee.archive.stores import Key, read, size_of, store_of, write
from perigee.archive.work import COLLECTION_FILE, Work
from perigee.bitstream.errors import Fault, OutputError, PerigeeError

SOFTWARE = "perigee:software"
WHOLE = [-180.0, -90.0, 180.0, 90.0]
LINKS = [{"rel": "root", "href": f"./{COLLECTION_FILE}", "type": "application/json"}]


def write_collection(records: Sequence[Record], work: Work, what: str) -> None:
    """Write the collection of all products that were made or kept, with those that it had; ``what`` says in a sentence how. Raises OutputError."""
    document = collection_of(records, work.prefix, what, before_of(work))
    write(store_of(work.destination, create=True), _path_in(work), json.dumps(document, indent=1).encode())


def _path_in(work: Work) -> str:
    return f"{work.prefix}/{COLLECTION_FILE}".lstrip("/")


def before_of(work: Work) -> dict[str, Any]:
    """The collection that earlier runs have left, or nothing. Raises OutputError where somebody else's document stands in its place."""
    path = _path_in(work)
    if size_of(store_of(work.destination, create=True), path) is None:
        return {}
    try:
        found = json.loads(read(Key(work.destination, path)))
        if found["type"] == "Collection" and found["summaries"][SOFTWARE]:
            return dict(found)
    except (PerigeeError, ValueError, KeyError, TypeError):
        pass
    raise OutputError(
        f"{path} is there and was not written by perigee-archive; choose another destination", Fault.EXISTS, found=path
    )


def collection_of(records: Sequence[Record], prefix: str, what: str, before: dict[str, Any]) -> dict[str, Any]:
    """The collection as JSON-ready values."""
    made = [r for r in records if r.status != FAILED and r.product]
    hrefs = {link["href"]: None for link in before.get("links", []) if link.get("rel") == "item"}
    for record in made:
        beside = str(record.product)[len(prefix) :].lstrip("/").rsplit(".", 1)[0] + ".json"
        hrefs[f"./{quote(beside)}"] = None
    extent = before.get("extent", {})
    boxes = [r.bbox for r in made if r.bbox] + [box for box in extent.get("spatial", {}).get("bbox", []) if box]
    crossing = any(box[0] > box[2] for box in boxes)  # the 180th meridian
    box = WHOLE
    if boxes and not crossing:
        box = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    times = [r.time for r in made if r.time] + [
        t for pair in extent.get("temporal", {}).get("interval", []) for t in pair if t
    ]
    times.sort(key=lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")))
    items = [{"rel": "item", "href": href, "type": "application/geo+json"} for href in sorted(hrefs)]
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": "perigee",
        "description": what,
        "license": "other",
        "extent": {
            "spatial": {"bbox": [box]},
            "temporal": {"interval": [[times[0], times[-1]] if times else [None, None]]},
        },
        "summaries": {SOFTWARE: [f"perigee {perigee.__version__}"]},
        "links": LINKS + items,
    }
