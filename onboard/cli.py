"""``onboard-encode``: GeoTIFFs to Perigee streams. Exit codes as in ``sysexits.h``; stdout carries JSON lines or one line a scene."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from perigee.bitstream.component_profile import find_component_profile
from perigee.bitstream.errors import Fault, MetadataError, OutputError, PerigeeError, ProfileError
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile
from perigee.engines.choice import choose
from perigee.engines.flight import FlightEngine
from perigee.onboard.arguments import COMPONENT_OPTIONS, STDIN, Options, asks_for_components, parse
from perigee.onboard.bounded_encoder import BoundedEncoder
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
    positive,
    prepare_streams,
    run,
    say,
    sentence,
)
from perigee.support.files import NotAFileError, destination, replacing
from perigee.support.findings import tell

if TYPE_CHECKING:
    from perigee.bitstream.metadata import Acquisition
    from perigee.onboard.inputs import Input
    from perigee.onboard.pace import Pace

PROGRAM = "onboard-encode"


def _target(tile: Path, options: Options, written: set[Path], number: int = 0) -> Path:
    out = options.out or (options.out_dir or tile.parent) / (tile.stem + ".peri")
    if options.scene_lines:
        out = out.with_stem(f"{out.stem}_{number:06}")
    try:
        if destination(out) in written:
            raise OutputError(f"{out} was written for another tile a moment ago")
        if out.exists() and not options.overwrite:
            raise OutputError(f"{out} exists; --overwrite replaces it")
        if out.exists() and (not out.is_file() or str(tile) != STDIN and out.samefile(tile)):
            raise OutputError(f"{out} is the input itself or not a regular file; choose another output")
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {out.parent} does not exist or cannot be written to")
    except OSError as error:
        raise OutputError(f"{out} cannot be reached ({error.strerror})") from error
    return out


def _encode_input(tile: Path, options: Options, encoders: Encoders, written: set[Path]) -> Iterator[dict[str, Any]]:
    """Encode the scenes of an input, one or several; their reports."""
    from perigee.onboard.acquisition import read_acquisition
    from perigee.onboard.inputs import opened

    if str(tile) != STDIN and not tile.exists():
        raise FileNotFoundError(f"no such file: {tile}")
    if tile.is_dir():
        raise NotAFileError(tile)
    first = _target(tile, options, written)
    sidecar = tile.with_suffix(".json")
    given = options.metadata or (sidecar if sidecar.is_file() and not options.lines else None)
    acquisition = read_acquisition(given) if given else None
    with opened(tile, options) as scenes:
        for number, (source, pace) in enumerate(scenes):
            out = _target(tile, options, written, number) if options.scene_lines else first
            yield _encode_scene(tile, out, source, pace, acquisition, options, encoders)
            written.add(destination(out))


def _encode_scene(
    tile: Path,
    out: Path,
    source: Input,
    pace: Pace | None,
    acquisition: Acquisition | None,
    options: Options,
    encoders: Encoders,
) -> dict[str, Any]:
    """Encode a scene into a file; the report."""
    from tqdm import tqdm

    start = time.perf_counter()
    with (
        _unfinished(out) as stream,
        tqdm(unit="patch", desc=out.name, leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        encoder = (
            encoders.bounded_encoder(options.bounds, options.jpeg_ls)
            if options.bounds
            else encoders.encoder_for(source.info)
        )

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        sensor = read_sensor(options.sensor) if options.sensor else Sensor()
        if isinstance(encoder, BoundedEncoder):
            scene = encoder.encode_scene(source, acquisition, options.verify, progress, sensor, stream)
        elif isinstance(encoder, ComponentEncoder):
            fidelity = (
                Fidelity(options.band_weights, options.step)
                if options.step or options.band_weights
                else Fidelity(sensor.band_weights, sensor.step_counts)
            )
            scene = encoder.encode_scene(
                source, options.quality, acquisition, options.verify, progress, options.strip_rows, fidelity,
                options.measure_errors, sensor, stream, pace,
            )  # fmt: skip
        elif asks_for_components(options):
            raise ProfileError(
                f"{COMPONENT_OPTIONS} are for component profiles; this scene is coded with {encoder.profile.name}",
                Fault.MISFIT,
                field="profile",
            )
        else:
            scene = encoder.encode_scene(source, options.quality, acquisition, options.verify, progress, stream)
        left_behind = list(source.left_behind)
        if left_behind and options.strict:
            raise MetadataError(f"not carried: {'; '.join(left_behind)}", Fault.KIND, found="; ".join(left_behind))
        with scene.timings.stage("write"):
            try:
                stream.seek(0)
                with replacing(out) as part, part.open("wb") as file:
                    file.write(scene.head)
                    shutil.copyfileobj(stream, file)
            except OSError as error:
                raise OutputError(f"{out} cannot be written ({error.strerror})") from error
    total_ms = 1000 * (time.perf_counter() - start)
    changes = pace.changes if pace else None
    return report_of(tile, out, source.info, encoder, scene, left_behind, total_ms, changes)


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
    options = parse(argv)
    exit_on_signals()
    return run(PROGRAM, "onboard", lambda: _encode_all(options))


def _encode_all(options: Options) -> int:
    """Encode one file after the other; the first failure's exit code, or 0."""
    passed_over: dict[str, str] = {}

    def load(profile: Profile) -> FlightEngine:
        choice = choose(profile, options.engine, options.threads, options.analysis)
        passed_over.update(choice.passed_over)
        return choice.engine

    encoders = Encoders(options.profile, load, 2 if options.lines else options.format)
    if options.profile != AUTO:
        encoders.encoder_of(options.profile)  # what it lacks is no fault of the first file
    first_failure = os.EX_OK
    written: set[Path] = set()
    for tile in options.tiles:
        try:
            for report in _encode_input(tile, options, encoders, written):
                if passed_over:
                    report["engines_passed_over"] = passed_over
                for line in report["left_behind"]:
                    complain(f"{PROGRAM}: {tile}: not carried: {line}")
                said = say(PROGRAM, json.dumps(report) if options.json else summary(report))
                first_failure = first_failure or said
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
    return first_failure
