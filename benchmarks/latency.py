"""On-board time on one thread against OpenJPEG and HTJ2K, megapixels and joules: ``python -m perigee.benchmarks.latency``.

From the array in memory to the bytes of a complete stream, entropy coding included; batch 1. For every tile and rate all
codecs run in turn on the same array in the same process, so that the machine's drift cancels. Percentiles are over all runs
of all tiles, nothing trimmed; stages are timed in runs of their own; ratios are taken tile by tile, of medians. Every engine
and analysis is a codec of its own. After that each codec runs alone over all tiles, back to back, for its megapixels a
second and, where there is a sensor, its energy. Reading a GeoTIFF and decoding on the ground stand apart; writing files is
not measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import image_paths, images, jpeg2000, read_rgb, sample_folder, table, write_report
from perigee.benchmarks.energy import ENOUGH_S, Meter, Sensor, all_sensors, link_j_per_mpx, per_mpx, usable
from perigee.benchmarks.machine import describe, has_htj2k, libraries, temperatures
from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import Pixels
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile
from perigee.bitstream.samples import quality_step_of
from perigee.engines.choice import ENGINES, load
from perigee.onboard.encoder import Encoder, Timings
from perigee.onboard.raster import Raster

DEFAULT_ENGINE = "onnxruntime"
RATES_BPP = (0.25, 0.5, 1.0)
PERCENTILES = (50, 95, 99)
SAMPLES = 200  # what a 99th percentile wants
REPEATS_MIN = 5
WARM_UP_RUNS = 50  # of each codec; all tiles have one shape
SIDE = 256
END_TO_END = "end to end"
STAGES = ("normalise", "analysis", "prior", "entropy", "pack")


@dataclass
class Contender:
    """A codec at a rate, tile by tile: what encodes, what gives milliseconds by stage (ours only), and mean bits per pixel."""

    encode: list[Callable[[], bytes]] = field(default_factory=list)
    stages: list[Callable[[], dict[str, float]]] = field(default_factory=list)
    bpp: float = 0.0


def bisected(size_of: Callable[[float], int], low: float, high: float, size: float) -> float:
    """The setting between ``low`` (few bytes) and ``high`` (many) whose size in bytes comes closest to ``size``."""
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if size_of(middle) < size else (low, middle)
    return (low + high) / 2


def htj2k(pixels: Pixels, exponent: float) -> bytes:
    """High-throughput JPEG 2000 (OpenJPH) with the irreversible transforms; the quantisation step is 2**-exponent."""
    import imagecodecs

    return bytes(imagecodecs.htj2k_encode(pixels, level=2.0**-exponent, rgb=True, reversible=False))


def codec_on(engine: str, profile: Profile, analysis: str) -> ArrayCodec:
    """One analysis of a profile on an engine, one CPU thread. Raises EngineError for an engine that is not to be had."""
    codec = ArrayCodec(profile, threads=1, analysis=analysis)
    codec.encoder = Encoder(profile, load(engine, profile, 1, analysis))
    return codec


def codecs_of(engines: list[str], profile: Profile) -> dict[str, ArrayCodec]:
    """Every analysis of a profile on every engine, by its label."""
    return {f"{e} {a}": codec_on(e, profile, a) for e in dict.fromkeys(engines) for a in profile.analyses}


def what_runs(codec: ArrayCodec) -> dict[str, Any]:
    """Engine and form of the prior; ``packing`` of the compiled one is numbered as in ``bitstream/csrc/prior.h``."""
    engine = codec.encoder.engine
    return {
        "engine": engine.name,
        "prior": type(engine.prior).__name__,
        "packing": getattr(engine.prior, "packing", None),
    }


def once(run: Callable[[], Any]) -> float:
    """Time of one call, in ms."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def stages(codec: ArrayCodec, pixels: Pixels, quality: float) -> dict[str, float]:
    """Milliseconds by stage of one patch."""
    timings = Timings()
    with timings.stage("normalise"):
        image = pixels.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255)
    segment = codec.encoder.encode_image(image, quality_step_of(quality), timings=timings)
    with timings.stage("pack"):
        fmt.write_segment(segment)
    return timings.ms


