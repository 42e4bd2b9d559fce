"""``export-engine``: TensorRT plans of a profile, for the machine that the command runs on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from perigee.bitstream.errors import OutputError
from perigee.bitstream.profile import find_profile
from perigee.engines.build import PRECISIONS, Built, export_engine
from perigee.engines.tensorrt import engines_folder
from perigee.support.command import Parser, positive, prepare_streams, run


def build_parser() -> Parser:
    """The command line of ``export-engine``."""
    parser = Parser(
        prog="export-engine",
        description="Build TensorRT plans of a profile for this machine. The command needs TensorRT and a GPU, but no torch.",
        epilog="Exit codes: 0 the plans were built and passed the self-test, 64 usage, 69 TensorRT or the GPU is unavailable, "
        "73 the output cannot be created, 78 the profile is unusable or the self-test failed.",
    )
    parser.add_argument("profile", metavar="NAME_OR_DIR", help="trained codec: name of a shipped one, or a folder")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of the plans (default: PERIGEE_ENGINES, else ~/.cache/perigee/engines, where onboard-encode looks)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="precision of the analyses (default %(default)s)"
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="folder of real 8-bit tiles, which int8 needs"
    )
    parser.add_argument(
        "--patches", type=positive, default=1, metavar="N", help="patches that run at once (default %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``export-engine``; exit codes as in ``sysexits.h``."""
    prepare_streams()
    parser = build_parser()
    args = parser.parse_args(argv)
    if (args.precision == "int8") != (args.calibration is not None):
        parser.error("--precision int8 and --calibration FOLDER go together")

    def report(built: Built) -> None:
        fields = built._asdict() | {"plan": str(built.plan), "seconds": round(built.seconds, 2)}
        print(json.dumps(fields), flush=True)

    def body() -> int:
        profile = find_profile(args.profile)
        folder = args.out or engines_folder()
        try:
            export_engine(profile, folder, args.precision, args.calibration, args.patches, report)
        except OSError as error:
            raise OutputError(f"{folder}: {error}") from error
        return os.EX_OK

    return run("export-engine", "tensorrt", body)
