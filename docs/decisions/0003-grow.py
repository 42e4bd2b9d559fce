"""Grows the first release's checkpoint (192 latents) into the second's shape (288), as decision 0003 tells.

``python docs/decisions/0003-grow.py OLD_CHECKPOINT NEW_CHECKPOINT IMAGE_FOLDER...``; the result is for
``perigee-train --start-from``. Channels that are there already keep their weights; new latents start as the transform
codec's, orthogonal to the trained ones; all that would let them into the networks starts at zero. Kept beside the decision
for whoever wants to repeat it: nothing else needs it.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perigee.bitstream.contract import KNOTS
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.models.codec.codec import Codec, CodecConfig
from perigee.training.data import CropSampler, load_folders

OLD_LAMBDA_MAX, OLD_LATENTS, OLD_LAST_SLICE = 0.2, 192, 112
MOVED = {"synthesis.level8.3": "synthesis.level8.2", "synthesis.level4.2": "synthesis.level4.1"}  # behind a new block
NEW = ("analysis.networks.", "synthesis.level8.2.", "synthesis.level4.1.")


def new_components(trained: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors [count, 768] of what the trained basis [M, 768] leaves of the blocks, and their deviations."""
    span, _ = torch.linalg.qr(trained.double().T)
    rest = (blocks - 0.5).double()
    rest = rest - (rest @ span) @ span.T
    values, vectors = torch.linalg.eigh(rest.T @ rest / len(rest))
    return vectors.flip(1)[:, :count].T.float(), values.flip(0)[:count].clamp_min(0).sqrt().float()


def knots_moved(old: Tensor, config: CodecConfig) -> Tensor:
    """Log gains at the new knots: the old piecewise line over log lambda, its last piece continued."""
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
    """State of a new codec."""
    codec = Codec(config)
    codec.start_from_klt(blocks)
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


def main() -> None:
    """Entry point."""
    source, target, *folders = map(Path, sys.argv[1:])
    sampler = CropSampler(load_folders(folders, ["oam7cm_kampala", "oam10cm_5dded5bc", "s2l2a", "drone_garfield"]))
    blocks = torch.from_numpy(sampler.batch(1600, 128, np.random.default_rng(3))).reshape(-1, 8, 16, 8, 16, 3)
    blocks = blocks.permute(0, 1, 3, 5, 2, 4).reshape(-1, 768).float() / 255
    old = torch.load(source, map_location="cpu", weights_only=True)["mean"]
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"mean": grow(old, blocks, CodecConfig())}, target)


if __name__ == "__main__":
    main()
