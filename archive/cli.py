"""``perigee-archive``: decode, enhance or encode any number of objects, in folders or object stores, on Ray."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perigee.ground.arguments import add_map, map_classes_of
from perigee.support.command import Parser, complain, exit_on_signals, positive, prepare_streams, run, say
from perigee.support.cores import usable_cores

if TYPE_CHECKING:
    from perigee.archive.records import Report
    from perigee.archive.stores import Key
    from perigee.archive.work import Work

PROGRAM = "perigee-archive"
SOURCE = (
    "a folder, s3://BUCKET/PREFIX, gs://..., az://..., a pattern such as 's3://BUCKET/2026/**/*.peri', one object, @LIST (a file with an address on "
    "each line), or a STAC collection or item (.json)"
)
FAILURES_TOLD = 20
WORKERS_MAX = 1024


def _number(text: str, low: float, high: float, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def _quality(text: str) -> float:
    return _number(text, 0, 100, "a quality from 0 to 100")


def _bound(text: str) -> float:
    return _number(text, 0, 1e9, "a largest error of 0 or more")


def _share(text: str) -> float:
    return _number(text, 0.01, 1, "a share of a GPU from 0.01 to 1")


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``perigee-archive``."""
    parser = Parser(
        prog=PROGRAM,
        description="Work on archives: each object becomes a product with a STAC item beside it, and a product that is there already from the "
        "same bytes in the same way is not made again, so that a run which was interrupted goes on when the command is repeated. Credentials "
        "and endpoints of object stores come from the environment, such as AWS_ENDPOINT_URL.",
        epilog="Exit codes: 0 everything is made, 64 usage or unusable source, 65 some objects failed (see --report), 66 input missing, 69 Ray or an "
        "engine is unavailable, 73 output cannot be written, 74 I/O error, 78 unusable profile.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="decode|enhance|encode")
    decode = kinds.add_parser(
        "decode", help="streams to Cloud-Optimised GeoTIFFs", description="Decode streams to COGs with STAC items."
    )
    _add_common(decode)
    _add_order(decode)
    decode.add_argument(
        "--effort",
        choices=("full", "fast"),
        default="full",
        help="fast leaves out the synthesis network (default %(default)s)",
    )
    decode.add_argument(
        "--compensation",
        default="none",
        metavar="NAME[:METHOD]",
        help="add generated detail by this compensator or enhancer (default: none)",
    )
    decode.add_argument("--damaged", action="store_true", help="decode what is sound of damaged streams")
    add_map(decode)
    enhance = kinds.add_parser(
        "enhance",
        help="JPEG 2000 and JPEG files to enhanced COGs",
        description="Enhance JPEG 2000 and JPEG files, or GeoTIFFs that hold either.",
    )
    _add_common(enhance)
    _add_order(enhance)
    enhance.add_argument("--method", default="restore", metavar="NAME", help="enhancer (default %(default)s)")
    encode = kinds.add_parser(
        "encode", help="GeoTIFFs to streams", description="Encode GeoTIFFs to streams, as onboard-encode does."
    )
    _add_common(encode)
    encode.add_argument(
        "--quality", type=_quality, default=50.0, metavar="0..100", help="quality (default %(default)g)"
    )
    encode.add_argument(
        "--max-error", type=_bound, metavar="X", help="largest error of any sample instead; 0 is lossless"
    )
    encode.add_argument("--profile", default="auto", metavar="NAME|DIR", help="profile (default %(default)s)")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help=SOURCE)
    add("destination", metavar="DEST", help="a folder, s3://BUCKET/PREFIX, gs://... or az://...")
    add("--report", type=Path, metavar="FILE.jsonl", help="write a line of JSON for each object")
    add("--retry", type=Path, metavar="FILE.jsonl", help="only the objects that failed in this report")
    add("--again", action="store_true", help="make products again that are there already")
    add(
        "--workers",
        type=positive,
        metavar="N",
        help="worker processes (default: as many as this machine or the cluster has room for)",
    )
    add("--threads", type=positive, default=1, metavar="N", help="CPU threads of each worker (default %(default)s)")
    add("--gpus", type=_share, default=0.0, metavar="X", help="share of a GPU that each worker takes (default: none)")
    add(
        "--engine",
        default="auto",
        metavar="NAME",
        help="what runs the networks, as of ground-decode (default %(default)s)",
    )
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="a running Ray cluster of which this machine is a node: auto, or HOST:PORT (default: Ray on this machine alone)",
    )
    add(
        "--profiles",
        action="append",
        default=[],
        metavar="DIR",
        help="profiles, compensators or enhancers of your own (repeatable)",
    )
    add("--metrics-port", type=positive, metavar="PORT", help="serve Prometheus metrics on this port of loopback")


