"""``onboard-encode``: GeoTIFFs to Perigee streams. Exit codes as in ``sysexits.h``; stdout carries JSON lines or one line a scene."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from perigee.bitstream.component_profile import find_component_profile
from perigee.bitstream.errors import Fault, MetadataError, OutputError, PerigeeError, ProfileError
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile
from perigee.engines.choice import ENGINES, choose
from perigee.engines.flight import FlightEngine
from perigee.onboard.bounded_encoder import PERCENT_MAX, BoundedEncoder, ErrorBounds
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.encoders import AUTO, Encoders, is_component_profile
from perigee.onboard.fidelity import Fidelity
from perigee.onboard.report import report_of, summary
from perigee.onboard.sensor import Sensor, read_sensor
from perigee.support.command import (
    Parser,
    complain,
    exit_code,
    exit_on_signals,
    not_negative,
    positive,
    prepare_streams,
    run,
    say,
    sentence,
)
from perigee.support.files import check_regular, destination, replacing
from perigee.support.findings import tell

PROGRAM = "onboard-encode"
TAGS_MAX_BYTES = 4096
QUALITY = 50.0
COMPONENT_OPTIONS = "--step, --band-weights, --sensor, --strip-rows and --measure-errors"


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a quality from 0 to 100")
    return value


def _positive_numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(0 < value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers above 0, such as 2 or 1,1,2,4")
    return values


def _errors(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (-1.0,)
    if not all(0 <= value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers from 0 on, such as 2 or 1,1,2,4")
    return values


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= PERCENT_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most {PERCENT_MAX:g}")
    return value


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
        help="with --lossless or --max-error: code every patch as JPEG-LS images (ISO/IEC 14495-1), which `ground-decode --jpeg-ls DIR` takes out "
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


def _asks_for_components(options: argparse.Namespace | Options) -> bool:
    wanted = (options.step, options.band_weights, options.sensor, options.strip_rows, options.measure_errors)
    return any(wanted)


def _parse(argv: list[str] | None) -> Options:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out is not None and len(args.tiles) > 1:
        parser.error("--out takes one tile; use --out-dir for several")
    if args.format == 1 and _asks_for_components(args):
        parser.error(f"{COMPONENT_OPTIONS} need format version 2")
    if args.lossless or args.max_error or args.max_relative_error:
        if args.format == 1:
            parser.error("bounds of the error need format version 2")
        if args.quality is not None or args.strip_rows:
            parser.error("a bound of the error goes without --quality and --strip-rows")
    if args.jpeg_ls and not (args.lossless or args.max_error):
        parser.error("--jpeg-ls goes with --lossless or --max-error")
    if args.quality is None:
        args.quality = QUALITY
    return Options(**vars(args))


def _target(tile: Path, options: Options, written: set[Path]) -> Path:
    out = options.out or (options.out_dir or tile.parent) / (tile.stem + ".peri")
    try:
        if destination(out) in written:
            raise OutputError(f"{out} was written for another tile a moment ago")
        if out.exists() and not options.overwrite:
            raise OutputError(f"{out} exists; --overwrite replaces it")
        if out.exists() and (not out.is_file() or out.samefile(tile)):
            raise OutputError(f"{out} is the input itself or not a regular file; choose another output")
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {out.parent} does not exist or cannot be written to")
    except OSError as error:
        raise OutputError(f"{out} cannot be reached ({error.strerror})") from error
    return out


def _encode_one(tile: Path, options: Options, encoders: Encoders, written: set[Path]) -> dict[str, Any]:
    from tqdm import tqdm

    from perigee.onboard.acquisition import read_acquisition
    from perigee.onboard.raster import Raster

    if not tile.exists():
        raise FileNotFoundError(f"no such file: {tile}")
    check_regular(tile)
    out = _target(tile, options, written)
    sidecar = tile.with_suffix(".json")
    source = options.metadata or (sidecar if sidecar.is_file() else None)
    start = time.perf_counter()
    with (
        Raster(tile, options.tags_max) as raster,
        _unfinished(out) as stream,
        tqdm(unit="patch", desc=tile.name, leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        acquisition = read_acquisition(source) if source else None
        encoder = (
            encoders.bounded_encoder(options.bounds, options.jpeg_ls)
            if options.bounds
            else encoders.encoder_for(raster.info)
        )

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        sensor = read_sensor(options.sensor) if options.sensor else Sensor()
        if isinstance(encoder, BoundedEncoder):
            scene = encoder.encode_scene(raster, acquisition, options.verify, progress, sensor, stream)
        elif isinstance(encoder, ComponentEncoder):
            given = options.step or options.band_weights
            fidelity = (
                Fidelity(options.band_weights, options.step)
                if given
                else Fidelity(sensor.band_weights, sensor.step_counts)
            )
            scene = encoder.encode_scene(
                raster, options.quality, acquisition, options.verify, progress, options.strip_rows, fidelity,
                options.measure_errors, sensor, stream,
            )  # fmt: skip
        elif _asks_for_components(options):
            raise ProfileError(
                f"{COMPONENT_OPTIONS} are for component profiles; this scene is coded with {encoder.profile.name}",
                Fault.MISFIT,
                field="profile",
            )
        else:
            scene = encoder.encode_scene(raster, options.quality, acquisition, options.verify, progress, stream)
        left_behind = list(raster.left_behind)
        if left_behind and options.strict:
            raise MetadataError(f"not carried: {'; '.join(left_behind)}", Fault.KIND, found="; ".join(left_behind))
        with scene.timings.stage("write"):
            try:
                stream.seek(0)
                with replacing(out) as part, part.open("wb") as file:
                    shutil.copyfileobj(stream, file)
            except OSError as error:
                raise OutputError(f"{out} cannot be written ({error.strerror})") from error
    written.add(destination(out))
    total_ms = 1000 * (time.perf_counter() - start)
    return report_of(tile, out, raster.info, encoder, scene, left_behind, total_ms)


def _unfinished(out: Path) -> IO[bytes]:
    """A file without a name beside an output, for a stream that is not whole yet. Raises OutputError."""
    try:
        return tempfile.TemporaryFile(dir=out.parent)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror})") from error


def build_doctor_parser() -> Parser:
    """The command line of ``onboard-encode doctor``."""
    parser = Parser(
        prog="onboard-encode doctor",
        description="Say what this machine has, which engines pass their self-tests, and how fast they encode.",
        epilog="Exit codes: 0 all is well, 69 something failed.",
    )
    parser.add_argument(
        "--profile",
        default=DEFAULT_PROFILE,
        metavar="NAME_OR_DIR",
        help="trained codec to examine (default %(default)s)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of the engine (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each finding")
    return parser


def _doctor(argv: list[str]) -> int:
    args = build_doctor_parser().parse_args(argv)

    def body() -> int:
        from perigee.onboard.component_health import examine_components
        from perigee.onboard.health import examine

        components = is_component_profile(args.profile)
        findings = (
            examine_components(find_component_profile(args.profile))
            if components
            else examine(find_profile(args.profile), args.threads)
        )
        return tell(PROGRAM, findings, args.json)

    return run(PROGRAM, "onboard", body)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``onboard-encode``."""
    prepare_streams()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"] and not Path("doctor").is_file():
        return _doctor(argv[1:])
    options = _parse(argv)
    exit_on_signals()
    return run(PROGRAM, "onboard", lambda: _encode_all(options))


