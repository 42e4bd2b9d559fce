"""One piece of work of the service, done in this process or in a worker: a file is given, products are made, plain values come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from perigee.bitstream.errors import Fault, OrderError
from perigee.bitstream.format import MAGIC
from perigee.ground.enhancing import Wish, make_enhanced, open_enhanced
from perigee.ground.library import Library
from perigee.ground.orders import Order, OrderLimits, make
from perigee.ground.source import Progress
from perigee.support.files import read_bounded


@dataclass(frozen=True)
class Task:
    """An order about the file ``given``: a stream, or with a ``wish`` an image of any codec. ``paths`` are those of the products, ``guide`` the
    file of a map."""

    order: Order
    given: Path
    paths: Mapping[str, Path]
    limits: OrderLimits
    wish: Wish | None = None
    guide: Path | None = None


class Result(NamedTuple):
    """What came of a task.

    ``size`` (rows and columns) and ``bands`` are those of the product, ``warnings`` lines for people; ``value`` is there where JSON was
    wanted, ``damage`` where the stream was damaged, and ``buildings`` where a map was drawn.
    """

    size: tuple[int, int]
    bands: int
    warnings: list[str]
    value: dict[str, Any] | None = None
    damage: dict[str, int] | None = None
    buildings: dict[str, int] | None = None

    @property
    def pixels(self) -> int:
        """How many pixels the product has."""
        return self.size[0] * self.size[1]


def _is_stream(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def perform(task: Task, library: Library, progress: Progress | None = None) -> Result:
    """Do a task. Raises what ``orders.make`` and ``enhancing.make_enhanced`` raise."""
    if task.wish is not None and not _is_stream(task.given):
        source = open_enhanced(task.given, task.order, task.wish, library)
        view = make_enhanced(source, task.order, task.paths, library.threads, task.limits, progress)
        warnings = [f"not enhanced: {source.left_alone}"] if source.left_alone else []
        return Result(view.size, len(view.bands), warnings)
    if task.wish is not None and task.wish != Wish():
        raise OrderError(
            "a stream says itself how it was coded; codec and bpp are for other files", Fault.MISFIT, field="codec, bpp"
        )
    made = make(task.order, read_bounded(task.given), library, task.paths, task.limits, progress, task.guide)
    return Result(made.view.size, len(made.view.bands), made.warnings(), made.value, made.damage, made.buildings)
