"""Rate-distortion against the standards, in real bytes: ``python -m perigee.benchmarks.rate_distortion``.

Per image: BD-rate over 0.1 to 1.5 bpp (PCHIP over log-rate, common PSNR range), then median and quartiles; the curve of the
set's means second, as papers do. Scenes are coded whole by every codec. Every byte of a file counts.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import QUALITIES, ArrayCodec
from perigee.benchmarks.common import ANCHORS, bd_rate, images, psnr, sample_folder, table, write_report

Curves = dict[str, dict[str, list[tuple[float, float]]]]  # codec -> image -> (bpp, PSNR) points


def measure(
    folder: Path, codec: ArrayCodec, anchors: list[str], limit: int | None
) -> tuple[Curves, list[dict[str, Any]]]:
    """Curves of one folder and a row for every file that was coded."""
    curves: Curves = {name: {} for name in ["perigee", *anchors]}
    rows: list[dict[str, Any]] = []
    found = list(images(folder))[:limit]
    for name, pixels in tqdm(found, desc=folder.name, unit="image", disable=None):
        area = pixels.shape[0] * pixels.shape[1]

        def add(
            which: str,
            setting: Any,
            data: bytes,
            decoded: Any,
            name: str = name,
            pixels: Any = pixels,
            area: int = area,
        ) -> None:
            point = (8 * len(data) / area, psnr(pixels, decoded))
            curves[which].setdefault(name, []).append(point)
            rows.append({"folder": folder.name, "image": name, "codec": which, "setting": setting, "bytes": len(data),
                         "bpp": round(point[0], 5), "psnr": round(point[1], 4)})  # fmt: skip

        for quality in QUALITIES:
            data = codec.encode(pixels, quality)
            add("perigee", quality, data, codec.decode(data))
        for anchor in anchors:
            encode, decode, settings = ANCHORS[anchor]
            for setting in settings:
                data = encode(pixels, setting)
                add(anchor, setting, data, decode(data))
    return curves, rows


def summarise(folder: str, curves: Curves, reference: str = "jpeg2000") -> list[dict[str, Any]]:
    """Per codec: median and quartiles of the per-image BD-rates against ``reference``, and the set-mean BD-rate."""
    out = []
    for codec, by_image in curves.items():
        if codec == reference:
            continue
        rates = [bd_rate(curves[reference][image], points) for image, points in by_image.items()]
        usable = [r for r in rates if math.isfinite(r)]
        quartiles = np.percentile(usable, [25, 50, 75]) if usable else [math.nan] * 3

        def mean_curve(which: str) -> list[tuple[float, float]]:
            finite = [p for p in curves[which].values() if all(math.isfinite(x[1]) for x in p)]
            return (
                [tuple(np.mean([p[i] for p in finite], axis=0)) for i in range(min(map(len, finite)))] if finite else []
            )

        out.append({
            "folder": folder, "codec": codec, "images": len(usable), "without overlap": len(rates) - len(usable),
            "median %": f"{quartiles[1]:.1f}", "quartiles %": f"{quartiles[0]:.1f} .. {quartiles[2]:.1f}",
            "set mean %": f"{bd_rate(mean_curve(reference), mean_curve(codec)):.1f}",
        })  # fmt: skip
    return out


def plot(path: Path, curves: dict[str, Curves]) -> None:
    """Mean rate-distortion curve of each folder as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 5), squeeze=False)
    for axis, (folder, by_codec) in zip(axes[0], curves.items(), strict=True):
        for codec, by_image in by_codec.items():
            finite = [p for p in by_image.values() if all(math.isfinite(x[1]) for x in p)]
            if finite:
                mean = np.mean(finite, axis=0)
                axis.plot(
                    mean[:, 0],
                    mean[:, 1],
                    marker="o",
                    markersize=3,
                    label=codec,
                    linewidth=2 if codec == "perigee" else 1,
                )
        axis.set(
            title=f"{folder}: mean of {len(finite)} images", xlabel="bits per pixel", ylabel="PSNR, dB", xlim=(0, 2)
        )
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        help="folder of 8-bit RGB images (repeatable; default: the bundled sample)",
    )
    parser.add_argument("--profile", default="lite", help="name or folder (default %(default)s)")
    parser.add_argument(
        "--anchors", nargs="*", default=list(ANCHORS), choices=list(ANCHORS), help="codecs to compare with"
    )
    parser.add_argument("--limit", type=int, help="only the first N images of a folder")
    parser.add_argument("--out", type=Path, default=Path("build/rate_distortion"), help="folder for CSV, JSON and plot")
    args = parser.parse_args()
    codec = ArrayCodec(args.profile)
    everything: dict[str, Curves] = {}
    rows: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    args.out.mkdir(parents=True, exist_ok=True)
    for folder in args.data or [sample_folder()]:
        curves, measured = measure(folder, codec, args.anchors, args.limit)
        everything[folder.name] = curves
        rows += measured
        summary += summarise(folder.name, curves)
    with (args.out / "points.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_report(args.out / "summary.json", summary)
    plot(args.out / "curves.png", everything)
    print(
        "BD-rate against OpenJPEG (9/7, colour transform, rate mode), 0.1 to 1.5 bpp, RGB PSNR; negative: fewer bytes\n"
    )
    print(table(summary, ["folder", "codec", "images", "median %", "quartiles %", "set mean %", "without overlap"]))
    print(f"\nwritten to {args.out}: points.csv, summary.json, curves.png")


if __name__ == "__main__":
    main()
