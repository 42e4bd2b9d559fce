"""Gives the third codec the second one's weights: ``python 0006-grow.py OLD NEW DATA...``, then ``perigee-train --start-from NEW``.

The second codec's block KLT and the third's separable transform are nearly the same filters in another order, so each
old latent is matched with the new component most like it (sign included), and everything that knows latents by their
number follows. What is new starts as its nearest relative. The synthesis is carried over exactly, by a change of basis.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from perigee.models.codec.codec import SPREAD_MAX, SPREAD_MIN, Codec, CodecConfig
from perigee.training.data import CropSampler, load_folders

OLD_SLICES = (16, 24, 40, 208)
OLD_LAMBDA = (0.00015, 0.5)
OLD_LATENTS = sum(OLD_SLICES)


def main() -> None:
    old_path, new_path, *folders = map(Path, sys.argv[1:])
    old = torch.load(old_path, weights_only=True)["mean"]
    config = CodecConfig(("swift",))
    codec = Codec(config)
    images = load_folders(folders, ("oam7cm_kampala", "oam10cm_5dded5bc", "s2l2a", "drone_garfield"))
    pixels = torch.from_numpy(CropSampler(images).batch(1600, 128, np.random.default_rng(1)))
    blocks = pixels.reshape(-1, 8, 16, 8, 16, 3).permute(0, 1, 3, 5, 2, 4).reshape(-1, 3, 16, 16).float() / 255
    codec.start_from_transform(blocks)
    linear = codec.analysis.linear
    with torch.no_grad():
        # which new component is which old latent, and with which sign; the rest follow by power
        like = (
            old["analysis.linear.weight"].reshape(OLD_LATENTS, -1) @ linear.weight.reshape(config.prior.latents, -1).T
        )
        _, new_of = linear_sum_assignment(-like.abs().numpy())
        flip = torch.ones(768)
        flip[linear.order[new_of]] = torch.sign(like[torch.arange(OLD_LATENTS), new_of])
        linear.columns.mul_(flip.reshape(3, 16, 16, 1))
        rest = [i for i in range(config.prior.latents) if i not in set(new_of.tolist())]
        linear.order.copy_(linear.order[torch.tensor([*new_of.tolist(), *rest])])
        basis = linear.weight.reshape(config.prior.latents, -1)
        like = old["analysis.linear.weight"].reshape(OLD_LATENTS, -1) @ basis.T
        print("mean likeness of matched filters", like[:, :OLD_LATENTS].diagonal().mean().item())
        source = np.arange(config.prior.latents)  # the old latent whose weights a new one takes
        source[OLD_LATENTS:] = np.random.default_rng(0).integers(200, OLD_LATENTS, len(rest))
        source = torch.from_numpy(source)

        state = codec.state_dict()
        for name, value in state.items():
            if name in old and old[name].shape == value.shape and not name.startswith(("prior.layers.pass", "gains")):
                value.copy_(old[name])
        # the synthesis sees the same numbers as before
        state["synthesis.linear.weight"].copy_(linear.weight)
        deviation = linear(blocks - 0.5).square().mean((0, 2, 3)).sqrt()
        state["synthesis.input_scale"].copy_(1 / (deviation + 0.1))
        first = old["synthesis.level16.0.weight"]
        whole = torch.exp(old["gains.knots"] + old["reconstruction.inverse_gains.knots"])[3]
        change = (old["synthesis.input_scale"] * whole)[:, None] * like / state["synthesis.input_scale"]
        state["synthesis.level16.0.weight"][:, :-1] = torch.einsum("olhw,lm->omhw", first[:, :-1], change)
        state["synthesis.level16.0.weight"][:, -1:] = first[:, -1:]
        # gains: the same steps in the image as a function of lambda, for filters of norm 1 and other knots
        lam = config.lambda_of(torch.linspace(0, 250, 7))
        position = 6 * torch.log(lam / OLD_LAMBDA[0]) / math.log(OLD_LAMBDA[1] / OLD_LAMBDA[0])
        left = position.floor().clamp(0, 5).long()
        share = (position - left)[:, None]
        knots = -old["reconstruction.inverse_gains.knots"] - old["synthesis.linear.weight"].flatten(1).norm(dim=1).log()
        knots = ((1 - share) * knots[left] + share * knots[left + 1])[:, source]
        state["gains.knots"].copy_(knots)
        state["reconstruction.inverse_gains.knots"].copy_(-knots)
        state["reconstruction.pull"].copy_(old["reconstruction.pull"][source])
        hyper = state["hyper.layers.0.weight"].zero_()
        hyper[:, :OLD_LATENTS] = old["hyper.layers.0.weight"]
        shared = torch.stack([old[f"hyper_prior.{part}"] for part in ("logits", "means", "log_scales")], 1)
        state["hyper_prior.shared"].copy_(shared)
        # the prior: passes of the last slices both descend from the old last one
        slope = math.log(96.0 / 0.11) / math.log(SPREAD_MAX / SPREAD_MIN)
        shift = math.log(0.11 * math.sqrt(3) / math.pi / SPREAD_MIN) * 63 / math.log(SPREAD_MAX / SPREAD_MIN)
        for k in range(config.prior.passes):
            start, stop = config.prior.slice_of(k)
            ancestor = min(k, 6 + k % 2)
            old_start = sum(OLD_SLICES[: ancestor // 2])
            for part in ("context", "depth", "head1", "head2", "out"):
                for kind in ("weight", "bias"):
                    name = f"prior.layers.pass{k}_{part}.{kind}"
                    if name not in state:
                        continue
                    value = old[f"prior.layers.pass{ancestor}_{part}.{kind}"]
                    if part == "out":
                        rows = source[start:stop] - old_start
                        means, scales = value.chunk(2)
                        scales = slope * scales[rows]
                        if kind == "bias":
                            scales = scales + (shift + slope * 20 - 20) / 8
                        state[name].copy_(torch.cat([means[rows], scales]))
                    elif part == "context" and kind == "weight":
                        seen = min(value.shape[1], state[name].shape[1])
                        state[name].zero_()[:, :seen] = value[:, :seen]
                    else:
                        state[name].copy_(value)
    torch.save({"mean": state, "codec_config": asdict(config)}, new_path)


if __name__ == "__main__":
    main()
