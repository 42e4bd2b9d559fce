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
from perigee.onboard.lines import BSQ, BandsOfFile, LineSource, read_line_format
from perigee.onboard.pace import Pace
from perigee.onboard.raster import Raster
from perigee.support.files import NotAFileError, check_regular

MIB = 1 << 20
Input = Raster | LineSource | BandsOfFile


@contextmanager
def opened(tile: Path, options: Options) -> Iterator[tuple[Input, Pace | None]]:
    """The source of a scene, and what chooses the quality of lines that cannot wait. Raises OrderError for bands one after the other from a pipe,
    NotAFileError for what is neither a file nor a pipe, and what the sources raise."""
    if options.lines is None:
        check_regular(tile)
        with Raster(tile, options.tags_max) as raster:
            yield raster, None
        return
    form = read_line_format(options.lines)
    piped = str(tile) == STDIN or stat.S_ISFIFO(tile.stat().st_mode)
    if form.interleave == BSQ:
        if piped:
            raise OrderError(
                "bands that come one after the other (bsq) can only be read from a file, since a strip needs all of them; accepted from a pipe "
                "are bil and bip",
                Fault.KIND,
                field="interleave",
                expected="bil, bip",
                found=BSQ,
            )
        check_regular(tile)
        yield BandsOfFile(form, tile), None
        return
    if not piped:
        check_regular(tile)
    handle = os.dup(0) if str(tile) == STDIN else os.open(tile, os.O_RDONLY)
    try:
        if str(tile) == STDIN and not (stat.S_ISFIFO(mode := os.fstat(handle).st_mode) or stat.S_ISREG(mode)):
            raise NotAFileError(tile)
        where = (handle, form.line_bytes)
        if options.lowest_quality is None:
            yield LineSource(form, Arrival(*where, form.skip_bytes, options.timeout)), None
        else:
            buffer_bytes = options.buffer_mib * MIB
            source = LineSource(form, BufferedArrival(*where, buffer_bytes, form.skip_bytes, options.timeout))
            yield source, Pace(source, options.lowest_quality)
    finally:
        os.close(handle)
