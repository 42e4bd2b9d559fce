"""The command line of ``onboard-encode``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perigee.engines.choice import ENGINES
from perigee.onboard.bounded_encoder import PERCENT_MAX, ErrorBounds
from perigee.onboard.encoders import AUTO
from perigee.support.command import Parser, not_negative, positive

TAGS_MAX_BYTES = 4096
QUALITY = 50.0
BUFFER_MIB = 256
STDIN = "-"
TIMEOUT_MAX_S = 1_000_000
COMPONENT_OPTIONS = "--step, --band-weights, --sensor, --strip-rows and --measure-errors"


def _numbers(text: str, fits: Callable[[float], bool], wanted: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises ArgumentTypeError where one does not fit, and says what is wanted."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(fits, values)):
        raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
    return values


def _number(text: str, fits: Callable[[float], bool], wanted: str) -> float:
    """One number. Raises ArgumentTypeError as :func:`_numbers`."""
    values = _numbers(text, fits, wanted)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
    return values[0]


def _quality(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= 100, "a quality from 0 to 100")


def _positive_numbers(text: str) -> tuple[float, ...]:
    return _numbers(text, lambda value: 0 < value < math.inf, "a list of numbers above 0, such as 2 or 1,1,2,4")


def _errors(text: str) -> tuple[float, ...]:
    return _numbers(text, lambda value: 0 <= value < math.inf, "a list of numbers from 0 on, such as 2 or 1,1,2,4")


def _seconds(text: str) -> float:
    wanted = f"a number of seconds above 0 and at most {TIMEOUT_MAX_S}"
    return _number(text, lambda value: 0 < value <= TIMEOUT_MAX_S, wanted)


def _percent(text: str) -> float:
    return _number(text, lambda value: 0 < value <= PERCENT_MAX, f"a number above 0 and at most {PERCENT_MAX:g}")


@dataclass(frozen=True)
class Options:
    """Everything the command line decides."""

    tiles: list[Path]
    out: Path | None
    out_dir: Path | None
    quality: float
    step: tuple[float, ...]
    band_weights: tuple[float, ...]
    lossless: bool
    max_error: tuple[float, ...]
    max_relative_error: float
    jpeg_ls: bool
    sensor: Path | None
    strip_rows: int | None
    lines: Path | None
    scene_lines: int | None
    timeout: float | None
    lowest_quality: float | None
    buffer_mib: int
    profile: str
    format: int | None
    analysis: str | None
    engine: str
    threads: int | None
    metadata: Path | None
    verify: bool
    measure_errors: bool
    json: bool
    overwrite: bool
    tags_max: int
    strict: bool

    @property
    def bounds(self) -> ErrorBounds | None:
        """What is promised of every sample."""
        counts = (0.0,) if self.lossless else self.max_error
        return ErrorBounds(counts, self.max_relative_error) if counts or self.max_relative_error else None


def build_parser() -> Parser:
    """The command line of ``onboard-encode``."""
    parser = Parser(
        prog="onboard-encode",
        description="Encode GeoTIFFs as Perigee streams (.peri), as the satellite does. The command needs no torch. "
        "`onboard-encode doctor` examines the machine instead.",
        epilog="Exit codes: 0 all files were encoded, 64 usage, 65 unusable image or metadata, 66 input missing, 69 engine "
        "unavailable, 73 output cannot be created, 74 I/O error, 78 unusable profile. Of several files the first failure's code is "
        "returned.",
    )
    parser.add_argument(
        "tiles",
        nargs="+",
        type=Path,
        metavar="TILE.tif",
        help="GeoTIFF: 1 to 32 bands, uint8, uint16 or int16, or within a bound of the error float32",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="output of a single tile (default: beside it, suffix .peri)"
    )
    where.add_argument("--out-dir", type=Path, metavar="DIR", help="folder for the outputs")
    parser.add_argument(
        "-q", "--quality", type=_quality, metavar="Q", help=f"0 to 100, continuous (default {QUALITY:g})"
    )
    fidelity = parser.add_mutually_exclusive_group()
    fidelity.add_argument(
        "--step",
        type=_positive_numbers,
        default=(),
        metavar="COUNTS[,COUNTS...]",
        help="instead of a quality, the quantisation step in counts, for all bands or for each: errors have about 0.3 steps RMS "
        "(component profiles)",
    )
    fidelity.add_argument(
        "--band-weights",
        type=_positive_numbers,
        default=(),
        metavar="W[,W...]",
        help="how much each band's errors matter: a weight of 2 halves them (component profiles; default: 1 for each band's range)",
    )
    fidelity.add_argument(
        "--lossless", action="store_true", help="bring every valid sample back as it is (format version 2)"
    )
    fidelity.add_argument(
        "--max-error",
        type=_errors,
        default=(),
        metavar="E[,E...]",
        help="bring every valid sample back with at most this error, for all bands or for each: in counts, or for float samples in their unit; "
        "0 is lossless (format version 2)",
    )
    fidelity.add_argument(
        "--max-relative-error",
        type=_percent,
        default=0.0,
        metavar="PERCENT",
        help="bring every valid sample back within so many percent of itself, in whole counts but for float samples (format version 2)",
    )
    parser.add_argument(
        "--jpeg-ls",
        action="store_true",
        help="with --lossless or --max-error: code every patch as JPEG-LS images (ISO/IEC 14495-1), which `ground-decode --extract DIR` takes out "
        "and anybody can decode; about a tenth larger",
    )
    parser.add_argument(
        "--sensor",
        type=Path,
        metavar="FILE.json",
        help="what is known of the sensor: step_counts or band_weights (as --step and --band-weights, which go first), dead_columns "
        "(a list for each band), band_offsets (lines and columns by which bands are apart), and matrix, a fixed spectral transform "
        "(component profiles)",
    )
    parser.add_argument(
        "--strip-rows",
        type=positive,
        metavar="N",
        help="read the scene once, in strips of N rows of patches, each coded with parameters of the strip before (component "
        "profiles; default: read it twice and use parameters of the whole scene)",
    )
    lines = parser.add_argument_group("lines as they come from a detector")
    lines.add_argument(
        "--lines",
        type=Path,
        metavar="FILE.json",
        help="TILE.tif is no GeoTIFF but raw lines in a file or pipe, with - from standard input. The file describes them: width, bands, "
        "dtype, interleave (bil or bip; bsq from files alone), and where needed byte_order, height, skip_bytes, prefix_bytes, suffix_bytes, bits, "
        "nodata and calibration_lines (pairs of a first and a last line that are kept exactly). What stands around the samples of a line is "
        "carried as its record",
    )
    lines.add_argument(
        "--scene-lines",
        type=positive,
        metavar="N",
        help="end a scene after so many lines and begin the next one, without losing any between them; the outputs are numbered, as in "
        "OUT_000000.peri",
    )
    lines.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="how long to wait for more lines of a file that grows, or of a pipe; then the scene ends where the lines end (default: a file "
        "ends where it ends)",
    )
    lines.add_argument(
        "--lowest-quality",
        type=_quality,
        metavar="Q",
        help="lines cannot wait: read them ahead into a buffer, and as it fills code with lower quality, down to this one, instead of "
        "losing lines",
    )
    lines.add_argument(
        "--buffer-mib",
        type=positive,
        default=BUFFER_MIB,
        metavar="MIB",
        help="size of that buffer (default %(default)s)",
    )
    parser.add_argument(
        "--profile",
        default=AUTO,
        metavar="NAME_OR_DIR",
        help="trained codec; auto takes flight3 for three bands of uint8 and spectral1 for everything else (default %(default)s)",
    )
    parser.add_argument(
        "--format",
        type=int,
        choices=(1, 2),
        help="format version of the stream: 1 for ground software before 0.7, 2 for spectral components (default: that of the profile)",
    )
    parser.add_argument(
        "--analysis",
        metavar="NAME",
        help="one of the profile's analyses (default: swift if the profile has it, else its first)",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        default="auto",
        help="what runs the networks of a profile of format version 1; auto takes the first of tensorrt (where export-engine has "
        "built plans), cuda and onnxruntime that passes its self-test (default %(default)s)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of the engine (default: all cores)")
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE.json",
        help='acquisition fields as a STAC item or a flat JSON object, such as {"datetime": ..., "gsd_m": ...} '
        "(default: TILE.json where it exists, then the TIFF's tags)",
    )
    parser.add_argument(
        "--tags-max",
        type=not_negative,
        default=TAGS_MAX_BYTES,
        metavar="BYTES",
        help="largest size of the dataset's and bands' tags in the stream; 0 leaves them out (default %(default)s)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse a file of which something would be left behind, with exit code 65"
    )
    parser.add_argument("--verify", action="store_true", help="decode every patch's symbols again before it is written")
    parser.add_argument(
        "--measure-errors",
        action="store_true",
        help="reconstruct every patch as the ground will, and put RMS error, largest error and bias of each band, in counts, into the "
        "report and the stream (component profiles)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line for each scene on stdout")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    return parser


def asks_for_components(options: argparse.Namespace | Options) -> bool:
    wanted = (options.step, options.band_weights, options.sensor, options.strip_rows, options.measure_errors)
    return any(wanted)


def parse(argv: list[str] | None) -> Options:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out is not None and len(args.tiles) > 1:
        parser.error("--out takes one tile; use --out-dir for several")
    if args.format == 1 and asks_for_components(args):
        parser.error(f"{COMPONENT_OPTIONS} need format version 2")
    if args.lossless or args.max_error or args.max_relative_error:
        if args.format == 1:
            parser.error("bounds of the error need format version 2")
        if args.quality is not None or args.strip_rows:
            parser.error("a bound of the error goes without --quality and --strip-rows")
    if args.jpeg_ls and not (args.lossless or args.max_error):
        parser.error("--jpeg-ls goes with --lossless or --max-error")
    bounded = args.lossless or args.max_error or args.max_relative_error
    if args.lines is None:
        if args.timeout or args.lowest_quality is not None or args.scene_lines or Path(STDIN) in args.tiles:
            parser.error("standard input, --scene-lines, --timeout and --lowest-quality go with --lines")
    elif len(args.tiles) > 1 or args.tiles == [Path(STDIN)] and args.out is None:
        parser.error("--lines takes one input, and standard input an --out")
    elif args.format == 1:
        parser.error("--lines needs format version 2")
    elif args.lowest_quality is not None and bounded:
        parser.error("a bound of the error cannot be lowered: --lowest-quality goes without it")
    elif args.strip_rows is None and not bounded:
        args.strip_rows = 1
    if args.quality is None:
        args.quality = QUALITY
    return Options(**vars(args))
