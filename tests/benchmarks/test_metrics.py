"""The yardsticks themselves."""

import math

import numpy as np
import pytest

from perigee.benchmarks.common import bd_rate, decode_pillow, jpeg2000, psnr


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
