"""``export-compensator``: turn a training checkpoint into a compensator or enhancer that the ground can use without torch.

Exit codes are those of ``sysexits.h``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from perigee.bitstream.errors import Fault, MetadataError, OrderError
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.support.command import Parser, prepare_streams, run

PROGRAM = "export-compensator"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Turn a checkpoint of perigee-train-compensator into a compensator, of perigee-train-map-guide into a guided one, or of "
        "perigee-train-enhancer into an enhancer. Prints one JSON line with its name, the contracts or the prior, and the digests of its files.",
        epilog="Exit codes: 0 exported, 64 usage, 65 unusable checkpoint or card, 66 input missing, 69 package missing, "
        "73 output exists, 74 I/O error, 78 unusable profile.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a run")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="new folder for the compensator")
    parser.add_argument("--name", help="name of the compensator (default: the name of the folder)")
    parser.add_argument(
        "--profile",
        action="append",
        metavar="NAME_OR_DIR",
        help=f"profile whose streams the compensator is for (repeatable; default: {DEFAULT_PROFILE})",
    )
    parser.add_argument(
        "--guided",
        type=Path,
        metavar="DIR",
        help="for a map guide: the exported compensator that it guides, beside whose folder the new one lies",
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="FILE.json",
        help="JSON object with further entries for the manifest, such as method, default_steps, start and strength",
    )
    return parser


def read_card(path: Path) -> dict[str, Any]:
    """Return the entries of a card file. Raises MetadataError where it is not a JSON object."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MetadataError(f"{path}: not a JSON file ({error})", Fault.UNREADABLE, field="card") from error
    if not isinstance(card, dict):
        found = type(card).__name__
        raise MetadataError(
            f"{path}: a card is a JSON object, found {found}", Fault.KIND, field="card", expected="object", found=found
        )
    return card


def _export(args: argparse.Namespace) -> int:
    """Export as the parsed arguments say."""
    import torch

    from perigee.export.compensation import export_compensator
    from perigee.export.enhancement import export_enhancer, is_enhancer
    from perigee.export.map_guide import KIND, export_map_guide
    from perigee.models.checkpoint import read_checkpoint

    card = read_card(args.card) if args.card else None
    state = read_checkpoint(args.checkpoint, torch.device("cpu"))
    if is_enhancer(state):
        manifest = export_enhancer(state, args.out, args.name or args.out.resolve().name, card)
        print(json.dumps({key: manifest[key] for key in ("name", "prior", "files")}))
        return os.EX_OK
    if state.get("kind") == KIND:
        if args.guided is None:
            raise OrderError(
                "the checkpoint of a map guide needs --guided, the compensator that it guides",
                Fault.MISSING,
                field="guided",
            )
        manifest = export_map_guide(state, args.guided, args.out, args.name or args.out.resolve().name, card)
        print(json.dumps({key: manifest[key] for key in ("name", "contracts", "files")}))
        return os.EX_OK
    profiles = [find_profile(name) for name in args.profile or [DEFAULT_PROFILE]]
    manifest = export_compensator(args.checkpoint, args.out, args.name or args.out.resolve().name, profiles, card)
    print(json.dumps({key: manifest[key] for key in ("name", "contracts", "files")}))
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``export-compensator``; returns the exit code."""
    prepare_streams()
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "compensation", lambda: _export(args))
