"""How long the ground takes for a window, a tile and a scene, and how many megapixels a second it sustains:
``python -m perigee.benchmarks.ground_latency``.

From the bytes of a stream in a file to the finished GeoTIFF. One after the other for the percentiles; then several scenes in flight, from as many
threads, for the megapixels a second: as in the service, workers do one scene at a time and the others wait. ``--devices`` measures worker
processes instead of this one.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import perigee
from perigee.benchmarks.common import image_paths, table, write_report
from perigee.benchmarks.machine import describe
from perigee.engines.ground_choice import ENGINES, choose
from perigee.ground.arguments import device, devices
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, Order, OrderLimits
from perigee.ground.service.workers import Workers, workers_of
from perigee.ground.work import Task
from perigee.support.command import positive

PERCENTILES = (50, 95, 99)
IN_FLIGHT = (1, 4, 16)
WINDOW = 256  # pixels on the side, from the middle of a scene
QUALITY = 40


class Scenes:
    """Streams in files, and the tasks that decode them."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._folder, self._workers, self._free = folder, workers, threading.Semaphore(workers.count)
        folder.mkdir()
        self._numbers = itertools.count()
        self.names: list[Path] = []
        self.pixels: dict[Path, int] = {}

    def add(self, image: Path) -> Path:
        """Encode an image and keep its stream."""
        stream = self._folder / f"{len(self.names)}.peri"
        stream.write_bytes(perigee.encode(image, QUALITY))
        self.names.append(stream)
        self.pixels[stream] = int(np.prod(self.size(stream)))
        return stream

    def size(self, stream: Path) -> tuple[int, int]:
        """Rows and columns of a stream."""
        found = perigee.inspect(stream)
        return found["height"], found["width"]

    def decode(self, stream: Path, window: tuple[int, ...] | None = None) -> int:
        """Write the product of a stream, or of a window of it; how many pixels it has."""
        out = self._folder / f"{next(self._numbers)}.tif"
        with self._free:
            made = self._workers.perform(Task(Order(window=window), stream, {IMAGE: out}, OrderLimits()))
        out.unlink()
        return made.pixels


def percentiles(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of a call, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return {f"p{n} ms": round(float(np.percentile(times, n)), 1) for n in PERCENTILES}


def sustained(scenes: Scenes, in_flight: int, rounds: int) -> float:
    """Mpx/s with so many scenes in flight, each scene ``rounds`` times."""
    queue = [stream for _ in range(rounds) for stream in scenes.names]
    start = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as threads:
        pixels = sum(threads.map(scenes.decode, queue))
    return pixels / (time.perf_counter() - start) / 1e6


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, help="folder of tiles")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of scenes")
    parser.add_argument("--limit", type=positive, default=6, help="the first N of each (default %(default)s)")
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto")
    parser.add_argument("--device", type=device, help="number of the GPU, or cpu")
    parser.add_argument("--devices", type=devices, default=(), help="a worker process for each of these")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: all cores)")
    parser.add_argument(
        "--repeats", type=positive, default=20, help="runs of each tile and window (default %(default)s)"
    )
    parser.add_argument("--rounds", type=positive, default=2, help="runs of each scene (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/ground_latency.json"))
    args = parser.parse_args()
    backend = choose("onnxruntime" if args.devices else args.engine, args.device, args.threads).backend
    workers = workers_of(args.devices, args.engine, Library((), args.threads, backend))
    workers.start()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tiles, scenes = (Scenes(Path(folder) / name, workers) for name in ("tiles", "scenes"))
        for images, chosen in ((args.tiles, tiles), (args.scenes, scenes)):
            for image in image_paths(images)[: args.limit]:
                chosen.add(image)
        for stream in tqdm(tiles.names, unit="tile", disable=None):
            rows.append({"what": "tile", **percentiles(lambda s=stream: tiles.decode(s), args.repeats)})  # type: ignore[misc]
        for stream in tqdm(scenes.names, unit="scene", disable=None):
            top, left = (n // 2 // WINDOW * WINDOW for n in scenes.size(stream))
            window = (top, left, WINDOW, WINDOW)
            rows.append(
                {"what": "window", **percentiles(lambda s=stream, w=window: scenes.decode(s, w), args.repeats)}  # type: ignore[misc]
            )
            found = percentiles(lambda s=stream: scenes.decode(s), args.rounds)  # type: ignore[misc]
            rows.append({"what": "scene", **found, "Mpx/s": round(scenes.pixels[stream] / found["p50 ms"] / 1000, 3)})
        for in_flight in IN_FLIGHT:
            rows.append(
                {"what": f"{in_flight} in flight", "Mpx/s": round(sustained(scenes, in_flight, args.rounds), 3)}
            )
    workers.stop()
    columns = ["what", *(f"p{n} ms" for n in PERCENTILES), "Mpx/s"]
    print(table([{column: row.get(column, "") for column in columns} for row in rows], columns))
    write_report(args.out, [describe(), *rows])


if __name__ == "__main__":
    main()
