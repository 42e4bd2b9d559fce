"""One piece of work of the service, done in this process or in a worker: a file is given, products are made, plain values come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from perigee.ground.enhancing import Wish, make_enhanced, open_enhanced
from perigee.ground.library import Library
from perigee.ground.orders import Order, OrderLimits, make
from perigee.ground.source import Progress
from perigee.support.files import read_bounded


@dataclass(frozen=True)
class Task:
    """An order about the file ``given``: a stream, or with a ``wish`` an image of another codec. ``paths`` are those of the products."""

    order: Order
    given: Path
    paths: Mapping[str, Path]
    limits: OrderLimits
    wish: Wish | None = None


class Result(NamedTuple):
    """What came of a task: pixels of the product, the JSON value where JSON was wanted, and the damage of the stream."""

    pixels: int
    value: dict[str, Any] | None = None
    damage: dict[str, int] | None = None


def perform(task: Task, library: Library, progress: Progress | None = None) -> Result:
    """Do a task. Raises what ``orders.make`` and ``enhancing.make_enhanced`` raise."""
    if task.wish is not None:
        source = open_enhanced(task.given, task.order, task.wish, library)
        view = make_enhanced(source, task.order, task.paths, library.threads, task.limits, progress)
        return Result(view.size[0] * view.size[1])
    made = make(task.order, read_bounded(task.given), library, task.paths, task.limits, progress)
    return Result(made.pixels, made.value, made.damage)
