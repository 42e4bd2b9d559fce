"""The routes of the service. Each takes what the request says, has an order made or a job kept, and answers."""

from __future__ import annotations

import json
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from perigee.bitstream.errors import EngineError, PerigeeError
from perigee.ground.enhancing import Wish
from perigee.ground.inspection import inspect_bytes
from perigee.ground.library import Library
from perigee.ground.maps.reading import map_file_of
from perigee.ground.orders import FORMATS, Order
from perigee.ground.service import problems
from perigee.ground.service.answers import ProductResponse
from perigee.ground.service.jobs import Jobs, State
from perigee.ground.service.limits import Places, Settings
from perigee.ground.service.metrics import Metrics
from perigee.ground.service.parameters import enhancement_of, order_of, wish_of
from perigee.ground.service.problems import Problem
from perigee.ground.service.uploads import FORM, MAP_FIELD, Upload, read_map, read_upload
from perigee.ground.service.workers import Workers, described
from perigee.ground.service.workspace import Workspace
from perigee.ground.work import Result, Task

BODY_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
        },
    }
}
_body = BODY_SCHEMA["requestBody"]["content"]
_form = _body[FORM]["schema"]
WITH_MAP_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": _body
        | {
            FORM: {
                "schema": _form
                | {"properties": _form["properties"] | {MAP_FIELD: {"type": "string", "format": "binary"}}}
            }
        },
    }
}
MAP_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "content": {
            FORM: {"schema": {"type": "object", "properties": {MAP_FIELD: {"type": "string", "format": "binary"}}}}
        }
    }
}
T = TypeVar("T")
READING = 2  # scenes that are read at a time
PROBLEM_EXAMPLE = {
    "type": "about:blank",
    "title": "Unusable stream or request",
    "status": 422,
    "detail": "the CRC of a chunk differs (at byte 24)",
    "error": "ChecksumError",
    "fault": "crc",
    "field": "crc",
    "expected": 2774537539,
    "found": 2774537538,
    "offset_bytes": 24,
}


def problem(description: str) -> dict[str, Any]:
    """A kind of error as the description of the interface has it."""
    return {"description": description, "content": {problems.MEDIA_TYPE: {}}}


ANSWERS: dict[int | str, dict[str, Any]] = {
    406: problem("No offered media type is acceptable"),
    408: problem("The upload took too long"),
    413: problem("The upload or the decoded scene is too large"),
    415: problem("The upload has the wrong media type"),
    422: {
        "description": "The stream or image is invalid, its profile or the method unknown, or a parameter out of range",
        "content": {problems.MEDIA_TYPE: {"example": PROBLEM_EXAMPLE}},
    },
    503: problem("The queue is full; Retry-After says when to come again"),
    507: problem("There is no space for the product in the service's temporary folder"),
}
NO_JOB: dict[int | str, dict[str, Any]] = {404: problem("There is no such job")}
PRODUCT: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {} for kind in FORMATS.values()}, "description": "The product"}
}
IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {FORMATS[name]: {} for name in ("tif", "png")}, "description": "The product"}
}


