"""Where an archive's objects are: folders and object stores, one interface for both (obstore), and which objects a source names."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, LocalStore, ObjectStore, from_url

from perigee.bitstream.errors import Fault, OrderError, OutputError

SCHEMES = ("s3", "gs", "az", "https", "http", "file")
CANNOT_LIST = ("https", "http")
WILD = "*?["
LIST_MAX_BYTES = 256 << 20
STORE_ERRORS = (BaseError, FileNotFoundError, PermissionError, NotADirectoryError)  # what obstore raises


class Key(NamedTuple):
    """An object: the address of its store, its path there, and its size in bytes where that is known."""

    store: str
    path: str
    size: int | None = None

    @property
    def stem(self) -> str:
        """The path without the last suffix."""
        return str(PurePosixPath(self.path).with_suffix(""))


def split_address(address: str) -> tuple[str, str]:
    """An address as that of a store and a path within it: a bucket or host and a key, or for a folder on disk the folder and nothing.

    Raises OrderError for a scheme that is not known.
    """
    parts = urlsplit(address)
    if not parts.scheme or len(parts.scheme) == 1:  # a path, on some systems behind the letter of a drive
        return Path(address).resolve().as_uri(), ""
    if parts.scheme not in SCHEMES:
        accepted = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise OrderError(
            f"{address}: accepted are folders and {accepted}", field="address", expected=accepted, found=address
        )
    if parts.scheme == "file":
        return address.rstrip("/"), ""
    return f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")


def store_of(address: str, create: bool = False) -> ObjectStore:
    """The store at an address of :func:`split_address`. Credentials and endpoints come from the environment, as its provider's tools take them.

    Raises OrderError where there is none.
    """
    try:
        if address.startswith("file:"):
            return LocalStore(prefix=_folder(address), mkdir=create, automatic_cleanup=False)
        if address.startswith(("http:", "https:")):
            return HTTPStore.from_url(address, client_options={"allow_http": address.startswith("http:")})
        return from_url(address)
    except (*STORE_ERRORS, ValueError) as error:
        raise OrderError(
            f"{address} cannot be opened ({error})", Fault.MISSING, field="address", found=address
        ) from error


def _folder(address: str) -> str:
    from urllib.request import url2pathname

    return url2pathname(urlsplit(address).path)


def read(key: Key) -> bytes:
    """An object. Raises OrderError where it cannot be had."""
    try:
        return bytes(obstore.get(store_of(key.store), key.path).bytes())
    except STORE_ERRORS as error:
        raise OrderError(f"{key.path} cannot be read ({error})", Fault.MISSING, field="key", found=key.path) from error


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
    except (*STORE_ERRORS, OSError) as error:
        raise OutputError(f"{path} cannot be written ({error})", found=path) from error


def keys_of(source: str, suffixes: tuple[str, ...]) -> list[Key]:
    """The objects that a source names, by path: all below a folder or prefix with one of the suffixes, those that fit a pattern with ``*`` or ``**``,
    one object, the lines of a file ``@LIST``, or the assets of a STAC collection, item collection or item (``.json``).

    Raises OrderError where the source cannot be read or names nothing.
    """
    if source.startswith("@"):
        found = _listed(Path(source[1:]))
    elif source.lower().endswith((".json", ".geojson")):
        found = list(_of_stac(source, suffixes))
    else:
        found = list(_below(source, suffixes))
    if not found:
        raise OrderError(
            f"{source} names nothing that ends in {', '.join(suffixes)}", Fault.MISSING, field="source", found=source
        )
    return sorted(set(found))


def _listed(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OrderError(
            f"the list {path} cannot be read ({error})", Fault.UNREADABLE, field="source", found=str(path)
        ) from error
    return [_single(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def _single(address: str) -> Key:
    """The key of one object."""
    store, path = split_address(address)
    if store.startswith("file:"):
        place = Path(_folder(store))
        return Key(place.parent.as_uri(), place.name)
    return Key(store, path)


def _below(source: str, suffixes: tuple[str, ...]) -> Iterator[Key]:
    wild = next((i for i, letter in enumerate(source) if letter in WILD), None)
    if wild is None and source.lower().endswith(suffixes):
        yield _single(source)
        return
    fixed = source if wild is None else source[: source.rfind("/", 0, wild) + 1] or "."
    pattern = None if wild is None else source[len(fixed) if fixed != "." else 0 :]
    address, prefix = split_address(fixed)
    if address.split(":")[0] in CANNOT_LIST:
        raise OrderError(
            f"{source}: HTTP has no lists; name the objects in a file, @LIST", field="source", found=source
        )
    prefix = prefix.rstrip("/")
    try:
        for part in obstore.list(store_of(address), prefix=prefix or None):
            for entry in part:
                within = entry["path"][len(prefix) + 1 if prefix else 0 :]
                wanted = within.lower().endswith(suffixes) if pattern is None else _fits(within, pattern)
                if wanted:
                    yield Key(address, entry["path"], entry["size"])
    except STORE_ERRORS as error:
        raise OrderError(f"{source} cannot be listed ({error})", Fault.MISSING, field="source", found=source) from error


def _fits(path: str, pattern: str) -> bool:
    """Whether a path fits a pattern, in which ``**/`` stands for any folders and ``*`` for anything but a slash."""
    names, wanted = path.split("/"), pattern.split("/")

    def fits(n: int, w: int) -> bool:
        if w == len(wanted):
            return n == len(names)
        if wanted[w] == "**":
            return any(fits(k, w + 1) for k in range(n, len(names) + 1))
        return n < len(names) and fnmatch.fnmatchcase(names[n], wanted[w]) and fits(n + 1, w + 1)

    return fits(0, 0)


def _of_stac(source: str, suffixes: tuple[str, ...]) -> Iterator[Key]:
    """The assets of a STAC document that have one of the suffixes; of a collection, those of its items."""
    document = _document(source)
    features: Iterable[Any] = document.get("features") or (
        [document] if document.get("assets") and document.get("type") == "Feature" else []
    )
    for item in features:
        for asset in dict(item.get("assets", {})).values():
            href = str(asset.get("href", ""))
            if urlsplit(href).path.lower().endswith(suffixes):
                yield _single(_joined(source, href))
    for link in document.get("links", []):
        if link.get("rel") == "item" and document.get("type") in ("Collection", "Catalog"):
            yield from _of_stac(_joined(source, str(link["href"])), suffixes)


def _joined(base: str, href: str) -> str:
    """An address that may be relative to that of the document that names it."""
    if urlsplit(href).scheme or href.startswith("/"):
        return href
    scheme = urlsplit(base).scheme
    if len(scheme) <= 1:
        return str(Path(base).parent / href)
    joined = urljoin(base.replace(f"{scheme}:", "https:", 1), href)  # urljoin knows no schemes of object stores
    return joined.replace("https:", f"{scheme}:", 1)


def _document(source: str) -> dict[str, Any]:
    try:
        found = json.loads(read(_single(source)))
    except ValueError as error:
        raise OrderError(f"{source} is no JSON ({error})", Fault.UNREADABLE, field="source", found=source) from error
    if not isinstance(found, dict):
        raise OrderError(f"{source} is no STAC document", Fault.KIND, field="source", found=source)
    return found
