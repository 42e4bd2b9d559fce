"""Query parameters and the Accept header of a request, as an order."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request

from perigee.bitstream.errors import OrderError
from perigee.engines.enhancer import DEFAULT_ENHANCER
from perigee.ground.enhancing import Wish
from perigee.ground.library import NONE
from perigee.ground.orders import FULL, Order
from perigee.ground.service.problems import Problem

OFFERED = {"image/tiff": "tif", "image/png": "png", "application/json": "json"}  # in the service's order of preference


NUMBER_MAX = 1e30


def _quality(parameters: list[str]) -> float:
    """The weight of a media range, 0 to 1; what is not a weight counts as 1."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0


def negotiated(accept: str) -> str | None:
    """The format that an Accept header prefers (RFC 9110, section 12.5.1), None where it accepts none that is offered.

    Of the ranges that cover a media type the most specific decides on its weight. Of types of equal weight the one counts that was
    named more specifically, then the one that was named first, then the service's own preference.
    """
    ranges = []
    for number, part in enumerate(accept.split(",")):
        kind, *parameters = part.split(";")
        if kind.strip():
            ranges.append((kind.strip().lower(), _quality(parameters), number))
    best: tuple[float, int, int] | None = None
    chosen = None
    for offered, name in OFFERED.items():
        covers = {offered: 2, offered.split("/")[0] + "/*": 1, "*/*": 0}
        fitting = [(covers[kind], -number, weight) for kind, weight, number in ranges if kind in covers]
        if not fitting:
            continue
        specific, number, weight = max(fitting)
        rank = (weight, specific, number)
        if weight > 0 and (best is None or rank > best):
            best, chosen = rank, name
    return chosen


def _wanted_format(request: Request, chosen: str | None) -> str:
    if chosen is not None:
        return chosen
    accept = ",".join(request.headers.getlist("accept")) or "*/*"
    found = negotiated(accept)
    if found is None:
        raise Problem(406, f"Accept: {accept}; offered are {', '.join(OFFERED)}")
    return found


def numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    """A parameter that is a list of numbers. Raises OrderError."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(abs(value) <= NUMBER_MAX for value in values):
        wanted = f"a list of numbers up to {NUMBER_MAX:g} with commas between"
        raise OrderError(f"{name}={text}: expected {wanted}", field=name, expected=wanted, found=text)
    return values


def integers(text: str | None, name: str, count: int | None = None) -> tuple[int, ...] | None:
    """A parameter that is a list of whole numbers, or of ``count`` of them. Raises OrderError."""
    if text is None:
        return None
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or (count is not None and len(values) != count):
        wanted = f"{count or 'a list of'} whole numbers with commas between"
        raise OrderError(f"{name}={text}: expected {wanted}", field=name, expected=wanted, found=text)
    return values


def _check_product(product: str) -> None:
    if product == "stac":
        raise OrderError(
            "product=stac: accepted are image, trust", field="product", expected="image, trust", found=product
        )


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
    steps: Annotated[int | None, Query(description="number of diffusion steps; default: the compensator's own")] = None,
    seed: Annotated[int, Query(description="seed of the noise that detail is made of")] = 0,
    strength: Annotated[float, Query(description="share of the detail that is added, 0 to 1")] = 1.0,
    product: Annotated[
        str,
        Query(
            description="image, or trust: half the width of each pixel's 90 % interval, and where detail was generated"
        ),
    ] = "image",
    unknown_crs: Annotated[
        str, Query(description="a CRS that cannot be interpreted: refuse (422), keep as text in a tag, or drop")
    ] = "refuse",
    effort: Annotated[str, Query(description="full, or fast: a quick look without the synthesis network")] = FULL,
    map_classes: Annotated[
        str,
        Query(
            description="which attributes of the map make which class, as JSON; default: OpenStreetMap tags",
            examples=['{"building": {"type": ["house"]}}'],
        ),
    ] = "",
) -> Order:
    """The query as an order. Raises Problem 406, OrderError or CompensationError."""
    _check_product(product)
    return Order(
        _wanted_format(request, format),
        integers(window, "window", 4),
        integers(bands, "bands"),
        scale,
        damaged,
        compensation,
        steps,
        seed,
        strength,
        (product,),
        unknown_crs,
        effort,
        map_classes,
    )


def enhancement_of(
    request: Request,
    format: Annotated[str | None, Query(description="tif or png; else by Accept", examples=["tif"])] = None,
    window: Annotated[str | None, Query(description="top,left,rows,cols in pixels", examples=["0,0,512,512"])] = None,
    bands: Annotated[str | None, Query(description="band numbers from 1", examples=["1,2,3"])] = None,
    scale: Annotated[str, Query(description="1, 1/2, 1/4, 1/8 or 1/16", examples=["1/4"])] = "1",
    method: Annotated[str, Query(description="enhancer that is used")] = DEFAULT_ENHANCER,
    seed: Annotated[int, Query(description="seed of a generated prior")] = 0,
    strength: Annotated[float, Query(description="share of what is added, 0 to 1")] = 1.0,
    product: Annotated[
        str,
        Query(description="image, or trust: half the width of each pixel's 90 % interval, and where it was changed"),
    ] = "image",
    unknown_crs: Annotated[
        str, Query(description="a CRS that cannot be interpreted: refuse (422), keep as text in a tag, or drop")
    ] = "refuse",
) -> Order:
    """The query of an enhancement as an order. Raises Problem 406, OrderError or CompensationError."""
    _check_product(product)
    wanted = _wanted_format(request, format)
    if wanted == "json":
        raise OrderError("format=json: accepted are tif, png", field="format", expected="tif, png", found=wanted)
    return Order(
        wanted,
        integers(window, "window", 4),
        integers(bands, "bands"),
        scale,
        compensation=method,
        seed=seed,
        strength=strength,
        products=(product,),
        unknown_crs=unknown_crs,
    )


def wish_of(
    codec: Annotated[
        str | None, Query(description="jpeg2000 or jpeg: how the image was coded, for a file that does not say so")
    ] = None,
    bpp: Annotated[float | None, Query(description="bits per pixel that it took; default: those of the file")] = None,
) -> Wish:
    """How the image of a query was coded. Raises OrderError."""
    return Wish(codec, bpp)
