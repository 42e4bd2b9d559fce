"""The quantisation step that a JPEG 2000 file was left with, read from its packet headers."""

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perigee.engines.coding import coding_of
from perigee.engines.jpeg2000_step import step_of

ROWS, COLS = 203, 301


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[0:ROWS, 0:COLS]
    shape = np.stack([120 + 60 * np.sin(x / 7 + k) * np.cos(y / 5) for k in range(3)], 2)
    return (shape + rng.normal(0, 6, shape.shape)).clip(0, 255).astype(np.uint8)


def coded(picture, rate, **options) -> bytes:
    out = io.BytesIO()
    options = {"irreversible": True, "mct": 1, "no_jp2": True, "quality_layers": [24 / rate]} | options
    Image.fromarray(picture).save(out, "JPEG2000", quality_mode="rates", **options)
    return out.getvalue()


def error_of(picture, data) -> float:
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)
    return float(np.sqrt(np.square(decoded - picture).mean()))


def test_the_step_follows_the_rate_and_tells_the_error(picture):
    steps, shares = [], []
    for rate in (0.2, 0.5, 1, 2, 4):
        data = coded(picture, rate)
        steps.append(step_of(data))
        shares.append(error_of(picture, data) / steps[-1])
    assert all(a > b for a, b in zip(steps, steps[1:], strict=False))
    assert all(0.1 < share < 1 for share in shares), shares


VARIANTS = {
    "orders": [{"progression": p} for p in ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")],
    "orders with precincts": [
        {"progression": p, "precinct_size": (64, 128), "codeblock_size": (32, 32)} for p in ("LRCP", "RPCL", "PCRL", "CPRL")
    ],
    "tiles": [{"tile_size": (64, 96)}, {"tile_size": (96, 64), "tile_offset": (7, 5), "offset": (13, 11)}],
    "layers": [{"quality_layers": [24, 20, 17, 13, 12]}],
    "levels": [{"num_resolutions": 1}, {"num_resolutions": 3}, {"num_resolutions": 8}],
    "code-blocks": [{"codeblock_size": (64, 16)}],
    "no colour transform": [{"mct": 0}],
}  # fmt: skip


@pytest.mark.parametrize("options", [o for found in VARIANTS.values() for o in found], ids=str)
def test_every_way_to_lay_out_a_code_stream_is_read_to_its_end(picture, options):
    """A step is only told where the headers lead to the last byte of each tile."""
    found = step_of(coded(picture, 2, **options))
    plain = step_of(coded(picture, 2))
    assert found is not None and plain is not None and 0.25 < found / plain < 4


def test_a_reversible_file_has_lost_nothing_and_a_cut_one_something(picture):
    assert step_of(coded(picture, 24, irreversible=False, quality_layers=[0])) < 3
    assert step_of(coded(picture, 1, irreversible=False)) > 4


def test_what_cannot_be_told_is_not(picture):
    data = coded(picture, 1)
    assert step_of(b"") is None and step_of(data[:200]) is None and step_of(data[: len(data) // 2]) is None


def test_a_file_with_boxes_tells_the_same(picture, tmp_path):
    (tmp_path / "a.jp2").write_bytes(coded(picture, 1, no_jp2=False))
    assert coding_of(tmp_path / "a.jp2", ROWS * COLS).step == step_of(coded(picture, 1))


def test_real_files_of_esa_are_read(jpeg2000_files):
    band = coding_of(jpeg2000_files / "s2a_l2a_b01_60m_t32tls.jp2", 1830 * 1830)
    assert band.step is not None and band.step < 1


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_hostile_headers_end_soon(picture, data):
    hit = bytearray(coded(picture, 1, tile_size=(128, 128)))
    for _ in range(data.draw(st.integers(1, 5))):
        hit[data.draw(st.integers(0, 160))] = data.draw(st.integers(0, 255))
    start = time.monotonic()
    found = step_of(bytes(hit))
    assert found is None or found >= 0
    assert time.monotonic() - start < 5
