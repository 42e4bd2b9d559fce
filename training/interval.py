"""Split conformal prediction for the error scale: by how much it must be multiplied so that 90 % of the held-back samples lie within.

For each band of quality the factor is the quantile of ``abs(error) / scale`` over samples of pairs that no stage was trained on, with the
correction for their finite number (Vovk et al. 2005; images, not pixels, are exchangeable).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from perigee.models.compensation.compensator import Compensator
from perigee.models.compensation.denoiser import STEPS, alpha_sigma
from perigee.models.compensation.trunk import Features
from perigee.training.pairs import Pairs

COVERAGE = 0.9
BANDS = (0, 60, 100, 140, 251)  # of Q, with as many held-back patches in each as a few thousand images give
SAMPLES = 4000  # of each image
SAMPLER_STEPS = 4


def _quantile(ratios: list[tuple[int, Any]]) -> float:
    """The factor that covers COVERAGE of the samples of one more image, from those of images by their numbers."""
    n = len({number for number, _ in ratios})
    level = min((n + 1) * COVERAGE / n, 1.0)
    return float(np.quantile(np.concatenate([values for _, values in ratios]), level))


def sampled(net: Compensator, features: Features, latents: Tensor, values: Tensor, known: Tensor, steps: int) -> Tensor:
    """z0 by DDIM, eta 0, from the global generator's noise."""
    eighth = features.eighth
    z = torch.randn(len(eighth), 4, *eighth.shape[2:])
    scaled = net.trunk.scaled(latents)
    times = torch.linspace(STEPS, 0, steps + 1)
    for time, following in zip(times, times[1:], strict=False):
        (a, s), (a_next, s_next) = alpha_sigma(time), alpha_sigma(following)
        v = net.denoiser(z, time.expand(len(z)), features, scaled, values, known)
        z = a_next * (a * z - s * v) + s_next * (s * z + a * v)
    return z


@torch.no_grad()
def fit_intervals(net: Compensator, pairs: Pairs, methods: tuple[str, ...], seed: int = 1) -> dict[str, Any]:
    """Factors ``[[Q, factor], ...]`` for the base image and for each of ``methods``, ``one-step`` and ``diffusion``."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    found: dict[str, dict[int, list[tuple[int, Any]]]] = {name: {} for name in ("base", *methods)}
    for i in pairs.held:
        crop = pairs.crops(np.array([i]), np.array([[0, 0]]), 256)
        image, base, latents, values, known = (
            torch.from_numpy(crop[k].astype(np.float32)) for k in ("image", "base", "latents", "values", "known")
        )
        features = net.trunk(base, latents)
        details = {"base": torch.zeros_like(base)}
        if "one-step" in methods:
            details["one-step"] = net.one_step(features)
        if "diffusion" in methods:
            z = sampled(net, features, latents, values, known, SAMPLER_STEPS)
            details["diffusion"] = net.decoder(features, z)
        step = int(crop["quality"][0])
        band = sum(step >= edge for edge in BANDS[1:])
        chosen = rng.choice(image.numel(), SAMPLES, replace=False)
        for name, detail in details.items():
            scale = net.scale(features, base, detail)[:, 0 if name == "base" else 1][:, None]
            rounded = ((base + detail).clamp(0, 1) * 255).round()
            ratio = (rounded - image).abs() / 255 / scale
            samples = ratio.numpy().reshape(-1)[chosen]
            found[name].setdefault(band, []).append((int(pairs.arrays["number"][i]), samples))
    middle = [(low + high) // 2 for low, high in zip(BANDS, BANDS[1:], strict=False)]
    return {
        name: [[middle[band], round(_quantile(ratios), 4)] for band, ratios in sorted(bands.items())]
        for name, bands in found.items()
    }
