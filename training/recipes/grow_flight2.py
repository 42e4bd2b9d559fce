"""Grows the checkpoint of profile ``flight`` into the shape of ``flight2``, see decision 0006.

The result is for ``perigee-train --start-from``. The block KLT of ``flight`` and the separable transform of ``flight2`` have
nearly the same filters in another order. Each old latent is therefore matched with the new component that is most like it,
including its sign, and all weights that belong to a latent follow it. New latents start as a copy of a related one. The
synthesis is carried over exactly, by a change of basis.
The recipe needs the networks of releases 0.3.0 to 0.5.0, whose reconstruction had a weight ``pull``. It is kept as the record of
how ``flight2`` was made; with other networks it ends with exit code 69.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream.errors import EngineError, Fault
from perigee.models.checkpoint import read_checkpoint
from perigee.models.codec.codec import SPREAD_MAX, SPREAD_MIN, Codec, CodecConfig
from perigee.models.codec.transform import BlockTransform
from perigee.support.command import Parser, run
from perigee.training.data import load_folders
from perigee.training.loop import blocks_of

PROGRAM = "python -m perigee.training.recipes.grow_flight2"
EXCLUDED = ("oam7cm_kampala", "oam10cm_5dded5bc", "s2l2a", "drone_garfield")  # sources
OLD_SLICES = (16, 24, 40, 208)
OLD_LAMBDA = (0.00015, 0.5)
OLD_SPREAD_MIN, OLD_SPREAD_MAX = 0.11, 96.0  # deviations of the old Gaussian distributions
OLD_LATENTS = sum(OLD_SLICES)
State = dict[str, Tensor]


def match(old: State, linear: BlockTransform) -> tuple[Tensor, Tensor]:
    """Reorder the transform such that its first components are the old latents, with their signs.

    Returns the likeness [old latents, new latents] of the filters, and for each new latent the number of the old one whose
    weights it takes.
    """
    from scipy.optimize import linear_sum_assignment

    latents = linear.latents
    filters = old["analysis.linear.weight"].reshape(OLD_LATENTS, -1)
    like = filters @ linear.weight.reshape(latents, -1).T
    _, new_of = linear_sum_assignment(-like.abs().numpy())
    flip = torch.ones(768)
    flip[linear.order[new_of]] = torch.sign(like[torch.arange(OLD_LATENTS), new_of])
    linear.columns.mul_(flip.reshape(3, 16, 16, 1))
    rest = [i for i in range(latents) if i not in set(new_of.tolist())]  # in the order of their power
    linear.order.copy_(linear.order[torch.tensor([*new_of.tolist(), *rest])])
    source = np.arange(latents)
    source[OLD_LATENTS:] = np.random.default_rng(0).integers(200, OLD_LATENTS, len(rest))
    return filters @ linear.weight.reshape(latents, -1).T, torch.from_numpy(source)


def carry_synthesis(state: State, old: State, linear: BlockTransform, like: Tensor, blocks: Tensor) -> None:
    """Set the synthesis in ``state`` such that it sees the same numbers as the old one."""
    state["synthesis.linear.weight"].copy_(linear.weight)
    deviation = linear(blocks - 0.5).square().mean((0, 2, 3)).sqrt()
    state["synthesis.input_scale"].copy_(1 / (deviation + 0.1))
    first = old["synthesis.level16.0.weight"]
    whole = torch.exp(old["gains.knots"] + old["reconstruction.inverse_gains.knots"])[3]
    change = (old["synthesis.input_scale"] * whole)[:, None] * like / state["synthesis.input_scale"]
    state["synthesis.level16.0.weight"][:, :-1] = torch.einsum("olhw,lm->omhw", first[:, :-1], change)
    state["synthesis.level16.0.weight"][:, -1:] = first[:, -1:]


def carry_gains(state: State, old: State, config: CodecConfig, source: Tensor) -> None:
    """Set the gains in ``state`` to the same steps in the image as a function of lambda.

    The new filters have norm 1, and the knots lie elsewhere.
    """
    lam = config.lambda_of(torch.linspace(0, 250, 7))
    position = 6 * torch.log(lam / OLD_LAMBDA[0]) / math.log(OLD_LAMBDA[1] / OLD_LAMBDA[0])
    left = position.floor().clamp(0, 5).long()
    share = (position - left)[:, None]
    knots = -old["reconstruction.inverse_gains.knots"] - old["synthesis.linear.weight"].flatten(1).norm(dim=1).log()
    knots = ((1 - share) * knots[left] + share * knots[left + 1])[:, source]
    state["gains.knots"].copy_(knots)
    state["reconstruction.inverse_gains.knots"].copy_(-knots)
    state["reconstruction.pull"].copy_(old["reconstruction.pull"][source])


def carry_prior(state: State, old: State, config: CodecConfig, source: Tensor) -> None:
    """Set the passes of the prior in ``state``; those of the last two slices descend from the old last slice."""
    new_range = math.log(SPREAD_MAX / SPREAD_MIN)
    slope = math.log(OLD_SPREAD_MAX / OLD_SPREAD_MIN) / new_range
    shift = math.log(OLD_SPREAD_MIN * math.sqrt(3) / math.pi / SPREAD_MIN) * 63 / new_range
    for k in range(config.prior.passes):
        start, stop = config.prior.slice_of(k)
        ancestor = min(k, 6 + k % 2)
        old_start = sum(OLD_SLICES[: ancestor // 2])
        for name in [n for n in state if n.startswith(f"prior.layers.pass{k}_")]:
            value = old[name.replace(f"pass{k}_", f"pass{ancestor}_")]
            if "_out." in name:
                rows = source[start:stop] - old_start
                means, scales = value.chunk(2)
                scales = slope * scales[rows]
                if name.endswith("bias"):
                    scales = scales + (shift + slope * 20 - 20) / 8
                state[name].copy_(torch.cat([means[rows], scales]))
            elif "_context.weight" in name:
                seen = min(value.shape[1], state[name].shape[1])
                state[name].zero_()[:, :seen] = value[:, :seen]
            else:
                state[name].copy_(value)


@torch.no_grad()
def grow(old: State, blocks: Tensor, config: CodecConfig) -> State:
    """Return the state of a codec of configuration ``config`` that starts from the state ``old``.

    ``blocks`` [K, 3, 16, 16] are pixels in 0..1. Raises EngineError where the installed networks are not those of releases
    0.3.0 to 0.5.0.
    """
    codec = Codec(config)
    if "reconstruction.pull" not in codec.state_dict():
        raise EngineError(
            "this recipe needs the networks of releases 0.3.0 to 0.5.0; check one of them out to repeat it",
            Fault.ABSENT,
            expected="release 0.3.0 to 0.5.0",
        )
    codec.start_from_transform(blocks)
    linear = codec.analysis.linear
    like, source = match(old, linear)
    print("mean likeness of matched filters", like[:, :OLD_LATENTS].diagonal().mean().item())
    state = codec.state_dict()
    for name, value in state.items():
        if name in old and old[name].shape == value.shape and not name.startswith(("prior.layers.pass", "gains")):
            value.copy_(old[name])
    carry_synthesis(state, old, linear, like, blocks)
    carry_gains(state, old, config, source)
    hyper = state["hyper.layers.0.weight"].zero_()
    hyper[:, :OLD_LATENTS] = old["hyper.layers.0.weight"]
    shared = torch.stack([old[f"hyper_prior.{part}"] for part in ("logits", "means", "log_scales")], 1)
    state["hyper_prior.shared"].copy_(shared)
    carry_prior(state, old, config, source)
    return state


def build_parser() -> argparse.ArgumentParser:
    """Return the recipe's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Grow the checkpoint of profile flight into the shape of profile flight2. Needs the networks of releases "
        "0.3.0 to 0.5.0.",
        epilog="Exit codes: 0 written, 64 usage, 65 unusable checkpoint or images, 66 input missing, 69 other networks.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="OLD", help="checkpoint.pt of flight's run")
    parser.add_argument("out", type=Path, metavar="NEW", help="checkpoint to write")
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of training images")
    return parser


def _grow_file(args: argparse.Namespace) -> int:
    """Grow as the parsed arguments say."""
    config = CodecConfig(("swift",))
    blocks = blocks_of(load_folders(args.folders, EXCLUDED), np.random.default_rng(1))
    state = grow(read_checkpoint(args.checkpoint)["mean"], blocks, config)
    torch.save({"mean": state, "codec_config": config.plain()}, args.out)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "bench", lambda: _grow_file(args))


if __name__ == "__main__":
    raise SystemExit(main())
