"""``perigee-train-map-guide``: train what maps add to the detail of a compensator. Exit codes are those of ``sysexits.h``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.support.command import Parser, positive, prepare_streams, run

PROGRAM = "perigee-train-map-guide"


def _judge(text: str) -> tuple[Path, str]:
    """Parse ``DIR`` or ``DIR=PATTERN``."""
    folder, _, pattern = text.partition("=")
    return Path(folder), pattern or "*"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Train map guidance on top of a finished compensator, whose networks stay as they are. A run that was interrupted goes on when "
        "the command is repeated; export-compensator turns its checkpoint into a compensator.",
        epilog="Exit codes: 0 trained, 64 usage or unusable compensator, 65 unusable maps, segmenter or checkpoint, 66 input missing, "
        "69 package missing, 74 I/O error, 78 unusable profile, 130 interrupted.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of the run, for pairs, checkpoint and log")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of images and class rasters with an index.csv")
    add("--compensator", type=Path, required=True, metavar="DIR", help="exported compensator that is guided")
    add(
        "--segmenter",
        type=_judge,
        action="append",
        required=True,
        metavar="DIR[=PATTERN]",
        help="exported segmenter that says what an image shows, and the files that it judges, which should not be those that it was trained on "
        "(repeatable; default: all files)",
    )
    add(
        "--profile", default=DEFAULT_PROFILE, metavar="NAME_OR_DIR", help="profile of the streams (default %(default)s)"
    )
    add(
        "--hold-out",
        action="append",
        default=[],
        metavar="PATTERN",
        help="files that are never trained on (repeatable)",
    )
    add(
        "--minutes",
        type=float,
        default=90.0,
        metavar="N",
        help="time budget over all resumed parts (default %(default)s)",
    )
    add(
        "--learning-rate",
        type=float,
        default=6e-4,
        metavar="X",
        help="largest learning rate of Adam (default %(default)s)",
    )
    add(
        "--budget",
        type=float,
        default=1.06,
        metavar="RATIO",
        help="squared error that generated detail may cost, relative to the base image's; 1.07 is 0.3 decibels (default %(default)s)",
    )
    add("--seed", type=int, default=1, metavar="N", help="seed of all random numbers (default %(default)s)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    return parser


def _train(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from perigee.training.map_guidance import GuideConfig, GuideTrainer
    from perigee.training.map_pairs import NAMES_FILE, MapPairs, make_map_pairs
    from perigee.training.map_tiles import load_map_tiles
    from perigee.training.projection import ProjectToCells
    from perigee.training.run import record_command

    if args.threads:
        torch.set_num_threads(args.threads)
    show, profile = sys.stderr.isatty(), find_profile(args.profile)
    args.run.mkdir(parents=True, exist_ok=True)
    config = GuideConfig(args.minutes, args.learning_rate, args.budget, args.seed)
    judges = {folder: [p for other, p in args.segmenter if other == folder] for folder, _ in args.segmenter}
    trainer = GuideTrainer(args.run, args.compensator, list(judges.items()), ProjectToCells(profile), config)
    record_command(args.run, PROGRAM, arguments)
    folder = args.run / "pairs"
    if not (folder / NAMES_FILE).is_file():
        tiles, _ = load_map_tiles(args.data, args.hold_out)
        make_map_pairs(profile, tiles, folder, args.seed, show)
    pairs = MapPairs(folder)
    print(f"{len(pairs)} pairs; from training step {trainer.step}", file=sys.stderr)
    trainer.run(pairs, show)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``perigee-train-map-guide``; returns the exit code."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(arguments)
    return run(PROGRAM, "compensation", lambda: _train(args, arguments))