def _add_order(parser: argparse.ArgumentParser) -> None:
    from perigee.ground.arguments import numbers, scale

    parser.add_argument("--bands", type=numbers, metavar="1,2,...", help="only these bands, counted from 1")
    parser.add_argument("--scale", type=scale, default="1", metavar="1/2..1/16", help="reduced size")
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="0..1", help="share of what is added (default %(default)g)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of what is generated (default %(default)s)"
    )
    parser.add_argument(
        "--unknown-crs",
        choices=("refuse", "keep", "drop"),
        default="refuse",
        help="a CRS that cannot be interpreted (default %(default)s)",
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    prepare_streams()
    args = build_parser().parse_args(argv)
    exit_on_signals()
    return run(PROGRAM, "archive", lambda: _work(args))


def _ordered(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of the products, as fields of :class:`Work`. Raises OrderError, MapError or CompensationError."""
    from perigee.archive.work import ENCODE, ENHANCE, Encoding
    from perigee.ground.maps.classes import classes_from_json
    from perigee.ground.maps.reading import read_map
    from perigee.ground.orders import Order

    if args.kind == ENCODE:
        return {"encoding": Encoding(args.quality, args.max_error, args.profile)}
    compensation = args.method if args.kind == ENHANCE else args.compensation
    _check_addition(compensation, args.profiles)
    common = {
        "bands": tuple(args.bands) if args.bands else None,
        "scale": args.scale,
        "compensation": compensation,
        "seed": args.seed,
        "strength": args.strength,
        "unknown_crs": args.unknown_crs,
    }
    if args.kind == ENHANCE:
        return {"order": Order(**common)}
    classes = map_classes_of(args)
    if args.map:
        read_map(
            args.map, classes_from_json(classes) if classes else None
        )  # one that is unusable is told of before any work
    order = Order(**common, damaged=args.damaged, effort=args.effort, map_classes=classes)
    return {"order": order, "guide": str(args.map.resolve()) if args.map else None}


def _check_addition(name: str, folders: list[str]) -> None:
    """Raise CompensationError for a compensator or enhancer that is not there."""
    from perigee.bitstream.errors import CompensationError, Fault
    from perigee.engines.enhancer import known_enhancers
    from perigee.ground.compensation.compensator import known_folders

    places = tuple(Path(folder) for folder in folders)
    known = ["none", *known_folders(places), *known_enhancers(places)]
    if name.partition(":")[0] not in known:
        accepted = ", ".join(known)
        raise CompensationError(
            f"{name}: accepted are {accepted}", Fault.NAME, field="compensation", expected=accepted, found=name
        )


def _work(args: argparse.Namespace) -> int:
    from perigee.archive.catalogue import before_of
    from perigee.archive.pool import Pool
    from perigee.archive.records import Report
    from perigee.archive.sources import keys_of
    from perigee.archive.stores import split_address
    from perigee.archive.work import SUFFIXES, Work, Worker
    from perigee.bitstream.errors import OrderError

    address, prefix = split_address(args.destination)
    work = Work(args.kind, address, prefix, profiles=tuple(args.profiles), again=args.again, **_ordered(args))
    keys = keys_of(args.source, SUFFIXES[args.kind])
    Worker(work, args.threads)  # so that what no worker could do is told at once
    before_of(work)
    if args.retry:
        failed = _failed_in(args.retry)
        keys = [key for key in keys if key.path in failed]
        if not keys:
            raise OrderError(
                f"none of the objects of {args.source} has failed in {args.retry}", field="retry", found=str(args.retry)
            )
    here = max(1, usable_cores() // args.threads)
    workers = args.workers or (WORKERS_MAX if args.gpus or args.ray_address else here)
    report = Report(args.report)
    with Pool(
        work,
        min(workers, max(len(keys), 1)),
        args.threads,
        args.ray_address,
        args.engine,
        None if args.gpus else "cpu",
        args.gpus,
    ) as pool:
        _follow(args, work, keys, pool, report)
    return _told(args, report)


def _failed_in(path: Path) -> set[str]:
    """The keys that failed in a report. Raises OrderError where it is none."""
    from perigee.archive.records import FAILED
    from perigee.bitstream.errors import Fault, OrderError

    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {str(line["key"]) for line in lines if line["status"] == FAILED}
    except (ValueError, KeyError, TypeError) as error:
        raise OrderError(f"{path} is no report ({error})", Fault.UNREADABLE, field="retry", found=str(path)) from error


def _follow(args: argparse.Namespace, work: Work, keys: list[Key], pool: Any, report: Report) -> None:
    """Have all keys done; progress counts bytes of the objects, and pixels of what was made of them."""
    from tqdm import tqdm

    from perigee.archive.catalogue import write_collection
    from perigee.archive.metrics import Metrics

    metrics = Metrics()
    if args.metrics_port:
        metrics.serve(args.metrics_port)
    sizes = {key.path: key.size or 0 for key in keys}
    known = all(key.size for key in keys)
    records, pixels = [], 0
    unit = (
        {"total": sum(sizes.values()), "unit": "B", "unit_scale": True}
        if known
        else {"total": len(keys), "unit": "object"}
    )
    try:
        with tqdm(**unit, desc=args.kind, disable=not sys.stderr.isatty()) as bar:
            for record in pool.done(keys):
                records.append(record)
                report.add(record)
                metrics.add(record)
                bar.update(sizes[record.key] if known else 1)
                pixels += record.pixels
                bar.set_postfix_str(f"{pixels / 1e6:.0f} Mpx", refresh=False)
    finally:
        report.close()
    write_collection(records, work, f"Products of perigee-archive {args.kind} of {args.source}.")


def _told(args: argparse.Namespace, report: Report) -> int:
    """Say what came of the work; the exit code."""
    from perigee.archive.records import FAILED, KEPT, MADE

    for record in report.failed[:FAILURES_TOLD]:
        complain(f"{PROGRAM}: {record.key}: {record.error}")
    if len(report.failed) > FAILURES_TOLD:
        complain(f"{PROGRAM}: {len(report.failed) - FAILURES_TOLD} more failed")
    counts = report.counts
    code = say(PROGRAM, f"{args.destination}: {counts[MADE]} made, {counts[KEPT]} kept, {counts[FAILED]} failed")
    return os.EX_DATAERR if report.failed else code
