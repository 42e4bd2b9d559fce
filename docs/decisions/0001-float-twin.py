"""What the integers of a prior cost that has never been anything else: a float twin, trained from its weights.

    python docs/decisions/0001-float-twin.py CHECKPOINT MINUTES --data FOLDER ... --eval FOLDER ... [--limit N]

A prior trained in integers has no float twin: without rounding its weights are worse. So both go on learning from the same
checkpoint for the same minutes, on the same crops, once in integers and once in real numbers, everything else frozen; then
their rate-distortion curves are compared image by image. CHECKPOINT: of perigee-train, or of 0007-restore.py.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch

from perigee.benchmarks.common import image_paths, read_rgb, table
from perigee.benchmarks.metrics import bd_rate
from perigee.benchmarks.prior_gap import curve, summary
from perigee.export.profile import load_checkpoint
from perigee.models.codec.codec import prior_loss_of
from perigee.training.data import CropSampler, guessed_lambda, load_folders

RATE, BATCH, CROP, RATES = 2e-4, 8, 128, (0.07, 2.0)


def trained(codec, images, minutes, quantised):
    """The running mean of the codec whose prior went on learning."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    sampler = CropSampler(images)
    mean = copy.deepcopy(codec)
    codec.prior.quantised = quantised
    for name, parameter in codec.named_parameters():
        parameter.requires_grad_(name.startswith("prior."))
    parameters = [p for p in codec.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.99))
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        x = torch.from_numpy(sampler.batch(BATCH, CROP, rng).copy()).permute(0, 3, 1, 2).float() / 255
        luma = 255 * x.mean(1)
        activity = 0.5 * (luma.diff(dim=1).abs().mean((1, 2)) + luma.diff(dim=2).abs().mean((1, 2))) + 0.5
        low, high = (codec.config.quality_of(guessed_lambda(rate, activity)) for rate in RATES)
        quality = (low + torch.rand(len(x)) * (high - low)).round()
        loss, _, _ = prior_loss_of(codec, x, quality, autocast=False)
        optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * progress))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for ours, theirs in zip(mean.parameters(), codec.parameters(), strict=True):
                ours.lerp_(theirs, 1 - min(0.99, step / (step + 9)))
    print(f"{'integers' if quantised else 'real numbers'}: {step} steps", flush=True)
    return mean


def main():
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--eval", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=8, help="images of each folder (default %(default)s)")
    args = parser.parse_args()
    first, _ = load_checkpoint(args.checkpoint)
    images = load_folders(args.data)
    twin, integer = (trained(copy.deepcopy(first), images, args.minutes, flag) for flag in (False, True))
    rows = []
    for folder in args.eval:
        found = {"shipped integers": [], "trained on in integers": []}
        for path in image_paths(folder)[:: max(1, len(image_paths(folder)) // args.limit)][: args.limit]:
            pixels = read_rgb(path)
            pixels = pixels[: pixels.shape[0] // 64 * 64, : pixels.shape[1] // 64 * 64]
            real = curve(twin, pixels, False, "swift")
            for name, codec in zip(found, (first, integer), strict=True):
                found[name].append(bd_rate(real, curve(codec, pixels, True, "swift")))
        rows += [{"against the float twin": name, **summary(folder.name, values)} for name, values in found.items()]
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
