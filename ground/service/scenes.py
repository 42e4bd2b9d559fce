"""Scenes that the service keeps and shows: streams in a folder, opened as virtual GeoTIFFs when somebody reads them.

A scene's name is that of its file without the suffix. Names cannot lead out of the folder, the sum of all sizes has a quota, and scenes may be
forgotten after some days.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import perigee
from perigee.bitstream.errors import BitstreamError, OrderError, PerigeeError
from perigee.ground.dataset import virtual_tiff
from perigee.ground.inspection import inspect_bytes
from perigee.ground.library import NONE, Library
from perigee.ground.orders import Order
from perigee.ground.service.problems import Problem
from perigee.ground.source import ImageSource
from perigee.ground.stac import item_place
from perigee.ground.tiles import CACHE_BYTES, Cache
from perigee.ground.views import view_of
from perigee.ground.virtual import VirtualTiff
from perigee.support.files import read_bounded, write_atomically

SUFFIX = ".peri"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
ENDINGS = (".tif", ".tiff", ".png", ".json", SUFFIX)  # of resources of a scene, which its name must not look like
OPEN_SCENES = 8
DAY_S = 86_400


@dataclass(frozen=True)
class SceneLimits:
    """How much is kept: bytes of all streams, days since a scene was put (None: for ever), and whether scenes may be put and deleted; bytes of
    decoded tiles, and how many samples of a scene a reduced tile may be made of."""

    quota_bytes: int = 8 << 30
    days: float | None = None
    read_only: bool = False
    cache_bytes: int = CACHE_BYTES
    overview_samples: int = 1_600_000_000


@dataclass(frozen=True)
class Opened:
    """A scene that is read: its virtual GeoTIFF, and a digest of the stream and of what is added to it."""

    tiff: VirtualTiff
    digest: str

    @property
    def source(self) -> ImageSource:
        """The image source at full size."""
        return self.tiff.tiles.source


def _missing(name: str) -> Problem:
    return Problem(404, f"there is no scene {name!r}", field="name")


class Scenes:
    """The scenes of a folder. Methods may be called by several threads, and raise Problem for what the caller did wrong."""

    def __init__(self, folder: Path, library: Library, limits: SceneLimits) -> None:
        self._folder, self._library, self._limits = folder, library, limits
        self._cache = Cache(limits.cache_bytes)
        self._lock = threading.RLock()
        self._opened: OrderedDict[tuple[str, str, bool], tuple[tuple[int, int], Opened]] = OrderedDict()
        self._described: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name) or name.lower().endswith(ENDINGS):
            accepted = (
                "letters, digits, dots, hyphens and underscores, at most 120, not ending like a file of another kind"
            )
            raise Problem(422, f"{name!r} is no name of a scene: accepted are {accepted}", field="name")
        return self._folder / f"{name}{SUFFIX}"

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if path.is_symlink() or not path.is_file() or self._is_over(path):
            raise _missing(name)
        return path

    def _is_over(self, path: Path) -> bool:
        """Whether a scene's time is over."""
        try:
            return self._limits.days is not None and path.stat().st_mtime < time.time() - self._limits.days * DAY_S
        except FileNotFoundError:
            return True

    def _files(self) -> list[Path]:
        found = [p for p in self._folder.glob(f"*{SUFFIX}") if p.is_file() and not p.is_symlink()]
        return sorted(p for p in found if NAME.fullmatch(p.stem) and not p.stem.lower().endswith(ENDINGS))

    def expire(self) -> None:
        """Delete the scenes whose time is over."""
        if self._limits.days is None or self._limits.read_only:
            return
        with self._lock:
            for path in self._files():
                if self._is_over(path):
                    self._remove(path.stem, path)

    def all(self, offset: int = 0, limit: int = 100) -> dict[str, Any]:
        """A page of the list of all scenes, how many there are, how many bytes they take, and how many they may."""
        self.expire()
        files = self._files()
        listed = []
        for path in files[offset : offset + limit]:
            try:
                listed.append(self._summary(path))
            except Problem:  # deleted meanwhile
                continue
            except (PerigeeError, OSError) as error:  # put there by hand
                listed.append({"id": path.stem, "error": str(error)})
        return {
            "scenes": listed,
            "count": len(files),
            "bytes": self._bytes_of(files),
            "quota_bytes": self._limits.quota_bytes,
            "read_only": self._limits.read_only,
        }

    def _bytes_of(self, files: list[Path]) -> int:
        """The size of files, of which some may go meanwhile."""
        total = 0
        for path in files:
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _summary(self, path: Path) -> dict[str, Any]:
        described = self.described(path.stem)
        return {
            key: described[key]
            for key in ("id", "bytes", "width", "height", "bands", "dtype", "bbox")
            if key in described
        }

    def put(self, name: str, data: bytes, damaged: bool = False) -> dict[str, Any]:
        """Keep a stream under a name, in place of another of that name. Raises a BitstreamError or UnknownProfileError for one that cannot be
        decoded; with ``damaged`` only where nothing of it can be."""
        path = self._path(name)
        self._check_writable()
        self.expire()
        self._open(data, Order(unknown_crs="keep", damaged=damaged), None)
        with self._lock:
            others = self._bytes_of([p for p in self._files() if p != path])
            if others + len(data) > self._limits.quota_bytes:
                raise Problem(
                    507,
                    f"{others} bytes of scenes are kept and {len(data)} more exceed the quota of {self._limits.quota_bytes}: delete some",
                    expected=f"at most {max(self._limits.quota_bytes - others, 0)} bytes",
                    found=len(data),
                )
            self._forget(name)
            write_atomically(path, data)
        return self.described(name)

    def _check_writable(self) -> None:
        if self._limits.read_only:
            raise Problem(403, "the scenes of this service cannot be changed")

    def delete(self, name: str) -> None:
        """Remove a scene."""
        path = self._existing(name)
        self._check_writable()
        with self._lock:
            self._remove(name, path)

    def _remove(self, name: str, path: Path) -> None:
        self._forget(name)
        path.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        for key in [key for key in self._opened if key[0] == name]:
            self._cache.forget(self._opened.pop(key)[1].digest)
        self._described.pop(name, None)

    def data(self, name: str) -> bytes:
        """The stream itself."""
        return self._read(name)[0]

    def _read(self, name: str) -> tuple[bytes, tuple[int, int]]:
        """A stream, and what changes when its file does."""
        path = self._existing(name)
        try:
            status = path.stat()
            return read_bounded(path), (status.st_mtime_ns, status.st_size)
        except FileNotFoundError as error:  # deleted a moment ago
            raise _missing(name) from error

    def _stamp(self, name: str) -> tuple[int, int]:
        try:
            status = self._existing(name).stat()
        except FileNotFoundError as error:
            raise _missing(name) from error
        return status.st_mtime_ns, status.st_size

    def shown(self, name: str, compensation: str = NONE) -> Opened:
        """A scene for looking at: as :meth:`opened`, and of a damaged stream what is sound."""
        try:
            return self.opened(name, compensation)
        except BitstreamError:
            return self.opened(name, compensation, damaged=True)

    def opened(self, name: str, compensation: str = NONE, damaged: bool = False) -> Opened:
        """A scene that can be read, compensated where that is asked for. Raises what ``orders.open_source`` raises."""
        with self._lock:
            key = (name, compensation, damaged)
            if key in self._opened and self._opened[key][0] == self._stamp(name):
                self._opened.move_to_end(key)
                return self._opened[key][1]
            data, stamp = self._read(name)
            self._check_addition(data, compensation)
            found = self._open(data, Order(compensation=compensation, damaged=damaged, unknown_crs="keep"), self._cache)
            self._opened[key] = (stamp, found)
            while len(self._opened) > OPEN_SCENES:
                _, (_, dropped) = self._opened.popitem(last=False)
                self._cache.forget(dropped.digest)
            return found

    def _check_addition(self, data: bytes, compensation: str) -> None:
        """Raise OrderError for a compensation that the stream's profile does not have."""
        if compensation == NONE:
            return
        contract = str(inspect_bytes(data, damaged=True).get("contract", ""))
        accepted = [NONE, *self._library.additions(bytes.fromhex(contract))]
        if compensation.partition(":")[0] not in accepted:
            raise OrderError(
                f"compensation={compensation}: accepted for this scene are {', '.join(accepted)}",
                field="compensation",
                expected=", ".join(accepted),
                found=compensation,
            )

    def _open(self, data: bytes, order: Order, cache: Cache | None) -> Opened:
        made_by = f"{perigee.__version__} {self._library.backend.engine_name} {order.compensation} {order.damaged}"
        digest = hashlib.sha256(data + made_by.encode()).hexdigest()[:32]
        return Opened(virtual_tiff(data, self._library, order, cache, digest, self._limits.overview_samples), digest)

    def described(self, name: str) -> dict[str, Any]:
        """What a stream says of itself, its footprint in longitude and latitude, and the levels of its tiles."""
        stamp = self._stamp(name)
        with self._lock:
            known = self._described.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        data, stamp = self._read(name)
        tiles = self.shown(name).tiff.tiles
        described = inspect_bytes(data, damaged=True)
        found = {"id": name, "bytes": len(data), "created": round(stamp[0] / 1e9, 3)} | described
        found |= item_place(tiles.source, view_of(tiles.source))
        found["provenance"] = tiles.source.provenance()
        contract = bytes.fromhex(str(found["contract"]))
        found |= {"compensations": self._library.additions(contract), "guided": self._library.guided(contract)}
        found |= {"tile_side": tiles.side, "levels": [{"height": rows, "width": cols} for rows, cols in tiles.levels]}
        with self._lock:
            self._described[name] = (stamp, found)
        return found
