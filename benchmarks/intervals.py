"""Fits a compensator's intervals: ``python -m perigee.benchmarks.intervals RUN/pairs COMPENSATOR`` (part of making one).

Split conformal prediction (Vovk et al. 2005) through the ground's own path: patches of images that were held out of training are
coded and decoded, plainly and by each method; by what must the predicted error scale be multiplied so that 90 % of the samples of one
more image lie within? Images, not pixels or patches, are taken as exchangeable. Written into the manifest, by bands of quality.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec, pixels_of
from perigee.bitstream.manifest import MANIFEST_FILE
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.ground.compensation.compensator import Compensator
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.decoder import SceneDecoder
from perigee.ground.regions import Region
from perigee.support.files import write_atomically
from perigee.training.pairs import Pairs, guessed_quality_step

COVERAGE = 0.9
BANDS = (0, 60, 100, 140, 251)  # of Q
# every image is coded at a rate between each two: few images make a factor cautious
RATES = (0.06, 0.13, 0.28, 0.6, 1.3)
SAMPLES = 4000  # of each patch
Ratios = list[tuple[int, float, Any]]  # an image's number, its source's weight, and error over scale of samples of it


def factor_of(ratios: Ratios) -> float:
    """The factor for COVERAGE, with the correction for a finite number of images; sources weigh as in training."""
    n = len({number for number, _, _ in ratios})
    values = np.concatenate([part for _, _, part in ratios])
    weights = np.concatenate([np.full(len(part), weight) for _, weight, part in ratios])
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(reached, min((n + 1) * COVERAGE / n, 1.0)))
    return float(values[order][min(place, len(values) - 1)])


def fit(pairs: Pairs, compensator: Compensator, codec: ArrayCodec, seed: int = 1) -> dict[str, list[list[float]]]:
    """Factors ``[[Q, factor], ...]`` for the base image (``base``) and each method."""
    wanted = {"base": Compensation(strength=0.0)} | {m: Compensation(m) for m in compensator.methods}
    bare = {kind: np.array([[0, 1.0]]) for kind in wanted}  # the network's scale as it is
    compensator.settings = replace(compensator.settings, intervals=bare)
    rng = np.random.default_rng(seed)
    found: dict[str, dict[int, Ratios]] = {kind: {} for kind in wanted}
    counts = np.bincount(pairs.arrays["source"])
    shares = np.sqrt(counts) / np.maximum(counts, 1)
    drawn = [(i, low, high) for i in pairs.held_out for low, high in zip(RATES, RATES[1:], strict=False)]
    for i, low, high in tqdm(drawn, unit="patch", disable=None):
        pixels = np.ascontiguousarray(pairs.arrays["image"][i])
        step = guessed_quality_step(codec.profile, pixels, math.exp(rng.uniform(math.log(low), math.log(high))))
        data = codec.encode(pixels, step / 2.5)
        chosen = rng.choice(pixels.size, SAMPLES, replace=False)
        for kind, compensation in wanted.items():
            decoder = CompensatedSource(SceneDecoder(parse_stream(data), codec.ground), compensator, compensation)
            error = np.abs(pixels_of(decoder).astype(np.float32) - pixels)
            scale = 255 * decoder.half_width(0, Region(0, 0, *pixels.shape[:2]))[..., None]
            # a product's widths are whole grey levels, rounded up: an error is within them if it is less than a level wider
            ratio = (np.maximum(error - 1, 0) / scale).reshape(-1)[chosen]
            band = sum(step >= edge for edge in BANDS[1:])
            found[kind].setdefault(band, []).append(
                (int(pairs.arrays["number"][i]), float(shares[pairs.arrays["source"][i]]), ratio)
            )
    middle = [(low + high) // 2 for low, high in zip(BANDS, BANDS[1:], strict=False)]
    return {
        kind: [[middle[band], round(factor_of(ratios), 4)] for band, ratios in sorted(bands.items())]
        for kind, bands in found.items()
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of pairs of the compensator's training run")
    parser.add_argument("compensator", type=Path, help="folder of the compensator")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--threads", type=int, help="of all networks (default: all cores)")
    args = parser.parse_args()
    codec = ArrayCodec(args.profile, args.threads)
    compensator = Compensator(args.compensator, args.threads, codec.profile.contract.digest)
    factors = fit(Pairs(args.pairs), compensator, codec)
    path = args.compensator / MANIFEST_FILE
    manifest = json.loads(path.read_text(encoding="utf-8")) | {"interval": factors}
    write_atomically(path, (json.dumps(manifest, indent=1) + "\n").encode())
    print(json.dumps(factors, indent=1))


if __name__ == "__main__":
    main()
