"""The ground service: ``POST /decode`` and what goes with it, scenes that are kept, and a page that shows them.

CPU work runs in threads behind one bounded queue; when that is full the answer is 503 with Retry-After. A product is complete
on disk before the first byte of the answer is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI

import perigee
from perigee.bitstream.errors import OutputError
from perigee.ground.library import Library
from perigee.ground.service import guard, problems
from perigee.ground.service.jobs import Jobs
from perigee.ground.service.limits import Settings
from perigee.ground.service.metrics import Metrics
from perigee.ground.service.page import page_routes
from perigee.ground.service.routes import Service, routes_of
from perigee.ground.service.scene_routes import scene_routes
from perigee.ground.service.scenes import Scenes
from perigee.ground.service.workers import workers_of
from perigee.ground.service.workspace import Workspace, check_temporary_folder, clear_abandoned


def _folder(chosen: Path | None, workspace: Workspace | None, name: str) -> Path:
    """The folder that was chosen, or one in the workspace. Raises OutputError where it cannot be made."""
    folder = chosen if chosen is not None or workspace is None else workspace.folder / name
    assert folder is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{name} cannot be kept in {folder} ({error.strerror})", field=name, found=str(folder)
        ) from error
    return folder


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Raises ProfileError where a profile folder is unusable, OutputError where jobs cannot be kept."""
    settings = settings or Settings()
    library = settings.library or Library(settings.profiles, settings.threads, settings.backend)
    check_temporary_folder()
    workspace = Workspace() if settings.jobs is None or settings.scenes is None else None
    folder = _folder(settings.jobs, workspace, "jobs")
    scenes = Scenes(_folder(settings.scenes, workspace, "scenes"), library, settings.scene_limits)
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
    app.state.workers, app.state.scenes = workers, scenes
    problems.install(app)
    service = Service(settings, library, metrics, jobs, workers)
    app.include_router(routes_of(service))
    app.include_router(scene_routes(service, scenes))
    app.include_router(page_routes())
    guard.install(app, settings, metrics)
    return app
