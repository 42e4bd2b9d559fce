"""DDIM (Song et al. 2021, eta 0) over the z of many windows at once: the windows' answers are blended at each step.

A window's last step depends on its neighbours' step before, and so on: for a rectangle, ``steps`` rings of windows around it
are computed too, one fewer at each step, so the result is the one that the whole scene would have given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from perigee.ground.windows import FloatArray, Grid, Window, noise_at

Denoise = Callable[[Window, FloatArray, float], FloatArray]  # window, z [C, n, n], step -> v [C, n, n]
Progress = Callable[[int, int], None]


def alpha_sigma(time: float) -> tuple[float, float]:
    """Share of z0 and of noise at a time in 0..1: a cosine schedule."""
    return math.cos(time * math.pi / 2), math.sin(time * math.pi / 2)


def runs_of(grid: Grid, needed: Iterable[Window], steps: int) -> int:
    """How often :func:`sample` will run the denoiser."""
    wanted = list(needed)
    return sum(grid.count_around(wanted, steps - i) for i in range(steps))


def sample(
    grid: Grid,
    needed: Iterable[Window],
    denoise: Denoise,
    steps: int,
    seed: int,
    group: int = 0,
    start: float = 1.0,
    schedule: int = 1000,
    channels: int = 4,
    pixels_per_element: int = 8,
    progress: Progress | None = None,
) -> dict[Window, FloatArray]:
    """z0 [channels, side / pixels_per_element, side / pixels_per_element] of each needed window, the windows blended where they overlap.

    ``start`` below 1: from the one-step image, whose z is 0, with so much of the noise's time.
    """
    wanted = list(needed)
    sets = [grid.around(wanted, steps - i) for i in range(steps)]  # the last step: one ring, for blending
    everything = sets[0]
    n, move = grid.side // pixels_per_element, (grid.side - grid.side // 4) // pixels_per_element
    top, left = (min(w[i] for w in everything) * move for i in (0, 1))
    rows, cols = ((max(w[i] for w in everything) * move + n - corner) for i, corner in ((0, top), (1, left)))
    times = np.linspace(start, 0, steps + 1)
    _, sigma = alpha_sigma(times[0])
    z = np.float32(sigma) * noise_at(seed, group, top, left, (channels, rows, cols))
    total, done = sum(map(len, sets)), 0
    for i in range(steps):
        (a, s), (a_next, s_next) = alpha_sigma(times[i]), alpha_sigma(times[i + 1])
        v = np.zeros_like(z)
        for window in sets[i]:
            y, x = window.row * move - top, window.col * move - left
            part = np.s_[:, y : y + n, x : x + n]
            v[part] += denoise(window, z[part], float(times[i] * schedule)) * grid.weights(window, pixels_per_element)
            done += 1
            if progress:
                progress(done, total)
        clean = np.float32(a) * z - np.float32(s) * v
        noise = np.float32(s) * z + np.float32(a) * v
        z = np.float32(a_next) * clean + np.float32(s_next) * noise
    out = {}
    for window in wanted:
        y, x = window.row * move - top, window.col * move - left
        out[window] = z[:, y : y + n, x : x + n].copy()
    return out