class Service:
    """What the routes share: settings, profiles, counters, jobs, and the places for uploads and decodings."""

    def __init__(self, settings: Settings, library: Library, metrics: Metrics, jobs: Jobs, workers: Workers) -> None:
        self.settings, self.library, self.metrics, self.jobs = settings, library, metrics, jobs
        self.workers = workers
        running = workers.count if settings.devices else settings.running
        self.decodings = Places(running + settings.waiting, settings.retry_after_s, metrics.queued)
        # Readings of scenes are short, and a viewer sends many at a time.
        self.readings = Places(settings.readings, settings.retry_after_s, metrics.reading)
        self.reading = CapacityLimiter(READING)
        self.compensating = CapacityLimiter(1)
        self.uploads = Places(settings.uploads, settings.retry_after_s, metrics.uploading)
        self.limiter = CapacityLimiter(running)

    async def upload(self, request: Request, with_map: bool = False) -> Upload:
        """The body, within the limits of size, time, and uploads under way; with a map beside the stream where ``with_map`` allows one.

        Raises Problem 408, 413, 415 or 422, and BusyError.
        """
        found: Upload = await self._in_time(read_upload(request, self.settings.upload_bytes, with_map))
        self.metrics.received.inc(len(found.data) + len(found.guide or b""))
        return found

    async def guide(self, request: Request) -> bytes | None:
        """The map of a request about a scene that the service has, None without a body; within the same limits and with the same errors."""
        found: bytes | None = await self._in_time(read_map(request, self.settings.upload_bytes))
        self.metrics.received.inc(len(found or b""))
        return found

    async def _in_time(self, reading: Coroutine[Any, Any, T]) -> T:
        """What an upload is read to. Raises Problem 408, and BusyError."""
        try:
            with self.uploads.place(), move_on_after(self.settings.upload_s):
                return await reading
        finally:
            reading.close()
        raise Problem(408, f"the upload took longer than {self.settings.upload_s} s")

    def produce(self, order: Order, sent: Upload, wish: Wish | None = None) -> Response:
        """The product of a stream and of the map that was sent with it, or with a ``wish`` of an image of another codec, as an answer; its
        workspace goes with it."""
        start = time.perf_counter()
        workspace = Workspace()
        given, path = workspace.folder / "given", workspace.folder / f"scene.{order.format}"
        try:
            given.write_bytes(sent.data)
            guide = None if sent.guide is None else workspace.folder / map_file_of(sent.guide)
            if sent.guide is not None and guide is not None:
                guide.write_bytes(sent.guide)
            paths = dict.fromkeys(order.products, path)
            made = self.workers.perform(Task(order, given, paths, self.settings.answers, wish, guide))
            given.unlink()
        except BaseException:
            workspace.close()
            raise
        self.metrics.pixels.inc(made.pixels)
        self.metrics.seconds.observe(time.perf_counter() - start)
        if made.value is not None:
            workspace.close()
            return _with_findings(to_json(made.value), made)
        answer = ProductResponse(path, FORMATS[order.format], self.settings.write_s, workspace)
        return _with_findings(answer, made)

    def check(self) -> None:
        """Raise PerigeeError where nothing can be decoded: an engine does not load, or no worker is up."""
        if self.settings.devices:
            statuses = self.workers.statuses()
            if not any(status.state == "up" for status in statuses):
                reasons = "; ".join(f"{s.device}: {s.reason or s.state}" for s in statuses)
                raise EngineError(f"no worker is up ({reasons})", field="devices")
            return
        for digest in self.library.profiles:
            self.library.engine(digest)
        for digest in self.library.component_profiles:
            self.library.component_engine(digest)

    def described_workers(self) -> dict[str, Any]:
        """The workers as a part of an answer; nothing where the service has none."""
        statuses = self.workers.statuses()
        return {"workers": described(statuses)} if statuses else {}


def routes_of(service: Service) -> APIRouter:
    """All routes."""
    router = APIRouter()
    _add_decoding(router, service)
    _add_jobs(router, service)
    _add_state(router, service)
    return router


def _add_decoding(router: APIRouter, service: Service) -> None:
    @router.post("/decode", openapi_extra=WITH_MAP_SCHEMA, responses=PRODUCT | ANSWERS, response_class=Response)
    async def decode(request: Request, order: Annotated[Order, Depends(order_of)]) -> Response:
        """Decode a stream to a Cloud-Optimised GeoTIFF, a PNG, or JSON (description and band statistics). The part ``map`` of a form is a vector
        map, which guides a compensator that takes one."""
        sent = await service.upload(request, with_map=True)
        with service.decodings.place():
            return await to_thread.run_sync(service.produce, order, sent, limiter=service.limiter)

    @router.post("/enhance", openapi_extra=BODY_SCHEMA, responses=IMAGE | ANSWERS, response_class=Response)
    async def enhance(
        request: Request,
        order: Annotated[Order, Depends(enhancement_of)],
        wish: Annotated[Wish, Depends(wish_of)],
    ) -> Response:
        """Bring an image that JPEG 2000 or JPEG has coded closer to its original: a Cloud-Optimised GeoTIFF or a PNG."""
        sent = await service.upload(request)
        with service.decodings.place():
            return await to_thread.run_sync(service.produce, order, sent, wish, limiter=service.limiter)

    @router.post("/inspect", openapi_extra=BODY_SCHEMA, responses=ANSWERS, response_description="What the stream says")
    async def inspect(
        request: Request,
        damaged: Annotated[bool, Query(description="describe what is sound of a damaged stream")] = False,
    ) -> JSONResponse:
        """What a stream says of itself; nothing is decoded and no profile is needed."""
        data = (await service.upload(request)).data
        with service.decodings.place():
            found = await to_thread.run_sync(inspect_bytes, data, damaged, limiter=service.limiter)
        if "contract" in found:
            found["profile_known"] = service.library.knows(bytes.fromhex(found["contract"]))
        return to_json(found)


