"""What a worker does with one object: read it, make its product, write that where it belongs, and tell.

A product is there when its STAC item is, which is written last and names the digest of what it was made of and how. A product of the same
digest is not made again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import perigee
from perigee.archive.records import FAILED, KEPT, MADE, Record
from perigee.archive.stores import Key, read, size_of, store_of, write
from perigee.bitstream.errors import Fault, OutputError, PerigeeError
from perigee.bitstream.manifest import MANIFEST_FILE, manifests_in
from perigee.engines.backend import Backend
from perigee.ground.enhancing import Wish
from perigee.ground.library import Library
from perigee.ground.maps.reading import BYTES_MAX as MAP_BYTES_MAX
from perigee.ground.orders import IMAGE, STAC, Order, OrderLimits
from perigee.ground.work import Task, perform
from perigee.support.files import read_bounded

DECODE, ENHANCE, ENCODE = "decode", "enhance", "encode"
SUFFIXES = {DECODE: (".peri",), ENHANCE: (".jp2", ".j2k", ".jpg", ".jpeg", ".tif", ".tiff"), ENCODE: (".tif", ".tiff")}
COLLECTION_FILE = "collection.json"
PREFIX = "perigee-archive-"  # of temporary folders


@dataclass(frozen=True)
class Encoding:
    """How images are encoded: at a quality, or with a largest error in counts."""

    quality: float = 50.0
    max_error: float | None = None
    profile: str = "auto"


@dataclass(frozen=True)
class Work:
    """What is done with every object. ``destination`` is the address of a store, ``prefix`` a path in it; ``order`` is about decoding and enhancing,
    ``encoding`` about encoding. ``guide`` is the file of a map, which every machine of a cluster finds under this path."""

    kind: str
    destination: str
    prefix: str
    order: Order = Order()
    encoding: Encoding = Encoding()
    profiles: tuple[str, ...] = ()
    again: bool = False
    guide: str | None = None

    @property
    def text(self) -> str:
        """What of it decides about the product, with the version of the software and the digests of profiles of one's own."""
        about = asdict(self.encoding) if self.kind == ENCODE else json.loads(self.order.to_json())
        folders = [*self.profiles, *([self.encoding.profile] if Path(self.encoding.profile).is_dir() else [])]
        own = [
            hashlib.sha256((path / MANIFEST_FILE).read_bytes()).hexdigest()
            for one in folders
            for path in manifests_in(Path(one))
        ]
        if self.guide:
            own.append(hashlib.sha256(read_bounded(Path(self.guide), MAP_BYTES_MAX)).hexdigest())
        return json.dumps([self.kind, perigee.__version__, about, own], sort_keys=True)


