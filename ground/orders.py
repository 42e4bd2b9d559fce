"""What a request wants of a stream, and how it is made: one way for the command, the service, jobs and archives.

An order says what is wanted in plain values, so that it can be kept in a file. :func:`open_source` turns the bytes of a stream
into the image source that the order is about, and :func:`make` writes the products. Both raise errors of the codec's tree;
the service maps them to status codes, the commands to exit codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from perigee.bitstream import format as fmt
from perigee.bitstream.errors import CompensationError, Fault, OrderError, TooLargeError
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.version2 import VERSION, ComponentStream, version_of
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import RUNS_LIMIT, CompensatedSource
from perigee.ground.enhancement import EnhancedSource
from perigee.ground.georeference import UNKNOWN_CRS, usable_crs
from perigee.ground.inspection import inspect
from perigee.ground.library import NONE, Library
from perigee.ground.maps.classes import classes_from_json
from perigee.ground.maps.reading import read_map
from perigee.ground.products import (
    COG_MEDIA_TYPE,
    check_png,
    check_trust,
    compressing,
    png_view,
    statistics_of,
    write_cog,
    write_png,
    write_trust,
)
from perigee.ground.regions import Region
from perigee.ground.scene import StreamSource
from perigee.ground.source import ImageSource, Progress
from perigee.ground.stac import stac_item
from perigee.ground.views import View, view_of
from perigee.support.files import replacing, write_atomically

FORMATS = {"tif": COG_MEDIA_TYPE, "png": "image/png", "json": "application/json"}
SCALES = {"1": 1, "1/2": 2, "1/4": 4, "1/8": 8, "1/16": 16}
IMAGE, TRUST, STAC = "image", "trust", "stac"
PNG_BANDS = (1, 3)  # beside an alpha band
PRODUCTS = (IMAGE, TRUST, STAC)
FULL, FAST = EFFORTS = ("full", "fast")


@dataclass(frozen=True)
class OrderLimits:
    """What one order may take: decoded samples (pixels times bands), and runs of a compensator's denoiser."""

    samples: int = 1 << 40
    denoiser_runs: int = RUNS_LIMIT


