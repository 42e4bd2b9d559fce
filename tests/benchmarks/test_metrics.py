"""The yardsticks themselves."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from perigee.benchmarks.common import decode_pillow, jpeg2000, psnr
from perigee.benchmarks.metrics import Lpips, bd_psnr, bd_rate, luma, luma_psnr, ms_ssim, ms_ssim_scales
from perigee.bitstream.errors import EngineError, LimitError

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PERIGEE_SHARED", ROOT.parent / "shared"))


def curve(factor=1.0):
    return [(factor * r, 25 + 6 * math.log2(r / 0.1)) for r in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8)]


def test_bd_rate_of_a_constant_saving():
    assert bd_rate(curve(), curve()) == pytest.approx(0, abs=1e-9)
    assert bd_rate(curve(), curve(0.7)) == pytest.approx(-30, abs=0.1)
    assert bd_rate(curve(), curve(1.5)) == pytest.approx(50, abs=0.1)


def test_bd_rate_counts_the_asked_rates_only():
    """A codec that is better below 0.1 bpp and equal above gains nothing."""
    bent = [(r * (0.2 if r < 0.08 else 1.0), p) for r, p in curve()]
    assert bd_rate(curve(), bent) == pytest.approx(0, abs=1.5)


def test_bd_rate_without_overlap_is_nan():
    assert math.isnan(bd_rate(curve(), [(r, p + 100) for r, p in curve()]))


def test_bd_rate_survives_a_rate_that_falls_back():
    """One setting more bytes for less quality: the point is dropped."""
    points = curve()
    assert bd_rate(points, [*points, (points[4][0] * 1.5, points[4][1] + 0.1)]) == pytest.approx(0, abs=4)


def test_bd_psnr_of_a_constant_gain():
    assert bd_psnr(curve(), [(r, p + 1.5) for r, p in curve()]) == pytest.approx(1.5, abs=1e-9)
    assert bd_psnr(curve(), curve(0.5)) == pytest.approx(6, abs=1e-6)  # half the rate at 6 dB per doubling
    assert math.isnan(bd_psnr(curve(), [(r * 100, p) for r, p in curve()]))


def test_psnr():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a) == math.inf and psnr(a, a + 1) == pytest.approx(48.1308, abs=1e-4)


def test_the_anchor_uses_the_colour_transform_and_meets_its_rate(tiles):
    from PIL import Image

    pixels = np.asarray(Image.open(tiles[0]).convert("RGB"))
    data = jpeg2000(pixels, 0.5)
    assert data[:4] == b"\xff\x4f\xff\x51"  # a raw code stream, no boxes
    cod = data.index(b"\xff\x52")
    assert data[cod + 8] == 1  # multiple component transform
    assert data[cod + 13] == 0  # 9/7 irreversible
    assert len(data) * 8 / 65536 == pytest.approx(0.5, rel=0.06)
    assert psnr(pixels, decode_pillow(data)) > 20


def pictures(rows, cols):
    """The pictures of the LPIPS model's reference values: one, and three damaged copies."""
    i, j = np.mgrid[0:rows, 0:cols]
    ref = np.stack([(3 * i + j) % 256, (i + 2 * j + i * j // 8) % 256, (i // 8 + j // 8) % 2 * 255], -1)
    noise = np.clip(ref + ((i * 7919 + j * 104729) % 41 - 20)[..., None], 0, 255)
    p = np.pad(ref, ((2, 2), (2, 2), (0, 0)), mode="edge")
    blur = sum(p[a : a + rows, b : b + cols] for a in range(5) for b in range(5)) // 25
    return [x.astype(np.uint8) for x in (ref, noise, ref // 64 * 64, blur)]


def test_luma():
    colours = np.array([[[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert np.allclose(luma(colours), [[255, 76.245, 149.685, 29.07]])
    assert luma_psnr(luma(colours), luma(colours)) == math.inf
    assert luma_psnr(luma(colours), luma(colours) + 1) == pytest.approx(48.1308, abs=1e-4)


def test_ms_ssim_has_the_values_of_another_implementation():
    """By pytorch-msssim 1.0.0 (float64 input, data_range=255), on two sizes."""
    for size, wanted in (
        ((192, 256), (1, 0.98151990, 0.91536408, 0.88334703)),
        ((176, 176), (1, 0.98130535, 0.91503765, 0.89809262)),
    ):
        ref, *damaged = pictures(*size)
        found = [ms_ssim(ref, other) for other in (ref, *damaged)]
        assert found == pytest.approx(wanted, abs=2e-6)  # theirs has its window in float32


def test_ms_ssim_takes_fewer_scales_where_the_window_does_not_fit():
    assert [ms_ssim_scales(n, 500) for n in (161, 160, 81, 80, 41, 40, 21, 20, 11)] == [5, 4, 4, 3, 3, 2, 2, 1, 1]
    ref, noise, *_ = pictures(96, 75)
    assert ms_ssim(ref, ref) == 1 and 0.5 < ms_ssim(ref, noise) < 1
    with pytest.raises(LimitError, match="10x500"):
        ms_ssim_scales(10, 500)


@pytest.fixture(scope="module")
def lpips():
    path = SHARED / "weights" / "lpips-squeeze" / "lpips_sq_pm1.onnx"
    if not path.is_file():
        pytest.skip(f"the LPIPS model is not at {path}; set PERIGEE_SHARED")
    return Lpips(path, 1)


def test_lpips_has_the_values_of_the_models_page(lpips):
    ref, *damaged = pictures(96, 128)
    assert [lpips(ref, x) for x in (ref, *damaged)] == pytest.approx([0, 0.065196, 0.086364, 0.398471], abs=1e-5)


def test_lpips_refuses_what_would_end_the_process(lpips):
    small = np.zeros((16, 64, 3), np.uint8)
    with pytest.raises(LimitError, match="at least 17"):
        lpips(small, small)
    assert lpips(np.zeros((17, 17, 3), np.uint8), np.zeros((17, 17, 3), np.uint8)) == 0


def test_lpips_without_a_model_is_a_typed_error(tmp_path):
    with pytest.raises(EngineError, match="no LPIPS model"):
        Lpips(tmp_path / "absent.onnx")