def _add_jobs(router: APIRouter, service: Service) -> None:
    @router.post(
        "/jobs",
        status_code=202,
        openapi_extra=WITH_MAP_SCHEMA,
        responses=ANSWERS,
        response_description="The job, as under /jobs/{name}",
    )
    async def submit(request: Request, order: Annotated[Order, Depends(order_of)]) -> JSONResponse:
        """Decode a stream later: the same parameters as for /decode. The answer names the job; Location leads to its state."""
        return await kept(request, order, None)

    @router.post(
        "/jobs/enhance",
        status_code=202,
        openapi_extra=BODY_SCHEMA,
        responses=ANSWERS,
        response_description="The job, as under /jobs/{name}",
    )
    async def submit_enhancement(
        request: Request,
        order: Annotated[Order, Depends(enhancement_of)],
        wish: Annotated[Wish, Depends(wish_of)],
    ) -> JSONResponse:
        """Enhance an image of another codec later: the same parameters as for /enhance."""
        return await kept(request, order, wish)

    async def kept(request: Request, order: Order, wish: Wish | None) -> JSONResponse:
        sent = await service.upload(request, with_map=wish is None)
        job = await to_thread.run_sync(service.jobs.submit, order, sent.data, wish, sent.guide)
        return JSONResponse(job, 202, {"Location": f"/jobs/{job['id']}"})

    @router.get("/jobs", response_description="A list of jobs")
    def all_jobs() -> JSONResponse:
        """All jobs, the oldest first."""
        return to_json(service.jobs.all())

    @router.get("/jobs/{name}", responses=NO_JOB, response_description="id, state, and what belongs to the state")
    def job(name: str) -> JSONResponse:
        """State of a job: queued, running (with progress 0 to 1), done, failed (with the problem) or cancelled."""
        return to_json(service.jobs.described(name))

    @router.get(
        "/jobs/{name}/result",
        responses=NO_JOB | {409: problem("The job is not done")},
        response_description="The product, in the format that was ordered",
        response_class=Response,
    )
    def result(name: str) -> Response:
        """The product of a job that is done."""
        path, state = service.jobs.result(name)
        answer = ProductResponse(path, FORMATS[path.suffix[1:]], service.settings.write_s)
        return _with_findings(answer, state)

    @router.delete("/jobs/{name}", responses=NO_JOB, response_description="id of the job, and in which state it was")
    def cancel(name: str) -> JSONResponse:
        """Cancel a job, or forget one that is finished."""
        return to_json({"id": name, "was": service.jobs.cancel(name)})


def _add_state(router: APIRouter, service: Service) -> None:
    @router.get(
        "/profiles",
        response_description="A list with name, contract, format_version, preset, analyses and patch_side of each",
    )
    def profiles() -> JSONResponse:
        """The profiles that this service decodes. The preset is the analysis that flies by default."""
        listed: list[dict[str, Any]] = [
            {
                "name": p.name,
                "contract": digest.hex(),
                "format_version": 1,
                "preset": p.default_analysis,
                "analyses": list(p.analyses),
                "patch_side": p.contract.patch_side,
            }
            for digest, p in service.library.profiles.items()
        ]
        listed += [
            {
                "name": c.name,
                "contract": digest.hex(),
                "format_version": 2,
                "preset": "lapped",
                "analyses": ["lapped"],
                "patch_side": c.contract.patch_side,
            }
            for digest, c in service.library.component_profiles.items()
        ]
        return to_json(listed)

    @router.get("/healthz", response_description="It does")
    def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: problem("They are not, or do not")}, response_description="They are, and do")
    async def ready() -> JSONResponse:
        """Whether profiles are loaded and pass their self-tests, and how the workers are where there are any."""
        if not service.library.profiles:
            raise Problem(503, "no profile is installed")
        try:
            await to_thread.run_sync(service.check)
        except PerigeeError as error:
            raise Problem(503, str(error), **error.data()) from error
        return to_json({"status": "ready", "profiles": service.library.count} | service.described_workers())

    @router.get("/metrics", response_class=Response, response_description="Text in the format of Prometheus")
    def prometheus() -> Response:
        """Counters and times of the service."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def to_json(value: Any) -> JSONResponse:
    """JSON without NaN, which JSON does not have."""
    return JSONResponse(problems.sound(value))


def _with_findings(answer: Response, found: Result | State) -> Response:
    for header, counts in (("Perigee-Damage", found.damage), ("Perigee-Map-Buildings", found.buildings)):
        if counts is not None:
            answer.headers[header] = json.dumps(counts)
    return answer
