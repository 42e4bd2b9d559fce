"""Joins two runs with the same frozen transform into one codec, see decision 0007.

The first run gives the prior, the hyper-latents and their tables, the second the synthesis and the reconstruction. The result
can be exported or trained further.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from perigee.models.checkpoint import CheckpointError, read_checkpoint
from perigee.support.command import Parser, run

PROGRAM = "python -m perigee.training.recipes.join_runs"
FROZEN = ("analysis.", "gains.")
GROUND = ("synthesis.", "reconstruction.")


def join(prior: dict[str, Any], synthesis: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with the prior of one checkpoint and the ground networks of another.

    Raises CheckpointError where their transforms differ.
    """
    one, other = prior["mean"], synthesis["mean"]
    differing = [n for n in one if n.startswith(FROZEN) and not (n in other and torch.equal(one[n], other[n]))]
    if differing:
        raise CheckpointError("the runs have different transforms", field=differing[0])
    mean = {n: (other if n.startswith(GROUND) else one)[n] for n in one if not n.startswith("synthesis.")}
    mean |= {n: v for n, v in other.items() if n.startswith("synthesis.")}
    config = prior["codec_config"] | {
        part: synthesis["codec_config"][part] for part in ("synthesis_widths", "synthesis_blocks")
    }
    kept = {name: prior[name] for name in ("training_config", "step", "seconds")}
    return {"mean": mean, "codec_config": config, **kept}


def build_parser() -> argparse.ArgumentParser:
    """Return the recipe's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Join the prior of one run and the synthesis of another into one checkpoint. Both runs must have been "
        "trained on the same frozen transform.",
        epilog="Exit codes: 0 written, 64 usage, 65 unusable checkpoints, 66 checkpoint missing.",
    )
    parser.add_argument("prior", type=Path, metavar="PRIOR", help="checkpoint.pt of the run that trained the prior")
    parser.add_argument(
        "synthesis", type=Path, metavar="SYNTHESIS", help="checkpoint.pt of the run that trained the synthesis"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="checkpoint to write")
    return parser


def _join_files(args: argparse.Namespace) -> int:
    """Join as the parsed arguments say."""
    torch.save(join(read_checkpoint(args.prior), read_checkpoint(args.synthesis)), args.out)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "train", lambda: _join_files(args))


if __name__ == "__main__":
    raise SystemExit(main())
