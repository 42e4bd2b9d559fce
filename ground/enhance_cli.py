"""``ground-enhance``: an image that JPEG 2000 or JPEG has coded, closer to its original, as a Cloud-Optimised GeoTIFF or PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

from perigee.bitstream.conditions import FILE_CODECS
from perigee.engines.enhancer import DEFAULT_ENHANCER
from perigee.ground.arguments import SUFFIXES, add_engine, add_output, add_view
from perigee.ground.environment import own_environment
from perigee.support.command import Parser, exit_on_signals, prepare_streams, run

PROGRAM = "ground-enhance"


def build_parser() -> Parser:
    """The command line of ``ground-enhance``."""
    parser = Parser(
        prog=PROGRAM,
        description="Bring an image that JPEG 2000 or JPEG has coded closer to its original. What is added is an estimate, and the product's "
        "tags say so. Images that were coded without loss or at high rates stay as they are, and so do bands that the method was not "
        "trained on.",
        epilog="Exit codes: 0 done, 64 usage, unusable or unknown method, 65 the image is invalid, 66 input missing, 69 engine unavailable, "
        "73 output cannot be created, 74 I/O error.",
    )
    parser.add_argument(
        "image", type=Path, metavar="IN", help="JPEG 2000 or JPEG file, GeoTIFF that holds either, or Perigee stream"
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.tif|.png", help="product, with its georeferencing"
    )
    parser.add_argument(
        "--method", default=DEFAULT_ENHANCER, metavar="NAME", help="enhancer that is used (default %(default)s)"
    )
    parser.add_argument(
        "--codec",
        choices=FILE_CODECS,
        help="how the image was coded, for a file that does not say so, such as one that was decoded and saved without compression",
    )
    parser.add_argument(
        "--bpp", type=float, metavar="X", help="bits per pixel that it took (default: those of the file)"
    )
    add_view(parser)
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="0..1", help="share of what is added (default %(default)g)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of a generated prior (default %(default)s)"
    )
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="OUT.tif",
        help="also write, for each pixel of bands 1 to 3, half the width of its 90 %% error interval, and where the image was changed",
    )
    add_output(parser)
    add_engine(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    prepare_streams()
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in SUFFIXES:
        parser.error(f"{args.out}: the product's suffix must be .tif, .tiff or .png")
    exit_on_signals()
    own_environment(PROGRAM)
    return run(PROGRAM, "ground", lambda: _enhance(args))


def _enhance(args: argparse.Namespace) -> int:
    from perigee.ground.carry_out import carry_out
    from perigee.ground.enhancing import Wish
    from perigee.ground.orders import IMAGE, STAC, TRUST, Order

    paths = {IMAGE: args.out} | {name: p for name, p in ((TRUST, args.trust), (STAC, args.stac)) if p is not None}
    order = Order(
        SUFFIXES[args.out.suffix.lower()],
        tuple(args.window) if args.window else None,
        tuple(args.bands) if args.bands else None,
        args.scale,
        compensation=args.method,
        seed=args.seed,
        strength=args.strength,
        products=tuple(paths),
        unknown_crs=args.unknown_crs,
    )
    return carry_out(PROGRAM, args, args.image, order, paths, Wish(args.codec, args.bpp))
