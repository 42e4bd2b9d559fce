"""Where an archive's objects are: folders and object stores, one interface for both (obstore), and reading and writing there.

An address is that of a folder, of a prefix in an object store, or of a single object over HTTP. Credentials and endpoints of object stores come
from the environment, as the tools of their providers take them.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from perigee.bitstream.errors import Fault, OrderError, OutputError

STORES = ("s3", "gs", "az")
WEB = ("https", "http")
OBJECT_MAX_BYTES = 4 << 30
WEB_S = 60.0  # seconds that a server may take to answer
STORE_ERRORS = (BaseError, OSError)  # what obstore raises


class Key(NamedTuple):
    """An object: the address of its store, its path there, its size in bytes where that is known, and the name that its product gets (empty: its
    path). Over HTTP the path is the whole address."""

    store: str
    path: str
    size: int | None = None
    name: str = ""

    @property
    def stem(self) -> str:
        """The name without the last suffix."""
        return str(PurePosixPath(self.name or self.path).with_suffix(""))


def scheme_of(address: str) -> str:
    """The scheme of an address, empty for a path on disk. Raises OrderError for one that is not known."""
    scheme, mark, _ = address.partition("://")
    if not mark or Path(address).exists():
        return ""
    if scheme not in (*STORES, *WEB, "file"):
        accepted = ", ".join(f"{one}://" for one in (*STORES, *WEB, "file"))
        raise OrderError(
            f"{address}: accepted are paths and {accepted}", field="address", expected=accepted, found=address
        )
    return scheme


def split_address(address: str) -> tuple[str, str]:
    """An address as that of a store and a path within it: a bucket and a prefix, or for a folder on disk the folder and nothing.

    Raises OrderError for an address that is empty, of an unknown scheme, or of HTTP, which has no folders.
    """
    scheme = scheme_of(address)
    if not address.strip() or scheme in WEB:
        raise OrderError(
            f"{address!r} is neither a folder nor a prefix in an object store", field="address", found=address
        )
    if scheme in STORES:
        bucket, _, path = address.partition("://")[2].partition("/")
        if not bucket:
            raise OrderError(f"{address} names no bucket", field="address", found=address)
        return f"{scheme}://{bucket}", path.strip("/")
    return local_path(address).as_uri(), ""


def local_path(address: str) -> Path:
    """The absolute path of an address on disk."""
    return Path(url2pathname(urlsplit(address).path) if scheme_of(address) == "file" else address).absolute()


def store_of(address: str, create: bool = False) -> ObjectStore:
    """The store at an address of :func:`split_address`. Raises OrderError where there is none, OutputError where it cannot be made."""
    try:
        if address.startswith("file:"):
            if create:
                local_path(address).mkdir(parents=True, exist_ok=True)
            return LocalStore(prefix=str(local_path(address)), automatic_cleanup=False)
        return from_url(address)
    except OSError as error:
        raise OutputError(
            f"{local_path(address)} is no folder and cannot be made one ({error.strerror})", found=address
        ) from error
    except (BaseError, ValueError) as error:
        raise OrderError(
            f"{address} cannot be opened ({error})", Fault.MISSING, field="address", found=address
        ) from error


def read(key: Key) -> bytes:
    """An object. Raises OrderError where it cannot be had."""
    try:
        if key.store in WEB:
            return _from_web(key.path)
        return bytes(obstore.get(store_of(key.store), key.path).bytes())
    except (*STORE_ERRORS, ValueError) as error:
        raise OrderError(f"{key.path} cannot be read ({error})", Fault.MISSING, field="key", found=key.path) from error


def _from_web(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=WEB_S) as answer:
        data: bytes = answer.read(OBJECT_MAX_BYTES + 1)
    if len(data) > OBJECT_MAX_BYTES:
        raise ValueError(f"more than {OBJECT_MAX_BYTES} bytes")
    return data


def size_of(store: ObjectStore, path: str) -> int | None:
    """The size of an object in bytes, None where there is none. Raises OutputError where the store does not say."""
    try:
        return int(obstore.head(store, path)["size"])
    except FileNotFoundError:
        return None
    except STORE_ERRORS as error:
        raise OutputError(f"{path} cannot be looked up ({error})", found=path) from error


def write(store: ObjectStore, path: str, data: bytes | Path) -> None:
    """Write an object, whole or not at all. Raises OutputError."""
    try:
        obstore.put(store, path, data)
    except STORE_ERRORS as error:
        raise OutputError(f"{path} cannot be written ({error})", found=path) from error


def single(address: str) -> Key:
    """The key of one object. Raises OrderError for an address that can be none's."""
    scheme = scheme_of(address)
    try:
        if scheme in WEB:
            parts = urlsplit(address)
            return Key(scheme, address, name=f"{parts.hostname}{unquote(parts.path)}")
        if scheme in STORES:
            store, path = split_address(address)
            if path:
                return Key(store, path)
        elif address.strip() and "\0" not in address:
            place = local_path(address)
            return Key(place.parent.as_uri(), place.name)
    except ValueError as error:
        raise OrderError(f"{address!r} is no address ({error})", field="address", found=address) from error
    raise OrderError(f"{address!r} names no object", field="address", found=address)