def contenders(bpp: float, tiles: list[Pixels], codecs: dict[str, ArrayCodec]) -> dict[str, Contender]:
    """All codecs at a rate by name, every tile set to nearly the same bytes; the report has what came out."""

    def size(encode: Callable[[Pixels, float], bytes], pixels: Pixels, setting: float) -> int:
        return len(encode(pixels, setting))

    out = {name: Contender() for name in (*codecs, "OpenJPEG", *(["HTJ2K"] if has_htj2k() else []))}
    for pixels in tqdm(tiles, desc=f"{bpp} bpp, settings", unit="tile", disable=None):
        wanted = bpp * pixels.shape[0] * pixels.shape[1] / 8
        for name, codec in codecs.items():
            quality = bisected(partial(size, codec.encode, pixels), 0, 100, wanted)
            out[name].encode.append(partial(codec.encode, pixels, quality))
            out[name].stages.append(partial(stages, codec, pixels, quality))
        actual = 8 * len(out[next(iter(codecs))].encode[-1]()) / (pixels.shape[0] * pixels.shape[1])
        out["OpenJPEG"].encode.append(partial(jpeg2000, pixels, actual))
        if "HTJ2K" in out:
            exponent = bisected(partial(size, htj2k, pixels), 0, 12, wanted)
            out["HTJ2K"].encode.append(partial(htj2k, pixels, exponent))
        for contender in out.values():
            contender.bpp += 8 * len(contender.encode[-1]()) / (pixels.shape[0] * pixels.shape[1]) / len(tiles)
    return out


def sample(bpp: float, runs: dict[str, Contender], repeats: int) -> list[dict[str, Any]]:
    """A row per codec and stage: percentiles of the milliseconds of every run, and ratios to the standards tile by tile."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    count = len(next(iter(runs.values())).encode)
    for tile in tqdm(range(count), desc=f"{bpp} bpp, times", unit="tile", disable=None):
        for _, (name, run) in itertools.product(range(repeats), runs.items()):
            times = {END_TO_END: once(run.encode[tile])}
            times |= run.stages[tile]() if run.stages else {}
            for stage, ms in times.items():
                found.setdefault((name, stage), [[] for _ in range(count)])[tile].append(ms)
    rows = []
    for name, stage in [(n, s) for n in runs for s in (END_TO_END, *STAGES) if (n, s) in found]:
        values = np.array(found[name, stage])
        row = {"bpp": bpp, "codec": name, "stage": stage, "samples": values.size}
        row |= {f"p{p}": round(float(np.percentile(values, p)), 3) for p in PERCENTILES}
        row["max"] = round(float(values.max()), 3)
        for standard in [s for s in ("OpenJPEG", "HTJ2K") if s in runs]:
            ratios = np.median(values, axis=1) / np.median(found[standard, END_TO_END], axis=1)
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            row |= {f"x {standard}": round(float(middle), 3), f"quartiles {standard}": f"{low:.2f} .. {high:.2f}"}
        rows.append(row)
    return rows


def sustained(run: Contender, seconds: float, sensors: list[Sensor]) -> tuple[Meter, float]:
    """What the meter read, and the megapixels done, of a codec over all tiles back to back for at least ``seconds``."""
    done = 0
    with Meter(sensors) as meter:
        end = time.perf_counter() + seconds
        for encode in itertools.cycle(run.encode):
            encode()
            done += 1
            if done % len(run.encode) == 0 and time.perf_counter() >= end:
                break
    return meter, done * SIDE * SIDE / 1e6


def idle_use(seconds: float, sensors: list[Sensor]) -> Meter:
    """What the meter reads while this process sleeps."""
    with Meter(sensors) as meter:
        time.sleep(seconds)
    return meter


def endurance(
    bpp: float, runs: dict[str, Contender], seconds: float, sensors: list[Sensor], idle: Meter
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of speed, one a codec, and rows of energy, one a codec and sensor."""
    speed, energy = [], []
    for name, run in runs.items():
        meter, mpx = sustained(run, seconds, sensors)
        which = {"bpp": bpp, "codec": name}
        speed.append(
            which
            | {
                "Mpx/s": round(mpx / meter.seconds, 2),
                "Mpx": round(mpx, 1),
                "seconds": round(meter.seconds, 1),
                "actual bpp": round(run.bpp, 4),
            }
        )
        energy += [which | row for row in per_mpx(meter, idle, mpx)]
    return speed, energy


