"""What generated detail would give streams of components: ``python -m perigee.benchmarks.component_detail RUN --train DIR --data DIR --lpips ONNX``.

Multi-band files are coded whole by the components' profile at a few rates. Three bands at a time, in grey levels, are an image; a one-step network as
that of a compensator learns on it for a few minutes what the files of ``--train`` have lost, with the same losses, and is measured on those of
``--data``: LPIPS at equal loss of PSNR. There are no cells here to hold it to. A scene of one band is its own three bands.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from torch import Tensor, nn
from tqdm import tqdm

import perigee
from perigee.benchmarks.common import closest, psnr, table, write_report
from perigee.benchmarks.diffusion import LOSSES, STRENGTHS, at_loss
from perigee.benchmarks.metrics import Lpips
from perigee.bitstream.arrays import FloatArray, Pixels, Samples
from perigee.bitstream.conditions import FIELDS, BandScale
from perigee.models.compensation.compensator import Compensator, CompensatorConfig
from perigee.models.compensation.trunk import Features
from perigee.training.bands import load_rasters
from perigee.training.compensation import CompensatorTrainer, StageConfig
from perigee.training.pairs import ABOUT_FILE, SIDE, Pairs

RATES = (0.1, 0.2, 0.4)  # bits a sample
QUALITIES = 100
SMALL = SIDE // 16


class Free(nn.Module):
    """Stands where a compensator of ``flight3`` projects to the cells of the symbols."""

    def forward(self, image: Tensor, symbols: Tensor, quality_step: Tensor) -> Tensor:
        """Return the image as it is."""
        return image


def images_of(samples: Samples, rate: float) -> Iterator[tuple[Pixels, FloatArray]]:
    """Three bands at a time of a file coded near a rate: the original in grey levels uint8 [row, col, 3], and what was decoded [3, row, col]."""
    size = round(rate * samples.size / 8)
    data = closest(lambda q: perigee.encode(samples, q, profile="spectral1"), QUALITIES, size)
    found = perigee.decode(data).samples
    for first in range(0, max(len(samples) - 2, 1), 3):
        bands = [first, first + 1, first + 2] if len(samples) >= 3 else [0, 0, 0]
        scale = BandScale.of(samples[bands])
        grey = np.clip(np.rint(scale.grey(samples[bands])), 0, 255).astype(np.uint8)
        yield np.ascontiguousarray(grey.transpose(1, 2, 0)), scale.grey(found[bands]) / np.float32(255)


def make_pairs(folder: Path, source: Path) -> None:
    """Write pairs of all patches, as ``training.pairs`` has them, without latents and symbols."""
    parts: list[tuple[Any, Any, float]] = []
    training, validation = load_rasters(source)
    for raster in tqdm([*training, *validation], desc="coding", disable=None):
        if min(raster.samples.shape[1:]) < SIDE:
            continue
        for rate in RATES:
            for image, base in images_of(raster.samples, rate):
                for top in range(0, image.shape[0] - SIDE + 1, SIDE):
                    for left in range(0, image.shape[1] - SIDE + 1, SIDE):
                        window = np.s_[top : top + SIDE, left : left + SIDE]
                        parts.append((image[window], base[(slice(None), *window)], rate))
    count, rates = len(parts), np.array([rate for _, _, rate in parts])
    quality = np.round(250 * rates).astype(np.uint8)
    latents = np.zeros((count, 2, SMALL, SMALL), np.float16)
    latents[:, 1] = rates[:, None, None]
    arrays = {
        "image": np.stack([image for image, _, _ in parts]), "base": np.stack([base for _, base, _ in parts]).astype(np.float16),
        "latents": latents, "symbols": np.zeros((count, 1, SMALL, SMALL), np.int16), "quality": quality,
        "values": np.zeros((count, len(FIELDS), 2), np.float32), "known": np.zeros((count, len(FIELDS)), np.float32),
        "source": np.zeros(count, np.int16), "held": np.arange(count) % 25 == 0, "number": np.arange(count, dtype=np.int32),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / ABOUT_FILE).write_text(json.dumps({"contract": "", "sources": ["bands"], "count": count}))


@torch.no_grad()
def rows_of(net: Compensator, image: Pixels, base: FloatArray, rate: float, lpips: Lpips) -> Iterator[dict[str, Any]]:
    """PSNR and LPIPS of the base image and of the compensated one at several strengths."""
    rows, cols = (n // 64 * 64 for n in image.shape[:2])
    given = torch.from_numpy(base[None, :, :rows, :cols])
    latents = torch.zeros(1, 2, rows // 16, cols // 16)
    latents[:, 1] = rate
    features: Features = net.trunk(given, latents)
    detail = net.detail(features, given, None)
    for strength in (0.0, *STRENGTHS):
        shown = (
            np.clip(np.rint(255 * (given + strength * detail)[0].numpy()), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        )
        yield {
            "strength": strength,
            "psnr": psnr(image[:rows, :cols], shown),
            "lpips": lpips(image[:rows, :cols], shown),
        }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder for pairs, checkpoint and log")
    parser.add_argument("--train", type=Path, required=True, help="folder of multi-band files with an index.csv")
    parser.add_argument("--data", type=Path, required=True, help="folder of multi-band files to measure on")
    parser.add_argument("--lpips", type=Path, required=True, metavar="ONNX", help="inputs ref and dist in -1..1")
    parser.add_argument("--minutes", type=float, default=20, help="of training (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only so many files")
    parser.add_argument("--out", type=Path, default=Path("build/component-detail.json"), help="JSON report")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not (args.run / "pairs" / ABOUT_FILE).is_file():
        make_pairs(args.run / "pairs", args.train)
    trainer = CompensatorTrainer(CompensatorConfig(1), Free(), args.run)  # type: ignore[arg-type]
    trainer.run("one-step", Pairs(args.run / "pairs"), StageConfig(args.minutes, learning_rate=1e-3), False)
    lpips, found = Lpips(args.lpips), []
    for path in tqdm(sorted(args.data.glob("*.tif"))[: args.limit], desc="measuring", disable=None):
        with rasterio.open(path) as file:
            samples = file.read()
        if samples.dtype.kind not in "ui" or min(samples.shape[1:]) < 64:
            continue
        for rate in RATES:
            for image, base in images_of(samples, rate):
                rows = rows_of(trainer.mean.eval(), image, base, rate, lpips)
                found += [{"panchromatic": len(samples) < 3, "rate": rate, **row} for row in rows]
    report = []
    for alone, rate in dict.fromkeys((row["panchromatic"], row["rate"]) for row in found):
        part = [row for row in found if (row["panchromatic"], row["rate"]) == (alone, rate)]
        means = [
            [np.mean([row[name] for row in part if row["strength"] == s]) for name in ("psnr", "lpips")]
            for s in (0.0, *STRENGTHS)
        ]
        curve = [(float(means[0][0] - p), float(100 * (q / means[0][1] - 1))) for p, q in means[1:]]
        row = {
            "scenes": "one band" if alone else "three bands of several",
            "bits a sample": rate,
            "images": len(part) // (1 + len(STRENGTHS)),
        }
        row |= {
            f"at {s}": f"{-lost:+.3f} dB {gained:+.1f} %" for s, (lost, gained) in zip(STRENGTHS, curve, strict=True)
        }
        report.append(row | {f"at -{loss} dB": at_loss(curve, loss) for loss in LOSSES})
    print(table(report, list(report[0])))
    write_report(args.out, report)


if __name__ == "__main__":
    main()
