"""What a prior gives an enhancer: ``python -m perigee.benchmarks.ablation --none RUN --regressed RUN --generated RUN --oracle RUN --data FOLDER``.

Runs of ``perigee-train-enhancer``, which should have had equal minutes, enhance the upper left 256x256 pixels of images that OpenJPEG has
coded at four rates. The generated prior is drawn with five seeds, and replaced by one from no noise, by zeros, by noise and by the oracle's.
Gains in dB of PSNR over the decoded image, at full strength: mean, median and spread over images and rates.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from perigee.benchmarks.common import image_paths, read_rgb, table, write_report
from perigee.benchmarks.enhance import psnr
from perigee.bitstream.arrays import Pixels
from perigee.export.enhancement import enhancer_of
from perigee.models.checkpoint import read_checkpoint
from perigee.models.enhancement.prior import TOKEN, Enhancer
from perigee.training.degraded import by_jpeg2000
from perigee.training.run import CHECKPOINT_FILE

RATES = (0.14, 0.34, 0.75, 1.1)  # bits per pixel
SEEDS = 5
SIDE = 256
KINDS = ("none", "regressed", "generated", "oracle")


def added_by(
    networks: dict[str, Enhancer], image: Tensor, original: Tensor, condition: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The name of each way, and what it adds to a decoded image [1, 3, 256, 256]."""
    yield "none", networks["none"](image, condition)[0]
    yield "regressed", networks["regressed"](image, condition)[0]
    yield "oracle", networks["oracle"](image, condition, original=original)[0]
    generated = networks["generated"]
    shape = (1, generated.tokens, SIDE // TOKEN, SIDE // TOKEN)
    for seed in range(SEEDS):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        yield f"generated, seed {seed}", generated(image, condition, noise=noise)[0]
    yield "generated from no noise", generated(image, condition, noise=torch.zeros(shape))[0]
    priors = {
        "zeros instead": torch.zeros(shape),
        "noise instead": torch.randn(shape, generator=torch.Generator().manual_seed(SEEDS)),
        "its oracle instead": generated.true_prior(original, image, condition),
    }
    for name, prior in priors.items():
        yield f"generated, {name}", generated.network(image, condition, prior)[0]


def gains_of(networks: dict[str, Enhancer], pixels: Pixels) -> Iterator[tuple[str, float]]:
    """Every way's gain at each rate of an image of 256x256 pixels."""
    original = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255
    for rate in RATES:
        coded = by_jpeg2000(pixels, rate)
        image = torch.from_numpy(coded.decoded.transpose(2, 0, 1).copy())[None].float() / 255
        condition = torch.tensor([coded.coding.condition])
        before = psnr(pixels, coded.decoded)
        with torch.no_grad():
            for name, added in added_by(networks, image, original, condition):
                better = coded.decoded + 255 * added[0].numpy().transpose(1, 2, 0)
                yield name, psnr(pixels, np.rint(np.clip(better, 0, 255)).astype(np.uint8)) - before


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, required=True, metavar="RUN", help=f"run with --prior {kind}")
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of RGB images (repeatable)")
    parser.add_argument(
        "--limit", type=int, default=16, help="images of each folder, evenly spaced (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/ablation.json"), help="JSON report")
    args = parser.parse_args()
    device = torch.device("cpu")
    networks = {kind: enhancer_of(read_checkpoint(getattr(args, kind) / CHECKPOINT_FILE, device)) for kind in KINDS}
    rows = []
    for folder in args.data:
        paths = list(image_paths(folder))
        found: dict[str, list[float]] = {}
        for path in tqdm(paths[:: max(1, len(paths) // args.limit)][: args.limit], desc=folder.name, disable=None):
            pixels = np.ascontiguousarray(read_rgb(path)[:SIDE, :SIDE])
            if pixels.shape[:2] == (SIDE, SIDE):
                for name, gain in gains_of(networks, pixels):
                    found.setdefault(name, []).append(gain)
        rows += [
            {"set": folder.name, "prior": name, "pairs": len(gains), "mean dB": f"{np.mean(gains):.3f}",
             "median dB": f"{np.median(gains):.3f}", "spread dB": f"{np.std(gains):.3f}"}
            for name, gains in found.items()
        ]  # fmt: skip
    print(table(rows, list(rows[0])))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
