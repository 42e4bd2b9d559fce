"""Who may ask: the token, the Host header, and requests that a page of another origin makes a browser send.

A service on loopback is reached by every page that a browser on the same machine opens. So it answers under its own names alone (a foreign
page cannot make its name lead here, DNS rebinding), and whatever changes something must come from no page or from the service's own.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware

from perigee.ground.service import problems
from perigee.ground.service.limits import Settings
from perigee.ground.service.metrics import Metrics
from perigee.ground.service.problems import Problem

OPEN_PATHS = ("/healthz", "/readyz", "/", "/favicon.ico")
OPEN_PREFIX = "/page/"  # the page's own files, which hold nothing that is secret
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
EXPOSED = ["Content-Range", "Content-Length", "Accept-Ranges", "ETag", "Location", "Retry-After", "Perigee-Damage"]
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


def install(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """Guard an application, and count its answers."""

    @app.middleware("http")
    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        refused = _refused(request, settings)
        if refused is not None:
            metrics.requests.labels("refused", str(refused.status)).inc()
            return problems.problem_response(refused)
        answer = await call_next(request)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        metrics.requests.labels(_route(app, request), str(answer.status_code)).inc()
        return answer

    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Range", "If-Range", "If-None-Match"],
            expose_headers=EXPOSED,
        )


def _refused(request: Request, settings: Settings) -> Problem | None:
    """Why a request is not answered, None where it is."""
    host = request.headers.get("host", "")
    name = _host_of(f"//{host}")[0]
    if settings.hosts and name not in settings.hosts:
        return Problem(421, f"Host: {host}; this service answers as {', '.join(settings.hosts)}")
    origin = request.headers.get("origin")
    own = origin is None or _host_of(origin)[1] == host.lower() or origin in settings.cors_origins
    foreign = (
        request.headers.get("sec-fetch-site") in ("cross-site", "same-site") and origin not in settings.cors_origins
    )
    if request.method not in SAFE_METHODS and (not own or foreign):
        return Problem(403, f"Origin: {origin}; pages of other origins cannot change anything here")
    path = str(request.scope["path"])
    if settings.token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX) or request.method == "OPTIONS":
        return None
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), settings.token.encode()):
        return None
    return Problem(401, "send Authorization: Bearer <token>", {"WWW-Authenticate": "Bearer"})


def _host_of(address: str) -> tuple[str, str]:
    """The name of an address, and the name with its port as it was given; both empty where it is none."""
    try:
        parts = urlsplit(address)
        return (parts.hostname or "").rstrip("."), parts.netloc.lower()
    except ValueError:
        return "", ""


def _route(app: FastAPI, request: Request) -> str:
    """The route of a request as it is counted: its template, so that names of scenes and jobs make no labels."""
    route = getattr(request.scope.get("route"), "path", None)
    path = str(request.scope["path"])
    known = {*app.openapi()["paths"], "/openapi.json", "/docs", "/"}
    if route in known:
        return str(route)
    return path if path in known else "other"
