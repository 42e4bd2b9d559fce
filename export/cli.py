"""``export-profile``: a training checkpoint becomes a profile."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from perigee.bitstream.errors import PerigeeError


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    parser = argparse.ArgumentParser(
        prog="export-profile", description="Turn a perigee-train checkpoint into a profile."
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a run")
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder of the profile")
    parser.add_argument("--name", help="name of the profile (default: the folder's)")
    args = parser.parse_args(argv)
    try:
        from perigee.export.profile import export_profile
    except ModuleNotFoundError as error:
        print(
            f"export-profile: {error.name} is missing: pip install '.[export]' in Perigee's checkout", file=sys.stderr
        )
        return os.EX_UNAVAILABLE
    try:
        manifest = export_profile(args.checkpoint, args.out, args.name or args.out.resolve().name)
    except PerigeeError as error:
        print(f"export-profile: {error}", file=sys.stderr)
        return os.EX_DATAERR
    except OSError as error:
        print(f"export-profile: {error}", file=sys.stderr)
        return os.EX_CANTCREAT
    print(json.dumps({key: manifest[key] for key in ("name", "contract", "parity")}))
    return os.EX_OK
