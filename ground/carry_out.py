"""How ``ground-decode`` and ``ground-enhance`` do a task: a progress bar while it lasts, one line when it is done."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from perigee.bitstream.errors import PerigeeError
from perigee.ground.arguments import backend_of, check_outputs
from perigee.ground.enhancing import Wish
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, Order, OrderLimits
from perigee.ground.work import Task, perform
from perigee.support.command import complain, exit_code, say


def failed(program: str, given: Path, error: PerigeeError) -> int:
    """Print an error, with the name of the file where it concerns that; the exit code."""
    code = exit_code(error)
    complain(f"{program}: {f'{given}: ' if code == os.EX_DATAERR else ''}{error}")
    return code


def carry_out(
    program: str,
    args: argparse.Namespace,
    given: Path,
    order: Order,
    paths: Mapping[str, Path],
    wish: Wish | None = None,
    guide: Path | None = None,
) -> int:
    """Make the products of a file at ``paths``, with the map ``guide`` where there is one; say on stdout what was made and on stderr what could not
    be given; the exit code.

    Raises OutputError where an output must not be written, and what ``work.perform`` raises that is no PerigeeError.
    """
    from tqdm import tqdm

    check_outputs(given, list(paths.values()), args.overwrite)
    start = time.perf_counter()
    with tqdm(unit="px", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            library = Library(args.profiles, args.threads, backend_of(args, program))
            made = perform(Task(order, given, paths, OrderLimits(), wish, guide), library, progress)
        except PerigeeError as error:
            return failed(program, given, error)
    seconds = time.perf_counter() - start
    rows, cols = made.size
    code = say(program, f"{given} -> {paths[IMAGE]}: {cols}x{rows} pixels, {made.bands} bands, {seconds:.2f} s")
    for line in made.warnings:
        complain(line)
    return code
