"""What the integers of the prior cost: ``python -m perigee.benchmarks.prior_gap CHECKPOINT [--data FOLDER]``.

The same trained prior, once in its integers (as it flies) and once as its float twin (real weights and activations, tables
not rounded), sees the same latents. Rates are code lengths, container left out; the image depends on means and scales too,
so whole rate-distortion curves are compared: BD-rate per image, then median and quartiles. Needs torch and a checkpoint.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from perigee.benchmarks.common import image_paths, read_rgb, sample_folder, table, write_report
from perigee.benchmarks.metrics import bd_rate
from perigee.bitstream.arrays import Pixels
from perigee.models.checkpoint import load_codec
from perigee.models.codec.codec import Codec

QUALITY_STEPS = (10, 40, 70, 100, 130, 160, 190, 220, 250)


@torch.no_grad()
def curve(codec: Codec, pixels: Pixels, quantised: bool, preset: str) -> list[tuple[float, float]]:
    """Points (bpp, PSNR in dB) of an image uint8 [row, col, 3] with sides of multiples of 64."""
    x = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).float() / 255
    codec.prior.quantised = quantised
    points = []
    for step in QUALITY_STEPS:
        out = codec(x, torch.full((1,), float(step)), noise=False, analysis=preset)
        mse = float((out.image.clamp(0, 1).mul(255).round() / 255 - x).square().mean())
        points.append((float(out.bits_y + out.bits_z) / pixels[..., 0].size, -10 * math.log10(max(mse, 1e-10))))
    return points


def gaps(codec: Codec, folder: Path, preset: str, limit: int | None) -> list[float]:
    """Per image the BD-rate of the integer prior over its float twin, in %."""
    out = []
    for path in tqdm(image_paths(folder)[:limit], desc=folder.name, unit="image", disable=None):
        pixels = read_rgb(path)
        rows, cols = (n // 64 * 64 for n in pixels.shape[:2])
        pixels = pixels[:rows, :cols]
        twin, integer = (curve(codec, pixels, flag, preset) for flag in (False, True))
        out.append(bd_rate(twin, integer))
    return out


def summary(folder: str, values: list[float]) -> dict[str, Any]:
    """Median, quartiles and extremes; images whose curves do not overlap are left out."""
    known = np.array([v for v in values if not math.isnan(v)])
    low, middle, high = np.percentile(known, [25, 50, 75])
    return {
        "folder": folder,
        "images": len(known),
        "median %": f"{middle:+.2f}",
        "quartiles %": f"{low:+.2f} .. {high:+.2f}",
        "extremes %": f"{known.min():+.2f} .. {known.max():+.2f}",
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a perigee-train run")
    parser.add_argument("--data", type=Path, action="append", help="folder of images (repeatable; default: the sample)")
    parser.add_argument("--analysis", default="lite", help="preset of the analysis (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N images of a folder")
    parser.add_argument("--out", type=Path, default=Path("build/prior_gap.json"), help="JSON report")
    args = parser.parse_args()
    codec, _ = load_codec(args.checkpoint)
    found = {f.name: gaps(codec, f, args.analysis, args.limit) for f in args.data or [sample_folder()]}
    rows = [summary(name, values) for name, values in found.items()]
    print("integer prior over its float twin\n" + table(rows, list(rows[0])))
    write_report(args.out, [{"summary": rows, "images": found}])


if __name__ == "__main__":
    main()
