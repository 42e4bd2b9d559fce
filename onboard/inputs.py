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
    piped = str(tile) == STDIN or stat.S_ISFIFO(tile.stat().st_mode)
    if form.interleave == BSQ and piped:
        raise OrderError(
            "bands that come one after the other (bsq) can only be read from a file, since a strip needs all of them; accepted from a pipe "
            "are bil and bip",
            Fault.KIND,
            field="interleave",
            expected="bil, bip",
            found=BSQ,
        )
    if not piped:
        check_regular(tile)
    if form.interleave == BSQ:
        yield iter([(BandsOfFile(form, tile), None)])
        return
    handle = os.dup(0) if str(tile) == STDIN else os.open(tile, os.O_RDONLY)
    try:
        mode = os.fstat(handle).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
            raise NotAFileError(tile)
        yield _scenes(form, handle, options)
    finally:
        os.close(handle)


def _scenes(form: LineFormat, handle: int, options: Options) -> Iterator[tuple[LineSource, Pace | None]]:
    """The scenes of lines: one, or one after the other of so many lines."""
    most = options.scene_lines
    if most is not None and most > form.lines_max:
        raise OrderError(
            f"scenes of {most} lines; a stream holds at most {form.lines_max} of these",
            Fault.LIMIT,
            field="scene-lines",
            expected=f"at most {form.lines_max}",
            found=most,
        )
    where = (form.skip_bytes, options.timeout)
    waits = options.lowest_quality is None
    arrival = (
        Arrival(handle, form.line_bytes, *where)
        if waits
        else BufferedArrival(handle, form.line_bytes, options.buffer_mib * MIB, *where)
    )
    while True:
        source = LineSource(form, arrival, most)
        yield source, None if options.lowest_quality is None else Pace(source, options.lowest_quality)
        if most is None or form.height is not None and form.height <= most or not arrival.wait():
            return
        form = form.behind(most)
