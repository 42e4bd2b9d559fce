"""A stream out of a request body, counted while it arrives: octets, or a file of a multipart form, with a map as a second file where one is taken."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from perigee.ground.service.problems import Problem

MAP_FIELD = "map"  # name of the form's part that holds a map
OCTETS = ("application/octet-stream", "application/vnd.perigee", "")


class Upload(NamedTuple):
    """What was sent: a stream or an image, and a map where one came with it."""

    data: bytes
    guide: bytes | None = None


async def read_upload(request: Request, limit_bytes: int, with_map: bool = False) -> Upload:
    """The uploaded stream, and a map where ``with_map`` allows one. Raises Problem 413 beyond the limit, 415 for another media type, 422 without
    a file."""
    files, maps = await _received(request, limit_bytes, with_map)
    if len(files) != 1 or len(maps) > 1:
        raise Problem(
            422,
            f"{len(files)} files and {len(maps)} maps in the form; send one file{' and at most one map' * with_map}",
        )
    return Upload(files[0], maps[0] if maps else None)


async def read_map(request: Request, limit_bytes: int) -> bytes | None:
    """The uploaded map beside a stream that the service has; None where the request has no body. Raises Problem as :func:`read_upload`."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return None
    files, maps = await _received(request, limit_bytes, True)
    if files or len(maps) != 1:
        raise Problem(
            422, f"{len(files)} files and {len(maps)} maps in the request; send a form whose part {MAP_FIELD} is a map"
        )
    return maps[0]


async def _received(request: Request, limit_bytes: int, with_map: bool) -> tuple[list[bytes], list[bytes]]:
    """The files of a request, and the maps among them."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in OCTETS and kind != "multipart/form-data":
        raise Problem(
            415, f"{kind} is not accepted; send application/octet-stream or multipart/form-data with one file"
        )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise Problem(413, f"{declared} bytes; accepted are up to {limit_bytes}")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit_bytes:
            raise Problem(413, f"more than {limit_bytes} bytes")
    if kind != "multipart/form-data":
        if not body:
            raise Problem(422, "the request has no body; send a Perigee stream")
        return [bytes(body)], []

    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    try:
        form = await MultiPartParser(request.headers, once(), max_files=1 + with_map, max_fields=8).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise Problem(422, f"the multipart form is broken ({error})") from error
    named = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    maps = [value for name, value in named if with_map and name == MAP_FIELD]
    files = [value for name, value in named if value not in maps]
    return [await file.read() for file in files], [await file.read() for file in maps]
