"""Crops for ``docs/``: original, JPEG 2000 and Perigee at equal bytes: ``python -m perigee.benchmarks.results_page``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import Pixels, decode_pillow, images, psnr, sample_folder
from perigee.benchmarks.demo import jpeg2000_of_size, panels


def row(name: str, pixels: Pixels, codec: ArrayCodec, quality: float) -> list[tuple[str, Pixels]]:
    """Captioned pictures of one image at one quality."""
    data = codec.encode(pixels, quality)
    ours = codec.decode(data)
    theirs = jpeg2000_of_size(pixels, len(data))
    other = decode_pillow(theirs)
    bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
    return [
        (name, pixels),
        (f"JPEG 2000, {len(theirs)} bytes, {psnr(pixels, other):.2f} dB", other),
        (f"Perigee, {len(data)} bytes ({bpp:.2f} bpp), {psnr(pixels, ours):.2f} dB", ours),
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=sample_folder(), help="folder of images (default: the bundled sample)"
    )
    parser.add_argument("--names", nargs="*", help="only these images")
    parser.add_argument("--quality", type=float, nargs="*", default=[25, 50], help="qualities (default %(default)s)")
    parser.add_argument("--profile", default="lite", help="name or folder (default %(default)s)")
    parser.add_argument(
        "--crop", type=int, default=256, help="side of the crop shown, from the middle (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/results"), help="folder for the PNGs")
    args = parser.parse_args()
    codec = ArrayCodec(args.profile)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, pixels in images(args.data):
        if args.names and name not in args.names:
            continue
        for quality in args.quality:
            parts = row(name, pixels, codec, quality)
            top, left = ((n - min(n, args.crop)) // 2 for n in pixels.shape[:2])
            window = np.s_[top : top + args.crop, left : left + args.crop]
            panels(
                args.out / f"{name}_q{quality:g}.png",
                [(caption, np.ascontiguousarray(p[window])) for caption, p in parts],
            )


if __name__ == "__main__":
    main()
