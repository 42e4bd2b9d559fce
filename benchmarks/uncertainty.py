"""Does the uncertainty band hold? ``python -m perigee.benchmarks.uncertainty --compensation cosmic``.

Every image is coded near each asked rate and decoded plainly and compensated. Told are the share of samples within the 90 % interval,
its mean width, and the width of the best constant band: one width for all pixels of a rate that covers as many of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec, pixels_of
from perigee.benchmarks.common import closest, images, sample_folder, table, write_report
from perigee.benchmarks.perceptual import QUALITY_STEPS, RATES_BPP
from perigee.bitstream.arrays import Pixels
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.ground.compensation.compensator import Compensator, find_compensator
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.decoder import SceneDecoder
from perigee.ground.regions import Region

KINDS = {"base": 0.0, "compensated": 1.0}  # strength


def measure(
    codec: ArrayCodec, compensator: Compensator, pixels: Pixels, rate: float, strength: float
) -> tuple[Any, Any]:
    """Error and half width of every sample, in grey levels: float32 [row, col, 3] and [row, col]."""
    size = round(rate * pixels.shape[0] * pixels.shape[1] / 8)
    data = closest(lambda s: codec.encode(pixels, s / 2.5), QUALITY_STEPS, size)
    decoder = CompensatedSource(
        SceneDecoder(parse_stream(data), codec.ground), compensator, Compensation(strength=strength)
    )
    error = np.abs(pixels_of(decoder).astype(np.float32) - pixels)
    width = decoder.half_width(0, Region(0, 0, *pixels.shape[:2]))
    return error, np.ceil(255 * width)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", help="folder of images (repeatable; default: the sample)")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--compensation", default="cosmic", help="a compensator (default %(default)s)")
    parser.add_argument("--compensators", type=Path, action="append", default=[], help="folder with compensators")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES_BPP, help="bits per pixel (default %(default)s)"
    )
    parser.add_argument("--every", type=int, default=1, help="only each Nth image of a folder")
    parser.add_argument("--threads", type=int, help="of all networks (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("build/uncertainty.json"), help="JSON report")
    args = parser.parse_args()
    codec = ArrayCodec(args.profile, args.threads)
    contract = codec.profile.contract.digest
    compensator = find_compensator(args.compensation, contract, args.compensators, args.threads)
    rows = []
    for folder in args.data or [sample_folder()]:
        chosen = list(images(folder))[:: args.every]
        for kind, strength in KINDS.items():
            for rate in args.rates:
                errors, widths = [], []
                for _, pixels in tqdm(chosen, desc=f"{folder.name} {kind} {rate:g} bpp", disable=None):
                    error, width = measure(codec, compensator, pixels, rate, strength)
                    errors.append(error.reshape(-1))
                    widths.append(np.repeat(width[..., None], 3, 2).reshape(-1))
                error, width = np.concatenate(errors), np.concatenate(widths)
                covered = float((error <= width).mean())
                rows.append({
                    "folder": folder.name, "image": kind, "bpp": rate, "images": len(chosen), "covered %": round(100 * covered, 1),
                    "mean half width": round(float(width.mean()), 2),
                    "constant half width": round(float(np.quantile(error, covered)), 2),
                })  # fmt: skip
    print(table(rows, list(rows[0])))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
