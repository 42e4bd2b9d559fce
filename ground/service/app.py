"""The ground service: ``POST /decode`` and what goes with it.

CPU work runs in threads behind one bounded queue; when that is full the answer is 503 with Retry-After. A product is
complete on disk before the first byte of the answer is sent.
"""

from __future__ import annotations

import hmac
import json
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.background import BackgroundTask

import perigee
from perigee.bitstream import format as fmt
from perigee.bitstream.errors import PerigeeError
from perigee.ground.library import NONE, Library, inspect
from perigee.ground.service import problems
from perigee.ground.service.jobs import Jobs
from perigee.ground.service.orders import FORMATS, Order, fulfil
from perigee.ground.service.problems import Problem
from perigee.ground.service.uploads import read_upload

ACCEPTS = {"image/tiff": "tif", "image/png": "png", "application/json": "json", "*/*": "tif", "image/*": "tif"}
RUNS_AT_ONCE = 3000  # of the denoiser for one answer: a few minutes; jobs may take more
OPEN_PATHS = ("/healthz", "/readyz")


@dataclass(frozen=True)
class Settings:
    """How the service runs."""

    profiles: tuple[Path, ...] = ()
    threads: int | None = None
    upload_bytes: int = 256 << 20
    decoded_samples: int = 400_000_000
    upload_s: float = 120.0
    uploads: int = 32
    running: int = 1
    waiting: int = 8
    retry_after_s: int = 5
    token: str | None = None
    jobs: Path | None = None  # folder that keeps jobs over a restart; a temporary one where there is none
    jobs_kept: int = 64
    library: Library | None = field(default=None, compare=False)


class Metrics:
    """Prometheus metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "perigee_requests_total", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram("perigee_decode_seconds", "Time to decode and write a product", registry=self.registry)
        self.received = Counter("perigee_received_bytes_total", "Bytes of streams received", registry=self.registry)
        self.pixels = Counter("perigee_decoded_pixels_total", "Pixels of products", registry=self.registry)
        self.uploading = Gauge("perigee_uploads", "Uploads under way", registry=self.registry)
        self.queued = Gauge("perigee_queue_length", "Decodings running or waiting", registry=self.registry)


class Queue:
    """Admits so many requests at a time; further ones are refused."""

    def __init__(self, settings: Settings, places: int, gauge: Gauge) -> None:
        self._settings, self._places, self._gauge = settings, places, gauge
        self._lock, self._count = threading.Lock(), 0
        self.limiter = CapacityLimiter(settings.running)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue. Raises Problem 503 when it is full."""
        with self._lock:
            if self._count >= self._places:
                headers = {"Retry-After": str(self._settings.retry_after_s)}
                raise Problem(503, f"{self._count} requests are under way or waiting", headers)
            self._count += 1
            self._gauge.set(self._count)
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                self._gauge.set(self._count)


def _wanted_format(request: Request, chosen: str | None) -> str:
    if chosen is not None:
        if chosen not in FORMATS:
            raise Problem(422, f"format={chosen}: accepted are {', '.join(FORMATS)}")
        return chosen
    accept = request.headers.get("accept", "*/*")
    for part in accept.split(","):
        kind = ACCEPTS.get(part.split(";")[0].strip().lower())
        if kind and not part.replace(" ", "").endswith((";q=0", ";q=0.0")):
            return kind
    raise Problem(406, f"Accept: {accept}; offered are image/tiff, image/png and application/json")


def _integers(text: str | None, name: str, count: int | None = None) -> list[int] | None:
    if text is None:
        return None
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise Problem(422, f"{name}={text}: expected {count or 'a list of'} whole numbers with commas between")
    return values


