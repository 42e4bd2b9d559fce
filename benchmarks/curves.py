"""Mean rate-distortion curves of a group of images as PNG, a panel for each measure."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from perigee.benchmarks.anchors import ANCHORS
from perigee.benchmarks.metrics import RateCurve
from perigee.benchmarks.points import OURS
from perigee.benchmarks.summary import Group, curve, mean_curve

AXES = {"psnr": "RGB PSNR, dB", "luma_psnr": "luma PSNR, dB", "ms_ssim": "MS-SSIM, dB: -10 log10(1 - x)", "lpips": "LPIPS"}  # fmt: skip
RATE_LIMIT_BPP = 2.0


def plot(path: Path, groups: list[Group], measures: list[str]) -> None:
    """A row of panels per group, a column per measure, groups side by side where there is one measure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    codecs = list(dict.fromkeys(codec for found in groups for codec in found.curves))
    rows, columns = (1, len(groups)) if len(measures) == 1 else (len(groups), len(measures))
    figure, axes = plt.subplots(rows, columns, figsize=(6 * columns, 5 * rows), squeeze=False)
    for (found, measure), axis in zip(itertools.product(groups, measures), axes.flat, strict=True):
        for number, codec in enumerate(codecs):  # a codec keeps its colour throughout
            points = _drawn(found, codec, measure)
            width = 2 if codec.startswith(OURS) else 1
            name = ANCHORS[codec].label.split(" (")[0] if codec in ANCHORS else codec
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=f"C{number}", ms=3, lw=width, label=name)
        _label(axis, f"{found.name}: mean of {len(found.images)} images", AXES[measure])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measures_with_values(found: Group, wanted: list[str]) -> list[str]:
    """Those of ``wanted`` that some point of the group has."""
    every = [points for by_image in found.curves.values() for points in by_image.values()]
    return [measure for measure in wanted if any(curve(points, measure) for points in every)]


def _drawn(found: Group, codec: str, measure: str) -> RateCurve:
    """Points to draw: the mean curve, cut one point beyond the panel, MS-SSIM on a scale of dB."""
    points = mean_curve(found, codec, measure, found.images) if codec in found.curves else []
    beyond = [i for i, (rate, _) in enumerate(points) if rate > RATE_LIMIT_BPP]
    points = points[: beyond[0] + 1] if beyond else points
    if measure == "ms_ssim":
        return [(rate, -10 * math.log10(1 - value)) for rate, value in points if value < 1]
    return points


def _label(axis: Any, title: str, y_label: str) -> None:
    axis.set(title=title, xlabel="bits per pixel", ylabel=y_label, xlim=(0, RATE_LIMIT_BPP))
    axis.grid(alpha=0.3)
    axis.legend()
