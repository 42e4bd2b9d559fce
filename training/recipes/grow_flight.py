"""Grows the checkpoint of profile ``lite`` (192 latents) into the shape of ``flight`` (288 latents), see decision 0003.

The result is for ``perigee-train --start-from``. Channels that exist in both keep their weights. New latents start as those of
the transform codec, orthogonal to the trained ones, and all weights that would let them into the networks start at zero.
The recipe needs the networks of release 0.2.0, whose transform was a Karhunen-Loève transform (KLT) of whole blocks. It is kept
as the record of how ``flight`` was made; with later networks it ends with exit code 69.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream.contract import KNOTS
from perigee.bitstream.errors import EngineError, Fault
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.models.checkpoint import read_checkpoint
from perigee.models.codec.codec import Codec, CodecConfig
from perigee.support.command import Parser, run
from perigee.training.data import load_folders
from perigee.training.loop import blocks_of

PROGRAM = "python -m perigee.training.recipes.grow_flight"
EXCLUDED = ("oam7cm_kampala", "oam10cm_5dded5bc", "s2l2a", "drone_garfield")  # sources
OLD_LAMBDA_MAX, OLD_LATENTS, OLD_LAST_SLICE = 0.2, 192, 112
# layers that moved because a new block was put in front of them
MOVED = {"synthesis.level8.3": "synthesis.level8.2", "synthesis.level4.2": "synthesis.level4.1"}
NEW = ("analysis.networks.", "synthesis.level8.2.", "synthesis.level4.1.")


def new_components(trained: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the strongest components of what a trained basis leaves of the blocks, and their deviations.

    ``trained`` is the basis [M, 768], ``blocks`` [K, 768] are pixels in 0..1. Returns [count, 768] and [count].
    """
    span, _ = torch.linalg.qr(trained.double().T)
    rest = (blocks - 0.5).double()
    rest = rest - (rest @ span) @ span.T
    values, vectors = torch.linalg.eigh(rest.T @ rest / len(rest))
    return vectors.flip(1)[:, :count].T.float(), values.flip(0)[:count].clamp_min(0).sqrt().float()


def knots_moved(old: Tensor, config: CodecConfig) -> Tensor:
    """Return the log gains [KNOTS, M] at the new knots: the old piecewise line over log lambda with its last piece continued."""
    old_at = np.linspace(math.log(config.lambda_min), math.log(OLD_LAMBDA_MAX), KNOTS)
    new_at = np.linspace(math.log(config.lambda_min), math.log(config.lambda_max), KNOTS)
    slope = (old[-1] - old[-2]) / (old_at[-1] - old_at[-2])
    rows = []
    for at in new_at:
        place = min(np.searchsorted(old_at, at, side="right") - 1, KNOTS - 2)
        share = (at - old_at[place]) / (old_at[place + 1] - old_at[place])
        inside = old[place] + share * (old[place + 1] - old[place])
        rows.append(inside if share <= 1 else old[-1] + slope * (at - old_at[-1]))
    return torch.stack(rows)


@torch.no_grad()
def grow(old: dict[str, Tensor], blocks: Tensor, config: CodecConfig) -> dict[str, Tensor]:
    """Return the state of a codec of configuration ``config`` that starts from the state ``old``.

    Raises EngineError where the installed networks are not those of release 0.2.0.
    """
    codec = Codec(config)
    start_from_klt: Any = getattr(codec, "start_from_klt", None)
    if start_from_klt is None:
        raise EngineError(
            "this recipe needs the networks of release 0.2.0; check that release out to repeat it",
            Fault.ABSENT,
            expected="release 0.2.0",
        )
    start_from_klt(blocks)
    state = codec.state_dict()
    count = config.prior.latents - OLD_LATENTS
    plane = math.log(config.lambda_max / config.lambda_min) / math.log(OLD_LAMBDA_MAX / config.lambda_min)
    for name, value in state.items():
        if name.startswith(NEW):
            continue
        source = next((name.replace(new, before) for new, before in MOVED.items() if name.startswith(new)), name)
        known = old[source]
        if known.shape == value.shape:
            value.copy_(known)
    for side in ("analysis", "synthesis"):
        basis, deviation = new_components(old[f"{side}.linear.weight"].reshape(OLD_LATENTS, -1), blocks, count)
        state[f"{side}.linear.weight"].copy_(torch.cat([old[f"{side}.linear.weight"], basis.reshape(count, 3, 16, 16)]))
    state["synthesis.input_scale"].copy_(torch.cat([old["synthesis.input_scale"], 1 / (deviation + 0.1)]))
    for name in ("gains.knots", "reconstruction.inverse_gains.knots"):
        moved = knots_moved(old[name], config)
        state[name].copy_(torch.cat([moved, moved[:, -32:].mean(1, keepdim=True).expand(-1, count)], 1))
    state["reconstruction.pull"].copy_(
        torch.cat([old["reconstruction.pull"], old["reconstruction.pull"][-32:].mean().expand(count)])
    )
    for name in ("hyper.layers.0.weight", "prior.layers.pass7_context.weight"):
        state[name].zero_()[:, :OLD_LATENTS] = old[name]
    first = "synthesis.level16.0.weight"
    state[first].zero_()[:, :OLD_LATENTS] = old[first][:, :-1]
    state[first][:, -1] = old[first][:, -1] * plane
    state["prior.layers.hyper_mix.weight"][:, -1] *= plane
    wide = OLD_LAST_SLICE + count
    for k in (6, 7):
        for part in ("weight", "bias"):
            name = f"prior.layers.pass{k}_out.{part}"
            state[name].zero_()
            state[name][:OLD_LAST_SLICE] = old[name][:OLD_LAST_SLICE]
            state[name][wide : wide + OLD_LAST_SLICE] = old[name][OLD_LAST_SLICE:]
            state[name][wide + OLD_LAST_SLICE :] = old[name][-8:].mean(0)
    assert QUALITY_STEPS == 250
    return state


def build_parser() -> argparse.ArgumentParser:
    """Return the recipe's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Grow the checkpoint of profile lite into the shape of profile flight. Needs the networks of release 0.2.0.",
        epilog="Exit codes: 0 written, 64 usage, 65 unusable checkpoint or images, 66 input missing, 69 other networks.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="OLD", help="checkpoint.pt of lite's run")
    parser.add_argument("out", type=Path, metavar="NEW", help="checkpoint to write")
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of training images")
    return parser


def _grow_file(args: argparse.Namespace) -> int:
    """Grow as the parsed arguments say."""
    images = load_folders(args.folders, EXCLUDED)
    blocks = blocks_of(images, np.random.default_rng(3)).reshape(-1, 768)
    old = read_checkpoint(args.checkpoint)["mean"]
    state = grow(old, blocks, CodecConfig())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"mean": state}, args.out)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "train", lambda: _grow_file(args))


if __name__ == "__main__":
    raise SystemExit(main())
