"""The STAC collection of an archive's products: its extent, and a link to every item. A run adds to what earlier runs have left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import perigee
from perigee.archive.records import FAILED, Record
from perigee.archive.stores import Key, read, store_of, write
from perigee.archive.work import COLLECTION_FILE, Work
from perigee.bitstream.errors import PerigeeError

WHOLE = [-180.0, -90.0, 180.0, 90.0]
LINKS = [{"rel": "root", "href": f"./{COLLECTION_FILE}", "type": "application/json"}]


def write_collection(records: Sequence[Record], work: Work, what: str) -> None:
    """Write the collection of all products that were made or kept, with those that it had; ``what`` says in a sentence how. Raises OutputError."""
    path = f"{work.prefix}/{COLLECTION_FILE}".lstrip("/")
    document = collection_of(records, work.prefix, what, _before(Key(work.destination, path)))
    write(store_of(work.destination, create=True), path, json.dumps(document, indent=1).encode())


def _before(key: Key) -> dict[str, Any]:
    """The collection that is there, or nothing where there is none that can be read."""
    try:
        found = json.loads(read(key))
        return found if found.get("type") == "Collection" else {}
    except (PerigeeError, ValueError, AttributeError):
        return {}


def collection_of(records: Sequence[Record], prefix: str, what: str, before: dict[str, Any]) -> dict[str, Any]:
    """The collection as JSON-ready values."""
    made = [r for r in records if r.status != FAILED and r.product]
    hrefs = {link["href"]: None for link in before.get("links", []) if link.get("rel") == "item"}
    for record in made:
        beside = str(record.product)[len(prefix) :].lstrip("/").rsplit(".", 1)[0] + ".json"
        hrefs[f"./{beside}"] = None
    extent = before.get("extent", {})
    boxes = [r.bbox for r in made if r.bbox] + [
        box for box in extent.get("spatial", {}).get("bbox", []) if hrefs and box != WHOLE
    ]
    crossing = any(box[0] > box[2] for box in boxes)  # the 180th meridian
    box = WHOLE
    if boxes and not crossing:
        box = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    times = [r.time for r in made if r.time] + [
        t for pair in extent.get("temporal", {}).get("interval", []) for t in pair if t
    ]
    items = [{"rel": "item", "href": href, "type": "application/geo+json"} for href in sorted(hrefs)]
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": "perigee",
        "description": what,
        "license": "other",
        "extent": {
            "spatial": {"bbox": [box]},
            "temporal": {"interval": [[min(times), max(times)] if times else [None, None]]},
        },
        "summaries": {"perigee:software": [f"perigee {perigee.__version__}"]},
        "links": LINKS + items,
    }
