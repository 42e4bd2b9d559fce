"""Draws the plot and prints the table of decision 0008, from points of the rate-distortion benchmark and the runs' logs.

The runs are those of ``train_encoders``, in a folder with one folder for each run: an analysis, or ``ANALYSIS-short`` for a
quarter of the time.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perigee.models.codec.analysis import NO_LINEAR_PATH, Analysis
from perigee.support.command import Parser, run
from perigee.training.recipes.train_encoders import WIDTHS

PROGRAM = "python -m perigee.benchmarks.plot_encoders"
ANALYSES = ("swift", "lite", "light", "cosmic-linear", "cosmic-cam-linear", "cosmic", "cosmic-cam")
FOLDERS = {"naip60": ("NAIP", "o", "-"), "ucm": ("UC Merced", "s", "--")}  # label, marker and line of each test set
Medians = dict[str, dict[str, float]]


def macs_g(analysis: str) -> float:
    """Return the multiply-adds on board for a 256x256 patch, in thousand millions."""
    from perigee.benchmarks.flops import count, own_entropy, total_of

    counts, y = count(Analysis((analysis,), WIDTHS.latents), torch.zeros(1, 3, 256, 256))
    linear = total_of(counts, "linear") if analysis in NO_LINEAR_PATH else 0  # it is built, but not run
    return (total_of(counts) - linear + sum(own_entropy(y, WIDTHS))) / 1e9


def medians(points_file: Path) -> Medians:
    """Return the median BD-rate of each run over JPEG 2000 in per cent, by run and folder."""
    from perigee.benchmarks.points import read_points
    from perigee.benchmarks.summary import group, image_bd_rates

    points = read_points(points_file)
    curves = group("all", points)
    found: Medians = {}
    for codec in sorted({p.codec for p in points if p.codec.startswith("perigee")}):
        rates = image_bd_rates(curves, codec, "jpeg2000")
        folders = sorted({image.split("/")[0] for image in rates})
        found[codec.split()[1]] = {
            f: float(np.nanmedian([v for i, v in rates.items() if i.startswith(f"{f}/")])) for f in folders
        }
    return found


def draw(found: Medians, study: Path, out: Path) -> None:
    """Draw BD-rate over multiply-adds and over training time, and the cost in the course of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
    for folder, (label, marker, line) in FOLDERS.items():
        for i, name in enumerate(ANALYSES):
            place, colour = (macs_g(name), found[name][folder]), f"C{i}"
            axes[0].scatter(*place, marker=marker, color=colour, s=50)
            axes[0].annotate(name, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
            if short := found.get(f"{name}-short"):
                values = [short[folder], found[name][folder]]
                axes[1].plot([1.5, 6], values, marker=marker, color=colour, linestyle=line, label=f"{name}, {label}")
    for i, name in enumerate(ANALYSES):
        with (study / name / "log.csv").open() as handle:
            rows = list(csv.DictReader(handle))
        minutes, costs = ([float(row[column]) for row in rows] for column in ("minutes", name))
        axes[2].plot(minutes, costs, marker=".", label=name, color=f"C{i}")
    _label(axes)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def _label(axes: Any) -> None:
    """Label the three axes."""
    rate = "BD-rate against JPEG 2000, %"
    axes[0].set(
        xlabel="multiply-adds on board, G a patch",
        ylabel=rate,
        title="6 minutes, one thread (circles NAIP, squares UC Merced)",
    )
    axes[1].set(xlabel="minutes of training", ylabel=rate, xticks=[1.5, 3, 4.5, 6], title="over training time")
    axes[2].set(
        xlabel="minutes of training", ylabel="mean logarithm of the cost, held-out images", title="during training"
    )
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    axes[2].legend(fontsize=7)


def build_parser() -> argparse.ArgumentParser:
    """Return the recipe's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Draw the plot and print the table of decision 0008.",
        epilog="Exit codes: 0 drawn, 64 usage, 66 input missing, 69 package missing, 74 I/O error.",
    )
    parser.add_argument("points", type=Path, metavar="POINTS.csv", help="points of the rate-distortion benchmark")
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of the runs of train_encoders")
    parser.add_argument("out", type=Path, metavar="OUT.png", help="plot to write")
    return parser


def _plot(args: argparse.Namespace) -> int:
    """Plot as the parsed arguments say."""
    found = medians(args.points)
    for name, values in found.items():
        analysis = next(a for a in sorted(ANALYSES, key=len, reverse=True) if name.startswith(a))
        print(f"{name:20} {macs_g(analysis):.3f} G", {k: round(v, 1) for k, v in sorted(values.items())})
    draw(found, args.study, args.out)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    return run(PROGRAM, "bench", lambda: _plot(args))


if __name__ == "__main__":
    raise SystemExit(main())
