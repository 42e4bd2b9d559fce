"""A stream out of a request body: counted while it arrives, octets or one file of a multipart form."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from perigee.ground.service.problems import Problem

OCTETS = ("application/octet-stream", "application/vnd.perigee", "")


async def read_upload(request: Request, limit_bytes: int) -> bytes:
    """The uploaded stream. Raises Problem 413 beyond the limit, 415 for another media type, 422 without a file."""
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
        return bytes(body)

    async def once() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    try:
        form = await MultiPartParser(request.headers, once(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise Problem(422, f"the multipart form is broken ({error})") from error
    files = [value for value in form.values() if isinstance(value, UploadFile)]
    if len(files) != 1:
        raise Problem(422, f"{len(files)} files in the form; send one")
    return await files[0].read()
