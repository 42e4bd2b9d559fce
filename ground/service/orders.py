"""What a request wants of a stream, as plain values, and how it is made: for an answer at once and for a job alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perigee.bitstream import format as fmt
from perigee.ground.compensation.decoder import CompensatedDecoder, Compensation
from perigee.ground.decoder import Region, SceneDecoder
from perigee.ground.library import NONE, Library, inspect
from perigee.ground.products import (
    COG_MEDIA_TYPE,
    View,
    provenance,
    read_array,
    view_of,
    write_cog,
    write_png,
    write_trust,
)
from perigee.ground.service.problems import Problem

FORMATS = {"tif": COG_MEDIA_TYPE, "png": "image/png", "json": "application/json"}
SCALES = {"1": 1, "1/2": 2, "1/4": 4, "1/8": 8, "1/16": 16}
PRODUCTS = ("image", "trust")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Order:
    """A product of a stream; see ``POST /decode`` for what the fields mean."""

    kind: str = "tif"
    window: tuple[int, ...] | None = None
    bands: tuple[int, ...] | None = None
    scale: str = "1"
    damaged: bool = False
    compensation: str = NONE
    steps: int | None = None
    seed: int = 0
    strength: float = 1.0
    product: str = "image"

    def __post_init__(self) -> None:
        """Raises Problem 422 or CompensationError for what no stream could be decoded to."""
        if self.scale not in SCALES:
            raise Problem(422, f"scale={self.scale}: accepted are {', '.join(SCALES)}")
        if self.product not in PRODUCTS or (self.product == "trust" and self.kind != "tif"):
            accepted = f"{', '.join(PRODUCTS)}; trust as tif alone"
            raise Problem(422, f"product={self.product}, format={self.kind}: accepted are {accepted}")
        if self.product == "trust" and self.compensation == NONE:
            raise Problem(422, "product=trust needs the compensator that estimates it: compensation=NAME")
        self.wanted()

    def wanted(self) -> Compensation:
        """For the compensator."""
        return Compensation(steps=self.steps, seed=self.seed, strength=self.strength)

    def to_json(self) -> str:
        """As text, for a job's folder."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Order:
        """Inverse of :meth:`to_json`. Raises ValueError, TypeError."""
        values: dict[str, Any] = json.loads(text)
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Order(**plain)


class Made(NamedTuple):
    """A finished product: a file, or a JSON value; how much of the stream was damaged, and pixels."""

    path: Path | None
    value: Any
    damage: dict[str, int] | None
    pixels: int


def fulfil(
    order: Order,
    data: bytes,
    library: Library,
    folder: Path,
    decoded_samples: int,
    runs_limit: int,
    progress: Progress | None = None,
) -> Made:
    """Make the product of a stream in ``folder``. Raises a PerigeeError for the stream's sake, Problem for the order's."""
    stream = fmt.parse(data, fmt.Limits(), order.damaged)
    decoder = library.decoder(stream, order.damaged, order.compensation, order.wanted())
    region = Region(*order.window) if order.window else None
    view = view_of(decoder, region, list(order.bands) if order.bands else None, SCALES[order.scale])
    samples = view.region.rows * view.region.cols * len(view.bands)
    if samples > decoded_samples:
        raise Problem(413, f"{samples} samples to decode; accepted are up to {decoded_samples}: ask for a window")
    path, value = None, None
    if isinstance(decoder, CompensatedDecoder):
        decoder.runs_limit = runs_limit
        if progress and decoder.samples:
            decoder.progress = _part(progress, 0)  # half the way to sample, half to write
            progress = _part(progress, 1)
    if order.kind == "json":
        value = _described(decoder, view, len(data), progress)
    else:
        path = folder / f"scene.{order.kind}"
        if isinstance(decoder, CompensatedDecoder) and order.product == "trust":
            write_trust(path, decoder, view, progress)
        else:
            (write_png if order.kind == "png" else write_cog)(path, decoder, view, progress)
    report, damage = decoder.report, None
    if report.cut or report.lost or report.notes or stream.damage:
        damage = {"cut": len(report.cut), "lost": len(report.lost), "notes": len(stream.damage) + len(report.notes)}
    return Made(path, value, damage, view.size[0] * view.size[1])


def _part(progress: Progress, half: int) -> Progress:
    """Progress of one half of the work."""
    return lambda done, total: progress(half * total + done, 2 * total)


def _described(decoder: SceneDecoder, view: View, size_bytes: int, progress: Progress | None) -> dict[str, Any]:
    array = read_array(decoder, view, progress)
    found = inspect(decoder.stream, size_bytes) | {
        "view": {"region": tuple(view.region), "bands": [b + 1 for b in view.bands], "size": view.size},
        "statistics": [
            {"band": b + 1, "min": int(a.min()), "max": int(a.max()), "mean": round(float(np.mean(a)), 4)}
            for b, a in zip(view.bands, array, strict=True)
        ],
        "provenance": provenance(decoder),
        "cut": decoder.report.cut,
        "lost": decoder.report.lost,
        "notes": decoder.report.notes,
    }
    # JSON has no NaN
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str), parse_constant=lambda _: None)
    return plain
