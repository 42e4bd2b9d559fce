"""Multi-band scenes to judge by eye: original, JPEG 2000 and Perigee at equal bytes: ``python -m perigee.benchmarks.false_colour``.

JPEG 2000 is one code-stream behind the scene's own spectral KLT, as in ``benchmarks.multiband``. Three bands are shown as red, green
and blue, each from the 2nd to the 98th percentile of the original's window. Each scene is coded whole with all its bands; the captions give
the real rate in bits a sample and the PSNR of the whole scene, over the bands' ranges.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw

import perigee
from perigee.benchmarks.crops import CAPTION_PX, FONT_PX, GAP_PX, TITLE_PX, save
from perigee.benchmarks.multiband import SpectralKlt, components_by_jpeg2000, planes_by_jpeg2000, range_psnr, ranges_of
from perigee.bitstream.arrays import Samples
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS

SHOWN_PERCENTILES = (2, 98)
QUALITY_STEPS = 250
LEVELS = (10.0, 100.0)  # dB of OpenJPEG's scale
HALVINGS = 12


@dataclass(frozen=True)
class Job:
    """A sheet: a scene's file, the numbers of three bands from 1 on, and the window's first row and column."""

    title: str
    path: Path
    bands: tuple[int, int, int]
    place: tuple[int, int]


def parse_job(text: str) -> Job:
    """A sheet of ``TITLE=PATH@RED,GREEN,BLUE@ROW,COL``."""
    match = re.fullmatch(r"([^=]+)=(.+)@(\d+),(\d+),(\d+)@(\d+),(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not TITLE=PATH@RED,GREEN,BLUE@ROW,COL")
    title, path, *numbers = match.groups()
    red, green, blue, row, col = (int(n) for n in numbers)
    return Job(title, Path(path), (red, green, blue), (row, col))


def by_perigee(samples: Samples, bits: float) -> tuple[int, Samples]:
    """Size and samples of the stream that comes closest to so many bits a sample."""
    low, high = 0, QUALITY_STEPS
    while high - low > 1:
        middle = (low + high) // 2
        size = len(perigee.encode(samples, middle * 100 / QUALITY_STEPS, DEFAULT_COMPONENTS))
        low, high = (middle, high) if 8 * size / samples.size < bits else (low, middle)
    data = perigee.encode(samples, low * 100 / QUALITY_STEPS, DEFAULT_COMPONENTS)
    return len(data), perigee.decode(data).samples


def by_jpeg2000(samples: Samples, size: int) -> tuple[int, Samples]:
    """Size and samples of the JPEG 2000 file that comes closest to so many bytes."""
    klt = SpectralKlt(samples, ranges_of(samples))
    found = []
    low, high = LEVELS
    for _ in range(HALVINGS):
        level = (low + high) / 2
        data = components_by_jpeg2000(klt.components, level)
        found.append((abs(len(data) + klt.side_bytes - size), data))
        low, high = (level, high) if len(data) + klt.side_bytes < size else (low, level)
    data = min(found, key=lambda one: one[0])[1]
    return len(data) + klt.side_bytes, klt.restored(planes_by_jpeg2000(data), samples.dtype.name)


def shown(window: Samples, original: Samples) -> Image.Image:
    """A window of three bands, stretched as the original's wants it."""
    low, high = np.percentile(original.reshape(3, -1), SHOWN_PERCENTILES, axis=1)[..., None, None]
    pixels = np.rint(255 * np.clip((window - low) / (high - low), 0, 1)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def draw(job: Job, rates: list[float], side: int, zoom: int) -> Image.Image:
    """The picture: a row for each rate, in it the original, JPEG 2000 and Perigee."""
    with rasterio.open(job.path) as source:
        samples = source.read()
    ranges = ranges_of(samples)
    (top, left), bands = job.place, [b - 1 for b in job.bands]
    panel, line = side * zoom, CAPTION_PX + side * zoom + GAP_PX
    out = Image.new("RGB", (3 * (panel + GAP_PX) - GAP_PX, TITLE_PX + len(rates) * line), "white")
    pen = ImageDraw.Draw(out)
    where = (
        f"bands {', '.join(map(str, job.bands))} of {len(samples)}, {side}x{side} pixels at row {top}, column {left}"
    )
    pen.text((2, 6), f"{job.title}: {where}", fill="black", font_size=FONT_PX + 1)
    for number, bits in enumerate(rates):
        ours, ours_samples = by_perigee(samples, bits)
        theirs, theirs_samples = by_jpeg2000(samples, ours)
        panels = (
            ("original", 0, samples),
            ("JPEG 2000 behind a KLT", theirs, theirs_samples),
            ("Perigee", ours, ours_samples),
        )
        for column, (name, size, decoded) in enumerate(panels):
            x, y = column * (panel + GAP_PX), TITLE_PX + number * line
            figures = f"{8 * size / samples.size:.3f} bits a sample, {range_psnr(samples, decoded, ranges):.2f} dB"
            pen.text((x + 2, y + 4), name, fill="black", font_size=FONT_PX)
            if size:
                pen.text((x + 2, y + 22), f"{size:,} bytes, {figures}", fill="black", font_size=FONT_PX)
            window = (bands, slice(top, top + side), slice(left, left + side))
            out.paste(
                shown(decoded[window], samples[window]).resize((panel, panel), Image.Resampling.NEAREST),
                (x, y + CAPTION_PX),
            )
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--scene",
        type=parse_job,
        action="append",
        required=True,
        metavar="TITLE=PATH@RED,GREEN,BLUE@ROW,COL",
        help="a sheet",
    )
    add("--rates", type=float, nargs="+", default=[0.1, 0.4], help="bits a sample (default %(default)s)")
    add("--crop", type=int, default=192, help="side of the window in pixels (default %(default)s)")
    add("--zoom", type=int, default=2, help="panel pixels for one of the scene (default %(default)s)")
    add("--out", type=Path, default=Path("build/false_colour"), help="folder for the pictures (default %(default)s)")
    args = parser.parse_args()
    for job in args.scene:
        name = re.sub(r"\W+", "_", job.title).lower()
        print(save(draw(job, args.rates, args.crop, args.zoom), args.out / f"{name}.png"))


if __name__ == "__main__":
    main()
