"""``export-profile``: turn a training checkpoint into a profile. Exit codes are those of ``sysexits.h``."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from perigee.support.command import Parser, prepare_streams, run

PROGRAM = "export-profile"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Turn a checkpoint of perigee-train into a profile. Prints one JSON line with the profile's name, its "
        "contract and the differences between the exported graphs and the trained networks.",
        epilog="Exit codes: 0 exported, 64 usage, 65 unusable checkpoint, 66 checkpoint missing, 69 package missing, "
        "73 output exists, 74 I/O error.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of a run")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="new folder for the profile")
    parser.add_argument("--name", help="name of the profile (default: the name of the folder)")
    return parser


def _export(args: argparse.Namespace) -> int:
    """Export as the parsed arguments say."""
    from perigee.export.profile import export_profile

    manifest = export_profile(args.checkpoint, args.out, args.name or args.out.resolve().name)
    print(json.dumps({key: manifest[key] for key in ("name", "contract", "parity")}))
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``export-profile``; returns the exit code."""
    prepare_streams()
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "export", lambda: _export(args))