class Worker:
    """Does work on one object after the other; it keeps the networks that it has loaded."""

    def __init__(self, work: Work, threads: int, backend: Backend | None = None, temporary: str | None = None) -> None:
        """``temporary`` is a folder for files that go again. Raises ProfileError where a folder of profiles is unusable, OrderError or OutputError
        where the destination is."""
        self._work, self._threads, self._temporary, self._text = work, threads, temporary, work.text
        folders = [Path(folder) for folder in work.profiles]
        self._library = Library(folders, threads) if backend is None else Library(folders, threads, backend)
        self._store = store_of(work.destination, create=True)

    def do(self, key: Key) -> Record:
        """Make the product of an object. Whatever is wrong with it is told in the record."""
        start = time.perf_counter()
        try:
            found = self._done(key)
        except Exception as error:  # a fault of ours ends one object, not the archive
            problem = error.data() if isinstance(error, PerigeeError) else None
            plain = None if problem is None else json.loads(json.dumps(problem, default=str))
            found = Record(key.path, FAILED, error=f"{type(error).__name__}: {error}", problem=plain)
        return Record(**asdict(found) | {"seconds": round(time.perf_counter() - start, 4)})

    def _done(self, key: Key) -> Record:
        data = read(key)
        digest = hashlib.sha256(hashlib.sha256(data).digest() + self._text.encode()).hexdigest()
        suffix = ".peri" if self._work.kind == ENCODE else ".tif"
        place = f"{self._work.prefix}/{key.stem}".lstrip("/")
        product, beside = f"{place}{suffix}", f"{place}.json"
        if (key.store, key.path) in ((self._work.destination, product), (self._work.destination, beside)):
            raise OutputError(
                f"the product of {key.path} would stand in its own place; choose another destination",
                Fault.EXISTS,
                found=key.path,
            )
        there = None if self._work.again else self._item_of(product, beside, digest)
        if there is not None:
            when = there["properties"].get("datetime")
            return Record(key.path, KEPT, product, digest, len(data), bbox=there.get("bbox"), time=when)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._temporary) as folder:
            made = Path(folder) / Path(product).name
            if self._work.kind == ENCODE:
                item, pixels, warnings = self._encoded(data, key, made)
            else:
                item, pixels, warnings = self._decoded(data, key, made)
            size = made.stat().st_size
            item["properties"] |= {"perigee:digest": digest, "perigee:source": key.path}
            item["assets"]["image"] |= {"file:size": size, "href": quote(made.name)}
            item["links"] = [
                {"rel": rel, "href": self._up(place) + COLLECTION_FILE, "type": "application/json"}
                for rel in ("collection", "parent")
            ]
            item |= {"collection": "perigee", "id": key.stem.replace("/", "--")}
            write(self._store, product, made)
        write(self._store, beside, json.dumps(item).encode())
        when = item["properties"].get("datetime")
        return Record(
            key.path,
            MADE,
            product,
            digest,
            len(data),
            size,
            pixels,
            warnings=warnings,
            bbox=item.get("bbox"),
            time=when,
        )

    def _up(self, place: str) -> str:
        """The way from an item to its collection."""
        return "../" * (place[len(self._work.prefix) :].strip("/").count("/"))

    def _item_of(self, product: str, beside: str, digest: str) -> dict[str, Any] | None:
        """The item of a product that is there, whole and with this digest; else None. Raises OutputError where somebody else's file stands in its
        place."""
        if size_of(self._store, beside) is None:
            return None
        try:
            item: dict[str, Any] = json.loads(read(Key(self._work.destination, beside)))
            there, size = item["properties"]["perigee:digest"] == digest, item["assets"]["image"]["file:size"]
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{beside} is there and was not written by perigee-archive; --again replaces it",
                Fault.EXISTS,
                found=beside,
            ) from error
        return item if there and size_of(self._store, product) == size else None

    def _decoded(self, data: bytes, key: Key, made: Path) -> tuple[dict[str, Any], int, list[str]]:
        given, item = made.with_name(f"given{Path(key.path).suffix}"), made.with_name("item.json")
        given.write_bytes(data)
        order = Order(**{**asdict(self._work.order), "products": (IMAGE, STAC)})
        wish = Wish() if self._work.kind == ENHANCE else None
        guide = Path(self._work.guide) if self._work.guide else None
        task = Task(order, given, {IMAGE: made, STAC: item}, OrderLimits(), wish, guide)
        result = perform(task, self._library)
        return json.loads(item.read_text()), result.pixels, result.warnings

    def _encoded(self, data: bytes, key: Key, made: Path) -> tuple[dict[str, Any], int, list[str]]:
        import warnings

        given, encoding = made.with_name(f"given{Path(key.path).suffix}"), self._work.encoding
        given.write_bytes(data)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            stream = perigee.encode(
                given, encoding.quality, encoding.profile, max_error=encoding.max_error, threads=self._threads
            )
        try:
            made.write_bytes(stream)
        except OSError as error:
            raise OutputError(f"no room for the stream ({error.strerror})") from error
        described = perigee.inspect(stream)
        item: dict[str, Any] = {
            "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "geometry": None, "links": [],
            "properties": {"datetime": None, "start_datetime": "1957-10-04T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"},
            "assets": {"image": {"href": made.name, "type": "application/vnd.perigee", "roles": ["data"]}},
        }  # fmt: skip
        return item, described["width"] * described["height"], [str(w.message) for w in told]
