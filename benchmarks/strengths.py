"""The strengths at which a compensator costs a given loss: ``python -m perigee.benchmarks.strengths RUN/pairs COMPENSATOR``.

Patches of images that were held out of training are coded near some rates, decoded plainly, and compensated at several strengths by the
compensator's default method, through the ground's own path. The strength of a rate is that at which the mean of the sources loses as many decibels
of PSNR as asked. It is printed beside the one in the manifest, which it does not change.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec, pixels_of
from perigee.benchmarks.common import closest, psnr, table, write_report
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.ground.compensation.compensator import Compensator
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.decoder import SceneDecoder
from perigee.training.pairs import Pairs

SOURCES = ("naip60", "ucm-train")
RATES_BPP, LOSS_DB = (0.1, 0.2, 0.4), 0.38
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)
QUALITY_STEPS = 250


def losses(pixels: Any, rate: float, compensator: Compensator, codec: ArrayCodec) -> list[float]:
    """By how many decibels a compensated patch uint8 [rows, cols, 3] is worse than the base image, at each of ``STRENGTHS``."""
    data = closest(lambda s: codec.encode(pixels, s / 2.5), QUALITY_STEPS, round(rate * pixels[..., 0].size / 8))
    found = []
    for strength in (0.0, *STRENGTHS):
        compensator.settings = replace(compensator.settings, strength=np.array([[0.0, strength]]))
        source = CompensatedSource(SceneDecoder(parse_stream(data), codec.ground), compensator, Compensation())
        found.append(psnr(pixels, pixels_of(source)))
    return [found[0] - value for value in found[1:]]


def strength_at(curve: list[float], loss: float) -> float | None:
    """The strength at which a curve of losses by ``STRENGTHS`` reaches a loss; None where it does not."""
    rising = np.maximum.accumulate([0.0, *curve])
    return None if rising[-1] < loss else float(np.interp(loss, rising, [0.0, *STRENGTHS]))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of pairs of the compensator's training run")
    parser.add_argument("compensator", type=Path, help="folder of the compensator")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--source", action="append", help=f"of the pairs (repeatable; default {' '.join(SOURCES)})")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES_BPP, help="bits per pixel (default %(default)s)"
    )
    parser.add_argument("--loss", type=float, default=LOSS_DB, metavar="DB", help="decibels (default %(default)s)")
    parser.add_argument("--threads", type=int, help="of all networks (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("build/strengths.json"), help="JSON report")
    args = parser.parse_args()
    codec, pairs = ArrayCodec(args.profile, args.threads), Pairs(args.pairs)
    compensator = Compensator(args.compensator, args.threads, codec.profile.contract.digest)
    shipped = compensator.settings.strength.T
    wanted = args.source or SOURCES
    held = [i for i in pairs.held_out if pairs.sources[int(pairs.arrays["source"][i])] in wanted]
    rows: list[dict[str, Any]] = []
    for rate in args.rates:
        found: dict[int, list[list[float]]] = defaultdict(list)
        for i in tqdm(held, unit="patch", desc=f"{rate:g} bpp", disable=None):
            pixels = np.ascontiguousarray(pairs.arrays["image"][i])
            found[int(pairs.arrays["source"][i])].append(losses(pixels, rate, compensator, codec))
        curves = [np.mean(part, axis=0) for part in found.values()]
        strength = strength_at(list(np.mean(curves, axis=0)), args.loss)
        row = {"bpp": rate, "patches": len(held)}
        row |= {f"at {s:g}": f"{-loss:+.3f} dB" for s, loss in zip(STRENGTHS, np.mean(curves, axis=0), strict=True)}
        row |= {f"strength for -{args.loss:g} dB": "above" if strength is None else f"{strength:.2f}"}
        rows.append(row | {"in the manifest": f"{np.interp(rate, *shipped):.2f}"})
        print(table(rows[-1:], list(rows[-1])), flush=True)
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
