"""Quick looks: close to the full decoding at every size, the same whatever is asked for, and marked."""

import numpy as np
import pytest

import perigee
from perigee.bitstream.parsing import parse_stream
from perigee.engines import quick
from perigee.ground.library import Library
from perigee.ground.orders import FAST, Order, open_source
from perigee.ground.products import write_cog
from perigee.ground.regions import Region
from perigee.ground.views import View, blocks_of, view_of


@pytest.fixture(scope="module")
def library():
    return Library([], 2)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:700, 0:900]
    planes = [120 + 70 * np.sin(x / (23 + 3 * k)) * np.cos(y / 31) + 25 * ((x // 60 + y // 80) % 2) for k in range(3)]
    return (np.stack(planes) + rng.normal(0, 4, (3, 700, 900))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stream(image):
    return perigee.encode(image, 60)


def opened(stream, library, effort=FAST):
    return open_source(Order(effort=effort), stream, library)


def pixels(source, view: View) -> np.ndarray:
    out = np.zeros((len(view.bands), *view.size), source.dtype)
    for place, block in blocks_of(source, view):
        out[(slice(None), slice(place.top, place.bottom), slice(place.left, place.right))] = block.samples
    return out


def psnr(a, b) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def test_a_quick_look_is_nearly_as_close_to_the_original(stream, library, image):
    whole = Region(0, 0, 700, 900)
    full, fast = (pixels(s, view_of(s, whole)) for s in (opened(stream, library, "full"), opened(stream, library)))
    assert psnr(full, image) - 1.5 < psnr(fast, image) < psnr(full, image) + 1
    tags = opened(stream, library).provenance()
    assert tags["PERIGEE_SYNTHESIS"] == "NO" and "PERIGEE_SYNTHESIS" not in opened(stream, library, "full").provenance()


@pytest.mark.parametrize("reduction", [2, 4, 8, 16])
def test_a_reduced_quick_look_is_the_mean_of_the_full_one(stream, library, reduction, image):
    source = opened(stream, library)
    assert source.reduces
    looked = pixels(source, view_of(source, reduction=reduction))
    full = opened(stream, library, "full")
    wanted = pixels(full, view_of(full, reduction=reduction))
    assert looked.shape == wanted.shape == (3, -(-700 // reduction), -(-900 // reduction))
    assert psnr(looked, wanted) > 38
    part = pixels(source, view_of(source, Region(96, 160, 333, 410), [3, 1], reduction))
    top, left = 96 // reduction, 160 // reduction
    assert np.abs(part.astype(int) - looked[[2, 0], top : top + part.shape[1], left : left + part.shape[2]]).max() <= 1


@pytest.mark.parametrize("quality", [15, 50, 85])
@pytest.mark.parametrize("reduction", [2, 4, 8, 16])
def test_the_passes_that_are_left_out_are_not_missed(library, image, quality, reduction, monkeypatch):
    whole = image[:, :512, :512]
    wanted = whole.reshape(3, 512 // reduction, reduction, 512 // reduction, reduction).mean((2, 4))
    source = opened(perigee.encode(whole, quality), library)
    few = pixels(source, view_of(source, reduction=reduction))
    monkeypatch.setattr(quick, "ENOUGH", {})
    all_passes = pixels(source, view_of(source, reduction=reduction))
    assert psnr(few, wanted) > psnr(all_passes, wanted) - 0.7


def test_what_was_not_decoded_with_few_passes_is_not_taken_for_a_whole_segment(stream, library):
    source = opened(stream, library)
    pixels(source, view_of(source, reduction=16))
    again = pixels(source, view_of(source))
    assert np.array_equal(again, pixels(opened(stream, library), view_of(source)))


def test_scenes_with_gaps_are_reduced_over_what_is_valid(library, image):
    valid = np.ones((700, 900), bool)
    valid[:, :300] = False
    source = opened(perigee.encode(image, 60, valid=valid), library)
    assert not source.reduces
    for place, block in blocks_of(source, view_of(source, reduction=4)):
        if place.right <= 75:
            assert not block.valid.any()


def test_what_is_compensated_is_made_in_full(stream, library):
    order = Order(effort=FAST, compensation="cosmic", strength=0.0)
    source = open_source(order, stream, library)
    full = opened(stream, library, "full")
    assert np.array_equal(pixels(source, view_of(source)), pixels(full, view_of(full)))


def test_streams_of_other_profiles_are_decoded_in_full(tmp_path, library, image):
    stream = perigee.encode(image, 50, profile="flight", analysis="light")
    assert not all(s.linear for s in parse_stream(stream).segments.values())
    source = opened(stream, library)
    assert not source.reduces and "PERIGEE_SYNTHESIS" not in source.provenance()
    write_cog(tmp_path / "a.tif", source, view_of(source, reduction=8))
