"""The ground service: ``POST /decode`` and what goes with it.

CPU work runs in threads behind one bounded queue; when that is full the answer is 503 with Retry-After. A product is complete
on disk before the first byte of the answer is sent.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI, Request, Response

import perigee
from perigee.ground.library import Library
from perigee.ground.service import problems
from perigee.ground.service.jobs import Jobs
from perigee.ground.service.limits import Settings
from perigee.ground.service.metrics import Metrics
from perigee.ground.service.problems import Problem
from perigee.ground.service.routes import Service, routes_of
from perigee.ground.service.workers import workers_of
from perigee.ground.service.workspace import Workspace, check_temporary_folder, clear_abandoned

OPEN_PATHS = ("/healthz", "/readyz")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Raises ProfileError where a profile folder is unusable, OutputError where jobs cannot be kept."""
    settings = settings or Settings()
    library = settings.library or Library(settings.profiles, settings.threads, settings.backend)
    check_temporary_folder()
    workspace = Workspace() if settings.jobs is None else None
    folder = Path(str(settings.jobs)) if workspace is None else workspace.folder / "jobs"
    workers = workers_of(settings.devices, settings.engine, library)
    metrics = Metrics(workers)
    jobs = Jobs(folder, workers, settings.long_work, settings.jobs_kept)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(clear_abandoned)
        workers.start()
        jobs.start()
        try:
            yield
        finally:
            await to_thread.run_sync(jobs.stop)
            await to_thread.run_sync(workers.stop)
            if workspace is not None:
                workspace.close()

    app = FastAPI(
        lifespan=lifespan,
        title="Perigee ground service",
        version=perigee.__version__,
        description="Decodes Perigee streams to Cloud-Optimised GeoTIFF, PNG or JSON. Errors are problem documents (RFC 9457).",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.workers = workers
    problems.install(app)
    app.include_router(routes_of(Service(settings, library, metrics, jobs, workers)))
    _guard(app, settings, metrics)
    return app


def _guard(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """Authorise requests where a token is set, and count answers."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        route = str(request.scope["path"])
        if settings.token is not None and route not in OPEN_PATHS:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), settings.token.encode()):
                metrics.requests.labels("unauthorised", "401").inc()
                return problems.problem_response(
                    Problem(401, "send Authorization: Bearer <token>", {"WWW-Authenticate": "Bearer"})
                )
        answer = await call_next(request)
        known = {*app.openapi()["paths"], "/openapi.json", "/docs"}
        route = "/jobs/{name}" if route.startswith("/jobs/") else route
        metrics.requests.labels(route if route in known else "other", str(answer.status_code)).inc()
        return answer
