"""Quality from 0 to 100: do bytes and PSNR both rise? ``python -m perigee.benchmarks.sweep``.

Every image of a folder is coded and decoded at every quality. On the mean of each folder, bytes and PSNR must strictly
increase from each quality to the next, and the rates should span 0.06 to 2 bits per pixel. Images that decode without
error at any quality have an infinite PSNR there; they are left out of the mean PSNR and counted.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import images, psnr, sample_folder, table, write_report
from perigee.bitstream.profile import DEFAULT_PROFILE

SPAN_BPP = (0.06, 2.0)


def measure(folder: Path, codec: ArrayCodec, qualities: Sequence[float], limit: int | None) -> list[dict[str, Any]]:
    """A row for every image of a folder and quality: folder, image, quality, bytes, bpp, PSNR in dB."""
    rows: list[dict[str, Any]] = []
    for name, pixels in tqdm(list(images(folder))[:limit], desc=folder.name, unit="image", disable=None):
        for quality in qualities:
            data = codec.encode(pixels, quality)
            bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
            rows.append({"folder": folder.name, "image": name, "quality": quality, "bytes": len(data), "bpp": bpp,
                         "psnr": psnr(pixels, codec.decode(data))})  # fmt: skip
    return rows


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean of one folder's rows at each quality, in order of quality; ``exact`` images do not count for the PSNR."""
    exact = {row["image"] for row in rows if not math.isfinite(row["psnr"])}
    out = []
    for quality in sorted({row["quality"] for row in rows}):
        part = [row for row in rows if row["quality"] == quality]
        finite = [row["psnr"] for row in part if row["image"] not in exact]
        out.append({
            "folder": part[0]["folder"], "quality": quality, "images": len(part), "exact": len(exact),
            "bytes": float(np.mean([row["bytes"] for row in part])), "bpp": float(np.mean([row["bpp"] for row in part])),
            "psnr": float(np.mean(finite)) if finite else math.nan,
        })  # fmt: skip
    return out


def faults(mean: list[dict[str, Any]]) -> list[str]:
    """Where bytes or PSNR of :func:`means` do not strictly increase, in words; empty where they do."""
    out = []
    for a, b in pairwise(mean):
        for key in ("bytes", "psnr"):
            if not b[key] > a[key]:
                out.append(f"{key} {a[key]:.3f} at quality {a['quality']:g}, {b[key]:.3f} at {b['quality']:g}")
    return out


def falling_images(rows: list[dict[str, Any]], key: str) -> int:
    """How many single images have a step where ``key`` does not rise (equal infinite PSNRs do not count)."""
    by_image: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row)
    count = 0
    for part in by_image.values():
        values = [row[key] for row in sorted(part, key=lambda row: float(row["quality"]))]
        count += any(not b > a and math.isfinite(a) for a, b in pairwise(values))
    return count


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One folder's line: whether the means strictly increase, the span of the mean rate, and single images that do not."""
    mean = means(rows)
    found = faults(mean)
    low, high = mean[0]["bpp"], mean[-1]["bpp"]
    return {
        "folder": mean[0]["folder"], "images": mean[0]["images"], "exact": mean[0]["exact"],
        "bpp": f"{low:.3f} .. {high:.3f}", "PSNR dB": f"{mean[0]['psnr']:.2f} .. {mean[-1]['psnr']:.2f}",
        "strictly increasing": "no" if found else "yes", "spans": "yes" if low <= SPAN_BPP[0] and high >= SPAN_BPP[1] else "no",
        "images: bytes fall": falling_images(rows, "bytes"), "images: PSNR falls": falling_images(rows, "psnr"),
        "faults": found,
    }  # fmt: skip


def plot(path: Path, by_folder: dict[str, list[dict[str, Any]]]) -> None:
    """Mean rate and mean PSNR of each folder over quality, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for folder, mean in by_folder.items():
        for axis, key in zip(axes, ("bpp", "psnr"), strict=True):
            axis.plot([m["quality"] for m in mean], [m[key] for m in mean], marker="o", markersize=3, label=folder)
    axes[0].set(xlabel="quality", ylabel="bits per pixel, mean", yscale="log")
    axes[1].set(xlabel="quality", ylabel="PSNR in dB, mean")
    for bpp in SPAN_BPP:
        axes[0].axhline(bpp, color="grey", linestyle=":", linewidth=1)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        help="folder of 8-bit RGB images (repeatable; default: the bundled sample)",
    )
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--analysis", help="which of the profile's analyses (default: the profile's)")
    parser.add_argument("--step", type=float, default=5, help="from one quality to the next (default %(default)s)")
    parser.add_argument("--threads", type=int, help="of all networks (default: all cores)")
    parser.add_argument("--limit", type=int, help="only the first N images of a folder")
    parser.add_argument("--out", type=Path, default=Path("build/sweep"), help="folder for CSV, JSON and plot")
    args = parser.parse_args()
    if not 0 < args.step <= 100:
        parser.error(f"--step {args.step}: accepted are steps above 0 and up to 100")
    qualities = [*np.arange(0, 100, args.step).tolist(), 100.0]
    codec = ArrayCodec(args.profile, args.threads, args.analysis)
    rows: list[dict[str, Any]] = []
    verdicts, by_folder = [], {}
    for folder in args.data or [sample_folder()]:
        found = measure(folder, codec, qualities, args.limit)
        if not found:
            raise SystemExit(f"{folder}: no images")
        rows += found
        verdicts.append(verdict(found))
        by_folder[folder.name] = means(found)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "points.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_report(args.out / "sweep.json", [{"verdicts": verdicts, "means": by_folder}])
    plot(args.out / "sweep.png", by_folder)
    shown = [
        {**m, "bytes": f"{m['bytes']:.1f}", "bpp": f"{m['bpp']:.4f}", "psnr": f"{m['psnr']:.3f}"}
        for mean in by_folder.values()
        for m in mean
    ]
    print(table(shown, ["folder", "quality", "images", "bytes", "bpp", "psnr"]) + "\n")
    print(table(verdicts, [column for column in verdicts[0] if column != "faults"]))
    for line in verdicts:
        for fault in line["faults"]:
            print(f"{line['folder']}: {fault}")
    print(f"\nwritten to {args.out}: points.csv, sweep.json, sweep.png")


if __name__ == "__main__":
    main()
