"""The strength at which a given loss is reached."""

import pytest

from perigee.benchmarks.strengths import STRENGTHS, strength_at


def test_a_strength_between_two_that_were_tried():
    curve = [s**2 / 4 for s in STRENGTHS]
    assert strength_at(curve, curve[2]) == pytest.approx(STRENGTHS[2])
    between = strength_at(curve, (curve[1] + curve[2]) / 2)
    assert between is not None and STRENGTHS[1] < between < STRENGTHS[2]
    assert strength_at(curve, curve[-1] + 0.1) is None, "no strength that was tried loses as much"
    assert strength_at([-0.02, 0.01, 0.1, 0.3, 0.5], 0.1) == pytest.approx(1.0), "weak detail may gain"
