"""Rate-distortion against the standards, in real bytes: ``python -m perigee.benchmarks.rate_distortion``.

Per image: BD-rate over 0.1 to 1.5 bpp (PCHIP over log-rate, common PSNR range), then median and quartiles; the curve of the
set's means second, as papers do. Scenes are coded whole by every codec. Every byte of a file counts.
VVC takes seconds a tile and joins only where ``--anchors`` names it; it is compared on luma PSNR, with all others beside.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from perigee.benchmarks.anchors import ANCHORS, DEFAULT_ANCHORS
from perigee.benchmarks.common import image_paths, image_size, sample_folder, table, write_report
from perigee.benchmarks.curves import AXES, measures_with_values, plot
from perigee.benchmarks.metrics import MS_SSIM_FULL_SIDE
from perigee.benchmarks.points import (
    Point,
    Task,
    measure_all,
    profile_labels,
    read_points,
    without_headers,
    write_header,
    write_points,
)
from perigee.benchmarks.published import COLUMNS, DIFFERENCES, beside_ldm_rsic
from perigee.benchmarks.summary import SUMMARY_COLUMNS, Group, by_image, group, image_table, measures_of, summarise
from perigee.benchmarks.video import MissingAnchorError
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.profile import DEFAULT_PROFILE

REFERENCES = ("jpeg2000", "hevc")
UC_MERCED = "ucm"


def available(anchors: Iterable[str]) -> list[str]:
    """Those anchors that are installed; a line on stderr for each that is not."""
    found = []
    for name in dict.fromkeys(anchors):
        try:
            ANCHORS[name].check()
            found.append(name)
        except MissingAnchorError as error:
            print(f"{name} is skipped: {error}", file=sys.stderr)
    return found


def positive(text: str) -> int:
    """A count of at least 1 from the command line."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a count of at least 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = out.add_argument
    add(
        "--data",
        type=Path,
        action="append",
        default=[],
        help="folder of 8-bit RGB images (repeatable; default: the bundled sample)",
    )
    add(
        "--scenes",
        type=Path,
        action="append",
        default=[],
        help="folder of whole scenes, reported one by one and left out of 'all tiles' (repeatable)",
    )
    add(
        "--profile",
        action="append",
        metavar="NAME[:ANALYSIS]",
        help="name or folder, with one of its analyses (repeatable; default: " + DEFAULT_PROFILE + ")",
    )
    add(
        "--anchors",
        nargs="*",
        default=list(DEFAULT_ANCHORS),
        choices=list(ANCHORS),
        help="codecs to compare with (default: %(default)s)",
    )
    add(
        "--reference",
        action="append",
        choices=list(ANCHORS),
        help="codec whose bytes are 100 %% (repeatable; default: jpeg2000 and hevc)",
    )
    add("--lpips", type=Path, metavar="ONNX", help="LPIPS model with inputs ref and dist in -1..1; adds the measure")
    add(
        "--reuse",
        type=Path,
        metavar="CSV",
        help="take the anchors' points from an earlier points.csv (or .partial) where it has them",
    )
    add("--limit", type=positive, help="only the first N images of a folder")
    add("--jobs", type=positive, default=1, help="images side by side, each on one thread (default %(default)s)")
    add("--out", type=Path, default=Path("build/rate_distortion"), help="folder for CSVs, JSON, tables and plots")
    return out


def measured(args: argparse.Namespace, folders: list[Path], anchors: list[str]) -> list[Point]:
    """Points of all folders, written image by image to ``points.csv.partial``, in the end ``points.csv``.

    Raises ValueError for a folder without images, PerigeeError where a codec or measure refuses an image.
    """
    known: dict[tuple[str, str, str], list[Point]] = {}
    for point in read_points(args.reuse) if args.reuse else []:
        complete = point.luma_psnr == point.luma_psnr and (not args.lpips or point.lpips == point.lpips)
        if point.codec in anchors and (complete or ANCHORS[point.codec].luma_only):
            known.setdefault((point.folder, point.image, point.codec), []).append(point)
    profiles = tuple(profile_labels(args.profile or [DEFAULT_PROFILE]))
    tasks, reused = [], []
    for folder in folders:
        paths = image_paths(folder)[: args.limit]
        if not paths:
            raise ValueError(f"{folder} has no images")
        for path in paths:
            have = [name for name in anchors if (folder.name, path.stem, name) in known]
            lacking = tuple(name for name in anchors if name not in have)
            threads = 1 if args.jobs > 1 else None
            tasks.append(Task(folder.name, path, profiles, lacking, args.lpips, threads))
            reused.append([point for name in have for point in known[folder.name, path.stem, name]])
    small = sum(min(image_size(task.path)) < MS_SSIM_FULL_SIDE for task in tasks)
    if small:
        print(f"{small} images are under {MS_SSIM_FULL_SIDE} px: fewer scales in their MS-SSIM", file=sys.stderr)
    points: list[Point] = []
    partial = args.out / "points.csv.partial"
    with partial.open("w", newline="", encoding="utf-8") as handle:
        write_header(handle)
        progress = tqdm(measure_all(tasks, args.jobs), total=len(tasks), unit="image", disable=None)
        for found, old in zip(progress, reused, strict=True):
            write_points(handle, found + old)
            points += found + old
    partial.replace(args.out / "points.csv")
    return points


