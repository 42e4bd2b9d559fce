"""Which objects a source names: a folder or prefix, a pattern, one object, a list, or a STAC document."""

from __future__ import annotations

import fnmatch
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import obstore

from perigee.archive.stores import (
    STORE_ERRORS,
    STORES,
    WEB,
    Key,
    local_path,
    read,
    scheme_of,
    single,
    split_address,
    store_of,
)
from perigee.bitstream.errors import Fault, OrderError

WILD = "*?["
DOCUMENTS_MAX = 100_000  # of a STAC catalogue
RESERVED = "collection"  # whose item would stand where the collection stands


def keys_of(source: str, suffixes: tuple[str, ...]) -> list[Key]:
    """The objects that a source names, by path: all below a folder or prefix with one of the suffixes, those that fit a pattern with ``*`` or ``**``,
    one object, the lines of a file ``@LIST``, or the assets of a STAC collection, item collection or item (``.json``).

    Raises OrderError where the source cannot be read or names nothing, and where two products would have one name.
    """
    if not source.strip():
        raise OrderError("the source is empty", field="source", found=source)
    if source.startswith("@"):
        found = _named(_listed(Path(source[1:]), suffixes))
    elif source.lower().endswith((".json", ".geojson")) and not _is_folder(source):
        found = _named(list(_of_stac(source, suffixes)))
    else:
        found = list(_below(source, suffixes))
    if not found:
        raise OrderError(
            f"{source} names nothing that ends in {', '.join(suffixes)}", Fault.MISSING, field="source", found=source
        )
    keys = sorted(set(found))
    _check_names(keys)
    return keys


def _check_names(keys: list[Key]) -> None:
    """Raise OrderError where two products would have one name, or that of the collection."""
    stems = Counter(key.stem for key in keys)
    twice = [key.name or key.path for key in keys if stems[key.stem] > 1]
    if twice:
        raise OrderError(
            f"{twice[0]} and {twice[1]} would have one product; name them apart, or work on them apart",
            field="source",
            found=twice[0],
        )
    if RESERVED in stems:
        raise OrderError(
            f"a product cannot be called {RESERVED}, as the archive's {RESERVED}.json is",
            field="source",
            found=RESERVED,
        )


def _is_folder(source: str) -> bool:
    return scheme_of(source) in ("", "file") and local_path(source).is_dir()


def _listed(path: Path, suffixes: tuple[str, ...]) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OrderError(
            f"the list {path} cannot be read ({error})", Fault.UNREADABLE, field="source", found=str(path)
        ) from error
    found = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            key = single(line)
        except OrderError as error:
            raise OrderError(f"{path}, line {number}: {error}", field="source", found=line) from error
        if not key.stem or not _path_of(key).lower().endswith(suffixes):
            wanted = ", ".join(suffixes)
            raise OrderError(
                f"{path}, line {number}: {line} does not end in {wanted}", field="source", expected=wanted, found=line
            )
        found.append(key)
    return found


def _path_of(key: Key) -> str:
    """The path of a key, without the query that an address of HTTP may have."""
    return urlsplit(key.path).path if key.store in WEB else key.path


def _named(keys: list[Key]) -> list[Key]:
    """Keys of single files, whose products are named from the deepest folder that holds all of them."""
    folders = [str(local_path(key.store)) for key in keys if key.store.startswith("file:")]
    common = Path(os.path.commonpath(folders)) if folders else Path()
    return [
        key._replace(name=(local_path(key.store) / key.path).relative_to(common).as_posix())
        if key.store.startswith("file:")
        else key
        for key in keys
    ]


