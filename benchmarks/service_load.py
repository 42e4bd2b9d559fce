"""A ground service under load: ``python -m perigee.benchmarks.service_load``.

``ground-serve`` runs in a process of its own with a few scenes; 1, 10 and 100 clients ask it for previews, windows and whole scenes. Told are the
quantiles of the times, answers by status, the largest memory of the service, and what it leaves in the temporary folder. The first preview of
each of many scenes, which nothing has decoded before, is measured apart.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import perigee
from perigee.benchmarks.common import image_paths, read_rgb, table, write_report

SIDE = 2048  # pixels of a scene
FIRST = 20  # scenes whose first preview is measured
CLIENTS = (1, 10, 100)
SECONDS = 20.0
QUANTILES = (50, 95, 99)


def mosaic(paths: list[Path], side: int, number: int) -> np.ndarray:
    """A scene uint8 [3, side, side] of tiles, each in another place than in the scene before."""
    tiles = [np.asarray(read_rgb(path))[:256, :256] for path in paths]
    tiles = [tile for tile in tiles if tile.shape[:2] == (256, 256)]
    count = -(-side // 256)
    rows = [
        np.concatenate([tiles[(r * count + c + number) % len(tiles)] for c in range(count)], 1) for r in range(count)
    ]
    return np.ascontiguousarray(np.concatenate(rows, 0)[:side, :side].transpose(2, 0, 1))


@contextlib.contextmanager
def served(scenes: Path, temporary: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Address and process number of a service."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "perigee.ground.service", "--port", str(port), "--scenes", str(scenes), *options]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/healthz", timeout=2):
                break
            time.sleep(0.1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(60)


def asked(url: str, post: bool = False) -> tuple[int, float]:
    """Status and seconds of a request."""
    start = time.perf_counter()
    request = urllib.request.Request(
        url, b"" if post else None, {"Content-Type": "application/octet-stream"} if post else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            while answer.read(1 << 20):
                pass
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code if error.headers.get("Retry-After") or error.code != 503 else -503
    except OSError:
        status = 0
    return status, time.perf_counter() - start


def memory_mib(pid: int) -> float:
    """The largest resident memory that a process has had."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def load(urls: list[tuple[str, bool]], clients: int, seconds: float) -> tuple[list[float], Counter[int]]:
    """Times of the answers with a product, and the number of all by status: 0 where there was none, -503 without Retry-After."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        at = number
        while time.monotonic() < end:
            status, taken = asked(*urls[at % len(urls)])
            at += clients
            with lock:
                statuses[status] += 1
                if status == 200:
                    times.append(taken)
            if status == 503:
                time.sleep(0.2)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return times, statuses


def row_of(what: str, clients: int, times: list[float], statuses: Counter[int]) -> dict[str, Any]:
    """A row of the table."""
    quantiles = np.percentile(times, QUANTILES) * 1000 if times else [np.nan] * 3
    others = {status: count for status, count in statuses.items() if status != 200}
    return {
        "request": what, "clients": clients, "answers": statuses[200], **{f"p{q} ms": f"{v:.0f}" for q, v in zip(QUANTILES, quantiles, strict=True)},
        "503 with Retry-After": others.pop(503, 0), "other": str(others) if others else "0",
    }  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of RGB tiles, which the scenes are made of")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each row (default %(default)g)")
    parser.add_argument("--out", type=Path, default=Path("build/service_load.json"), help="JSON report")
    args = parser.parse_args()
    paths = list(image_paths(args.data))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scenes, temporary = Path(folder) / "scenes", Path(folder) / "tmp"
        scenes.mkdir()
        temporary.mkdir()
        for number in range(FIRST):
            (scenes / f"scene{number}.peri").write_bytes(perigee.encode(mosaic(paths, SIDE, number), 50))
        with served(scenes, temporary) as (address, pid):
            asked(f"{address}/scenes/scene0/preview.png")  # loads the networks
            found = [asked(f"{address}/scenes/scene{n}/preview.png?size=512") for n in range(1, FIRST)]
            rows.append(row_of("first preview", 1, [t for _, t in found], Counter(s for s, _ in found)))
            kinds = {
                "preview": [(f"{address}/scenes/scene{n}/preview.png?size=512", False) for n in range(FIRST)],
                "window of 512": [
                    (f"{address}/scenes/scene{n % FIRST}/decode?format=tif&window={n * 37 % 1500},{n * 91 % 1500},512,512", True) for n in range(400)
                ],
                "whole scene, 4.2 Mpx": [(f"{address}/scenes/scene{n}/decode?format=tif", True) for n in range(FIRST)],
            }  # fmt: skip
            for what, urls in kinds.items():
                for clients in CLIENTS:
                    rows.append(row_of(what, clients, *load(urls, clients, args.seconds)))
            memory = memory_mib(pid)
            time.sleep(1)
        left = [path.name for path in temporary.iterdir()]
    print(table(rows, list(rows[0])))
    print(f"largest memory of the service: {memory:.0f} MiB; left in the temporary folder: {left or 'nothing'}")
    write_report(args.out, [*rows, {"memory_mib": memory, "left": left}])


if __name__ == "__main__":
    main()
