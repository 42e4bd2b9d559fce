"""Measures what the integers of a prior cost, against a float twin that is trained from its weights, see decision 0001.

A prior that was trained in integers has no float twin: without rounding its weights are worse. So both go on learning from the
same checkpoint for the same time and on the same crops, once in integers and once in real numbers, with everything else
frozen. Then their rate-distortion curves are compared image by image.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perigee.models.checkpoint import load_codec
from perigee.models.codec.codec import Codec, prior_loss_of
from perigee.support.command import Parser, positive, run
from perigee.training.data import CropSampler, ImageSet, guessed_lambda, load_folders
from perigee.training.loop import activity_of
from perigee.training.run import ADAM_BETAS, descend

PROGRAM = "python -m perigee.benchmarks.float_twin"
LEARNING_RATE, BATCH, CROP, RATES = 2e-4, 8, 128, (0.07, 2.0)
DECAY_MAX = 0.99  # of the averaged weights
ANALYSIS = "swift"


def trained(codec: Codec, images: ImageSet, minutes: float, quantised: bool) -> Codec:
    """Train a codec's prior for some minutes and return the codec with averaged weights."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    sampler = CropSampler(images)
    mean = copy.deepcopy(codec)
    codec.prior.quantised = quantised
    for name, parameter in codec.named_parameters():
        parameter.requires_grad_(name.startswith("prior."))
    parameters = [p for p in codec.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=ADAM_BETAS)
    start, training_step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        x = torch.from_numpy(sampler.batch(BATCH, CROP, rng).copy()).permute(0, 3, 1, 2).float() / 255
        activity = activity_of(x)
        low, high = (codec.config.quality_of(guessed_lambda(rate, activity)) for rate in RATES)
        quality = (low + torch.rand(len(x)) * (high - low)).round()
        loss, _, _ = prior_loss_of(codec, x, quality, autocast=False)
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))
        descend(loss, optimiser, parameters)
        training_step += 1
        with torch.no_grad():
            for ours, theirs in zip(mean.parameters(), codec.parameters(), strict=True):
                ours.lerp_(theirs, 1 - min(DECAY_MAX, training_step / (training_step + 9)))
    print(f"{'integers' if quantised else 'real numbers'}: {training_step} training steps", flush=True)
    return mean


def compare(shipped: Codec, integer: Codec, twin: Codec, folder: Path, limit: int) -> list[dict[str, Any]]:
    """Return rows with the BD-rates of both integer priors over the float twin on at most ``limit`` images of a folder."""
    from perigee.benchmarks.common import image_paths, read_rgb
    from perigee.benchmarks.metrics import bd_rate
    from perigee.benchmarks.prior_gap import curve, summary

    found: dict[str, list[float]] = {"shipped integers": [], "trained on in integers": []}
    paths = image_paths(folder)
    for path in paths[:: max(1, len(paths) // limit)][:limit]:
        pixels = read_rgb(path)
        pixels = pixels[: pixels.shape[0] // 64 * 64, : pixels.shape[1] // 64 * 64]
        real = curve(twin, pixels, False, ANALYSIS)
        for name, codec in zip(found, (shipped, integer), strict=True):
            found[name].append(bd_rate(real, curve(codec, pixels, True, ANALYSIS)))
    return [{"against the float twin": name, **summary(folder.name, values)} for name, values in found.items()]


def build_parser() -> argparse.ArgumentParser:
    """Return the recipe's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Measure what the integers of a prior cost: train it further in integers and in real numbers, and compare.",
        epilog="Exit codes: 0 measured, 64 usage, 65 unusable checkpoint or images, 66 input missing, 69 package missing.",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of perigee-train or of restore_checkpoint"
    )
    parser.add_argument("minutes", type=float, metavar="MINUTES", help="how long each of the two priors is trained")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of training images (repeatable)",
    )
    parser.add_argument(
        "--eval", type=Path, action="append", required=True, metavar="DIR", help="folder of test images (repeatable)"
    )
    parser.add_argument(
        "--limit", type=positive, default=8, metavar="N", help="number of images from each folder (default %(default)s)"
    )
    return parser


def _measure(args: argparse.Namespace) -> int:
    """Measure as the parsed arguments say."""
    from perigee.benchmarks.common import table

    shipped, _ = load_codec(args.checkpoint)
    images = load_folders(args.data)
    twin, integer = (trained(copy.deepcopy(shipped), images, args.minutes, flag) for flag in (False, True))
    rows = [row for folder in args.eval for row in compare(shipped, integer, twin, folder, args.limit)]
    print(table(rows, list(rows[0])))
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "bench", lambda: _measure(args))


if __name__ == "__main__":
    raise SystemExit(main())
