"""Rate-distortion points: every codec at every setting on one image, in processes side by side, and their CSV.

One row is one complete file: its real bytes and what its decoded pixels lost. A measure that was not taken, or that
means nothing for the codec (colour of VVC), is NaN, an empty cell in the CSV.
"""

from __future__ import annotations

import csv
import functools
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

from perigee.benchmarks.anchors import ANCHORS
from perigee.benchmarks.codec import QUALITIES, ArrayCodec
from perigee.benchmarks.common import psnr, read_rgb
from perigee.benchmarks.metrics import SSIM_TAPS, Lpips, luma, luma_psnr, ms_ssim

OURS = "perigee"
DIGITS = {"bpp": 5, "psnr": 4, "luma_psnr": 4, "ms_ssim": 6, "lpips": 6}


@dataclass(frozen=True)
class Point:
    """One file. PSNR in dB, ``psnr`` over RGB and ``luma_psnr`` over BT.601 luma; ``lpips``: less is better."""

    folder: str
    image: str
    codec: str
    setting: float
    bytes: int
    bpp: float
    psnr: float
    luma_psnr: float
    ms_ssim: float
    lpips: float


FIXED_BYTES = {"jpeg2000": 163, OURS: 44}  # that a file has whatever it shows: header, markers, end


def without_headers(points: Iterable[Point]) -> list[Point]:
    """The points of codecs whose fixed bytes are known, without these bytes; the others are left out."""
    out = []
    for point in points:
        fixed = FIXED_BYTES.get(point.codec.split()[0])
        if fixed is not None:
            out.append(replace(point, bytes=point.bytes - fixed, bpp=point.bpp * (1 - fixed / point.bytes)))
    return out


COLUMNS = [field.name for field in fields(Point)]


@dataclass(frozen=True)
class Task:
    """What one process does at a time: an image with the codecs that it lacks. ``threads`` is for Perigee and LPIPS."""

    folder: str
    path: Path
    profiles: tuple[tuple[str, str], ...]  # label and NAME or NAME:ANALYSIS
    anchors: tuple[str, ...]
    lpips: Path | None = None
    threads: int | None = None


def split_profile(spec: str) -> tuple[str, str | None]:
    """Profile (name or folder) and analysis of ``NAME`` or ``NAME:ANALYSIS``; None stands for the default analysis."""
    name, colon, analysis = spec.rpartition(":")
    if not colon or not name or "/" in analysis or "\\" in analysis:
        return spec, None
    return name, analysis


def profile_labels(specs: Iterable[str]) -> list[tuple[str, str]]:
    """Label and spec of each profile: the folder's name where that is clear, else the whole spec."""
    unique = list(dict.fromkeys(specs))
    short = []
    for spec in unique:
        name, analysis = split_profile(spec)
        short.append(f"{OURS} {Path(name).name}" + (f":{analysis}" if analysis else ""))
    return [(s if short.count(s) == 1 else f"{OURS} {spec}", spec) for s, spec in zip(short, unique, strict=True)]


@functools.cache
def _codec(spec: str, threads: int | None) -> ArrayCodec:
    name, analysis = split_profile(spec)
    return ArrayCodec(name, threads, analysis=analysis)


@functools.cache
def _lpips(model: Path, threads: int | None) -> Lpips:
    return Lpips(model, threads)


def measure(task: Task) -> list[Point]:
    """Points of one image, codec by codec in rising rate. Raises PerigeeError where a codec or measure refuses it."""
    pixels = read_rgb(task.path)
    rows, cols, _ = pixels.shape
    reference = luma(pixels)
    lpips = _lpips(task.lpips, task.threads) if task.lpips else None
    points = []

    def add(codec: str, setting: float, data: bytes, decoded: Any, luma_only: bool = False) -> None:
        values = {"ms_ssim": math.nan, "lpips": math.nan, "psnr": math.nan}
        if luma_only:
            plane = decoded[:rows, :cols]
        else:
            plane = luma(decoded)
            values["psnr"] = psnr(pixels, decoded)
            values["ms_ssim"] = ms_ssim(pixels, decoded) if min(rows, cols) >= SSIM_TAPS else math.nan
            values["lpips"] = lpips(pixels, decoded) if lpips else math.nan
        values["bpp"], values["luma_psnr"] = 8 * len(data) / (rows * cols), luma_psnr(reference, plane)
        points.append(Point(task.folder, task.path.stem, codec, float(setting), len(data), **values))

    for label, spec in task.profiles:
        codec = _codec(spec, task.threads)
        for quality in QUALITIES:
            data = codec.encode(pixels, quality)
            add(label, quality, data, codec.decode(data))
    for name in task.anchors:
        anchor = ANCHORS[name]
        for setting in anchor.settings:
            data = anchor.encode(pixels, setting)
            add(name, setting, data, anchor.decode(data), anchor.luma_only)
    return points


def measure_all(tasks: list[Task], jobs: int) -> Iterator[list[Point]]:
    """Points of each task, in the tasks' order. ``jobs`` above 1: that many processes, started afresh."""
    if jobs == 1:
        yield from map(measure, tasks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(measure, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


def write_header(handle: TextIO) -> None:
    """First line of a CSV of points."""
    csv.writer(handle).writerow(COLUMNS)


def write_points(handle: TextIO, points: list[Point]) -> None:
    """A line for each point; written out at once, so that a run that ends early leaves what it measured."""
    writer = csv.writer(handle)
    for point in points:
        values = {**vars(point), **{name: round(getattr(point, name), n) for name, n in DIGITS.items()}}
        writer.writerow([f"{v:g}" if k == "setting" else "" if v != v else v for k, v in values.items()])
    handle.flush()


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan


def read_points(path: Path) -> list[Point]:
    """Points of a CSV of this or an earlier release: columns that it lacks are NaN. Raises ValueError at a bad line."""
    casts: dict[str, Callable[[str], Any]] = {"folder": str, "image": str, "codec": str, "bytes": int}
    casts = {name: casts.get(name, _number) for name in COLUMNS}
    points = []
    with path.open(newline="", encoding="utf-8") as handle:
        for line, row in enumerate(csv.DictReader(handle), 2):
            try:
                values = {name: cast(row.get(name) or "") for name, cast in casts.items()}
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
            points.append(Point(**values))
    return points
