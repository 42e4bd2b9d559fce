"""Whether metadata change what the diffusion adds: ``python -m perigee.benchmarks.diffusion_metadata RUN --lpips ONNX``.

The pairs of a run of ``perigee-train-compensator`` that were held out of training are sampled with their true metadata, with none, and with those
of another image of the same source, from the same noise. Told are the differences to none in PSNR and LPIPS, with 95 % intervals from resampling
the images, for all images, for each source, and for those whose season or sun is known, where an effect would show.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from perigee.benchmarks.common import psnr, table, write_report
from perigee.benchmarks.diffusion import Bench, Tile
from perigee.bitstream.arrays import BoolArray, FloatArray
from perigee.bitstream.conditions import FIELDS
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.training.pairs import SIDE, Pairs

WAYS = ("true", "absent", "shuffled")
STEPS, SEEDS, RESAMPLINGS = 4, 5, 2000
LIT = ("season", "sun_elevation")  # fields by which the light is known


def tile_of(pairs: Pairs, number: int) -> Tile:
    """A pair as a tile."""
    crop = pairs.crops(np.array([number]), np.zeros((1, 2), int), SIDE)
    base, latents, symbols, quality, values, known = (
        torch.from_numpy(np.asarray(crop[name], np.float32))
        for name in ("base", "latents", "symbols", "quality", "values", "known")
    )
    return Tile(crop["image"][0].transpose(1, 2, 0), base, latents, symbols, quality, values, known)


@torch.no_grad()
def measured(bench: Bench, tile: Tile, other: Tile, seeds: int) -> Iterator[tuple[str, float, float]]:
    """PSNR and LPIPS of a tile with each kind of metadata and seed; ``other`` gives the shuffled ones."""
    features = bench.net.trunk(tile.base, tile.latents)
    conditions = {
        "true": (tile.values, tile.known),
        "absent": (0 * tile.values, 0 * tile.known),
        "shuffled": (other.values, other.known),
    }
    for name, (values, known) in conditions.items():
        given = Tile(tile.pixels, tile.base, tile.latents, tile.symbols, tile.quality_step, values, known)
        for seed in range(seeds):
            shown = bench.shown(tile, bench.detail(f"noise:{STEPS}", given, features, seed))
            yield name, psnr(tile.pixels, shown), bench.lpips(tile.pixels, shown)


def interval(differences: FloatArray) -> str:
    """The mean of differences, one for each image, with its 95 % interval."""
    rng = np.random.default_rng(1)
    means = differences[rng.integers(0, len(differences), (RESAMPLINGS, len(differences)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{differences.mean():+.4f} ({low:+.4f} .. {high:+.4f})"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run whose diffusion is trained")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--lpips", type=Path, required=True, metavar="ONNX", help="inputs ref and dist in -1..1")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the noise (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--out", type=Path, default=Path("build/diffusion-metadata.json"), help="JSON report")
    args = parser.parse_args()
    bench, pairs = Bench(args.run, args.profile, args.lpips), Pairs(args.run / "pairs")
    sources, known = np.asarray(pairs.arrays["source"]), np.asarray(pairs.arrays["known"])
    rng, found = np.random.default_rng(4), []
    numbers = [n for n in pairs.held_out if known[n].any()][: args.limit]
    for number in tqdm(numbers, unit="image", disable=None):
        alike = [n for n in np.flatnonzero(sources == sources[number]) if n != number and known[n].any()]
        other = tile_of(pairs, int(rng.choice(alike))) if alike else tile_of(pairs, int(number))
        rows = list(measured(bench, tile_of(pairs, int(number)), other, args.seeds))
        found.append({name: np.mean([row[1:] for row in rows if row[0] == name], axis=0) for name in WAYS})
    lit: BoolArray = np.any(known[:, [FIELDS.index(name) for name in LIT]], axis=1)
    groups = {"all": np.ones(len(numbers), bool), "season or sun known": lit[numbers]}
    groups |= {pairs.sources[s]: sources[numbers] == s for s in np.unique(sources[numbers])}
    report: list[dict[str, Any]] = []
    for name, members in groups.items():
        for way in ("true", "shuffled"):
            chosen = [f for f, inside in zip(found, members, strict=True) if inside]
            if len(chosen) > 2:
                difference = np.array([f[way] - f["absent"] for f in chosen])
                share = 100 * difference[:, 1] / np.mean([f["absent"][1] for f in chosen])
                report.append(
                    {
                        "images": f"{name} ({len(chosen)})",
                        "metadata": way,
                        "dB": interval(difference[:, 0]),
                        "LPIPS, %": interval(share),
                    }
                )
    print(table(report, list(report[0])))
    write_report(args.out, report)


if __name__ == "__main__":
    main()
