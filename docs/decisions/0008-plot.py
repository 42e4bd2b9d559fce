"""The plot and tables of decision 0008: ``0008-plot.py POINTS.csv STUDY OUT.png``; STUDY is the folder of the runs."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

from perigee.benchmarks.flops import count, own_entropy, total_of
from perigee.benchmarks.points import read_points
from perigee.benchmarks.summary import group, image_bd_rates
from perigee.bitstream.prior import Widths
from perigee.models.codec.flight import NO_LINEAR_PATH, Analysis

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WIDTHS = Widths(latents=320, context=64, head=128, slices=(16, 24, 40, 112, 128))
PRESETS = ("swift", "lite", "light", "cosmic-linear", "cosmic-cam-linear", "cosmic", "cosmic-cam")


def macs(preset: str) -> float:
    """Thousand millions on board for a patch."""
    analysis, y = count(Analysis((preset,), WIDTHS.latents), torch.zeros(1, 3, 256, 256))
    linear = total_of(analysis, "linear") if preset in NO_LINEAR_PATH else 0  # built, but not run
    return (total_of(analysis) - linear + sum(own_entropy(y, WIDTHS))) / 1e9


def main() -> None:
    points, study, out = read_points(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
    curves = group("all", points)
    found: dict[str, dict[str, float]] = {}
    for run in sorted({p.codec for p in points if p.codec.startswith("perigee")}):
        name = run.split()[1]
        rates = image_bd_rates(curves, run, "jpeg2000")
        folders = sorted({image.split("/")[0] for image in rates})
        found[name] = {f: float(np.nanmedian([v for i, v in rates.items() if i.startswith(f"{f}/")])) for f in folders}
    for name, values in found.items():
        preset = next(p for p in sorted(PRESETS, key=len, reverse=True) if name.startswith(p))
        print(f"{name:20} {macs(preset):.3f} G", {k: round(v, 1) for k, v in sorted(values.items())})
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
    for folder, marker in (("naip60", "o"), ("ucm", "s")):
        for name in PRESETS:
            axes[0].scatter(macs(name), found[name][folder], marker=marker, color=f"C{PRESETS.index(name)}", s=50)
            axes[0].annotate(
                f"{name}", (macs(name), found[name][folder]), xytext=(5, 4), textcoords="offset points", fontsize=8
            )
            if f"{name}-short" in found:
                axes[1].plot(
                    [1.5, 6], [found[f"{name}-short"][folder], found[name][folder]], marker=marker, color=f"C{PRESETS.index(name)}",
                    linestyle="-" if folder == "naip60" else "--", label=f"{name}, {'NAIP' if folder == 'naip60' else 'UC Merced'}",
                )  # fmt: skip
    for name in PRESETS:
        with (study / name / "log.csv").open() as handle:
            rows = list(csv.DictReader(handle))
        axes[2].plot(
            [float(r["minutes"]) for r in rows],
            [float(r[name]) for r in rows],
            marker=".",
            label=name,
            color=f"C{PRESETS.index(name)}",
        )
    axes[0].set(
        xlabel="multiply-adds on board, G a patch",
        ylabel="BD-rate against JPEG 2000, %",
        title="6 minutes, one thread (circles NAIP, squares UC Merced)",
    )
    axes[1].set(
        xlabel="minutes of training",
        ylabel="BD-rate against JPEG 2000, %",
        xticks=[1.5, 3, 4.5, 6],
        title="against training time",
    )
    axes[2].set(xlabel="minutes of training", ylabel="mean logarithm of the cost, held back", title="on the way")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    axes[2].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
