"""What the headers of image files say of how they were coded, on real files and on broken ones."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perigee.bitstream.errors import RasterError
from perigee.engines.coding import Coding, coding_of

PIXELS = 96 * 128


def image() -> Image.Image:
    y, x = np.mgrid[0:96, 0:128]
    return Image.fromarray(np.stack([x, y, x + y], 2).astype(np.uint8))


def jpeg2000(**options) -> bytes:
    out = io.BytesIO()
    image().save(out, "JPEG2000", quality_mode="rates", quality_layers=[80, 40, 20], **options)
    return out.getvalue()


@pytest.mark.parametrize("irreversible", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_jpeg2000_tells_its_transform_layers_and_levels(tmp_path, irreversible, raw):
    data = jpeg2000(irreversible=irreversible, no_jp2=raw, num_resolutions=4)
    (tmp_path / "a.jp2").write_bytes(data)
    found = coding_of(tmp_path / "a.jp2", PIXELS)
    size = len(data) - (0 if raw else data.index(b"jp2c") + 4)
    assert found.step is not None and replace(found, step=None) == Coding(
        "jpeg2000", 8 * size / PIXELS, not irreversible, 3, 3
    )


def test_real_files_of_esa_are_read(jpeg2000_files):
    band = coding_of(jpeg2000_files / "s2a_l2a_b01_60m_t32tls.jp2", 1830 * 1830)
    assert band.codec == "jpeg2000" and band.reversible and 1.8 < band.bits_per_pixel < 2
    preview = coding_of(jpeg2000_files / "s2_preview_320m_pacific.jp2", 343 * 343)
    assert preview.codec == "jpeg2000" and 11 < preview.bits_per_pixel < 11.5


def test_jpeg_and_others(tmp_path):
    image().save(tmp_path / "a.jpg")
    image().save(tmp_path / "a.png")
    assert coding_of(tmp_path / "a.jpg", PIXELS).codec == "jpeg"
    assert coding_of(tmp_path / "a.png", PIXELS).codec is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_headers_are_read_or_refused(tmp_path_factory, data):
    good = jpeg2000(irreversible=True)
    hit = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        hit[data.draw(st.integers(0, 250))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("broken") / "a.jp2"
    path.write_bytes(bytes(hit[: data.draw(st.integers(0, len(good)))]))
    try:
        assert coding_of(path, PIXELS).bits_per_pixel >= 0
    except RasterError as error:
        assert str(error)
