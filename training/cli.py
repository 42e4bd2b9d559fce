"""``perigee-train``: train a codec on folders of images. Exit codes are those of ``sysexits.h``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perigee.support.command import Parser, positive, prepare_streams, run
from perigee.training.arguments import add_data_arguments, add_device_arguments, crop_side

PROGRAM = "perigee-train"
VALIDATION_SHARE = 0.02  # of the images


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a codec on folders of images. A run that was interrupted goes on when the command is repeated.",
        epilog="Exit codes: 0 trained, 64 usage, 65 unusable images or checkpoint, 66 input missing, 69 package missing, "
        "74 I/O error, 130 interrupted.",
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder of the run, for checkpoint and log; a run in it is resumed"
    )
    add_data_arguments(parser, required=True)
    parser.add_argument(
        "--eval",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of images to evaluate on at the end (repeatable)",
    )
    _add_network_arguments(parser)
    _add_schedule_arguments(parser)
    add_device_arguments(parser)
    return parser


def _add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is trained and what it starts from."""
    parser.add_argument(
        "--presets",
        dest="analyses",
        nargs="+",
        choices=("swift", "lite", "light", "cosmic", "cosmic-cam", "cosmic-linear", "cosmic-cam-linear"),
        default=["swift", "lite", "light"],
        help="analyses to train together with one prior and one synthesis (default: swift lite light)",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="CHECKPOINT",
        help="start from the weights of another run's checkpoint, whose prior and synthesis may be smaller",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("prior", "synthesis"),
        default=(),
        help="train only these parts, on frozen symbols: the prior for fewer bytes (which makes a new contract), the synthesis "
        "for better pictures (streams and contract stay the same), or both",
    )
    parser.add_argument(
        "--prior",
        choices=("small", "large"),
        default="small",
        help="size of the prior, which takes the largest part of the work on board (default %(default)s)",
    )
    parser.add_argument(
        "--synthesis-blocks",
        nargs=4,
        type=int,
        metavar="N",
        default=(2, 3, 2, 1),
        help="number of residual blocks of the synthesis at 1/16, 1/8, 1/4 and 1/2 resolution (default: 2 3 2 1)",
    )


def _add_schedule_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how training proceeds."""
    parser.add_argument(
        "--minutes",
        type=float,
        default=90.0,
        metavar="N",
        help="time budget of the run, in minutes, over all its resumed parts (default %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=8,
        metavar="N",
        help="number of crops in a training step (default %(default)s)",
    )
    parser.add_argument(
        "--crop",
        type=crop_side,
        default=128,
        metavar="PIXELS",
        help="side of a crop in pixels, a multiple of 64 (default %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=6e-4,
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


def _train(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Train and evaluate as the parsed arguments say; ``arguments`` are recorded in the run's list of commands."""
    import torch

    from perigee.models.codec.codec import CodecConfig
    from perigee.models.codec.prior import PRIORS
    from perigee.training.data import load_folders, split
    from perigee.training.loop import Trainer, TrainingConfig, evaluate
    from perigee.training.run import CHECKPOINT_FILE, record_command

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    config = TrainingConfig(
        minutes=args.minutes,
        batch=args.batch,
        crop=args.crop,
        learning_rate=args.learning_rate,
        quantise_from=args.quantise_from,
        seed=args.seed,
        only=tuple(args.only),
    )
    codec_config = CodecConfig(
        tuple(args.analyses), prior=PRIORS[args.prior], synthesis_blocks=tuple(args.synthesis_blocks)
    )
    training, validation = split(load_folders(args.data, args.exclude), VALIDATION_SHARE)
    args.run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(codec_config, config, args.run, args.device)
    trainer.start(training, args.start_from)
    record_command(args.run, PROGRAM, arguments)
    held_out = (
        f"{len(validation.images)} held out for validation"
        if validation.images
        else "too few to hold any out for validation"
    )
    print(f"{len(training.images)} images, {held_out}; from training step {trainer.training_step}", file=sys.stderr)
    trainer.run(training, validation, dict(args.weight), sys.stderr.isatty())
    spent = f"{trainer.training_step} training steps in {trainer.clock.minutes:.1f} of {args.minutes:g} minutes"
    print(f"{spent}; {trainer.folder / CHECKPOINT_FILE}", file=sys.stderr)
    for folder in args.eval:
        images = load_folders([folder])
        for analysis in args.analyses:
            for row in evaluate(trainer.mean, images, True, analysis):
                print(json.dumps({"folder": folder.name, "preset": analysis, **row}))
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``perigee-train``; returns the exit code."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(arguments)
    return run(PROGRAM, "train", lambda: _train(args, arguments))
