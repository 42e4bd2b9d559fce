"""On-board time on one thread against OpenJPEG, and ground decoding speed: ``python -m perigee.benchmarks.latency``.

From the array in memory to the bytes of a complete stream. For every tile and rate both codecs run in turn on the same
array in the same process, so that the machine's drift cancels; the ratio is taken tile by tile. The profile's other
analyses are timed alone and added to the default's prior and entropy coding. Reading and writing files are not in these
figures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import images, jpeg2000, sample_folder, table, write_report
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.onboard.encoder import Timings

RATES_BPP = (0.25, 0.5, 1.0)
STAGES = ("analysis", "prior", "entropy")


def quality_for(codec: ArrayCodec, pixels: Any, bpp: float) -> float:
    """Quality whose stream comes closest to a rate, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(7):
        middle = (low + high) / 2
        rate = 8 * len(codec.encode(pixels, middle)) / (pixels.shape[0] * pixels.shape[1])
        low, high = (middle, high) if rate < bpp else (low, middle)
    return (low + high) / 2


def once(run: Callable[..., Any], *args: Any) -> float:
    """Time of one call, in ms."""
    start = time.perf_counter()
    run(*args)
    return 1000 * (time.perf_counter() - start)


def stages(codec: ArrayCodec, pixels: Any, quality: float) -> dict[str, float]:
    """Milliseconds by stage of one patch."""
    timings = Timings()
    image = pixels.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255)
    codec.encoder.encode_image(image, round(quality * 2.5), timings=timings)
    return timings.ms


def other_analyses(codec: ArrayCodec) -> dict[str, Any]:
    """The profile's analysis graphs on one thread: name to a callable on an image and Q."""
    from perigee.engines.onnxruntime import OnnxRuntimeGraph

    return {name: OnnxRuntimeGraph(codec.profile.analysis(name)[1], 1) for name in codec.profile.analyses}


def measure(codec: ArrayCodec, tiles: list[Any], repeats: int, presets: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of figures per rate."""
    rows = []
    for bpp in RATES_BPP:
        ours, theirs, ratios = [], [], []
        by_stage: dict[str, list[float]] = {name: [] for name in STAGES}
        other: dict[str, list[float]] = {name: [] for name in presets}
        for pixels in tqdm(tiles, desc=f"{bpp} bpp", unit="tile", disable=None):
            quality = quality_for(codec, pixels, bpp)
            size = len(codec.encode(pixels, quality))
            actual = 8 * size / (pixels.shape[0] * pixels.shape[1])
            mine, j2k = [], []
            parts: dict[str, list[float]] = {name: [] for name in STAGES}
            image = (pixels.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255))[None]
            step = np.full((1, 1), round(quality * 2.5), np.float32)
            analyses: dict[str, list[float]] = {name: [] for name in presets}
            for _ in range(repeats):
                mine.append(once(codec.encode, pixels, quality))
                j2k.append(once(jpeg2000, pixels, actual))
                for name, value in stages(codec, pixels, quality).items():
                    parts[name].append(value)
                for name, graph in presets.items():
                    analyses[name].append(once(graph, {"image": image, "quality_step": step}))
            ours.append(min(mine))
            theirs.append(min(j2k))
            ratios.append(min(mine) / min(j2k))
            for name in STAGES:
                by_stage[name].append(min(parts[name]))
            rest = min(mine) - min(parts["analysis"])
            for name in presets:
                other[name].append((min(analyses[name]) + rest) / min(j2k))
        row: dict[str, Any] = {"bpp": bpp, "tiles": len(tiles), "ratio median": f"{np.median(ratios):.2f}"}
        row["ratio quartiles"] = f"{np.percentile(ratios, 25):.2f} .. {np.percentile(ratios, 75):.2f}"
        for name, values in (("ours", ours), ("OpenJPEG", theirs), *by_stage.items()):
            row[f"{name} ms p50/p95/max"] = "/".join(f"{np.percentile(values, p):.1f}" for p in (50, 95, 100))
        for name, values in other.items():
            row[f"{name} ratio"] = f"{np.median(values):.2f}"
        rows.append(row)
    return rows


def ground_speed(codec: ArrayCodec, scenes: list[tuple[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """Decoding of whole streams in memory, Mpx/s, on all cores."""
    rows = []
    for name, pixels in scenes:
        data = codec.encode(pixels, 50)
        ms = [once(codec.decode, data) for _ in range(repeats)]
        area = pixels.shape[0] * pixels.shape[1]
        rows.append(
            {
                "scene": name,
                "pixels": f"{pixels.shape[1]}x{pixels.shape[0]}",
                "Mpx/s median": f"{area / np.median(ms) / 1000:.2f}",
            }
        )
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", help="folder of 256x256 tiles (repeatable; default: the bundled sample)"
    )
    parser.add_argument("--scenes", type=Path, help="folder of larger images for ground decoding (default: the tiles)")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N tiles of a folder")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each measurement (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/latency.json"), help="JSON report")
    args = parser.parse_args()
    tiles = [
        p
        for folder in args.data or [sample_folder()]
        for _, p in list(images(folder))[: args.limit]
        if p.shape[:2] == (256, 256)
    ]
    codec = ArrayCodec(args.profile, threads=1)
    for pixels in tiles[:5]:  # warm-up
        codec.encode(pixels, 50)
        jpeg2000(pixels, 0.5)
    rows = measure(codec, tiles, args.repeats, other_analyses(codec))
    for row in rows:
        print("\n" + "\n".join(f"{key:28} {value}" for key, value in row.items()))
    scenes = list(images(args.scenes)) if args.scenes else [("tile", p) for p in tiles[:3]]
    ground = ground_speed(ArrayCodec(args.profile), scenes, args.repeats)
    print("\nground decoding, all cores\n" + table(ground, ["scene", "pixels", "Mpx/s median"]))
    write_report(args.out, [{"on board": rows, "ground": ground}])


if __name__ == "__main__":
    main()
