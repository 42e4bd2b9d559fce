"""A stream out of a request body, counted while it arrives: octets, or a file of a multipart form, with a map as a second file where one is taken."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from perigee.ground.service.problems import Problem

MAP_FIELD = "map"  # name of the form's part that holds a map
FORM = "multipart/form-data"
OCTETS = ("application/octet-stream", "application/vnd.perigee", "")


class Upload(NamedTuple):
    """What was sent: a stream or an image, and a map where one came with it."""

    data: bytes
    guide: bytes | None = None


async def read_upload(request: Request, limit_bytes: int, with_map: bool = False) -> Upload:
    """The uploaded stream, and a map where ``with_map`` allows one. Raises Problem 413 beyond the limit, 415 for another media type, 422 without
    a file."""
    found = await _received(request, limit_bytes, with_map)
    if found is None:
        raise Problem(422, "the request has no body; send a Perigee stream")
    files, maps = found
    if len(files) != 1 or len(maps) > 1:
        raise Problem(
            422,
            f"{len(files)} files and {len(maps)} maps in the form; send one file{' and at most one map' * with_map}",
        )
    return Upload(files[0], maps[0] if maps else None)


async def read_map(request: Request, limit_bytes: int) -> bytes | None:
    """The uploaded map beside a stream that the service has; None where the request has no body. Raises Problem as :func:`read_upload`."""
    found = await _received(request, limit_bytes, True)
    if found is None:
        return None
    files, maps = found
    if files or len(maps) != 1:
        raise Problem(
            422,
            f"{len(files)} files and {len(maps)} maps in the request; send a form whose part {MAP_FIELD} is the file of a map",
        )
    return maps[0]


async def _received(request: Request, limit_bytes: int, with_map: bool) -> tuple[list[bytes], list[bytes]] | None:
    """The files of a request beside the maps, and these; None without a body."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise Problem(413, f"{declared} bytes; accepted are up to {limit_bytes}")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit_bytes:
            raise Problem(413, f"more than {limit_bytes} bytes")
    if not body:
        return None
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in OCTETS:
        return [bytes(body)], []
    if kind != FORM:
        raise Problem(415, f"{kind} is not accepted; send {OCTETS[0]} or {FORM} with one file")

    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    try:
        form = await MultiPartParser(request.headers, once(), max_files=1 + with_map, max_fields=8).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise Problem(422, f"the multipart form is broken ({error})") from error
    if with_map and any(name == MAP_FIELD and isinstance(value, str) for name, value in form.multi_items()):
        raise Problem(422, f"the part {MAP_FIELD} is no file: give it a file name")
    named = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    maps = [value for name, value in named if with_map and name == MAP_FIELD]
    files = [value for name, value in named if value not in maps]
    return [await file.read() for file in files], [await file.read() for file in maps]
