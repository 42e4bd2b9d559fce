"""Two questions to generated detail: does it look like the ground in general, and does it create or delete things?

The kernel distance (Binkowski et al. 2018) compares the features of crops of many images, decoded against originals, with an interval
by bootstrap over crops. The features are those of the LPIPS network, so it is a second look of the same eyes. The object check
counts blobs of a fixed detector, bright and dark, that appear or vanish.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from perigee.benchmarks.classifier import Backbone
from perigee.benchmarks.metrics import luma
from perigee.bitstream.arrays import Pixels

Floats = npt.NDArray[np.float64]
CROP = 64
SIGMA, RATIO, THRESHOLD, NEAR = 1.5, 1.6, 6.0, 3.0  # of the blobs: pixels, none, grey levels, pixels


def crop_features(backbone: Backbone, pixels: Pixels) -> Floats:
    """Features [crops, n] of an image's crops of 64x64 without overlap."""
    rows, cols = (n // CROP for n in pixels.shape[:2])
    return np.stack([
        backbone.features(np.ascontiguousarray(pixels[r * CROP : (r + 1) * CROP, c * CROP : (c + 1) * CROP]))
        for r in range(rows) for c in range(cols)
    ])  # fmt: skip


def kernel_distance(a: Floats, b: Floats) -> float:
    """Squared maximum mean discrepancy, unbiased, with the cubic polynomial kernel; 0 for equal distributions."""

    def kernel(x: Floats, y: Floats) -> Floats:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    n, m = len(a), len(b)
    aa, bb = kernel(a, a), kernel(b, b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def kernel_interval(a: Floats, b: Floats, draws: int = 60, seed: int = 1) -> tuple[float, float, float]:
    """Distance, and its 95 % interval by bootstrap over crops (half of them a draw, without repetition: a repeated
    crop would look like a match)."""
    deviation = a.std(0)
    alive = deviation > 1e-3 * deviation.max()  # a feature that all originals lack would swamp the others
    a, b, deviation = a[:, alive], b[:, alive], deviation[alive]
    mean = a.mean(0)
    a, b = (a - mean) / deviation, (b - mean) / deviation
    rng = np.random.default_rng(seed)
    half = len(a) // 2
    found = [
        kernel_distance(a[rng.permutation(len(a))[:half]], b[rng.permutation(len(b))[:half]]) for _ in range(draws)
    ]
    value = kernel_distance(a, b)
    spread = 1.96 * float(np.std(found)) / np.sqrt(2)
    return value, value - spread, value + spread


def blobs(pixels: Pixels) -> Floats:
    """Places [n, 2] of the local extremes of a difference of Gaussians of the luma."""
    y = luma(pixels).astype(np.float64)
    d = ndimage.gaussian_filter(y, SIGMA) - ndimage.gaussian_filter(y, SIGMA * RATIO)
    size = np.abs(d)
    peaks = (size == ndimage.maximum_filter(size, 5)) & (size > THRESHOLD)
    return np.argwhere(peaks).astype(np.float64)


def objects(original: Pixels, decoded: Pixels) -> tuple[int, int, int]:
    """Blobs of the original, those that the decoded image has created, and those that it has deleted."""
    a, b = blobs(original), blobs(decoded)
    if not len(a) or not len(b):
        return len(a), len(b), len(a)
    created = int((cKDTree(a).query(b)[0] > NEAR).sum())
    deleted = int((cKDTree(b).query(a)[0] > NEAR).sum())
    return len(a), created, deleted
