"""How far two pictures are apart, and how far two rate-distortion curves are.

Pictures are uint8 RGB [row, col, 3], as delivered; the luma measures also take a luma plane float64 [row, col] on the scale
0..255, for codecs whose colour is not compared. All sums are in float64.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import Pixels
from perigee.bitstream.errors import EngineError, LimitError

Luma = npt.NDArray[np.float64]
RateCurve = list[tuple[float, float]]  # (bpp, quality in dB)

LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # BT.601
SSIM_TAPS, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MS_SSIM_FULL_SIDE = 161  # pixels a side for all five scales
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LPIPS_MIN_SIDE = 17


def luma(pixels: Pixels) -> Luma:
    """BT.601 luma float64 [row, col], full range 0..255, not rounded, of RGB uint8 [row, col, 3]."""
    out: Luma = pixels.astype(np.float64) @ LUMA_WEIGHTS
    return out


def luma_psnr(a: Luma, b: Luma) -> float:
    """PSNR in dB of two luma planes, peak 255; infinite for equal ones."""
    mse = float(np.mean((a - b) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ms_ssim_scales(rows: int, cols: int) -> int:
    """Scales that MS-SSIM uses: 5 from 161 px a side, fewer below (an 11-tap window must fit). Raises LimitError under 11."""
    side, scales = min(rows, cols), 0
    while side >= SSIM_TAPS and scales < len(MS_SSIM_WEIGHTS):
        side, scales = -(-side // 2), scales + 1
    if not scales:
        raise LimitError(f"MS-SSIM needs sides of at least {SSIM_TAPS} pixels, the image has {rows}x{cols}")
    return scales


def ms_ssim(a: Pixels, b: Pixels) -> float:
    """MS-SSIM of RGB images uint8 [row, col, 3]: per channel, then the mean; 1 for equal images.

    Wang et al. 2003: Gaussian window of 11 taps, sigma 1.5, where it fits wholly; halved by 2x2 means, an odd last line
    doubled first. Under 161 px fewer scales are used, their weights scaled to the sum of all: compare equal sizes only.
    """
    scales = ms_ssim_scales(*a.shape[:2])
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) * (sum(MS_SSIM_WEIGHTS) / sum(MS_SSIM_WEIGHTS[:scales]))
    pair = np.stack([a, b]).astype(np.float64)  # [2, row, col, 3]
    product = np.ones(a.shape[2])
    for scale in range(scales):
        luminance, contrast = _ssim_parts(pair[0], pair[1])
        terms = luminance * contrast if scale == scales - 1 else contrast
        product *= np.maximum(terms.mean((0, 1)), 0) ** weights[scale]
        if scale < scales - 1:
            pair = _halved(pair)
    return float(product.mean())


def _ssim_parts(a: Luma, b: Luma) -> tuple[Luma, Luma]:
    """SSIM's luminance term and contrast-structure term at each window of [row, col, channel]."""
    from scipy.ndimage import correlate1d

    half = SSIM_TAPS // 2
    taps = np.exp(-((np.arange(SSIM_TAPS) - half) ** 2) / (2 * SSIM_SIGMA**2))
    taps /= taps.sum()

    def blurred(x: Luma) -> Luma:
        rows = correlate1d(x, taps, axis=0)[half : x.shape[0] - half]
        out: Luma = correlate1d(rows, taps, axis=1)[:, half : x.shape[1] - half]
        return out

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b, cov = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2, blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    return luminance, (2 * cov + SSIM_C2) / (var_a + var_b + SSIM_C2)


