"""``export-compensator``: a training checkpoint becomes a compensator that the ground can use without torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    parser = argparse.ArgumentParser(
        prog="export-compensator", description="Turn a perigee-train-compensator checkpoint into a compensator."
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a run")
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder of the compensator")
    parser.add_argument("--name", help="its name (default: the folder's)")
    parser.add_argument(
        "--profile", action="append", help=f"whose streams it is for (repeatable; default {DEFAULT_PROFILE})"
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="JSON",
        help="more for the manifest: method, default_steps, start, strength by bpp, data",
    )
    args = parser.parse_args(argv)
    try:
        from perigee.export.compensation import export_compensator
    except ModuleNotFoundError as error:
        print(
            f"export-compensator: {error.name} is missing: pip install '.[compensation]' in Perigee's checkout",
            file=sys.stderr,
        )
        return os.EX_UNAVAILABLE
    try:
        card = json.loads(args.card.read_text(encoding="utf-8")) if args.card else None
        profiles = [find_profile(name) for name in args.profile or [DEFAULT_PROFILE]]
        manifest = export_compensator(args.checkpoint, args.out, args.name or args.out.resolve().name, profiles, card)
    except (PerigeeError, ValueError) as error:
        print(f"export-compensator: {error}", file=sys.stderr)
        return os.EX_DATAERR
    except OSError as error:
        print(f"export-compensator: {error}", file=sys.stderr)
        return os.EX_CANTCREAT
    print(json.dumps({key: manifest[key] for key in ("name", "contracts", "files")}))
    return os.EX_OK
