"""Sheets to judge by eye: original, JPEG 2000, AVIF and Perigee at equal bytes: ``python -m perigee.benchmarks.crops``.

Each sheet shows one window of one image, a row for each rate. AVIF, whose settings are the coarsest, comes as close to the
asked rate as it can; Perigee is matched to AVIF's bytes and JPEG 2000 to Perigee's. Each image is coded whole, the captions give
the real rate and the RGB PSNR of the whole image, and bytes that differ from Perigee's by more than 3 % are marked.
Windows are the middle, a given place, or, for the worst tiles of a ``points.csv``, where Perigee loses most to JPEG 2000.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from perigee.benchmarks.anchors import avif
from perigee.benchmarks.codec import ArrayCodec, pixels_of
from perigee.benchmarks.common import closest, decode_pillow, image_paths, jpeg2000, psnr, read_rgb, table
from perigee.benchmarks.perceptual import variant_of
from perigee.benchmarks.points import OURS, Point, profile_labels, read_points, split_profile
from perigee.benchmarks.summary import group, image_bd_rates
from perigee.bitstream.arrays import Pixels
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.ground.compensation.compensator import find_compensator
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.decoder import SceneDecoder

RATES_BPP = (0.15, 0.3, 0.6)
TOLERANCE = 0.03
MAX_BYTES = 700_000
GAP_PX, TITLE_PX, CAPTION_PX, FONT_PX = 8, 30, 44, 15
QUALITY_STEPS = 250  # a step of Perigee's is 0.4 of quality
JPEG2000_STEPS = 4000  # of a thousandth of a bit per pixel


@dataclass(frozen=True)
class Coded:
    """An image after one codec: bytes of the file and pixels uint8 [row, col, 3]."""

    name: str
    size_bytes: int
    pixels: Pixels


def at_equal_bytes(pixels: Pixels, codec: ArrayCodec, bpp: float) -> list[Coded]:
    """JPEG 2000, AVIF and Perigee, in this order, near a rate and as equal in bytes as their settings allow."""
    size_bytes = round(bpp * pixels.shape[0] * pixels.shape[1] / 8)
    theirs = closest(lambda quality: avif(pixels, quality), 100, size_bytes)
    ours = closest(lambda step: codec.encode(pixels, step * 100 / QUALITY_STEPS), QUALITY_STEPS, len(theirs))
    old = closest(lambda step: jpeg2000(pixels, max(step, 1) / 1000), JPEG2000_STEPS, len(ours))
    return [
        Coded("JPEG 2000", len(old), decode_pillow(old)),
        Coded("AVIF", len(theirs), decode_pillow(theirs)),
        Coded("Perigee", len(ours), codec.decode(ours)),
    ]


def worst_window(original: Pixels, ours: Pixels, theirs: Pixels, side: int) -> tuple[int, int]:
    """Row and column of the ``side`` x ``side`` window in which our squared error exceeds theirs the most."""
    losses = [((original.astype(np.int64) - p) ** 2).sum(2) for p in (ours, theirs)]
    total = np.pad((losses[0] - losses[1]).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = min(side, *original.shape[:2])
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    row, col = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(row), int(col)


def sheet(
    title: str,
    pixels: Pixels,
    rows: list[tuple[float, list[Coded]]],
    place: tuple[int, int] | None,
    side: int = 128,
    zoom: int = 2,
) -> Image.Image:
    """One picture: a row for each asked rate, in it the original's window and the same window after each codec.

    ``place`` is the window's first row and column (clipped to the image); None stands for the middle.
    """
    height, width = (min(side, n) for n in pixels.shape[:2])
    free = (pixels.shape[0] - height, pixels.shape[1] - width)
    top, left = (min(max(p, 0), f) for p, f in zip(place or (free[0] // 2, free[1] // 2), free, strict=True))
    columns, area = 1 + max(len(coded) for _, coded in rows), pixels.shape[0] * pixels.shape[1]
    panel, line = (width * zoom, height * zoom), CAPTION_PX + height * zoom + GAP_PX
    out = Image.new("RGB", (columns * (panel[0] + GAP_PX) - GAP_PX, TITLE_PX + len(rows) * line), "white")
    draw = ImageDraw.Draw(out)
    where = f"{height}x{width} pixels at row {top}, column {left} of {pixels.shape[0]}x{pixels.shape[1]}"
    draw.text((2, 6), f"{title}: {where}; PSNR is the whole image's", fill="black", font_size=FONT_PX + 1)
    for number, (bpp, coded) in enumerate(rows):
        ours_bytes = next((c.size_bytes for c in coded if c.name == "Perigee"), coded[0].size_bytes)
        panels = [("original", f"asked: {bpp:g} bpp", pixels)]
        for c in coded:
            off = c.size_bytes / ours_bytes - 1
            mark = f" ({off:+.0%} bytes)" if abs(off) > TOLERANCE else ""
            figures = f"{8 * c.size_bytes / area:.3f} bpp  {psnr(pixels, c.pixels):.2f} dB"
            panels.append((c.name + mark, figures, c.pixels))
        for column, (name, figures, shown) in enumerate(panels):
            x, y = column * (panel[0] + GAP_PX), TITLE_PX + number * line
            draw.text((x + 2, y + 4), name, fill="black", font_size=FONT_PX)
            draw.text((x + 2, y + 22), figures, fill="black", font_size=FONT_PX)
            window = np.ascontiguousarray(shown[top : top + height, left : left + width])
            out.paste(Image.fromarray(window).resize(panel, Image.Resampling.NEAREST), (x, y + CAPTION_PX))
    return out


def compensated(
    pixels: Pixels, codec: ArrayCodec, size_bytes: int, variants: list[str], folders: list[Path]
) -> list[Coded]:
    """The stream of so many bytes as each variant shows it (see ``benchmarks.perceptual``)."""
    data = closest(lambda step: codec.encode(pixels, step / 2.5), QUALITY_STEPS, size_bytes)
    found = []
    for variant in map(variant_of, variants):
        compensator = find_compensator(variant.compensator, codec.profile.contract.digest, folders)
        decoder = CompensatedSource(SceneDecoder(parse_stream(data), codec.ground), compensator, variant.wanted)
        found.append(Coded(f"+ {variant.label}", len(data), pixels_of(decoder)))
    return found


def save(picture: Image.Image, path: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Write a PNG, or, where it would exceed ``max_bytes``, a JPEG 4:4:4 of quality 92; the path that was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    if path.stat().st_size > max_bytes:
        path.unlink()
        path = path.with_suffix(".jpg")
        picture.save(path, quality=92, subsampling=0)
    return path


def worst_images(points: list[Point], label: str, reference: str, count: int) -> list[tuple[str, float]]:
    """``folder/image`` and BD-rate in % of the images with the largest BD-rate. Raises ValueError without the codecs."""
    found = group("all", points)
    ours = [codec for codec in found.curves if codec.startswith(OURS)]
    if label not in ours and len(ours) == 1:
        label = ours[0]
    if label not in found.curves or reference not in found.curves:
        raise ValueError(f"the points have {', '.join(found.curves) or 'no codec'}; wanted {label} and {reference}")
    rates = {k: v for k, v in image_bd_rates(found, label, reference).items() if math.isfinite(v)}
    return sorted(rates.items(), key=lambda item: -item[1])[:count]


@dataclass(frozen=True)
class Job:
    """One sheet: the file to write (without suffix), its title, the image, and the window's first row and column.

    Without a place it is the middle, or, where ``worst``, where Perigee loses most to JPEG 2000 at the middle rate.
    """

    name: str
    title: str
    path: Path
    place: tuple[int, int] | None = None
    worst: bool = False


def parse_land(text: str) -> Job:
    """Sheet of ``[TITLE=]PATH[@ROW,COL]``; without a title the file's name serves."""
    match = re.fullmatch(r"(?:(?P<title>[^=]+)=)?(?P<path>.+?)(?:@(?P<row>\d+),(?P<col>\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not [TITLE=]PATH[@ROW,COL]")
    path = Path(match["path"])
    title = match["title"] or path.stem
    place = (int(match["row"]), int(match["col"])) if match["row"] else None
    return Job("land_" + re.sub(r"\W+", "_", title), title, path, place)


