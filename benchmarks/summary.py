"""From points to tables: BD-rates per image and of set means, against each reference, for RGB and luma PSNR."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from perigee.benchmarks.anchors import ANCHORS
from perigee.benchmarks.metrics import RateCurve, bd_psnr, bd_rate
from perigee.benchmarks.points import Point

Curves = dict[str, dict[str, list[Point]]]  # codec -> folder/image -> points
MEASURES = {"psnr": "RGB PSNR", "luma_psnr": "luma PSNR"}
SUMMARY_COLUMNS = ["folder", "codec", "against", "measure", "images", "median %", "quartiles %", "set mean %", "without overlap"]  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Images that are reported together: one folder, all tiles, or one scene."""

    name: str
    curves: Curves

    @property
    def images(self) -> list[str]:
        """``folder/image`` of all, in order of appearance."""
        return list(dict.fromkeys(image for by_image in self.curves.values() for image in by_image))


def group(name: str, points: Iterable[Point]) -> Group:
    """Points as curves by codec and image; Perigee first, then the anchors in their order."""
    order = list(ANCHORS)
    points = sorted(points, key=lambda p: order.index(p.codec) if p.codec in order else -1)
    curves: Curves = {}
    for point in points:
        by_image = curves.setdefault(point.codec, {})
        by_image.setdefault(f"{point.folder}/{point.image}", []).append(point)
    return Group(name, curves)


def curve(points: Iterable[Point], measure: str) -> RateCurve:
    """(bpp, value) of the points that have the measure."""
    pairs = [(p.bpp, float(getattr(p, measure))) for p in points]
    return [pair for pair in pairs if not math.isnan(pair[1])]


def measures_of(found: Group) -> list[str]:
    """RGB PSNR, and luma PSNR where a codec takes part that has nothing else."""
    luma_only = any(not curve(points, "psnr") for by_image in found.curves.values() for points in by_image.values())
    return ["psnr", "luma_psnr"] if luma_only else ["psnr"]


def image_bd_rates(found: Group, codec: str, reference: str, measure: str = "psnr") -> dict[str, float]:
    """BD-rate in % of each image that both codecs coded; NaN where the curves do not overlap."""
    theirs = found.curves.get(reference, {})
    return {
        image: bd_rate(curve(theirs[image], measure), curve(points, measure))
        for image, points in found.curves.get(codec, {}).items()
        if image in theirs
    }


def mean_curve(found: Group, codec: str, measure: str, images: Iterable[str]) -> RateCurve:
    """Mean of bpp and of the measure over images, setting by setting; images without the measure or with an infinite
    value are left out."""
    curves = [curve(found.curves[codec][image], measure) for image in images if _finite(found, codec, image, measure)]
    if not curves:
        return []
    count = min(map(len, curves))
    means = np.mean([c[:count] for c in curves], axis=0)
    return [(float(rate), float(value)) for rate, value in means]


def _finite(found: Group, codec: str, image: str, measure: str) -> bool:
    points = curve(found.curves.get(codec, {}).get(image, []), measure)
    return bool(points) and all(math.isfinite(value) for _, value in points)


def summarise(found: Group, references: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of median, quartiles and set mean of every codec against every reference that the group has."""
    rows = []
    for measure in measures_of(found):
        for reference in references:
            for codec in found.curves:
                if codec == reference or not any(curve(p, measure) for p in found.curves[codec].values()):
                    continue
                rates = image_bd_rates(found, codec, reference, measure)
                usable = [rate for rate in rates.values() if math.isfinite(rate)]
                low, median, high = np.percentile(usable, [25, 50, 75]) if usable else [math.nan] * 3
                gain, _ = set_mean_gain(found, codec, reference, measure)
                rows.append({
                    "folder": found.name, "codec": codec, "against": reference, "measure": MEASURES[measure],
                    "images": len(usable), "without overlap": len(rates) - len(usable), "median %": f"{median:.1f}",
                    "quartiles %": f"{low:.1f} .. {high:.1f}", "set mean %": f"{gain:.1f}",
                })  # fmt: skip
    return rows


def by_image(found: Group, references: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of single images: codec, reference, measure and BD-rate in %."""
    return [
        {
            "image": image,
            "codec": codec,
            "against": reference,
            "measure": MEASURES[measure],
            "BD-rate %": round(rate, 2),
        }
        for measure in measures_of(found)
        for reference in references
        for codec in found.curves
        if codec != reference
        for image, rate in image_bd_rates(found, codec, reference, measure).items()
    ]


def image_table(found: Group, reference: str, measure: str = "psnr") -> tuple[list[dict[str, Any]], list[str]]:
    """Table of BD-rates with a row per image and a column per codec, for scenes; the rows and their columns."""
    rates = {codec: image_bd_rates(found, codec, reference, measure) for codec in found.curves if codec != reference}
    rates = {codec: by_image for codec, by_image in rates.items() if any(math.isfinite(r) for r in by_image.values())}
    rows = [
        {"image": image.split("/", 1)[1]}
        | {codec: f"{by_image[image]:.1f}" if image in by_image else "" for codec, by_image in rates.items()}
        for image in found.images
    ]
    return rows, ["image", *rates]


def set_mean_gain(found: Group, codec: str, reference: str, measure: str = "psnr") -> tuple[float, float]:
    """BD-rate in % and BD-PSNR in dB of the mean curves of the images that both codecs coded with finite values."""
    images = [i for i in found.images if all(_finite(found, which, i, measure) for which in (reference, codec))]
    theirs, ours = (mean_curve(found, which, measure, images) for which in (reference, codec))
    return bd_rate(theirs, ours), bd_psnr(theirs, ours)