class Report:
    """Tables as text on the screen and as Markdown in a file."""

    def __init__(self) -> None:
        self.markdown: list[str] = []

    def text(self, line: str) -> None:
        """A paragraph."""
        print(line + "\n")
        self.markdown.append(line + "\n")

    def table(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        """A table."""
        print(table(rows, columns) + "\n")
        lines = [columns, ["---"] * len(columns), *([str(row.get(c, "")) for c in columns] for row in rows)]
        self.markdown.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n")


def report(groups: list[Group], scenes: list[Group], references: list[str]) -> tuple[Report, list[dict[str, Any]]]:
    """All tables, printed, and the rows of the summary."""
    out = Report()
    out.text("BD-rate, 0.1 to 1.5 bpp, real bytes, per image, then the set mean; negative: fewer than the reference.")
    for name in dict.fromkeys(codec for found in groups + scenes for codec in found.curves if codec in ANCHORS):
        out.text(f"{name}: {ANCHORS[name].label}")
    rows = [row for found in groups + scenes for row in summarise(found, references)]
    out.table(rows, SUMMARY_COLUMNS)
    for found in scenes:
        for reference in references:
            for measure in measures_of(found):
                lines, columns = image_table(found, reference, measure)
                out.text(f"{found.name}, each scene coded whole: BD-rate % against {reference}, {AXES[measure]}")
                out.table(lines, columns)
    for found in groups:
        if UC_MERCED in found.name.lower() and "jpeg2000" in found.curves:
            out.text("Beside LDM-RSIC's table I (UC Merced, set mean, against JPEG 2000):")
            out.table(beside_ldm_rsic(found), COLUMNS)
            out.text(DIFFERENCES.format(count=len(found.images)))
    return out, rows


def main() -> None:
    """Entry point."""
    args = parser().parse_args()
    tiles = args.data or ([] if args.scenes else [sample_folder()])
    folders = [*tiles, *args.scenes]
    if len({folder.name for folder in folders}) < len(folders):
        raise SystemExit("error: two folders have one name; results are kept by it")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        points = measured(args, folders, available(args.anchors))
    except (PerigeeError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    names = {folder.name for folder in tiles}
    groups = [group(folder.name, [p for p in points if p.folder == folder.name]) for folder in tiles]
    if len(groups) > 1:
        groups.append(group("all tiles", [p for p in points if p.folder in names]))
    scenes = [group(folder.name, [p for p in points if p.folder == folder.name]) for folder in args.scenes]
    references = [r for r in args.reference or REFERENCES if any(p.codec == r for p in points)]
    out, rows = report(groups, scenes, references)
    bare = [group(found.name, without_headers(p for by in found.curves.values() for ps in by.values() for p in ps))
            for found in groups + scenes]  # fmt: skip
    if "jpeg2000" in references:
        out.text("Without both codecs' fixed headers (JPEG 2000 163 bytes, Perigee 44), which weigh on small tiles:")
        out.table([row for found in bare for row in summarise(found, ["jpeg2000"])], SUMMARY_COLUMNS)
    write_report(args.out / "summary.json", rows)
    write_report(args.out / "images.json", [row for found in groups[: len(tiles)] + scenes for row in by_image(found, references)])  # fmt: skip
    (args.out / "tables.md").write_text("\n".join(out.markdown), encoding="utf-8")
    plot(args.out / "curves.png", groups + scenes, ["psnr"])
    for found in groups + scenes:
        wanted = [m for m in measures_with_values(found, list(AXES)) if m != "luma_psnr" or m in measures_of(found)]
        plot(args.out / f"curves_{found.name.replace(' ', '_')}.png", [found], wanted)
    print(f"written to {args.out}: points.csv, summary.json, images.json, tables.md, curves.png and one per folder")


if __name__ == "__main__":
    main()