def _encode_all(options: Options) -> int:
    """Encode one file after the other; the first failure's exit code, or 0."""
    passed_over: dict[str, str] = {}

    def load(profile: Profile) -> FlightEngine:
        choice = choose(profile, options.engine, options.threads, options.analysis)
        passed_over.update(choice.passed_over)
        return choice.engine

    encoders = Encoders(options.profile, load, options.format)
    if options.profile != AUTO:
        encoders.encoder_of(options.profile)  # what it lacks is no fault of the first file
    first_failure = os.EX_OK
    written: set[Path] = set()
    for tile in options.tiles:
        try:
            report = _encode_one(tile, options, encoders, written)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            code = exit_code(error)
            first_failure = first_failure or code
            kind = "internal error, please report: " if code == os.EX_SOFTWARE else ""
            reason = f"{kind}{sentence(error)}"
            complain(f"{PROGRAM}: {tile}: {reason}")
            if options.json:
                data = error.data() if isinstance(error, PerigeeError) else {}
                say(PROGRAM, json.dumps({"file": str(tile), "exit_code": code} | data | {"error": reason}))
            continue
        if passed_over:
            report["engines_passed_over"] = passed_over
        for line in report["left_behind"]:
            complain(f"{PROGRAM}: {tile}: not carried: {line}")
        said = say(PROGRAM, json.dumps(report) if options.json else summary(report))
        first_failure = first_failure or said
    return first_failure
