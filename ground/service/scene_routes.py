"""The routes of scenes: streams that the service keeps, as virtual GeoTIFFs with HTTP Range, pictures, products and jobs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from perigee.bitstream.errors import OrderError
from perigee.ground.library import NONE
from perigee.ground.orders import Order
from perigee.ground.service import rendering
from perigee.ground.service.parameters import integers, numbers, order_of
from perigee.ground.service.problems import Problem
from perigee.ground.service.routes import ANSWERS, BODY_SCHEMA, MAP_SCHEMA, PRODUCT, Service, problem, to_json
from perigee.ground.service.scenes import Opened, Scenes
from perigee.ground.service.uploads import Upload
from perigee.ground.tiles import Tiles

PART_BYTES = 1 << 20  # of an answer that is made at once
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
TIFF_TYPE, STREAM_TYPE, PNG_TYPE = "image/tiff; application=geotiff", "application/vnd.perigee", "image/png"
PREVIEW_MAX, DIGITS_MAX = 2048, 18
NO_SCENE: dict[int | str, dict[str, Any]] = {404: problem("There is no such scene")}
Bands = Annotated[str | None, Query(description="one or three band numbers from 1", examples=["3,2,1"])]
Ends = Annotated[str | None, Query(description="a sample value for all bands, or one for each")]
Added = Annotated[str, Query(description="none, a compensator or an enhancer")]
T = TypeVar("T")


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and number of bytes that a Range header asks for (RFC 9110, section 14); None for everything. Raises Problem 416, also for
    several ranges."""
    if header is None or not header.startswith("bytes="):
        return None  # a unit that is not known is ignored
    match = RANGE.fullmatch(header.replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    unsatisfiable = Problem(
        416, f"Range: {header}; accepted is one range of bytes within {size}", {"Content-Range": f"bytes */{size}"}
    )
    first, last = first.lstrip("0") or first[-1:], last.lstrip("0") or last[-1:]
    if not (first or last) or len(first) > DIGITS_MAX:
        raise unsatisfiable
    last = last if len(last) <= DIGITS_MAX else str(size)
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise unsatisfiable
    return start, end - start


def scene_routes(service: Service, scenes: Scenes) -> APIRouter:
    """All routes of scenes."""
    router = APIRouter(prefix="/scenes", responses=NO_SCENE)
    _add_keeping(router, service, scenes)
    _add_reading(router, service, scenes)
    _add_pictures(router, service, scenes)
    _add_work(router, service, scenes)
    return router


async def _read(service: Service, work: Callable[[], T], compensation: str = NONE) -> T:
    """Work about a scene in a thread, of which so many wait at a time; what is compensated takes long and keeps no other waiting. Raises BusyError
    where there is no place."""
    with service.readings.place():
        return await to_thread.run_sync(work, limiter=service.reading if compensation == NONE else service.compensating)


def _add_keeping(router: APIRouter, service: Service, scenes: Scenes) -> None:
    @router.get("", response_description="scenes (id, bytes, size, bands), count, bytes, quota_bytes, read_only")
    async def listed(
        offset: Annotated[int, Query(ge=0, description="how many scenes to pass over")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="how many to list")] = 100,
    ) -> JSONResponse:
        """The scenes that the service keeps, by name."""
        return to_json(await _read(service, lambda: scenes.all(offset, limit)))

    @router.put(
        "/{name}",
        status_code=201,
        openapi_extra=BODY_SCHEMA,
        responses=ANSWERS | {403: problem("The scenes of this service cannot be changed")},
        response_description="The scene, as under /scenes/{name}",
    )
    async def put(
        name: str,
        request: Request,
        damaged: Annotated[
            bool, Query(description="keep a damaged stream as well, of which what is sound is shown")
        ] = False,
    ) -> JSONResponse:
        """Keep a stream as a scene, in place of another of that name. 507 where the quota is used up."""
        data = (await service.upload(request)).data
        found = await _read(service, lambda: scenes.put(name, data, damaged))
        return JSONResponse(found, 201, {"Location": f"/scenes/{name}"})

    @router.delete("/{name}", status_code=204, responses={403: problem("The scenes of this service cannot be changed")})
    async def delete(name: str) -> Response:
        """Delete a scene."""
        await to_thread.run_sync(scenes.delete, name)
        return Response(status_code=204)