def _below(source: str, suffixes: tuple[str, ...]) -> Iterator[Key]:
    scheme = scheme_of(source)
    if scheme in WEB:
        if not urlsplit(source).path.lower().endswith(suffixes):
            raise OrderError(
                f"{source}: HTTP has no lists; name the objects in a file, @LIST", field="source", found=source
            )
        yield single(source)
        return
    literal = scheme not in STORES and local_path(source).exists()
    wild = None if literal else next((i for i, letter in enumerate(source) if letter in WILD), None)
    if wild is None and source.lower().endswith(suffixes) and not _is_folder(source):
        yield single(source)
        return
    cut = len(source) if wild is None else source.rfind("/", 0, wild) + 1
    pattern = None if wild is None else source[cut:]
    address, prefix = split_address(source[:cut] or ".")
    listed = _in_store(address, prefix) if scheme in STORES else _on_disk(local_path(address))
    try:
        for path, size in listed:
            within = path[len(prefix) :].lstrip("/")
            if within.lower().endswith(suffixes) if pattern is None else _fits(within, pattern):
                yield Key(address, path, size)
    except STORE_ERRORS as error:
        raise OrderError(f"{source} cannot be listed ({error})", Fault.MISSING, field="source", found=source) from error


def _in_store(address: str, prefix: str) -> Iterator[tuple[str, int]]:
    for part in obstore.list(store_of(address), prefix=prefix or None):
        yield from ((entry["path"], entry["size"]) for entry in part)


def _on_disk(folder: Path) -> Iterator[tuple[str, int]]:
    """Files below a folder; links to folders are not followed."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat().st_size


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


# --- STAC -----------------------------------------------------------------------------------------------------------------


def _of_stac(source: str, suffixes: tuple[str, ...]) -> Iterator[Key]:
    """The assets with one of the suffixes of a STAC item, item collection, collection or catalogue, and of everything that it links below itself."""
    waiting, seen = [source], {source}
    while waiting:
        place = waiting.pop()
        document = _document(place)
        items = [document, *_list(document, "features", place)]
        for item in items:
            for asset in _dict(item, "assets", place).values():
                href = str(_dict({"asset": asset}, "asset", place).get("href", ""))
                if urlsplit(href).path.lower().endswith(suffixes):
                    yield single(_joined(place, href))
        for link in _list(document, "links", place):
            href = str(link.get("href", ""))
            if link.get("rel") in ("item", "child") and href:
                address = _joined(place, href)
                if address not in seen:
                    seen.add(address)
                    waiting.append(address)
        if len(seen) > DOCUMENTS_MAX:
            raise OrderError(f"{source} links more than {DOCUMENTS_MAX} documents", field="source", found=source)


def _list(document: dict[str, Any], name: str, place: str) -> list[dict[str, Any]]:
    found = document.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise OrderError(f"{place}: {name} is no list of objects", Fault.KIND, field=name, found=place)
    return found


def _dict(document: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    found = document.get(name) or {}
    if not isinstance(found, dict):
        raise OrderError(f"{place}: {name} is no object", Fault.KIND, field=name, found=place)
    return found


def _joined(base: str, href: str) -> str:
    """The address that an href means in the document at ``base`` (RFC 3986, section 5). Raises OrderError where a document from elsewhere names a
    file on this machine."""
    scheme = scheme_of(base)
    own = urlsplit(href).scheme
    if scheme in ("", "file"):
        if own in (*STORES, *WEB):
            return href
        plain = unquote(urlsplit(href).path)
        return str(local_path(base).parent / plain)
    if own and own not in (*STORES, *WEB):
        raise OrderError(f"{base} names {href}, which is no address elsewhere", field="href", found=href)
    if own:
        return href
    joined = urljoin(base.replace(f"{scheme}:", "https:", 1), href)  # urljoin knows no schemes of object stores
    found = joined.replace("https:", f"{scheme}:", 1)
    return unquote(found) if scheme in STORES else found


def _document(source: str) -> dict[str, Any]:
    try:
        found = json.loads(read(single(source)))
    except (ValueError, RecursionError) as error:
        raise OrderError(
            f"{source} is no JSON ({type(error).__name__})", Fault.UNREADABLE, field="source", found=source
        ) from error
    if not isinstance(found, dict):
        raise OrderError(f"{source} is no STAC document", Fault.KIND, field="source", found=source)
    return found
