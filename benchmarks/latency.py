"""On-board time on one thread against OpenJPEG and HTJ2K, and ground decoding speed: ``python -m perigee.benchmarks.latency``.

From the array in memory to the bytes of a complete stream. For every tile and rate all codecs run in turn on the same
array in the same process, so that the machine's drift cancels; each takes the best of some repeats, and ratios are taken
tile by tile. Every analysis of the profile is a codec of its own. Reading and writing files are not in these figures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import Pixels, images, jpeg2000, sample_folder, table, write_report
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.onboard.encoder import Timings, quality_step_of

RATES_BPP = (0.25, 0.5, 1.0)
STAGES = ("analysis", "prior", "entropy")


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


def _size(codec: ArrayCodec, pixels: Pixels, quality: float) -> int:
    return len(codec.encode(pixels, quality))


def once(run: Callable[[], Any]) -> float:
    """Time of one call, in ms."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def stages(codec: ArrayCodec, pixels: Pixels, quality: float) -> dict[str, float]:
    """Milliseconds by stage of one patch."""
    timings = Timings()
    image = pixels.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255)
    codec.encoder.encode_image(image, quality_step_of(quality), timings=timings)
    return timings.ms


def runs_at(bpp: float, pixels: Pixels, codecs: dict[str, ArrayCodec]) -> dict[str, Callable[[], Any]]:
    """What encodes an image at a rate, by name: our analyses, and the standards at the bytes of the first of them."""
    wanted = bpp * pixels.shape[0] * pixels.shape[1] / 8
    runs: dict[str, Callable[[], Any]] = {}
    for name, codec in codecs.items():
        quality = bisected(partial(_size, codec, pixels), 0, 100, wanted)
        runs[name] = partial(codec.encode, pixels, quality)
        if len(runs) == 1:
            runs |= {f"{name}: {stage}": partial(stages, codec, pixels, quality) for stage in STAGES}
    actual = 8 * len(runs[next(iter(codecs))]()) / (pixels.shape[0] * pixels.shape[1])
    runs["OpenJPEG"] = lambda: jpeg2000(pixels, actual)
    exponent = bisected(lambda e: len(htj2k(pixels, e)), 0, 12, wanted)
    runs["HTJ2K"] = lambda: htj2k(pixels, exponent)
    return runs


def measure(codecs: dict[str, ArrayCodec], tiles: list[Pixels], repeats: int) -> list[dict[str, Any]]:
    """A row per rate and codec (or stage of the first codec): milliseconds, and the ratio to OpenJPEG tile by tile."""
    rows = []
    for bpp in RATES_BPP:
        best: dict[str, list[float]] = {}
        for pixels in tqdm(tiles, desc=f"{bpp} bpp", unit="tile", disable=None):
            runs = runs_at(bpp, pixels, codecs)
            found: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(repeats):
                for name, run in runs.items():
                    if ": " not in name:
                        found[name].append(once(run))
                    elif name.endswith(STAGES[0]):  # one run gives all stages
                        for stage, ms in run().items():
                            found[f"{name.split(': ')[0]}: {stage}"].append(ms)
            for name, values in found.items():
                best.setdefault(name, []).append(min(values))
        for name, values in best.items():
            ratios = np.array(values) / np.array(best["OpenJPEG"])
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            row = {"bpp": bpp, "what": name, "tiles": len(values)}
            row |= {f"p{p}": f"{np.percentile(values, p):.2f}" for p in (50, 95, 99)}
            row |= {"max": f"{max(values):.2f}", "ratio": f"{middle:.2f}", "quartiles": f"{low:.2f} .. {high:.2f}"}
            area = tiles[0].shape[0] * tiles[0].shape[1]
            rows.append(row | {"Mpx/s": f"{area / np.mean(values) / 1000:.1f}"})
    return rows


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
    profile = find_profile(args.profile)
    codecs = {name: ArrayCodec(profile, threads=1, analysis=name) for name in profile.analyses}
    for pixels in tiles[:5]:  # warm-up
        for codec in codecs.values():
            codec.encode(pixels, 50)
        jpeg2000(pixels, 0.5)
    rows = measure(codecs, tiles, args.repeats)
    print("on board, one thread, ms, ratio to OpenJPEG\n" + table(rows, list(rows[0])))
    scenes = list(images(args.scenes)) if args.scenes else [("tile", p) for p in tiles[:3]]
    ground = ground_speed(ArrayCodec(args.profile), scenes, args.repeats)
    print("\nground decoding, all cores\n" + table(ground, ["scene", "pixels", "Mpx/s median"]))
    write_report(args.out, [{"on board": rows, "ground": ground}])


if __name__ == "__main__":
    main()
