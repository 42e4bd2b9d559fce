"""Trains one analysis from scratch, as for the comparison of encoders in decision 0008; profile ``cosmic`` was made so.

All runs have the same data, prior, synthesis, schedule and one thread; only the analysis differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from perigee.bitstream.prior import Widths
from perigee.models.codec.analysis import ANALYSES
from perigee.models.codec.codec import CodecConfig
from perigee.support.command import Parser, run
from perigee.training.data import load_folders, split
from perigee.training.loop import Trainer, TrainingConfig

PROGRAM = "python -m perigee.training.recipes.train_encoders"
EXCLUDED = ("oam7cm_kampala", "oam10cm_5dded5bc")  # sources whose licence is not well enough documented
WIDTHS = Widths(latents=320, context=64, head=128, slices=(16, 24, 40, 112, 128))


def build_parser() -> argparse.ArgumentParser:
    """Return the recipe's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Train one analysis from scratch with a small prior and a small synthesis, on one thread.",
        epilog="Exit codes: 0 trained, 64 usage, 65 unusable images or checkpoint, 66 input missing, 74 I/O error.",
    )
    parser.add_argument("analysis", choices=ANALYSES, metavar="ANALYSIS", help=f"one of {', '.join(ANALYSES)}")
    parser.add_argument("minutes", type=float, metavar="MINUTES", help="time budget of the run")
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run, for checkpoint and log")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of training images (repeatable)",
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="SOURCE", help="leave out a source of images (repeatable)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of all random numbers (default %(default)s)")
    return parser


def _train(args: argparse.Namespace) -> int:
    """Train as the parsed arguments say."""
    torch.set_num_threads(1)
    training, validation = split(load_folders(args.data, [*EXCLUDED, *args.exclude]), 0.02)
    codec = CodecConfig(
        (args.analysis,), prior=WIDTHS, synthesis_widths=(96, 64, 32, 16), synthesis_blocks=(1, 1, 1, 1)
    )
    config = TrainingConfig(minutes=args.minutes, seed=args.seed, checkpoint_minutes=args.minutes / 4)
    args.folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(codec, config, args.folder)
    trainer.start(training)
    trainer.run(training, validation, {}, sys.stderr.isatty())
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "train", lambda: _train(args))


if __name__ == "__main__":
    raise SystemExit(main())
