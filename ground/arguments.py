"""Arguments that the commands of the ground share: what part of an image is wanted, which engine runs, and where products go."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from perigee.bitstream.errors import Fault, OutputError
from perigee.engines.backend import CPU_DEVICE, Backend
from perigee.engines.ground_choice import ENGINES, choose, driver_missing
from perigee.support.command import complain, positive
from perigee.support.files import destination, read_bounded

MAPPING_MAX_BYTES = 1 << 20  # of a mapping of classes
SUFFIXES = {".tif": "tif", ".tiff": "tif", ".png": "png"}


def numbers(text: str, count: int | None = None) -> list[int]:
    """An argument that is a list of whole numbers, or of ``count`` of them. Raises ArgumentTypeError."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise argparse.ArgumentTypeError(f"{text!r} is not {count or 'a list of'} whole numbers with commas between")
    return values


def _window(text: str) -> list[int]:
    return numbers(text, 4)


def scale(text: str) -> str:
    """An argument that is a scale. Raises ArgumentTypeError."""
    if text not in ("1", "1/2", "1/4", "1/8", "1/16"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 1/2, 1/4, 1/8 or 1/16")
    return text


def add_view(parser: argparse.ArgumentParser) -> None:
    """Add what says which part of an image is wanted, and ``--profiles``."""
    parser.add_argument("--window", type=_window, metavar="TOP,LEFT,ROWS,COLS", help="only this part, in pixels")
    parser.add_argument("--bands", type=numbers, metavar="1,2,...", help="only these bands, counted from 1")
    parser.add_argument("--scale", type=scale, default="1", metavar="1/2..1/16", help="reduced size")
    parser.add_argument(
        "--profiles",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a profile, compensator or enhancer of your own, or a folder of several (repeatable)",
    )


def device(text: str) -> str:
    """An argument that is ``cpu`` or the number of a GPU. Raises ArgumentTypeError."""
    if text != CPU_DEVICE and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor the number of a GPU")
    return text


def devices(text: str) -> tuple[str, ...]:
    """An argument that is a list of devices; a GPU may be named once. Raises ArgumentTypeError."""
    found = tuple(device(part) for part in text.split(","))
    gpus = [one for one in found if one != CPU_DEVICE]
    if len(set(gpus)) < len(gpus):
        raise argparse.ArgumentTypeError(f"{text!r} names a GPU twice")
    return found


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add what says which engine runs the networks, on which device and with how many threads."""
    parser.add_argument(
        "--engine",
        choices=("auto", *ENGINES),
        default="auto",
        help="what runs the networks; auto takes cuda or torch where there is a GPU and their self-test passes, else onnxruntime on the CPU "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--device",
        type=device,
        metavar="N|cpu",
        help="number of the GPU, or cpu (default: the first GPU, with onnxruntime cpu)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def backend_of(args: argparse.Namespace, program: str) -> Backend:
    """The engine that the arguments ask for. Where ``auto`` did not take a GPU that is there, standard error says why.

    Raises EngineError or ProfileError.
    """
    backend, passed_over = choose(args.engine, args.device, args.threads)
    if passed_over and driver_missing() is None:
        for name, reason in passed_over:
            complain(f"{program}: engine {name} is not used: {reason}")
    return backend


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add what says how products are written."""
    parser.add_argument(
        "--unknown-crs",
        choices=("refuse", "keep", "drop"),
        default="refuse",
        help="what to do with a CRS that cannot be interpreted: refuse with exit code 65, keep it as text in a tag, or drop it "
        "(default %(default)s)",
    )
    parser.add_argument("--stac", type=Path, metavar="OUT.json", help="also write a STAC item of the product")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing product")


def _destination(out: Path) -> Path:
    """Where an output's path leads. Raises OutputError where it leads nowhere."""
    try:
        return destination(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be reached ({error.strerror})", found=str(out)) from error


def check_outputs(source: Path, outputs: list[Path], overwrite: bool) -> None:
    """Raise OutputError where an output must not or cannot be written, before any work is done."""
    places = [_destination(out) for out in outputs]
    for i, out in enumerate(outputs):
        if places[i] in (source.resolve(), *places[:i], *places[i + 1 :]):
            raise OutputError(f"{out} is the input itself or named twice; choose another output", Fault.EXISTS)
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists; --overwrite replaces it", Fault.EXISTS, found=str(out))
        if out.exists() and not out.is_file():
            raise OutputError(f"{out} is not a regular file; choose another output", Fault.EXISTS, found=str(out))
        if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {out.parent} does not exist or cannot be written to", found=str(out.parent))


def add_map(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a map."""
    parser.add_argument(
        "--map",
        type=Path,
        metavar="MAP.geojson",
        help="vector map of the ground that guides a compensator which takes one: GeoJSON in WGS 84 or with a crs member, GeoPackage or FlatGeobuf",
    )
    parser.add_argument(
        "--map-classes",
        type=Path,
        metavar="FILE.json",
        help='which attributes make which class, such as {"building": {"type": ["house"]}} (default: OpenStreetMap tags, or an attribute layer or '
        "class that names it)",
    )


def map_classes_of(args: argparse.Namespace) -> str:
    """The mapping of classes that the arguments name, as JSON; empty where they name none. Raises LimitError or OSError."""
    if not args.map_classes:
        return ""
    return read_bounded(args.map_classes, MAPPING_MAX_BYTES).decode("utf-8", "replace")
