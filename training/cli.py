"""``perigee-train``: train a codec on folders of images."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from perigee.bitstream.errors import PerigeeError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="perigee-train", description="Train a Perigee codec on folders of images.")
    parser.add_argument("run", type=Path, help="folder of the run: checkpoint and log; resumed if it has a checkpoint")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of 8-bit RGB images (repeatable)"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="SOURCE", help="leave a source out (repeatable)"
    )
    parser.add_argument(
        "--weight", action="append", default=[], metavar="SOURCE=W", help="draw a source W times as often"
    )
    parser.add_argument("--eval", type=Path, action="append", default=[], help="folder to evaluate on at the end")
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=("swift", "lite", "light", "cosmic", "cosmic-cam", "cosmic-linear", "cosmic-cam-linear"),
        default=["swift", "lite", "light"],
        help="analyses to train together, for one prior and one synthesis (default: swift lite light)",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="CHECKPOINT",
        help="begin with the weights of another run's checkpoint, whose prior and synthesis may be smaller",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("prior", "synthesis"),
        default=(),
        help="train these parts alone on frozen symbols: the prior for fewer bytes (a new contract), the synthesis for better "
        "pictures (streams and contract stay as they are), or both",
    )
    parser.add_argument(
        "--prior",
        choices=("small", "large"),
        default="small",
        help="size of the prior, the largest part of the work on board (default %(default)s)",
    )
    parser.add_argument(
        "--synthesis-blocks",
        nargs=4,
        type=int,
        metavar="N",
        default=(2, 3, 2, 1),
        help="residual blocks of the synthesis at 1/16, 1/8, 1/4 and 1/2 (default: 2 3 2 1)",
    )
    parser.add_argument(
        "--minutes", type=float, default=90.0, help="time budget over all resumed parts (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="crops a step (default %(default)s)")
    parser.add_argument("--crop", type=int, default=128, help="side of a crop, multiple of 64 (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=6e-4, help="of Adam (default %(default)s)")
    parser.add_argument(
        "--quantise-from", type=float, default=0.6, help="share of the time after which the prior trains in integers"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    parser = _parser()
    parser.exit_on_error = True
    args = parser.parse_args(argv)
    if args.crop % 64 or args.crop <= 0:
        print("perigee-train: --crop must be a positive multiple of 64", file=sys.stderr)
        return os.EX_USAGE
    try:
        import torch

        from perigee.models.codec.codec import CodecConfig
        from perigee.models.codec.prior import PRIORS
        from perigee.training.data import load_folders, split
        from perigee.training.loop import Trainer, TrainingConfig, evaluate
    except ModuleNotFoundError as error:
        print(f"perigee-train: {error.name} is missing: pip install '.[train]' in Perigee's checkout", file=sys.stderr)
        return os.EX_UNAVAILABLE
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
    try:
        weights = {name: float(value) for name, value in (item.rsplit("=", 1) for item in args.weight)}
        args.run.mkdir(parents=True, exist_ok=True)
        training, validation = split(load_folders(args.data, args.exclude), 0.02)
        codec_config = CodecConfig(
            tuple(args.presets), prior=PRIORS[args.prior], synthesis_blocks=tuple(args.synthesis_blocks)
        )
        trainer = Trainer(codec_config, config, args.run, args.device)
        trainer.start(training, args.start_from)
        command = " ".join(["perigee-train", *(sys.argv[1:] if argv is None else argv)])
        with (args.run / "commands.log").open("a", encoding="utf-8") as handle:
            handle.write(f"{command}\n")
        print(
            f"{len(training.images)} images, {len(validation.images)} for validation, step {trainer.step}",
            file=sys.stderr,
        )
        trainer.run(training, validation, weights, sys.stderr.isatty())
        for folder in args.eval:
            for preset in args.presets:
                for row in evaluate(trainer.mean, load_folders([folder]), True, preset):
                    print(json.dumps({"folder": folder.name, "preset": preset, **row}))
    except (PerigeeError, ValueError) as error:
        print(f"perigee-train: {error}", file=sys.stderr)
        return os.EX_DATAERR
    except KeyboardInterrupt:
        return 130
    return os.EX_OK
