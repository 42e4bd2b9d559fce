"""``perigee-train-enhancer``: train what improves images of any codec. Exit codes are those of ``sysexits.h``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from perigee.bitstream.errors import Fault, OrderError
from perigee.support.command import Parser, positive, prepare_streams, run

PROGRAM = "perigee-train-enhancer"
PRIORS = ("none", "oracle", "regressed", "generated")
HELD_OUT_SHARE = 0.02  # of the images


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a network that enhances images which JPEG 2000 or JPEG has decoded. The pairs are made from real encoders while it "
        "trains. A run that was interrupted goes on when the command is repeated.",
        epilog="Exit codes: 0 trained, 64 usage, 65 unusable images or checkpoint, 66 input missing, 69 package missing, "
        "74 I/O error, 130 interrupted.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of the run, for checkpoint and log")
    add("--data", type=Path, action="append", required=True, metavar="DIR", help="folder of RGB images (repeatable)")
    add(
        "--bands",
        type=Path,
        metavar="DIR",
        help="folder of multi-band files with an index.csv, three bands of which are used at a time",
    )
    add(
        "--prior",
        choices=PRIORS,
        default="none",
        help="none: the network alone; oracle: stage I, with a prior read from the original; regressed or generated: stage II, with a prior "
        "that is guessed at once or by diffusion (default %(default)s)",
    )
    add(
        "--start-from",
        type=Path,
        metavar="CHECKPOINT_OR_DIR",
        help="start from the weights of another run, as stage II does from stage I, or of the folder of an enhancer, such as the shipped one",
    )
    add(
        "--minutes",
        type=float,
        default=180.0,
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
        "--bfloat16",
        action="store_true",
        help="compute in bfloat16, about twice as fast on a processor with AVX-512; others would emulate it and refuse",
    )
    add("--seed", type=int, default=1, metavar="N", help="seed of all random numbers (default %(default)s)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    return parser


def _train(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from perigee.training.bands import load_rasters
    from perigee.training.data import load_folders, split
    from perigee.training.degraded import Pairs
    from perigee.training.enhancement import POOL, EnhancementTrainer
    from perigee.training.enhancement_strength import large_enough
    from perigee.training.run import half_precision, record_command

    if args.bfloat16 and not half_precision(torch.device("cpu")):
        raise OrderError(
            "--bfloat16: this processor emulates bfloat16, which is ten times slower; leave it out",
            Fault.ABSENT,
            field="bfloat16",
            expected="a processor with AVX-512",
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    images, held_out = split(load_folders(args.data), HELD_OUT_SHARE)
    rasters, rasters_held_out = load_rasters(args.bands) if args.bands else ([], [])
    args.run.mkdir(parents=True, exist_ok=True)
    trainer = EnhancementTrainer(
        args.run,
        args.minutes,
        args.prior,
        rate=args.learning_rate,
        seed=args.seed,
        start_from=args.start_from,
        half=args.bfloat16,
    )
    record_command(args.run, PROGRAM, arguments)
    count = f"{len(images.images)} images, {len(held_out.images)} held out"
    print(f"{count}; from training step {trainer.step}", file=sys.stderr)
    trainer.run(Pairs(images, POOL, args.seed + trainer.step, rasters=rasters), sys.stderr.isatty())
    if not any(large_enough(image) for image in held_out.images):
        print("no held-out image is large enough: the strengths are fitted on images of the training", file=sys.stderr)
        held_out = images
    trainer.fit_strength(held_out, rasters_held_out)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``perigee-train-enhancer``; returns the exit code."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(arguments)
    return run(PROGRAM, "train", lambda: _train(args, arguments))
