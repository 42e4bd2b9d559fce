"""``perigee-train-compensator``: train what the ground adds to a frozen codec's images."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile

STAGE_MINUTES = {"one-step": 30.0, "texture": 60.0, "latent": 15.0, "diffusion": 45.0, "scale": 4.0}
# half the patches of a step for the denoiser, in whole windows: that is how it is used
STAGE_SHAPES = {"one-step": (8, 128), "texture": (8, 128), "latent": (8, 128), "diffusion": (4, 256), "scale": (8, 128)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perigee-train-compensator",
        description="Train a compensator for a profile: one-step network, texture, latent space, diffusion, error scale, in this order.",
    )
    parser.add_argument("run", type=Path, help="folder of the run: pairs, checkpoint, logs; resumed if it has any")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], help="folder of 8-bit RGB images (repeatable)"
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="SOURCE", help="leave a source out")
    parser.add_argument(
        "--gsd",
        action="append",
        default=[],
        metavar="SOURCE=M",
        help="ground sample distance of a source without index",
    )
    parser.add_argument(
        "--weight", action="append", default=[], metavar="SOURCE=W", help="draw a source W times as often"
    )
    parser.add_argument("--limit", type=int, help="at most so many patches of 256x256")
    parser.add_argument(
        "--stage",
        action="append",
        metavar="NAME[=MINUTES]",
        help=f"what to train (repeatable; default: {' '.join(f'{n}={m:g}' for n, m in STAGE_MINUTES.items())})",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=1.09,
        help="squared error over the base image's that detail may cost; 1.12 are half a decibel (default %(default)s)",
    )
    parser.add_argument("--adversary", type=float, default=0.05, help="weight of the critic (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="of Adam (default %(default)s)")
    parser.add_argument("--start-from", type=Path, metavar="CHECKPOINT", help="begin with the weights of another run")
    parser.add_argument(
        "--stable-diffusion",
        type=Path,
        metavar="DIR",
        help="preset paper: begin with the VAE and U-Net in this folder (layout of diffusers), instead of a compact denoiser",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit codes as in ``sysexits.h``."""
    args = _parser().parse_args(argv)
    try:
        import torch

        from perigee.models.compensation.compensator import CompensatorConfig
        from perigee.training.compensation import CompensatorTrainer, StageConfig
        from perigee.training.held import HeldToSymbols
        from perigee.training.pairs import Pairs, make_pairs

        stages = dict(STAGE_MINUTES)
        if args.stage:
            parts = [item.partition("=") for item in args.stage]
            unknown = sorted({name for name, _, _ in parts} - set(STAGE_MINUTES))
            if unknown:
                raise ValueError(f"stages {unknown}: accepted are {', '.join(STAGE_MINUTES)}")
            stages = {name: float(value) if value else STAGE_MINUTES[name] for name, _, value in parts}
        gsd, weights = (
            {name: float(value) for name, value in (item.rsplit("=", 1) for item in given)}
            for given in (args.gsd, args.weight)
        )
        if args.threads:
            torch.set_num_threads(args.threads)
        show = sys.stderr.isatty()
        profile = find_profile(args.profile)
        trainer = CompensatorTrainer(
            CompensatorConfig(profile.contract.widths.latents),
            HeldToSymbols(profile),
            args.run,
            args.device,
            args.stable_diffusion,
        )
        folder = args.run / "pairs"
        if not (folder / "pairs.json").is_file():
            count = make_pairs(profile, args.data, folder, args.exclude, gsd, args.limit, show=show)
            print(f"{count} pairs", file=sys.stderr)
        pairs = Pairs(folder, weights)
        if args.start_from:
            trainer.start_from(args.start_from)
        with (args.run / "commands.log").open("a", encoding="utf-8") as handle:
            handle.write(" ".join(["perigee-train-compensator", *(sys.argv[1:] if argv is None else argv)]) + "\n")
        for stage, minutes in stages.items():
            batch, crop = STAGE_SHAPES[stage]
            config = StageConfig(minutes, batch, crop, args.learning_rate, args.budget, args.adversary)
            trainer.run(stage, pairs, config, show)
    except ModuleNotFoundError as error:
        print(
            f"perigee-train-compensator: {error.name} is missing: pip install '.[compensation]' in Perigee's checkout",
            file=sys.stderr,
        )
        return os.EX_UNAVAILABLE
    except (PerigeeError, ValueError) as error:
        print(f"perigee-train-compensator: {error}", file=sys.stderr)
        return os.EX_DATAERR
    except KeyboardInterrupt:
        return 130
    return os.EX_OK
