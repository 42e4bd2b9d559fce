"""``perigee-train-compensator``: train what the ground adds to the images of a finished codec.

Exit codes are those of ``sysexits.h``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.support.command import Parser, positive, prepare_streams, run
from perigee.training.arguments import add_data_arguments, add_device_arguments, source_value

PROGRAM = "perigee-train-compensator"
STAGE_MINUTES = {"one-step": 30.0, "texture": 60.0, "latent": 25.0, "diffusion": 150.0, "sampling": 40.0, "scale": 4.0}
# Crops in a batch and their side in pixels. The denoiser trains on whole windows, because it is used on whole windows.
STAGE_SHAPES = {
    "one-step": (8, 128),
    "texture": (8, 128),
    "latent": (8, 128),
    "diffusion": (32, 256),
    "sampling": (8, 128),
    "scale": (8, 128),
}


def stage_minutes(text: str) -> tuple[str, float]:
    """Parse ``STAGE`` or ``STAGE=MINUTES``. Raises ArgumentTypeError."""
    name, _, value = text.partition("=")
    if name not in STAGE_MINUTES:
        raise argparse.ArgumentTypeError(f"no stage {name!r}; accepted are {', '.join(STAGE_MINUTES)}")
    try:
        return name, float(value) if value else STAGE_MINUTES[name]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value} is not a number of minutes") from error


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a compensator for a profile, in this order: one-step network, texture, latent space, diffusion, its sampling, "
        "error scale. A run that was interrupted goes on when the command is repeated.",
        epilog="Exit codes: 0 trained, 64 usage or unusable Stable Diffusion folder, 65 unusable images, pairs or checkpoint, "
        "66 input missing, 69 package missing, 74 I/O error, 78 unusable profile, 130 interrupted.",
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="folder of the run, for pairs, checkpoint and logs; a run in it is resumed",
    )
    parser.add_argument(
        "--profile",
        default=DEFAULT_PROFILE,
        metavar="NAME_OR_DIR",
        help="profile whose images the compensator improves (default %(default)s)",
    )
    add_data_arguments(parser, required=False)
    parser.add_argument(
        "--gsd",
        action="append",
        type=source_value,
        default=[],
        metavar="SOURCE=METRES",
        help="ground sample distance of a source that has no index (repeatable)",
    )
    parser.add_argument(
        "--bands",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of multi-band files with an index.csv, three bands of which make an image (repeatable)",
    )
    parser.add_argument(
        "--positions",
        action="store_true",
        help="let longitude and latitude be conditions (default: they are left out, since a network remembers places by them)",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="largest number of 256x256 patches (default: all)")
    _add_schedule_arguments(parser)
    add_device_arguments(parser)
    return parser


def _add_schedule_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how training proceeds and what it starts from."""
    parser.add_argument(
        "--stage",
        action="append",
        type=stage_minutes,
        metavar="NAME[=MINUTES]",
        help=f"stage to train (repeatable; default: {' '.join(f'{n}={m:g}' for n, m in STAGE_MINUTES.items())})",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=1.09,
        metavar="RATIO",
        help="squared error that generated detail may cost, relative to the base image's; 1.12 is half a decibel "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--adversary",
        type=float,
        default=0.05,
        metavar="X",
        help="weight of the adversarial loss (default %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=4e-4,
        metavar="X",
        help="largest learning rate of Adam (default %(default)s)",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="CHECKPOINT_OR_DIR",
        help="start from the weights of another run's checkpoint, or of the folder of a compensator, such as the shipped one",
    )
    parser.add_argument(
        "--stable-diffusion",
        type=Path,
        metavar="DIR",
        help="start from the VAE and the U-Net of Stable Diffusion in this folder (layout of diffusers) instead of a compact "
        "denoiser",
    )


def _train(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Train as the parsed arguments say; ``arguments`` are recorded in the run's list of commands."""
    import torch

    from perigee.models.compensation.compensator import CompensatorConfig
    from perigee.training.compensation import CompensatorTrainer, StageConfig
    from perigee.training.pairs import ABOUT_FILE, Pairs, make_pairs
    from perigee.training.projection import ProjectToCells
    from perigee.training.run import record_command

    if args.threads:
        torch.set_num_threads(args.threads)
    show = sys.stderr.isatty()
    profile = find_profile(args.profile)
    trainer = CompensatorTrainer(
        CompensatorConfig(profile.contract.widths.latents),
        ProjectToCells(profile),
        args.run,
        args.device,
        args.stable_diffusion,
    )
    folder = args.run / "pairs"
    if not (folder / ABOUT_FILE).is_file():
        count = make_pairs(
            profile,
            args.data,
            folder,
            args.exclude,
            dict(args.gsd),
            args.limit,
            show=show,
            bands=args.bands,
            positions=args.positions,
        )
        print(f"{count} pairs", file=sys.stderr)
    pairs = Pairs(folder, dict(args.weight))
    stages = dict(args.stage) if args.stage else STAGE_MINUTES
    if args.start_from:
        trainer.start_from(args.start_from, stages)
    record_command(args.run, PROGRAM, arguments)
    for stage, minutes in stages.items():
        batch, crop = STAGE_SHAPES[stage]
        config = StageConfig(minutes, batch, crop, args.learning_rate, args.budget, args.adversary)
        trainer.run(stage, pairs, config, show)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``perigee-train-compensator``; returns the exit code."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(arguments)
    return run(PROGRAM, "compensation", lambda: _train(args, arguments))