@dataclass(frozen=True)
class Order:
    """Products of a stream. ``window`` is top, left, rows and columns in pixels; ``bands`` count from 1; None is everything.

    ``effort`` is full, or fast: without the synthesis network, several times as fast and less close to the original; streams of format
    version 2 then have the same samples on every machine. What is compensated is always made in full.

    ``unknown_crs`` says what is done with a CRS that cannot be interpreted: refuse, keep (as text in a tag) or drop.
    ``map_classes`` is a mapping of classes as JSON (``ground.maps.classes``) for the map that guides a compensator.
    ``format`` (tif, png or json) is that of the image. ``products`` are the image, how far to trust it, and a STAC item of both.
    Raises OrderError or CompensationError for what could not be made of any stream.
    """

    format: str = "tif"
    window: tuple[int, ...] | None = None
    bands: tuple[int, ...] | None = None
    scale: str = "1"
    damaged: bool = False
    compensation: str = NONE
    steps: int | None = None
    seed: int = 0
    strength: float = 1.0
    products: tuple[str, ...] = (IMAGE,)
    unknown_crs: str = "refuse"
    effort: str = FULL
    map_classes: str = ""

    def __post_init__(self) -> None:
        _one_of("format", self.format, FORMATS)
        _one_of("scale", self.scale, SCALES)
        _one_of("unknown_crs", self.unknown_crs, UNKNOWN_CRS)
        _one_of("effort", self.effort, EFFORTS)
        if self.window is not None and len(self.window) != 4:
            raise OrderError(
                f"window {self.window}: accepted are top, left, rows and columns",
                Fault.SIZE,
                field="window",
                expected="four numbers",
                found=len(self.window),
            )
        for product in self.products:
            _one_of("product", product, PRODUCTS)
        if self.format == "png" and IMAGE in self.products and self.bands and len(self.bands) not in PNG_BANDS:
            raise OrderError(
                f"bands {list(self.bands)}: a PNG holds one band or three; name as many, or ask for a GeoTIFF",
                field="bands",
                expected="one band or three",
                found=len(self.bands),
            )
        if TRUST in self.products:
            if self.format == "json" or (self.format != "tif" and IMAGE not in self.products):
                raise OrderError(
                    f"product=trust, format={self.format}: trust is a GeoTIFF, accepted is format=tif",
                    Fault.MISFIT,
                    field="format",
                    expected="tif",
                    found=self.format,
                )
            if self.compensation == NONE:
                raise OrderError(
                    "product=trust needs the compensator that estimates it: compensation=NAME",
                    Fault.MISSING,
                    field="compensation",
                    found=NONE,
                )
        self.wanted()

    def wanted(self) -> Compensation:
        """What is asked of the compensator."""
        return Compensation(steps=self.steps, seed=self.seed, strength=self.strength)

    def view(self, source: ImageSource) -> View:
        """The part of a source that is wanted. Raises OrderError where the source does not have it."""
        region = None if self.window is None else Region(*self.window)
        return view_of(source, region, self.bands, SCALES[self.scale])

    def to_json(self) -> str:
        """The order as text, for a job's folder."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Order:
        """Inverse of :meth:`to_json`. Raises OrderError where the text is no order."""
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
            return Order(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise OrderError(f"the order cannot be read ({error})", Fault.UNREADABLE, field="order") from error


def _one_of(field: str, value: str, accepted: Mapping[str, Any] | tuple[str, ...]) -> None:
    if value not in accepted:
        listing = ", ".join(accepted)
        raise OrderError(f"{field}={value}: accepted are {listing}", field=field, expected=listing, found=value)


class Made(NamedTuple):
    """What was made of a stream: the source with its report, the view, and the JSON value where JSON was wanted."""

    source: StreamSource | CompensatedSource | EnhancedSource
    view: View
    value: dict[str, Any] | None

    @property
    def damage(self) -> dict[str, int] | None:
        """How many units were decoded from a cut or lost, and how many notes there are; None for a sound stream."""
        report = self.source.report
        notes = len(stream_of(self.source).damage) + len(report.notes)
        if report.cut or report.lost or notes:
            return {"cut": len(report.cut), "lost": len(report.lost), "notes": notes}
        return None

    @property
    def buildings(self) -> dict[str, int] | None:
        """How many buildings of the map are supported, unsupported and contradicted; None without a map."""
        source = self.source
        drawn = isinstance(source, CompensatedSource) and source.active and source.support is not None
        return source.support.counts if drawn else None  # type: ignore[union-attr]

    def warnings(self) -> list[str]:
        """Lines for people: what was not compensated, was decoded from a cut, or was lost."""
        report = self.source.report
        lines = [self.source.left_alone] if self.source.left_alone else []
        lines += [f"segment {unit} was cut short: {passes} passes decoded" for unit, passes in report.cut.items()]
        lost = [f"segment {unit}: {reason}" for unit, reason in report.lost.items()]
        return lines + [f"damage: {reason}" for reason in (*stream_of(self.source).damage, *lost, *report.notes)]

    @property
    def pixels(self) -> int:
        """How many pixels the product has."""
        return self.view.size[0] * self.view.size[1]


def stream_of(source: StreamSource | CompensatedSource | EnhancedSource) -> fmt.Stream | ComponentStream:
    """The parsed stream of a source."""
    if isinstance(source, CompensatedSource):
        return source.source.stream
    if isinstance(source, EnhancedSource):
        return stream_of(cast(StreamSource, source.source))
    return source.parsed


def open_source(
    order: Order,
    data: bytes,
    library: Library,
    limits: OrderLimits | None = None,
    progress: Progress | None = None,
    guide: Path | None = None,
) -> StreamSource | CompensatedSource | EnhancedSource:
    """The image source of a stream that the order is about. ``progress`` is told of a diffusion's sampling; ``guide`` is the file of a map.

    Raises a BitstreamError, LimitError, MapError, CompensationError, ProfileError or EngineError.
    """
    classes = classes_from_json(order.map_classes) if order.map_classes else None
    found = None if guide is None else read_map(guide, classes)
    if classes is not None and found is None:
        raise CompensationError(
            "a mapping of classes is for a map, and none was given", Fault.MISSING, field="map", expected="a map"
        )
    if version_of(data) == VERSION:
        if found is not None:
            raise CompensationError(
                "streams of format version 2 are not guided by a map", Fault.MISFIT, field="map", expected="no map"
            )
        components = parse_component_stream(data, damaged=order.damaged)
        return library.component_source(components, order.damaged, order.compensation, order.effort == FAST)
    stream = parse_stream(data, damaged=order.damaged)
    runs = (limits or OrderLimits()).denoiser_runs
    return library.source(
        stream,
        order.damaged,
        order.compensation,
        order.wanted(),
        runs,
        progress,
        len(data),
        order.effort == FAST,
        found,
    )


def check_size(view: View, limits: OrderLimits) -> None:
    """Raise TooLargeError where a view has more samples than may be decoded."""
    samples = view.region.pixels * len(view.bands)
    if samples > limits.samples:
        raise TooLargeError(
            f"{samples} samples to decode; accepted are up to {limits.samples}: ask for a window",
            field="window",
            expected=f"at most {limits.samples} samples",
            found=samples,
        )


def make(
    order: Order,
    data: bytes,
    library: Library,
    paths: Mapping[str, Path],
    limits: OrderLimits | None = None,
    progress: Progress | None = None,
    guide: Path | None = None,
) -> Made:
    """Make the order's products of a stream, each whole or not at all, at ``paths`` (by product; none for JSON). ``guide`` is the file of a map.

    Raises what :func:`open_source` raises, OrderError for what this stream does not have, and OSError.
    """
    limits = limits or OrderLimits()
    sampling = writing = progress
    if (
        progress and order.compensation != NONE
    ):  # half of the way to sample, half to write; undone below where nothing is sampled
        sampling = _half(progress, 0)
    source = open_source(order, data, library, limits, sampling, guide)
    if progress and isinstance(source, CompensatedSource) and source.uses_diffusion:
        writing = _half(progress, 1)
    view = order.view(source)
    check_size(view, limits)
    if isinstance(source, CompensatedSource) and source.support is not None:
        source.support.product = view.region
    trusted = check_trust(source, view) if TRUST in order.products else None
    if order.format == "png" and IMAGE in order.products:
        check_png(source)
        view = png_view(view)
    if order.format != "json":
        usable_crs(source.metadata, order.unknown_crs)
    value = None
    if order.format == "json":
        value = _described(source, view, len(data), writing)
    elif IMAGE in order.products:
        with compressing(library.threads, view), replacing(paths[IMAGE]) as temporary:
            (write_png if order.format == "png" else write_cog)(temporary, source, view, writing, order.unknown_crs)
    if trusted is not None:
        with compressing(library.threads, view), replacing(paths[TRUST]) as temporary:
            write_trust(temporary, trusted, view, writing, order.unknown_crs)
    if STAC in order.products:
        item = stac_item(source, view, paths[IMAGE], paths.get(TRUST))
        write_atomically(paths[STAC], (json.dumps(item, indent=1) + "\n").encode())
    return Made(source, view, value)


def _half(progress: Progress, half: int) -> Progress:
    """Progress of one half of the work."""
    return lambda done, total: progress(half * total + done, 2 * total)


def _described(
    source: StreamSource | CompensatedSource | EnhancedSource, view: View, size_bytes: int, progress: Progress | None
) -> dict[str, Any]:
    """The stream, the view and the statistics of its bands as JSON-ready values."""
    statistics = statistics_of(source, view, progress)
    found = inspect(stream_of(source), size_bytes) | {
        "view": {"region": tuple(view.region), "bands": [b + 1 for b in view.bands], "size": view.size},
        "statistics": [asdict(band) for band in statistics],
        "provenance": source.provenance(),
        "cut": source.report.cut,
        "lost": source.report.lost,
        "notes": source.report.notes,
    }
    if isinstance(source, CompensatedSource) and source.active and source.support is not None:
        found |= {"map": source.support.report()}
    # JSON has no NaN
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str), parse_constant=lambda _: None)
    return plain
