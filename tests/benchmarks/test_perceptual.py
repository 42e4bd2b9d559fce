"""The measures of generated detail, on cases whose answer is known."""

import numpy as np
import pytest

from perigee.benchmarks.fidelity import blobs, kernel_distance, kernel_interval, objects
from perigee.benchmarks.perceptual import variant_of


def dots(places):
    image = np.full((64, 64, 3), 100, np.uint8)
    for row, col in places:
        image[row - 1 : row + 2, col - 1 : col + 2] = 220
    return image


def test_objects_that_appear_and_vanish():
    original, decoded = dots([(10, 10), (30, 40), (50, 20)]), dots([(10, 11), (30, 40), (20, 55), (55, 55)])
    assert len(blobs(original)) == 3
    assert objects(original, decoded) == (3, 2, 1)
    assert objects(original, original) == (3, 0, 0)
    assert objects(original, dots([])) == (3, 0, 3)


def test_the_kernel_distance_knows_its_own():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(120, 20)), rng.normal(size=(120, 20))
    value, low, high = kernel_interval(a, b)
    assert low < 0 < high or abs(value) < 0.1
    far = kernel_interval(a, b + 1)
    assert far[1] > high
    assert kernel_distance(a, a[::-1].copy()) < kernel_distance(a, b + 1)


def test_variants():
    v = variant_of("cosmic:diffusion,steps=4,seed=2,strength=0.5,metadata=absent")
    assert (v.compensator, v.wanted.method, v.wanted.steps, v.wanted.seed) == ("cosmic", "diffusion", 4, 2)
    assert v.wanted.strength == 0.5 and v.metadata == "absent"
    assert variant_of("cosmic").wanted.method is None
    for wrong in ("cosmic,colour=1", "cosmic,metadata=maybe"):
        with pytest.raises(ValueError, match="options are"):
            variant_of(wrong)
