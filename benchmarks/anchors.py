"""The standards that Perigee is compared with: pixels uint8 [row, col, 3] to the bytes of a complete file, and back.

Each is set as well as it can be for PSNR at equal bytes within its practical speed, and runs on one thread; every byte
of its file counts. :data:`ANCHORS` gives each a ladder of settings from about 0.05 to 2 bits per pixel, lowest rate first.
HEVC and VVC are in ``video``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from perigee.benchmarks.common import decode_pillow, jpeg2000
from perigee.benchmarks.video import (
    INSTALL,
    MissingAnchorError,
    check_hevc,
    check_vvc,
    decode_hevc,
    decode_vvc,
    encode_hevc,
    encode_vvc,
)
from perigee.bitstream.arrays import Pixels


def avif(pixels: Pixels, quality: float) -> bytes:
    """AVIF (aom) at an integer quality of 0..100, 4:4:4, speed 4, through Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "AVIF", quality=int(quality), subsampling="4:4:4", speed=4, max_threads=1)
    return buffer.getvalue()


def webp(pixels: Pixels, quality: float) -> bytes:
    """WebP at an integer quality of 0..100, method 6, through Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=int(quality), method=6)
    return buffer.getvalue()


def jpegxl(pixels: Pixels, distance: float) -> bytes:
    """JPEG XL at a Butteraugli distance, effort 7, through imagecodecs."""
    check_jpegxl()
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(pixels, distance=distance, effort=7, lossless=False))


def decode_jpegxl(data: bytes) -> Pixels:
    """Inverse of :func:`jpegxl`: RGB uint8 [row, col, 3]."""
    check_jpegxl()
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data))


def check_jpegxl() -> None:
    """Raises MissingAnchorError where imagecodecs is absent."""
    try:
        import imagecodecs  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingAnchorError(f"imagecodecs is missing: {INSTALL}") from error


def check_avif() -> None:
    """Raises MissingAnchorError where Pillow was built without AVIF."""
    from PIL import features

    if not features.check("avif"):
        raise MissingAnchorError(
            "this Pillow has no AVIF; the wheels on PyPI have it: pip install --force-reinstall pillow"
        )


@dataclass(frozen=True)
class Anchor:
    """A codec to compare with.

    ``encode`` takes pixels and one of ``settings``; ``decode`` returns RGB uint8 [row, col, 3], or, where ``luma_only``,
    a luma plane float64 [row, col] whose sides may be one larger than the image's. ``check`` raises MissingAnchorError.
    """

    label: str
    encode: Callable[[Pixels, float], bytes]
    decode: Callable[[bytes], Any]
    settings: tuple[float, ...]
    luma_only: bool = False
    check: Callable[[], None] = lambda: None


ANCHORS: dict[str, Anchor] = {
    "jpeg2000": Anchor(
        "JPEG 2000 (OpenJPEG, 9/7, colour transform, rate mode)",
        jpeg2000,
        decode_pillow,
        (0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 0.95, 1.25, 1.6, 2.1),
    ),
    "avif": Anchor(
        "AVIF (aom, 4:4:4, speed 4)", avif, decode_pillow, (8, 16, 24, 32, 41, 50, 58, 66, 74, 82), check=check_avif
    ),
    "jpegxl": Anchor(
        "JPEG XL (effort 7)",
        jpegxl,
        decode_jpegxl,
        (20.0, 14.0, 10.0, 7.5, 5.5, 4.0, 3.0, 2.2, 1.6, 1.1),
        check=check_jpegxl,
    ),
    "webp": Anchor("WebP (method 6)", webp, decode_pillow, (1, 5, 12, 22, 35, 50, 65, 78, 86, 92)),
    "hevc": Anchor(
        "HEVC intra (x265 slow, tune psnr, 4:4:4)",
        encode_hevc,
        decode_hevc,
        (51, 48, 45, 42, 39, 36, 33, 30, 27, 24, 20, 16),
        check=check_hevc,
    ),
    "vvc": Anchor(
        "VVC intra (vvenc slow, 4:2:0; luma only)",
        encode_vvc,
        decode_vvc,
        (53, 48, 43, 38, 33, 28, 23, 18),
        luma_only=True,
        check=check_vvc,
    ),
}
DEFAULT_ANCHORS = tuple(name for name in ANCHORS if name != "vvc")  # seconds a tile: only where asked for
