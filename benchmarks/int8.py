"""What an analysis in int8 costs and gives on the CPU: ``python -m perigee.benchmarks.int8``.

The network's layers in int8 (explicit Q/DQ, calibrated on the bundled sample), all else as it is, against the same analysis in
float32: whole rate-distortion curves of real bytes, BD-rate per image, then median and quartiles; and the time of both analyses
on one thread, in turn on the same image, best of several.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import QUALITIES, ArrayCodec
from perigee.benchmarks.common import images, psnr, sample_folder, table, write_report
from perigee.benchmarks.metrics import bd_rate
from perigee.bitstream.arrays import Pixels
from perigee.bitstream.profile import Profile, find_profile
from perigee.engines import precision
from perigee.engines.build import in_precision
from perigee.engines.flight import FlightEngine
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.onboard.encoder import Encoder

REPEATS = 30


def int8_engine(profile: Profile, analysis: str | None) -> FlightEngine | None:
    """The analysis in int8, calibrated on the bundled sample, or None where it has no network that could be."""
    _, file = profile.analysis(analysis)
    model = precision.folded(file)
    tiles = [pixels.transpose(2, 0, 1)[None] / np.float32(255) for _, pixels in images(sample_folder())]
    coarse = in_precision(model, "int8", tiles)
    if not any(node.op_type == "QuantizeLinear" for node in coarse.graph.node):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        path.write_bytes(coarse.SerializeToString())

        class Int8Graph(OnnxRuntimeGraph):
            """The graphs of the profile, but the analysis in int8."""

            def __init__(self, name: Path, threads: int | None = None) -> None:
                super().__init__(path if name == file else name, threads)

        return FlightEngine(profile, 1, graph=Int8Graph, analysis=analysis)


def curve(codec: ArrayCodec, pixels: Pixels) -> list[tuple[float, float]]:
    """Points (bpp, PSNR in dB) of an image."""
    points = []
    for quality in QUALITIES:
        data = codec.encode(pixels, quality)
        points.append((8 * len(data) / pixels[..., 0].size, psnr(pixels, codec.decode(data))))
    return points


def milliseconds(engines: list[FlightEngine], pixels: Pixels) -> list[float]:
    """Best time of each engine's analysis of an image."""
    image = (pixels.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)
    best = [math.inf] * len(engines)
    for _ in range(REPEATS):
        for i, engine in enumerate(engines):
            start = time.perf_counter()
            engine.analyse(image, 125)
            best[i] = min(best[i], 1000 * (time.perf_counter() - start))
    return best


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", help="folder of tiles (repeatable; default: the sample)")
    parser.add_argument("--profile", default="flight", help="name or folder (default %(default)s)")
    parser.add_argument("--analysis", default="light", help="with a network (default %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="only each Nth image of a folder")
    parser.add_argument("--out", type=Path, default=Path("build/int8.json"), help="JSON report")
    args = parser.parse_args()
    profile = find_profile(args.profile)
    coarse = int8_engine(profile, args.analysis)
    if coarse is None:
        parser.error(f"the analysis {args.analysis} of {profile.name} has no network")
    plain, int8 = (ArrayCodec(profile, 1, args.analysis) for _ in range(2))
    int8.encoder = Encoder(profile, coarse)
    rows: list[dict[str, Any]] = []
    for folder in args.data or [sample_folder()]:
        rates, times = [], []
        for _, pixels in tqdm(list(images(folder))[:: args.every], desc=folder.name, unit="image", disable=None):
            rates.append(bd_rate(curve(plain, pixels), curve(int8, pixels)))
            times.append(milliseconds([plain.encoder.engine, coarse], pixels))
        low, middle, high = np.nanpercentile(rates, [25, 50, 75])
        float32, eight = np.median(times, axis=0)
        rows.append({
            "folder": folder.name, "images": len(rates), "BD-rate %": f"{middle:+.2f}", "quartiles %": f"{low:+.2f} .. {high:+.2f}",
            "float32 ms": round(float(float32), 2), "int8 ms": round(float(eight), 2),
        })  # fmt: skip
    print(f"{profile.name}, {args.analysis}: int8 against float32\n" + table(rows, list(rows[0])))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
