"""Split conformal prediction for the error scale: by how much it must be multiplied so that 90 % of the held-back samples lie within.

For each band of quality the factor is the quantile of ``abs(error) / scale`` over samples of pairs that no stage was trained on, with the
correction for their finite number of images (Vovk et al. 2005; images, not pixels, are exchangeable).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from perigee.models.compensation.compensator import Compensator
from perigee.training.pairs import Pairs

COVERAGE = 0.9
BANDS = (0, 60, 100, 140, 251)  # of Q, with as many held-back patches in each as few hundred can give
Detail = Callable[[Compensator, dict[str, torch.Tensor]], torch.Tensor]


def _quantile(ratios: list[Any]) -> float:
    """The factor that covers a share of COVERAGE, each image counting the same."""
    n = len(ratios)
    level = min(1.0, math.ceil((n + 1) * COVERAGE * 1000) / (n * 1000)) if n > 10 else COVERAGE
    return float(np.quantile(np.concatenate(ratios), min(level, 0.999)))


@torch.no_grad()
def fit_intervals(net: Compensator, pairs: Pairs, strength: Callable[[int], float], seed: int = 1) -> dict[str, Any]:
    """Factors for the base image and the one-step one: ``{"base": [[Q, factor], ...], "one-step": ...}``."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[int, list[Any]]] = {"base": {}, "one-step": {}}
    for i in pairs.held:
        crop = pairs.crops(np.array([i]), np.array([[0, 0]]), 256)
        image, base, latents = (torch.from_numpy(crop[k].astype(np.float32)) for k in ("image", "base", "latents"))
        step = int(crop["quality"][0])
        features = net.trunk(base, latents)
        detail = net.one_step(features) * strength(step)
        scale = net.scale(features, base, detail)
        band = sum(step >= edge for edge in BANDS[1:])
        chosen = rng.choice(image.numel(), 4000, replace=False)
        for place, (name, shown) in enumerate((("base", base), ("one-step", base + detail))):
            rounded = (shown.clamp(0, 1) * 255).round()
            ratio = (rounded - image).abs() / 255 / scale[:, place : place + 1]
            found[name].setdefault(band, []).append(ratio.numpy().reshape(-1)[chosen])
    middle = [(low + high) // 2 for low, high in zip(BANDS, BANDS[1:], strict=False)]
    return {
        name: [[middle[band], round(_quantile(ratios), 4)] for band, ratios in sorted(bands.items())]
        for name, bands in found.items()
    }
