"""What ``onboard-encode`` reads: a GeoTIFF, or lines from a file or a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perigee.bitstream.errors import Fault, OrderError
from perigee.onboard.arguments import STDIN, Options
from perigee.onboard.arrival import Arrival, BufferedArrival
from perigee.onboard.lines import BSQ, BandsOfFile, LineFormat, LineSource, read_line_format
from perigee.onboard.pace import Pace
from perigee.onboard.raster import Raster
from perigee.support.files import NotAFileError, check_regular

MIB = 1 << 20
Input = Raster | LineSource | BandsOfFile


@contextmanager
def opened(tile: Path, options: Options) -> Iterator[Iterator[tuple[Input, Pace | None]]]:
    """The scenes of an input, each with what chooses its quality where its lines cannot wait. Raises OrderError for bands one after the other from a
    pipe, NotAFileError for what is neither a file nor a pipe, and what the sources raise."""
    if options.lines is None:
        check_regular(tile)
        with Raster(tile, options.tags_max) as raster:
            yield iter([(raster, None)])
        return
    form = read_line_format(options.lines)
    given = str(tile) != STDIN
    handle = os.open(tile, os.O_RDONLY | os.O_NONBLOCK) if given else os.dup(0)  # a FIFO may have no writer yet
    try:
        mode = os.fstat(handle).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
            raise NotAFileError(tile)
        if form.interleave == BSQ:
            _check_bsq(options, piped=stat.S_ISFIFO(mode))
            yield iter([(BandsOfFile(form, handle), None)])
        else:
            yield _scenes(form, handle, options)
    finally:
        os.close(handle)


def _check_bsq(options: Options, piped: bool) -> None:
    """Raise OrderError for bands one after the other where a strip cannot be had before all of them are there."""
    if piped:
        raise OrderError(
            "bands that come one after the other (bsq) can only be read from a file, since a strip needs all of them; accepted from a pipe "
            "are bil and bip",
            Fault.KIND,
            field="interleave",
            expected="bil, bip",
            found=BSQ,
        )
    if options.scene_lines or options.timeout or options.lowest_quality is not None:
        raise OrderError(
            "a file of bands one after the other (bsq) has all its lines: --scene-lines, --timeout and --lowest-quality go with bil and bip",
            Fault.KIND,
            field="interleave",
            expected="bil, bip",
            found=BSQ,
        )


def _scenes(form: LineFormat, handle: int, options: Options) -> Iterator[tuple[LineSource, Pace | None]]:
    """The scenes of lines: one, or one after the other of so many lines."""
    where = (form.skip_bytes, options.timeout)
    waits = options.lowest_quality is None
    arrival = (
        Arrival(handle, form.line_bytes, *where)
        if waits
        else BufferedArrival(handle, form.line_bytes, options.buffer_mib * MIB, *where)
    )
    while True:
        source = LineSource(form, arrival, options.scene_lines)
        yield source, None if options.lowest_quality is None else Pace(source, options.lowest_quality)
        if options.scene_lines is None or source.info.height == form.height or not arrival.wait():
            return
        form = form.behind(source.info.height)