def _halved(pair: Luma) -> Luma:
    """2x2 means of [2, row, col, channel]."""
    n, rows, cols, channels = pair.shape
    pair = np.pad(pair, ((0, 0), (0, rows % 2), (0, cols % 2), (0, 0)), mode="edge")
    out: Luma = pair.reshape(n, -(-rows // 2), 2, -(-cols // 2), 2, channels).mean((2, 4))
    return out


class Lpips:
    """LPIPS from an ONNX model with inputs ``ref`` and ``dist``, float32 [N, 3, row, col] in -1..1, and a score [N]."""

    def __init__(self, model: Path, threads: int | None = None) -> None:
        from perigee.engines.onnxruntime import OnnxRuntimeGraph

        if not model.is_file():
            raise EngineError(f"there is no LPIPS model at {model}")
        self._graph = OnnxRuntimeGraph(model, threads)

    def __call__(self, a: Pixels, b: Pixels) -> float:
        """Distance of RGB images uint8 [row, col, 3]; 0 for equal ones. It depends on the size: compare equal sizes only.

        Raises LimitError under 17 px a side: there ONNX Runtime ends the whole process with an arithmetic fault.
        """
        if min(a.shape[:2]) < LPIPS_MIN_SIDE or a.shape != b.shape:
            raise LimitError(
                f"LPIPS needs two images of one size with sides of at least {LPIPS_MIN_SIDE} pixels,"
                f" got {a.shape[0]}x{a.shape[1]} and {b.shape[0]}x{b.shape[1]}"
            )
        feeds = {"ref": self._input(a), "dist": self._input(b)}
        return float(self._graph(feeds)[0].reshape(-1)[0])

    @staticmethod
    def _input(pixels: Pixels) -> npt.NDArray[np.float32]:
        scaled = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def bd_rate(anchor: RateCurve, test: RateCurve, low: float = 0.1, high: float = 1.5) -> float:
    """Bjontegaard rate difference in % of (bpp, PSNR) points: PCHIP of log-rate over PSNR, common PSNR range.

    Only points of ``low``..``high`` bpp count, with one beyond each end kept for interpolation by clipping the common range
    to the PSNRs at those rates. NaN where the curves do not overlap.
    """
    from scipy.interpolate import PchipInterpolator

    curves = []
    for points in (anchor, test):
        quality, log_rate = _rising(points)
        if len(quality) < 4:
            return math.nan
        by_rate = PchipInterpolator(log_rate, quality, extrapolate=False)
        first = quality[0] if log_rate[0] >= math.log(low) else float(by_rate(math.log(low)))
        last = quality[-1] if log_rate[-1] <= math.log(high) else float(by_rate(math.log(high)))
        curves.append((PchipInterpolator(quality, log_rate), first, last))
    bottom, top = max(c[1] for c in curves), min(c[2] for c in curves)
    mean = _mean_difference([c[0] for c in curves], bottom, top)
    return 100 * (math.exp(mean) - 1)


def bd_psnr(anchor: RateCurve, test: RateCurve, low: float = 0.1, high: float = 1.5) -> float:
    """Bjontegaard PSNR difference in dB: PCHIP of PSNR over log-rate, common rates within ``low``..``high`` bpp.

    Positive: better than the anchor. NaN where the curves do not overlap.
    """
    from scipy.interpolate import PchipInterpolator

    curves, bottom, top = [], math.log(low), math.log(high)
    for points in (anchor, test):
        quality, log_rate = _rising(points)
        if len(quality) < 4:
            return math.nan
        curves.append(PchipInterpolator(log_rate, quality))
        bottom, top = max(bottom, log_rate[0]), min(top, log_rate[-1])
    return _mean_difference(curves, bottom, top)


def _rising(points: RateCurve) -> tuple[Luma, Luma]:
    """Quality and log-rate of the finite points, both strictly rising; a point that does not rise is dropped."""
    kept: list[tuple[float, float]] = []
    for quality, log_rate in sorted({(p, math.log(r)) for r, p in points if math.isfinite(p)}):
        if not kept or (quality > kept[-1][0] and log_rate > kept[-1][1]):
            kept.append((quality, log_rate))
    return np.array([p for p, _ in kept]), np.array([r for _, r in kept])


def _mean_difference(curves: list[Any], bottom: float, top: float) -> float:
    """Mean of the second curve minus the first between two abscissae; NaN where the range is empty."""
    if not top > bottom:
        return math.nan
    areas = [float(curve.integrate(bottom, top)) for curve in curves]
    return (areas[1] - areas[0]) / (top - bottom)
