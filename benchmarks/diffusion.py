"""What a diffusion could give and does give: ``python -m perigee.benchmarks.diffusion RUN --lpips ONNX --data FOLDER --way true --way noise:10``.

The networks of a run of ``perigee-train-compensator``, which need not be finished, add detail to tiles near some rates. A way is ``one-step``;
``true``, the one-step image with the true z0, which no diffusion can beat; ``noise:STEPS``, z0 sampled from noise; or ``refine:TIME:STEPS``,
sampled from the one-step image, whose z is 0, with so much of the noise's time. Every way runs at several strengths, so that ways are compared
at equal loss of PSNR: the last columns are interpolated to ``LOSSES``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import closest, images, psnr, table, write_report
from perigee.benchmarks.metrics import Lpips
from perigee.bitstream.arrays import Pixels
from perigee.bitstream.conditions import FIELDS
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.models.checkpoint import read_checkpoint
from perigee.models.compensation.compensator import Compensator, config_from
from perigee.models.compensation.denoiser import DIFFUSION_STEPS, alpha_sigma
from perigee.models.compensation.latent import CHANNELS
from perigee.models.compensation.trunk import NOISE, Features
from perigee.training.acquisitions import conditions_of
from perigee.training.pairs import GroundTruth
from perigee.training.projection import ProjectToCells
from perigee.training.run import CHECKPOINT_FILE

RATES_BPP = (0.1, 0.2, 0.4)
QUALITY_STEPS = 250
STRENGTHS = (0.35, 0.7, 1.0, 1.3)
LOSSES = (0.1, 0.2, 0.45)  # dB
SEEDS = 1


@dataclass(frozen=True)
class Tile:
    """A tile as the ground has it: the original, base image, latents, symbols and quality step, and its condition, each of one image."""

    pixels: Pixels
    base: Tensor
    latents: Tensor
    symbols: Tensor
    quality_step: Tensor
    values: Tensor
    known: Tensor

    @property
    def image(self) -> Tensor:
        """The original in 0..1, [1, 3, H, W]."""
        return torch.from_numpy(self.pixels.transpose(2, 0, 1)[None].astype(np.float32)) / 255


class Bench:
    """The networks of a run, the codec and the measures."""

    def __init__(self, run: Path, profile: str, lpips: Path) -> None:
        state = read_checkpoint(run if run.is_file() else run / CHECKPOINT_FILE)
        self.net = Compensator(config_from(state["config"])).eval()
        self.net.load_state_dict(state["mean"])
        self.done = {name: round(stage["seconds"] / 60, 1) for name, stage in state["done"].items()}
        self.codec, self.truth = ArrayCodec(profile), GroundTruth(find_profile(profile))
        self.project = ProjectToCells(find_profile(profile))
        self.lpips = Lpips(lpips)

    def tile(self, pixels: Pixels, rate: float, condition: tuple[Any, Any] | None) -> Tile:
        """A tile coded near a rate in bits per pixel."""
        size = round(rate * pixels.shape[0] * pixels.shape[1] / 8)
        data = closest(lambda s: self.codec.encode(pixels, s / 2.5), QUALITY_STEPS, size)
        quality_step = next(iter(parse_stream(data).segments.values())).quality_step
        found = self.truth.base_of(np.ascontiguousarray(pixels), quality_step)
        found += condition or (np.zeros((len(FIELDS), 2), np.float32), np.zeros(len(FIELDS), np.float32))
        base, latents, symbols, values, known = (torch.from_numpy(np.asarray(a, np.float32))[None] for a in found)
        return Tile(pixels, base, latents, symbols, torch.tensor([float(quality_step)]), values, known)

    def shown(self, tile: Tile, detail: Tensor | float) -> Pixels:
        """What a product shows of the base image plus detail, projected to the cells of the symbols."""
        image = (
            tile.base
            if isinstance(detail, float)
            else self.project(tile.base + detail, tile.symbols, tile.quality_step)
        )
        planes: Pixels = np.clip(np.rint(255 * image[0].numpy()), 0, 255).astype(np.uint8)
        return planes.transpose(1, 2, 0)

    def detail(self, way: str, tile: Tile, features: Features, seed: int) -> Tensor:
        """What a way adds at full strength, [1, 3, H, W]."""
        name, *numbers = way.split(":")
        generator = torch.Generator().manual_seed(seed)
        texture = torch.randn((1, NOISE, *features.half.shape[2:]), generator=generator)
        one_step = self.net.detail(features, tile.base, texture)
        if name == "one-step":
            return one_step
        if name == "true":
            z = self.net.encode(tile.image, self.net.first(features, tile.base))
        else:
            time = float(numbers.pop(0)) if name == "refine" else 1.0
            times = np.linspace(time, 0, int(numbers[0]) + 1).tolist()
            _, sigma = alpha_sigma(torch.tensor(time * DIFFUSION_STEPS))
            noise = sigma * torch.randn((1, CHANNELS, *features.eighth.shape[2:]), generator=generator)
            z = self.net.sample(noise, times, features, self.net.trunk.scaled(tile.latents), tile.values, tile.known)
        detail: Tensor = one_step + self.net.decoder(features, z)
        return detail

    @torch.no_grad()
    def rows(self, tile: Tile, ways: list[str], seeds: int) -> Iterator[dict[str, Any]]:
        """PSNR and LPIPS of the base image, and of every way at every strength."""
        base = self.shown(tile, 0.0)
        yield {
            "way": "base",
            "strength": 0.0,
            "seed": 0,
            "psnr": psnr(tile.pixels, base),
            "lpips": self.lpips(tile.pixels, base),
        }
        features = self.net.trunk(tile.base, tile.latents)
        for way in ways:
            for seed in range(1 if way == "true" else seeds):
                detail = self.detail(way, tile, features, seed)
                for strength in STRENGTHS:
                    shown = self.shown(tile, strength * detail)
                    measures = {"psnr": psnr(tile.pixels, shown), "lpips": self.lpips(tile.pixels, shown)}
                    yield {"way": way, "strength": strength, "seed": seed, **measures}


def at_loss(points: list[tuple[float, float]], loss: float) -> str:
    """LPIPS in per cent of points (dB lost, per cent) in order of strength, where so many dB are lost; empty beyond the last."""
    found = [(0.0, 0.0), *points]
    for (less, first), (more, second) in zip(found[:-1], found[1:], strict=True):
        if less <= loss <= more and more > less:
            return f"{first + (second - first) * (loss - less) / (more - less):+.1f}"
    return ""


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over tiles and, where there are several, two deviations over seeds, by rate and way."""
    groups: dict[tuple[float, str, float, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["rate"], row["way"], row["strength"], row["seed"]].append(row)
    means = {
        key: (np.mean([r["psnr"] for r in part]), np.mean([r["lpips"] for r in part])) for key, part in groups.items()
    }
    out = []
    for rate, way in dict.fromkeys((key[0], key[1]) for key in means):
        if way == "base":
            base = means[rate, way, 0.0, 0]
            out.append({"bpp": rate, "way": f"base ({base[0]:.2f} dB, {base[1]:.4f})"})
            continue
        seeds = sorted({key[3] for key in means if key[:2] == (rate, way)})
        curves = {}
        for seed in seeds:
            found = [means[rate, way, s, seed] for s in STRENGTHS]
            curves[seed] = [(base[0] - p, 100 * (q / base[1] - 1)) for p, q in found]
        middle = [tuple(np.mean([curves[seed][i] for seed in seeds], axis=0)) for i in range(len(STRENGTHS))]
        row = {"bpp": rate, "way": way}
        for strength, (lost, gained) in zip(STRENGTHS, middle, strict=True):
            row[f"at {strength}"] = f"{-lost:+.3f} dB {gained:+.1f} %"
        full = STRENGTHS.index(1.0)
        if len(seeds) > 1:
            spread = 2 * np.std([curves[seed][full] for seed in seeds], axis=0, ddof=1)
            row["2 sigma at 1.0"] = f"{spread[0]:.3f} dB {spread[1]:.2f} %"
        row |= {f"at -{loss} dB": at_loss(middle, loss) for loss in LOSSES}
        out.append(row)
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder or checkpoint of a run of perigee-train-compensator")
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of images (repeatable)")
    parser.add_argument(
        "--way", action="append", required=True, help="one-step, true, noise:STEPS or refine:TIME:STEPS"
    )
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--lpips", type=Path, required=True, metavar="ONNX", help="inputs ref and dist in -1..1")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES_BPP, help="bits per pixel (default %(default)s)"
    )
    parser.add_argument("--every", type=int, default=1, help="only each Nth image of a folder")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the noise (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/diffusion.json"), help="JSON report")
    args = parser.parse_args()
    bench = Bench(args.run, args.profile, args.lpips)
    print("minutes of training:", ", ".join(f"{name} {minutes}" for name, minutes in bench.done.items()))
    rows: list[dict[str, Any]] = []
    for folder in args.data:
        known = conditions_of([folder, folder.parent, folder.parent.parent])
        for path_name, pixels in tqdm(list(images(folder))[:: args.every], desc=folder.name, disable=None):
            condition = next((known[n] for n in known if Path(n).stem == path_name), None)
            for rate in args.rates:
                tile = bench.tile(pixels, rate, condition)
                rows += [
                    {"folder": folder.name, "image": path_name, "rate": rate, **row}
                    for row in bench.rows(tile, args.way, args.seeds)
                ]
    means = summary(rows)
    columns = list(dict.fromkeys(name for row in means for name in row))
    print(table(means, columns))
    write_report(args.out, means)


if __name__ == "__main__":
    main()
