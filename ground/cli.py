"""``ground-decode``: a Perigee stream to a Cloud-Optimised GeoTIFF or PNG, or a look at what it holds."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from perigee.bitstream.errors import Fault, OutputError, PerigeeError
from perigee.ground.environment import own_environment
from perigee.support.command import (
    Parser,
    complain,
    exit_code,
    exit_on_signals,
    positive,
    prepare_streams,
    run,
    say,
)
from perigee.support.files import destination, read_bounded

if TYPE_CHECKING:
    from perigee.ground.orders import Made

PROGRAM = "ground-decode"
SUFFIXES = {".tif": "tif", ".tiff": "tif", ".png": "png"}


def _numbers(text: str, count: int | None = None) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise argparse.ArgumentTypeError(f"{text!r} is not {count or 'a list of'} whole numbers with commas between")
    return values


def _window(text: str) -> list[int]:
    return _numbers(text, 4)


def _scale(text: str) -> str:
    if text not in ("1", "1/2", "1/4", "1/8", "1/16"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 1/2, 1/4, 1/8 or 1/16")
    return text


def build_parser() -> Parser:
    """The command line of ``ground-decode``."""
    parser = Parser(
        prog=PROGRAM,
        description="Decode a Perigee stream to a Cloud-Optimised GeoTIFF or PNG.",
        epilog="Exit codes: 0 done, 64 usage, 65 the stream is invalid, 66 input missing, 69 engine unavailable, 73 output cannot be "
        "created, 74 I/O error, 78 unusable or unknown profile.",
    )
    parser.add_argument("stream", type=Path, metavar="IN.peri", help="stream to decode")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT.tif|.png", help="product (default: beside the stream, .tif)"
    )
    parser.add_argument(
        "--info", action="store_true", help="print what the stream says of itself as JSON; decode nothing"
    )
    parser.add_argument("--window", type=_window, metavar="TOP,LEFT,ROWS,COLS", help="only this part, in pixels")
    parser.add_argument("--bands", type=_numbers, metavar="1,2,...", help="only these bands, counted from 1")
    parser.add_argument("--scale", type=_scale, default="1", metavar="1/2..1/16", help="reduced size")
    parser.add_argument(
        "--profiles",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a profile or compensator of your own, or a folder of several (repeatable)",
    )
    parser.add_argument(
        "--effort",
        choices=("full", "fast"),
        default="full",
        help="fast decodes streams of format version 2 by integers alone: faster, the same samples on every machine, and less close to the "
        "original at low quality; other streams are decoded as with full (default %(default)s)",
    )
    parser.add_argument(
        "--compensation",
        default="none",
        metavar="NAME[:METHOD]",
        help="add generated detail where the codec lost it, by this compensator (default: none, only what was measured)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="number of diffusion steps (default: the compensator's own)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the noise that detail is made of (default %(default)s)",
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="0..1",
        help="share of the detail that is added (default %(default)g)",
    )
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="OUT.tif",
        help="also write, for each pixel, half the width of its 90 %% error interval, and where detail was generated; with "
        "--strength 0 the interval is that of the image without generated detail",
    )
    parser.add_argument(
        "--unknown-crs",
        choices=("refuse", "keep", "drop"),
        default="refuse",
        help="what to do with a CRS that cannot be interpreted: refuse with exit code 65, keep it as text in a tag, or drop it "
        "(default %(default)s)",
    )
    parser.add_argument("--stac", type=Path, metavar="OUT.json", help="also write a STAC item of the product")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--damaged", action="store_true", help="decode what is sound of a damaged stream and report the rest"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing product")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    prepare_streams()
    parser = build_parser()
    args = parser.parse_args(argv)
    args.out = args.out or args.stream.with_suffix(".tif")
    if args.out.suffix.lower() not in SUFFIXES:
        parser.error(f"{args.out}: the product's suffix must be .tif, .tiff or .png")
    exit_on_signals()
    own_environment(PROGRAM)
    return run(PROGRAM, "ground", lambda: _information(args) if args.info else _decode(args))


def _information(args: argparse.Namespace) -> int:
    """Print what a stream, or a metadata packet that travelled alone, says of itself."""
    from perigee.ground.inspection import inspect_bytes

    try:
        described = inspect_bytes(read_bounded(args.stream), args.damaged)
    except PerigeeError as error:
        return _failed(error, args.stream)
    return say(PROGRAM, json.dumps(described, indent=1))


def _decode(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from perigee.ground.library import Library
    from perigee.ground.orders import IMAGE, STAC, TRUST, Order, make

    data = read_bounded(args.stream)
    paths = {IMAGE: args.out} | {name: p for name, p in ((TRUST, args.trust), (STAC, args.stac)) if p is not None}
    order = Order(
        SUFFIXES[args.out.suffix.lower()],
        tuple(args.window) if args.window else None,
        tuple(args.bands) if args.bands else None,
        args.scale,
        args.damaged,
        args.compensation,
        args.steps,
        args.seed,
        args.strength,
        tuple(paths),
        args.unknown_crs,
        args.effort,
    )
    _check_outputs(args.stream, list(paths.values()), args.overwrite)
    start = time.perf_counter()
    with tqdm(unit="px", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            made = make(order, data, Library(args.profiles, args.threads), paths, progress=progress)
        except PerigeeError as error:
            return _failed(error, args.stream)
    return _tell(args, made, time.perf_counter() - start)


def _failed(error: PerigeeError, stream: Path) -> int:
    """Print an error that concerns the stream with its name; the exit code."""
    code = exit_code(error)
    complain(f"{PROGRAM}: {f'{stream}: ' if code == os.EX_DATAERR else ''}{error}")
    return code


def _destination(out: Path) -> Path:
    """Where an output's path leads. Raises OutputError where it leads nowhere."""
    try:
        return destination(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be reached ({error.strerror})", found=str(out)) from error


def _check_outputs(stream: Path, outputs: list[Path], overwrite: bool) -> None:
    """Raise OutputError where an output must not or cannot be written, before any work is done."""
    places = [_destination(out) for out in outputs]
    for i, out in enumerate(outputs):
        if places[i] in (stream.resolve(), *places[:i], *places[i + 1 :]):
            raise OutputError(f"{out} is the stream itself or named twice; choose another output", Fault.EXISTS)
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists; --overwrite replaces it", Fault.EXISTS, found=str(out))
        if out.exists() and not out.is_file():
            raise OutputError(f"{out} is not a regular file; choose another output", Fault.EXISTS, found=str(out))
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {out.parent} does not exist or cannot be written to", found=str(out.parent))


def _tell(args: argparse.Namespace, made: Made, seconds: float) -> int:
    """Print what was made on stdout, and what could not be given on stderr; the exit code."""
    rows, cols = made.view.size
    code = say(
        PROGRAM, f"{args.stream} -> {args.out}: {cols}x{rows} pixels, {len(made.view.bands)} bands, {seconds:.2f} s"
    )
    for line in made.warnings():
        complain(line)
    return code