def _add_reading(router: APIRouter, service: Service, scenes: Scenes) -> None:
    kinds: dict[int | str, dict[str, Any]] = {
        200: {"content": {TIFF_TYPE: {}}},
        206: {"description": "The range"},
        416: problem("The range cannot be given"),
    }

    @router.head("/{name}.tif", include_in_schema=False)
    @router.get("/{name}.tif", response_class=Response, responses=kinds)
    async def tiff(
        name: str,
        request: Request,
        compensation: Annotated[str, Query(description="none, a compensator or an enhancer")] = NONE,
        damaged: Annotated[bool, Query(description="decode what is sound of a damaged stream")] = False,
    ) -> Response:
        """The scene as a tiled GeoTIFF with overviews, made where it is read: GDAL (/vsicurl/), QGIS and OpenLayers read it by HTTP Range."""
        scene = await _read(service, lambda: scenes.opened(name, compensation, damaged), compensation)
        size, tag = scene.tiff.size, f'"{scene.digest}"'
        head = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, max-age=0, must-revalidate"}
        known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(status_code=304, headers=head)
        if request.method == "HEAD":
            return Response(status_code=200, headers=head | {"Content-Length": str(size)}, media_type=TIFF_TYPE)
        stale = request.headers.get("if-range") not in (None, tag)
        found = None if stale else byte_range(request.headers.get("range"), size)
        start, length = found or (0, size)
        head |= {"Content-Length": str(length)}
        if found is not None:
            head["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        status = 200 if found is None else 206
        # The first part comes before the head is sent, so that what cannot be decoded is told by a status.
        first = await _read(service, lambda: scene.tiff.read(start, min(PART_BYTES, length)), compensation)

        limiter = service.reading if compensation == NONE else service.compensating

        async def parts() -> AsyncIterator[bytes]:
            yield first
            at, end = start + len(first), start + length
            if at == end:
                return
            with service.readings.place():
                while at < end:
                    part = await to_thread.run_sync(scene.tiff.read, at, min(PART_BYTES, end - at), limiter=limiter)
                    at += len(part)
                    yield part

        return StreamingResponse(parts(), status, head, TIFF_TYPE)

    @router.get("/{name}.peri", response_class=Response, responses={200: {"content": {STREAM_TYPE: {}}}})
    def stream(name: str) -> Response:
        """The stream itself."""
        kept = {"Content-Disposition": f'attachment; filename="{name}.peri"'}
        return Response(scenes.data(name), media_type=STREAM_TYPE, headers=kept)

    @router.get(
        "/{name}", response_description="What /inspect says, with footprint, levels and tile_side", responses=ANSWERS
    )
    async def described(name: str) -> JSONResponse:
        """What a scene is."""
        return to_json(await _read(service, lambda: scenes.described(name)))


def _add_pictures(router: APIRouter, service: Service, scenes: Scenes) -> None:
    kinds: dict[int | str, dict[str, Any]] = {200: {"content": {PNG_TYPE: {}}}}

    def drawn(
        scene: Opened,
        level: int,
        row: int,
        col: int,
        bands: str | None,
        low: str | None,
        high: str | None,
        side: int | None,
    ) -> bytes:
        tiles = scene.tiff.tiles
        _check_tile(tiles, level, row, col)
        chosen = rendering.shown_bands(scene, integers(bands, "bands"))
        ends = rendering.limits_of(scene, chosen, numbers(low, "low"), numbers(high, "high"))
        return rendering.picture(scene, tiles.tile(level, row, col), chosen, ends, side)

    @router.get(
        "/{name}/statistics", responses=ANSWERS, response_description="A list with band, low, high, min and max"
    )
    async def statistics(name: str) -> JSONResponse:
        """The 2nd and 98th percentile, least and largest value of each band, of a small overview."""
        return to_json(await _read(service, lambda: rendering.statistics(scenes.shown(name))))

    @router.get("/{name}/preview.png", response_class=Response, responses=kinds | ANSWERS)
    async def preview(
        name: str,
        size: Annotated[int, Query(ge=16, le=PREVIEW_MAX, description="most pixels on a side")] = 512,
        bands: Bands = None,
        low: Ends = None,
        high: Ends = None,
    ) -> Response:
        """A picture of the whole scene."""

        def made() -> bytes:
            scene = scenes.shown(name)
            tiles = scene.tiff.tiles
            fitting = [number for number, extent in enumerate(tiles.levels) if max(extent) <= min(size, tiles.side)]
            level = fitting[0] if fitting else len(tiles.levels) - 1
            return drawn(scene, level, 0, 0, bands, low, high, None)

        return Response(await _read(service, made), media_type=PNG_TYPE)

    @router.get("/{name}/tiles/{level}/{row}/{col}.png", response_class=Response, responses=kinds | ANSWERS)
    async def tile(
        name: str,
        level: int,
        row: int,
        col: int,
        bands: Bands = None,
        low: Ends = None,
        high: Ends = None,
        compensation: Added = NONE,
    ) -> Response:
        """A tile of a level, of which 0 is the full size: a square of ``tile_side`` pixels, transparent beyond the scene."""

        def made() -> bytes:
            scene = scenes.shown(name, compensation)
            return drawn(scene, level, row, col, bands, low, high, scene.tiff.tiles.side)

        picture = await _read(service, made, compensation)
        return Response(picture, media_type=PNG_TYPE, headers={"Cache-Control": "private, max-age=60"})

    @router.get("/{name}/trust/{row}/{col}.png", response_class=Response, responses=kinds | ANSWERS)
    async def trust(name: str, row: int, col: int, compensation: Added) -> Response:
        """A tile of full size that says how far to trust each pixel: the stronger its colour, the wider its 90 % interval; red where it was
        changed, blue where it was not."""

        def made() -> bytes:
            scene = scenes.shown(name, compensation)
            _check_tile(scene.tiff.tiles, 0, row, col)
            tiles = scene.tiff.tiles
            valid = np.asarray(tiles.tile(0, row, col).valid.all(0))
            return rendering.trust_picture(scene, tiles.extent(0, row, col), valid, tiles.side)

        return Response(
            await _read(service, made, compensation),
            media_type=PNG_TYPE,
            headers={"Cache-Control": "private, max-age=60"},
        )


def _check_tile(tiles: Tiles, level: int, row: int, col: int) -> None:
    """Raise OrderError for a tile that the scene does not have."""
    if not 0 <= level < len(tiles.levels):
        raise OrderError(f"level {level}: the scene has 0 to {len(tiles.levels) - 1}", field="level", found=level)
    rows, cols = (-(-length // tiles.side) for length in tiles.levels[level])
    if not (0 <= row < rows and 0 <= col < cols):
        wanted = f"rows 0 to {rows - 1}, columns 0 to {cols - 1}"
        raise OrderError(f"tile {row}, {col} of level {level}: there are {wanted}", field="tile", expected=wanted)


def _add_work(router: APIRouter, service: Service, scenes: Scenes) -> None:
    @router.post("/{name}/decode", openapi_extra=MAP_SCHEMA, responses=PRODUCT | ANSWERS, response_class=Response)
    async def decode(name: str, request: Request, order: Annotated[Order, Depends(order_of)]) -> Response:
        """As /decode, of a scene that the service keeps. A form may have the part ``map``."""
        guide = await service.guide(request)
        sent = Upload(await to_thread.run_sync(scenes.data, name), guide)
        with service.decodings.place():
            return await to_thread.run_sync(service.produce, order, sent, limiter=service.limiter)

    @router.post(
        "/{name}/jobs",
        status_code=202,
        openapi_extra=MAP_SCHEMA,
        responses=ANSWERS,
        response_description="The job, as under /jobs/{name}",
    )
    async def submit(name: str, request: Request, order: Annotated[Order, Depends(order_of)]) -> JSONResponse:
        """As /jobs, of a scene that the service keeps. A form may have the part ``map``."""
        guide = await service.guide(request)
        data = await to_thread.run_sync(scenes.data, name)
        job = await to_thread.run_sync(service.jobs.submit, order, data, None, guide)
        return JSONResponse(job, 202, {"Location": f"/jobs/{job['id']}"})
