"""``perigee-train-segmenter``: train what says where images show buildings and other classes. Exit codes are those of ``sysexits.h``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perigee.support.command import Parser, positive, prepare_streams, run

PROGRAM = "perigee-train-segmenter"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a small segmenter on images with maps, by which decoded images are judged. A run that was interrupted goes on when "
        "the command is repeated; --export writes its weights for the benchmarks.",
        epilog="Exit codes: 0 trained, 64 usage, 65 unusable maps or checkpoint, 66 input missing, 69 package missing, 74 I/O error, "
        "130 interrupted.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of the run, for checkpoint and log")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of images and class rasters with an index.csv")
    add(
        "--hold-out",
        action="append",
        default=[],
        metavar="PATTERN",
        help="files that are never trained on and that the log measures, such as 'kampala_*' (repeatable)",
    )
    add(
        "--minutes",
        type=float,
        default=60.0,
        metavar="N",
        help="time budget over all resumed parts (default %(default)s)",
    )
    add(
        "--learning-rate",
        type=float,
        default=1e-3,
        metavar="X",
        help="largest learning rate of AdamW (default %(default)s)",
    )
    add("--seed", type=int, default=1, metavar="N", help="seed of all random numbers (default %(default)s)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    add("--export", type=Path, metavar="DIR", help="write the averaged weights to this folder when the time is spent")
    return parser


def _train(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from perigee.models.checkpoint import WEIGHTS_FILE, write_weights
    from perigee.training.map_tiles import load_map_tiles
    from perigee.training.run import record_command
    from perigee.training.segmenter import SegmenterTrainer

    if args.threads:
        torch.set_num_threads(args.threads)
    tiles, held_out = load_map_tiles(args.data, args.hold_out)
    args.run.mkdir(parents=True, exist_ok=True)
    trainer = SegmenterTrainer(args.run, args.minutes, args.learning_rate, args.seed)
    record_command(args.run, PROGRAM, arguments)
    print(f"{len(tiles)} tiles, {len(held_out)} held out; from training step {trainer.step}", file=sys.stderr)
    trainer.run(tiles, held_out, sys.stderr.isatty())
    if args.export:
        args.export.mkdir(parents=True, exist_ok=True)
        write_weights(trainer.mean, args.export / WEIGHTS_FILE)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``perigee-train-segmenter``; returns the exit code."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(arguments)
    return run(PROGRAM, "train", lambda: _train(args, arguments))
