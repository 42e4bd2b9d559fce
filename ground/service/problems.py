"""Every error as a problem document (RFC 9457, ``application/problem+json``), hostile bytes as 4xx."""

from __future__ import annotations

import errno
import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from perigee.bitstream.errors import (
    BitstreamError,
    BusyError,
    CompensationError,
    LimitError,
    MapError,
    MetadataError,
    OrderError,
    OutputError,
    PerigeeError,
    RasterError,
    TooLargeError,
    UnfinishedJobError,
    UnknownJobError,
)

MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "Bad request",
    401: "Not authorised",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "Too slow",
    403: "Forbidden",
    409: "Not done",
    413: "Too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    421: "Misdirected request",
    422: "Unusable stream or request",
    500: "Internal error",
    503: "Busy",
    507: "Insufficient storage",
}
STATUS: tuple[tuple[type[PerigeeError] | tuple[type[PerigeeError], ...], int], ...] = (
    (TooLargeError, 413),
    (UnknownJobError, 404),
    (UnfinishedJobError, 409),
    (BusyError, 503),
    (OutputError, 507),
    ((OrderError, BitstreamError, RasterError, MapError, LimitError, MetadataError, CompensationError), 422),
    (PerigeeError, 500),
)  # the first that fits counts
log = logging.getLogger("perigee.service")


class Problem(Exception):
    """An error to be answered with ``status``; ``extra`` are extension members, ``headers`` go with the answer."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.extra = status, detail, headers, extra


def problem_response(problem: Problem) -> JSONResponse:
    """The answer for a problem."""
    body = {
        "type": "about:blank",
        "title": TITLES.get(problem.status, "Error"),
        "status": problem.status,
        "detail": problem.detail,
    }
    return JSONResponse(sound(body | problem.extra), problem.status, problem.headers, MEDIA_TYPE)


def sound(value: Any) -> Any:
    """JSON-ready values without what JSON in UTF-8 does not have: NaN becomes null, halves of surrogate pairs question marks."""
    text = json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "replace")
    return json.loads(text, parse_constant=lambda _: None)


FULL = (errno.ENOSPC, errno.EDQUOT)


def problem_of(error: PerigeeError | OSError) -> Problem:
    """The problem that a typed error of the codec is to a caller; what it carries becomes extension members."""
    if isinstance(error, OSError):
        if error.errno in FULL:
            return Problem(507, f"the service's temporary folder is full ({error.strerror})")
        return Problem(500, f"the service cannot use its files ({error.strerror or type(error).__name__})")
    status = next(code for kind, code in STATUS if isinstance(error, kind))
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, BusyError) else None
    extra = error.data()
    if isinstance(error, UnfinishedJobError) and error.problem:
        extra["problem"] = error.problem
    return Problem(status, str(error), headers, **extra)


def install(app: FastAPI) -> None:
    """Answer all errors of ``app`` as problem documents."""

    @app.exception_handler(Problem)
    def _problem(_: Request, error: Problem) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(PerigeeError)
    def _perigee(_: Request, error: PerigeeError) -> JSONResponse:
        return problem_response(problem_of(error))

    @app.exception_handler(OSError)
    def _files(_: Request, error: OSError) -> JSONResponse:
        log.error("%s", error)
        return problem_response(problem_of(error))

    @app.exception_handler(RequestValidationError)
    def _validation(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem_response(Problem(422, f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    def _http(_: Request, error: HTTPException) -> JSONResponse:
        return problem_response(Problem(error.status_code, str(error.detail), dict(error.headers or {})))

    @app.exception_handler(ClientDisconnect)
    def _gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return problem_response(Problem(400, "the upload was aborted"))

    @app.exception_handler(Exception)
    def _unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("internal error", exc_info=error)
        return problem_response(Problem(500, "internal error; the service's log has more"))
