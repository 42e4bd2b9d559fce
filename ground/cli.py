"""``ground-decode``: a Perigee stream to a Cloud-Optimised GeoTIFF or PNG, or a look at what it holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from perigee.bitstream.errors import PerigeeError
from perigee.ground.arguments import SUFFIXES, add_engine, add_map, add_output, add_view, map_classes_of
from perigee.ground.environment import own_environment
from perigee.support.command import (
    Parser,
    exit_on_signals,
    prepare_streams,
    run,
    say,
)
from perigee.support.files import read_bounded

PROGRAM = "ground-decode"


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
    parser.add_argument(
        "--extract",
        type=Path,
        metavar="DIR",
        help="write what others can read as it is into a new folder: the JPEG-LS images of a stream that was encoded with --jpeg-ls, "
        "the records of its lines, and an index; decode nothing",
    )
    add_view(parser)
    parser.add_argument(
        "--effort",
        choices=("full", "fast"),
        default="full",
        help="fast decodes without the synthesis network: a quick look, several times as fast and up to 1 dB less close to the original; streams "
        "of format version 2 then have the same samples on every machine, and those of profiles without a linear analysis are decoded as "
        "with full (default %(default)s)",
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
    add_map(parser)
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="OUT.tif",
        help="also write, for each pixel, half the width of its 90 %% error interval, and where detail was generated; with "
        "--strength 0 the interval is that of the image without generated detail",
    )
    add_output(parser)
    add_engine(parser)
    parser.add_argument(
        "--damaged", action="store_true", help="decode what is sound of a damaged stream and report the rest"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    prepare_streams()
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.extract and (args.out or args.info):
        parser.error("--extract writes a folder and nothing else: it goes without --out and --info")
    args.out = args.out or args.stream.with_suffix(".tif")
    if args.out.suffix.lower() not in SUFFIXES:
        parser.error(f"{args.out}: the product's suffix must be .tif, .tiff or .png")
    exit_on_signals()
    own_environment(PROGRAM)
    body = _information if args.info else _extract if args.extract else _decode
    return run(PROGRAM, "ground", lambda: body(args))


def _information(args: argparse.Namespace) -> int:
    """Print what a stream, or a metadata packet that travelled alone, says of itself."""
    from perigee.ground.carry_out import failed
    from perigee.ground.inspection import inspect_bytes

    try:
        described = inspect_bytes(read_bounded(args.stream), args.damaged)
    except PerigeeError as error:
        return failed(PROGRAM, args.stream, error)
    return say(PROGRAM, json.dumps(described, indent=1))


def _extract(args: argparse.Namespace) -> int:
    """Write the JPEG-LS images and records of a stream into a folder."""
    from perigee.ground.carry_out import failed
    from perigee.ground.extraction import extract

    try:
        index = extract(read_bounded(args.stream), args.extract, args.damaged)
    except PerigeeError as error:
        return failed(PROGRAM, args.stream, error)
    lines = index.get("records", {}).get("lines", 0)
    return say(
        PROGRAM, f"{args.stream} -> {args.extract}: {len(index['images'])} JPEG-LS images, records of {lines} lines"
    )


def _decode(args: argparse.Namespace) -> int:
    from perigee.ground.carry_out import carry_out
    from perigee.ground.orders import IMAGE, STAC, TRUST, Order

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
        map_classes_of(args),
    )
    return carry_out(PROGRAM, args, args.stream, order, paths, guide=args.map)