def order_of(
    request: Request,
    format: Annotated[str | None, Query(description="tif, png or json; else by Accept", examples=["tif"])] = None,
    window: Annotated[str | None, Query(description="top,left,rows,cols in pixels", examples=["0,0,512,512"])] = None,
    bands: Annotated[str | None, Query(description="band numbers from 1", examples=["1,2,3"])] = None,
    scale: Annotated[str, Query(description="1, 1/2, 1/4, 1/8 or 1/16", examples=["1/4"])] = "1",
    damaged: Annotated[bool, Query(description="decode what is sound; header Perigee-Damage counts the rest")] = False,
    compensation: Annotated[
        str, Query(description="none, or a compensator: NAME or NAME:METHOD", examples=["cosmic"])
    ] = NONE,
    steps: Annotated[int | None, Query(description="of the diffusion; default: the compensator's")] = None,
    seed: Annotated[int, Query(description="of the noise that detail is made of")] = 0,
    strength: Annotated[float, Query(description="share of the detail that is added, 0 to 1")] = 1.0,
    product: Annotated[
        str,
        Query(
            description="image, or trust: half the width of the pixels' 90 % interval and where detail was generated"
        ),
    ] = "image",
) -> Order:
    """The query as an order. Raises Problem 406 or 422, CompensationError."""
    region, chosen = _integers(window, "window", 4), _integers(bands, "bands")
    return Order(
        _wanted_format(request, format),
        tuple(region) if region else None,
        tuple(chosen) if chosen else None,
        scale,
        damaged,
        compensation,
        steps,
        seed,
        strength,
        product,
    )


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Raises ProfileError where a profile folder is unusable."""
    settings = settings or Settings()
    library = settings.library or Library(settings.profiles, settings.threads)
    metrics = Metrics()
    queue = Queue(settings, settings.running + settings.waiting, metrics.queued)
    uploads = Queue(settings, settings.uploads, metrics.uploading)
    limits = fmt.Limits()
    temporary = None if settings.jobs else tempfile.TemporaryDirectory(prefix="perigee-jobs-")
    jobs = Jobs(settings.jobs or Path(temporary.name), library, settings.decoded_samples, settings.jobs_kept)  # type: ignore[union-attr]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        yield
        await to_thread.run_sync(jobs.stop)
        if temporary:
            temporary.cleanup()

    app = FastAPI(
        lifespan=lifespan,
        title="Perigee ground service",
        version=perigee.__version__,
        description="Decodes Perigee streams to Cloud-Optimised GeoTIFF, PNG or JSON. Errors are problem documents (RFC 9457).",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    problems.install(app)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Authorise where a token is set, and count answers."""
        route = str(request.scope["path"])
        if settings.token is not None and route not in OPEN_PATHS:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), settings.token.encode()):
                answer: Response = problems.problem_response(
                    Problem(401, "send Authorization: Bearer <token>", {"WWW-Authenticate": "Bearer"})
                )
                metrics.requests.labels("unauthorised", "401").inc()
                return answer
        answer = await call_next(request)
        known = {getattr(r, "path", "") for r in app.routes}
        route = "/jobs/{name}" if route.startswith("/jobs/") else route
        metrics.requests.labels(route if route in known else "other", str(answer.status_code)).inc()
        return answer

    async def upload(request: Request) -> bytes:
        """The body, within the limits of size, time, and uploads under way. Raises Problem 408, 413, 415, 422 or 503."""
        with uploads.place(), move_on_after(settings.upload_s):
            return await read_upload(request, settings.upload_bytes)
        raise Problem(408, f"the upload took longer than {settings.upload_s} s")

    def parse(data: bytes, damaged: bool) -> fmt.Stream:
        metrics.received.inc(len(data))
        return fmt.parse(data, limits, damaged)

    def produce(order: Order, data: bytes) -> Response:
        start = time.perf_counter()
        metrics.received.inc(len(data))
        folder = Path(tempfile.mkdtemp(prefix="perigee-"))
        try:
            made = fulfil(order, data, library, folder, settings.decoded_samples, RUNS_AT_ONCE)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        metrics.pixels.inc(made.pixels)
        metrics.seconds.observe(time.perf_counter() - start)
        if made.path is None:
            shutil.rmtree(folder, ignore_errors=True)
            return _with_damage(_json(made.value), made.damage)
        clean = BackgroundTask(shutil.rmtree, folder, True)
        return _with_damage(FileResponse(made.path, media_type=FORMATS[order.kind], background=clean), made.damage)

    body_schema = {
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "string", "format": "binary"}},
                        "required": ["file"],
                    }
                },
            },
        }
    }
    problem_schema = {"content": {problems.MEDIA_TYPE: {"example": {"type": "about:blank", "title": "Unusable stream or request",
        "status": 422, "detail": "the CRC of a chunk differs (at byte 24)", "error": "ChecksumError", "offset_bytes": 24}}}}  # fmt: skip
    answers: dict[int | str, dict[str, Any]] = {
        406: {"description": "No offered media type is acceptable"},
        413: {"description": "Upload or decoded scene too large"},
        415: {"description": "Wrong media type of the upload"},
        422: {"description": "Invalid stream, unknown profile or parameter out of range", **problem_schema},
        503: {"description": "Queue full; Retry-After says when to come again"},
    }

    @app.post(
        "/decode",
        openapi_extra=body_schema,
        responses={200: {"content": {kind: {} for kind in FORMATS.values()}, "description": "The product"}, **answers},
        response_class=Response,
    )
    async def decode(request: Request, order: Annotated[Order, Depends(order_of)]) -> Response:
        """Decode a stream to a Cloud-Optimised GeoTIFF, a PNG, or JSON (description and band statistics)."""
        data = await upload(request)
        with queue.place():
            return await to_thread.run_sync(produce, order, data, limiter=queue.limiter)

    @app.post("/jobs", status_code=202, openapi_extra=body_schema, responses=answers)
    async def submit(request: Request, order: Annotated[Order, Depends(order_of)]) -> JSONResponse:
        """Decode a stream later: the same parameters as ``/decode``. The answer names the job; Location leads to its state."""
        data = await upload(request)
        metrics.received.inc(len(data))
        described = await to_thread.run_sync(jobs.submit, order, data)
        return JSONResponse(described, 202, {"Location": f"/jobs/{described['id']}"})

    @app.get("/jobs")
    def all_jobs() -> JSONResponse:
        """All jobs, the oldest first."""
        return _json(jobs.all())

    @app.get("/jobs/{name}", responses={404: {"description": "No such job"}})
    def job(name: str) -> JSONResponse:
        """State of a job: queued, running (with progress 0 to 1), done, failed (with the problem) or cancelled."""
        return _json(jobs.described(name))

    @app.get(
        "/jobs/{name}/result",
        responses={404: {"description": "No such job"}, 409: {"description": "The job is not done"}},
        response_class=Response,
    )
    def result(name: str) -> Response:
        """The product of a job that is done."""
        path, damage = jobs.result(name)
        return _with_damage(FileResponse(path, media_type=FORMATS[path.suffix[1:]]), damage)

    @app.delete("/jobs/{name}", responses={404: {"description": "No such job"}})
    def cancel(name: str) -> JSONResponse:
        """Cancel a job, or forget one that is finished."""
        return _json({"id": name, "was": jobs.cancel(name)})

    @app.post("/inspect", openapi_extra=body_schema, responses=answers)
    async def inspect_stream(request: Request, damaged: bool = False) -> JSONResponse:
        """What a stream says of itself; nothing is decoded and no profile is needed."""
        data = await upload(request)
        with queue.place():
            described = await to_thread.run_sync(
                lambda: inspect(parse(data, damaged), len(data)), limiter=queue.limiter
            )
        described["profile_known"] = bytes.fromhex(described["contract"]) in library.profiles
        return _json(described)

    @app.get("/profiles")
    def profiles() -> JSONResponse:
        """The profiles that this service decodes."""
        return _json([
            {"name": p.name, "contract": digest.hex(), "preset": p.manifest.get("preset"), "patch_side": p.contract.patch_side}
            for digest, p in library.profiles.items()
        ])  # fmt: skip

    @app.get("/healthz")
    def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        """Profiles are loaded and pass their self-tests; 503 otherwise."""
        if not library.profiles:
            raise Problem(503, "no profile is installed")
        try:
            for digest in library.profiles:
                await to_thread.run_sync(library.engine, digest)
        except PerigeeError as error:
            raise Problem(503, str(error)) from error
        return _json({"status": "ready", "profiles": len(library.profiles)})

    @app.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _json(value: Any) -> JSONResponse:
    """JSON without NaN, which JSON does not have."""
    return JSONResponse(json.loads(json.dumps(value, default=str), parse_constant=lambda _: None))


def _with_damage(answer: Response, damage: dict[str, int] | None) -> Response:
    if damage is not None:
        answer.headers["Perigee-Damage"] = json.dumps(damage)
    return answer