def reading(paths: list[Path], repeats: int) -> list[dict[str, Any]]:
    """Opening a GeoTIFF and reading it window by window as on board; the files are in the system's cache after the first."""

    def read(path: Path) -> int:
        with Raster(path) as raster:
            info = raster.info
            for top, left in itertools.product(range(0, info.height, SIDE), range(0, info.width, SIDE)):
                raster.read(top, left, min(SIDE, info.height - top), min(SIDE, info.width - left))
        return info.height * info.width

    if not paths:
        return []
    area = sum(read(path) for path in paths)
    times = np.array([[once(partial(read, path)) for _ in range(repeats)] for path in paths])
    row: dict[str, Any] = {"files": len(paths), "samples": times.size}
    row |= {f"p{p}": round(float(np.percentile(times, p)), 3) for p in PERCENTILES}
    return [row | {"max": round(float(times.max()), 3), "Mpx/s": round(area * repeats / times.sum() / 1000, 2)}]


def ground_speed(codec: ArrayCodec, scenes: list[tuple[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """Decoding of whole streams in memory, Mpx/s, on all cores."""
    rows = []
    for name, pixels in scenes:
        data = codec.encode(pixels, 50)
        ms = [once(partial(codec.decode, data)) for _ in range(repeats)]
        area = pixels.shape[0] * pixels.shape[1]
        rows.append(
            {
                "scene": name,
                "pixels": f"{pixels.shape[1]}x{pixels.shape[0]}",
                "Mpx/s median": round(area / float(np.median(ms)) / 1000, 2),
            }
        )
    return rows


def link_rows(transmitter_j_per_bit: float | None, bpp_saved: float | None) -> list[dict[str, Any]]:
    """What a megapixel costs on the link at each rate and, where the bits saved are given, what they save there."""
    if transmitter_j_per_bit is None:
        return []
    rows = [{"link": f"sending {b} bpp", "J/Mpx": link_j_per_mpx(transmitter_j_per_bit, b)} for b in RATES_BPP]
    if bpp_saved is not None:
        saved = link_j_per_mpx(transmitter_j_per_bit, bpp_saved)
        rows.append({"link": f"saved against JPEG 2000, {bpp_saved} bpp", "J/Mpx": saved})
    return rows


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number from 0 up")
    return value


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; usage errors exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, action="append", help="folder of 256x256 tiles (repeatable; default: the bundled sample)")
    add("--scenes", type=Path, help="folder of larger images for ground decoding (default: the tiles)")
    add("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    add(
        "--engine",
        action="append",
        metavar="NAME",
        help=f"{', '.join(ENGINES)}; side by side (repeatable; default {DEFAULT_ENGINE})",
    )
    add("--limit", type=int, help="only the first N tiles of a folder")
    add("--repeats", type=int, help=f"runs of each tile (default: {SAMPLES} samples' worth, at least {REPEATS_MIN})")
    add("--sustain", type=_amount, default=10, metavar="SECONDS",
        help=f"run each codec that long at each rate (default %(default)g; energy wants {ENOUGH_S}; 0: not at all)")  # fmt: skip
    add("--transmitter-j-per-bit", type=_amount, metavar="X", help="what the link costs, to set beside the encoder")
    add("--bpp-saved", type=_amount, metavar="Y", help="bits per pixel saved against JPEG 2000 at equal PSNR")
    add("--out", type=Path, default=Path("build/latency.json"), help="JSON report (default %(default)s)")
    args = parser.parse_args(argv)
    if args.bpp_saved is not None and args.transmitter_j_per_bit is None:
        parser.error("--bpp-saved needs --transmitter-j-per-bit")
    if args.repeats is not None and args.repeats < 1:
        parser.error("--repeats must be at least 1")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it goes into the report. Raises PerigeeError where a profile or an engine is not to be had."""
    paths = [path for folder in args.data or [sample_folder()] for path in image_paths(folder)[: args.limit]]
    known = [(path, pixels) for path in paths if (pixels := read_rgb(path)).shape[:2] == (SIDE, SIDE)]
    if not known:
        raise PerigeeError(f"no tile of {SIDE}x{SIDE} pixels among {len(paths)} images")
    tiles = [pixels for _, pixels in known]
    repeats = args.repeats or max(REPEATS_MIN, math.ceil(SAMPLES / len(tiles)))
    codecs = codecs_of(args.engine or [DEFAULT_ENGINE], find_profile(args.profile))
    sensors, remarks = usable(all_sensors()) if args.sustain else ([], [])
    start = {"machine": describe(), "libraries": libraries(), "temperatures_c": temperatures()}
    for pixels in itertools.islice(itertools.cycle(tiles), WARM_UP_RUNS):
        for codec in codecs.values():
            codec.encode(pixels, 50)
        jpeg2000(pixels, 0.5)
        if has_htj2k():
            htj2k(pixels, 6)
    idle = idle_use(args.sustain if sensors else 0, sensors)
    times, speed, energy = [], [], []
    for bpp in RATES_BPP:
        runs = contenders(bpp, tiles, codecs)
        times += sample(bpp, runs, repeats)
        if args.sustain:
            more = endurance(bpp, runs, args.sustain, sensors, idle)
            speed += more[0]
            energy += more[1]
    scenes = list(images(args.scenes)) if args.scenes else [("tile", p) for p in tiles[:3]]
    geotiffs = [path for path, _ in known if path.suffix.lower() in (".tif", ".tiff")]
    return start | {
        "temperatures_c_after": temperatures(),
        "warm_up_runs": WARM_UP_RUNS,
        "tiles": len(tiles),
        "repeats": repeats,
        "codecs": {label: what_runs(codec) for label, codec in codecs.items()},
        "times": times,
        "sustained": speed,
        "energy": energy,
        "unreadable_sensors": remarks,
        "link": link_rows(args.transmitter_j_per_bit, args.bpp_saved),
        "reading": reading(geotiffs, repeats),
        "ground": ground_speed(ArrayCodec(args.profile), scenes, REPEATS_MIN),
    }


def lines_of(report: dict[str, Any], sustain_s: float) -> list[str]:
    """The report for people."""

    def part(title: str, rows: list[dict[str, Any]]) -> list[str]:
        return ["", title, table(rows, list(rows[0]))] if rows else []

    out = [json.dumps(report["machine"])]
    out += part("on board, one thread, ms; x: times the standard's time, median of tiles", report["times"])
    out += part("sustained, one thread, coding included", report["sustained"])
    out += part("energy spent, by sensor", report["energy"])
    out += [f"energy: {remark}" for remark in report["unreadable_sensors"]]
    if sustain_s and not report["energy"] and not report["unreadable_sensors"]:
        out.append("energy: no sensor found")
    if report["energy"] and sustain_s < ENOUGH_S:
        out.append(f"energy: over {sustain_s:g} s only; sensors want --sustain {ENOUGH_S}")
    out += part("energy of the link, by the figure given", report["link"])
    out += part("reading GeoTIFFs, ms a file", report["reading"])
    return out + part("ground decoding, all cores", report["ground"])


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0, or 1 where there is nothing to measure."""
    args = arguments(argv)
    try:
        report = measure(args)
    except PerigeeError as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines_of(report, args.sustain)))
    write_report(args.out, [report])
    return 0


if __name__ == "__main__":
    sys.exit(main())
