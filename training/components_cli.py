"""``perigee-train-components``: train a component profile on multi-band files. Exit codes are those of ``sysexits.h``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perigee.support.command import Parser, positive, prepare_streams, run

if TYPE_CHECKING:
    from perigee.training.bands import ComponentSampler, Raster

PROGRAM = "perigee-train-components"
CROPS = 60  # that are kept for the export, which measures centroids on them


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Train the prior of spectral components on multi-band files. A run that was interrupted goes on when the command is "
        "repeated. export-components makes a profile of it, and adds a synthesis to one.",
        epilog="Exit codes: 0 trained, 64 usage, 65 unusable images or checkpoint, 66 input missing, 69 package missing, "
        "74 I/O error, 130 interrupted.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, for checkpoint and log")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of multi-band TIFFs; an index.csv with the columns file and train_ok chooses among them",
    )
    parser.add_argument(
        "--rgb",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of RGB images, which are reduced in size and used as single bands and triplets (repeatable)",
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="CHECKPOINT", help="start from the weights of another run's checkpoint"
    )
    parser.add_argument(
        "--synthesis-of",
        type=Path,
        metavar="PROFILE",
        help="instead of a prior, train the ground's synthesis for the streams of this component profile",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=120.0,
        metavar="N",
        help="time budget over all resumed parts (default %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=1.5e-3,
        metavar="X",
        help="largest learning rate of Adam (default %(default)s)",
    )
    parser.add_argument(
        "--quantise-from",
        type=float,
        default=0.6,
        metavar="SHARE",
        help="share of the time budget after which the prior is trained in integers (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="seed of all random numbers (default %(default)s)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    return parser


def _train(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import numpy as np
    import torch

    from perigee.models.codec.component import CROPS_FILE
    from perigee.training.bands import ComponentSampler, load_rasters, validation_crops
    from perigee.training.components import SIDES, ComponentTrainer, statistics_of
    from perigee.training.data import load_folders
    from perigee.training.run import record_command

    if args.threads:
        torch.set_num_threads(args.threads)
    training, validation = load_rasters(args.data)
    sampler = ComponentSampler(training, load_folders(args.rgb) if args.rgb else None, np.arange(256))
    if args.synthesis_of is not None:
        return _train_synthesis(args, arguments, sampler, validation)
    statistics = statistics_of(sampler, np.random.default_rng(args.seed - 1))
    args.run.mkdir(parents=True, exist_ok=True)
    trainer = ComponentTrainer(args.run, args.minutes, args.learning_rate, args.quantise_from, args.seed)
    trainer.start(statistics, args.start_from)
    sampler.order = trainer.codec.order.numpy()
    record_command(args.run, PROGRAM, arguments)
    print(f"{len(training)} files, {len(validation)} held out; from training step {trainer.step}", file=sys.stderr)
    rng = np.random.default_rng(args.seed + 6)
    crops = {str(n): sampler.crop(SIDES[-1], rng).astype(np.float16) for n in range(CROPS)}
    np.savez(args.run / CROPS_FILE, **crops)  # type: ignore[arg-type]  # its last argument has another type
    trainer.run(sampler, validation_crops(validation, sampler.order, SIDES[-1]), sys.stderr.isatty())
    return os.EX_OK


def _train_synthesis(
    args: argparse.Namespace, arguments: Sequence[str], sampler: ComponentSampler, validation: list[Raster]
) -> int:
    from perigee.bitstream.component_profile import find_component_profile
    from perigee.training.bands import validation_crops
    from perigee.training.component_synthesis import SynthesisTrainer
    from perigee.training.components import SIDES
    from perigee.training.run import record_command

    args.run.mkdir(parents=True, exist_ok=True)
    profile = find_component_profile(str(args.synthesis_of))
    trainer = SynthesisTrainer(args.run, profile, args.minutes, args.learning_rate, args.seed)
    sampler.order = trainer.examples.order
    record_command(args.run, PROGRAM, arguments)
    print(f"synthesis of {profile.name}; from training step {trainer.step}", file=sys.stderr)
    trainer.run(sampler, validation_crops(validation, sampler.order, SIDES[-1]), sys.stderr.isatty())
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``perigee-train-components``; returns the exit code."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(arguments)
    return run(PROGRAM, "train", lambda: _train(args, arguments))