def worst_jobs(csv_file: Path, label: str, reference: str, count: int, folders: list[Path]) -> list[Job]:
    """Sheets of the worst images of a finished CSV. Raises FileNotFoundError where no folder has one of them."""
    files = {f"{folder.name}/{path.stem}": path for folder in folders for path in image_paths(folder)}
    jobs = []
    for rank, (image, rate) in enumerate(worst_images(read_points(csv_file), label, reference, count), 1):
        if image not in files:
            raise FileNotFoundError(f"{image} of {csv_file} is in no --data folder")
        title = f"{image}, {rate:+.1f} % bytes against {reference}"
        jobs.append(Job(f"worst_{rank}_{files[image].stem}", title, files[image], worst=True))
    return jobs


def draw(job: Job, codec: ArrayCodec, args: argparse.Namespace) -> list[dict[str, str]]:
    """Write one sheet; a row of figures for each rate."""
    pixels = read_rgb(job.path)
    rows = [(bpp, at_equal_bytes(pixels, codec, bpp)) for bpp in args.rates]
    for _, coded in rows:
        coded += compensated(pixels, codec, coded[-1].size_bytes, args.compensation, args.compensators)
    place = job.place
    if job.worst:
        old, _, ours = rows[len(rows) // 2][1][:3]
        place = worst_window(pixels, ours.pixels, old.pixels, args.crop)
    written = save(sheet(job.title, pixels, rows, place, args.crop, args.zoom), args.out / f"{job.name}.png")
    return [
        {"sheet": written.name, "asked bpp": f"{bpp:g}"}
        | {c.name: f"{c.size_bytes} B  {psnr(pixels, c.pixels):.2f} dB" for c in coded}
        for bpp, coded in rows
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--land",
        type=parse_land,
        action="append",
        default=[],
        metavar="[TITLE=]PATH[@ROW,COL]",
        help="an image, with what it shows and the window's first row and column (repeatable)",
    )
    add("--worst", type=Path, metavar="CSV", help="also the worst images of a finished points.csv")
    add("--count", type=int, default=3, help="how many of the worst (default %(default)s)")
    add("--against", default="jpeg2000", help="codec for the BD-rate of the worst (default %(default)s)")
    add("--data", type=Path, action="append", default=[], help="folder in which the CSV's images are (repeatable)")
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME[:ANALYSIS]", help="name or folder (default %(default)s)")
    add("--compensation", action="append", default=[], metavar="VARIANT", help="also compensated by this (repeatable)")
    add("--compensators", type=Path, action="append", default=[], help="folder with compensators")
    add("--rates", type=float, nargs="+", default=list(RATES_BPP), help="bits per pixel (default %(default)s)")
    add("--crop", type=int, default=128, help="side of the window in pixels (default %(default)s)")
    add("--zoom", type=int, default=2, help="panel pixels for one of the image (default %(default)s)")
    add("--out", type=Path, default=Path("build/crops"), help="folder for the pictures (default %(default)s)")
    args = parser.parse_args()
    if not args.land and not args.worst:
        parser.error("give --land or --worst")
    jobs, label = args.land, profile_labels([args.profile])[0][0]
    try:
        if args.worst:
            jobs = jobs + worst_jobs(args.worst, label, args.against, args.count, args.data)
        name, analysis = split_profile(args.profile)
        codec = ArrayCodec(name, analysis=analysis)
        lines = [line for job in jobs for line in draw(job, codec, args)]
    except (PerigeeError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(table(lines, list(lines[0])))
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
