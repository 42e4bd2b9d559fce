"""Is a service ended cleanly at any moment? ``python -m perigee.benchmarks.restarts`` starts it, loads it, and sends SIGTERM.

All services share one folder of jobs. Each is started, given decodings, jobs, a slow upload and a reader that stands still, and is
told to end after a random time, also while it is still starting. Counted are services that outlived their limit, folders that were
left in the temporary directory, jobs that were lost, and jobs that were made twice. At the end a last service makes what is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import perigee
from perigee.benchmarks.common import write_report

MOMENTS_S = 0.3, 8.0  # after the start at which a service is told to end
SHUTDOWN_S, MARGIN_S = 3, 8.0  # the limit given to the service; what stopping its jobs and leaving Python may take


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _post(url: str, data: bytes, timeout: float = 20) -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read()


class Load(threading.Thread):
    """What clients do to one service until it goes away; ``submitted`` are the jobs that it accepted."""

    def __init__(self, port: int, stream: bytes, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._url, self._port, self._stream, self._rng = f"http://127.0.0.1:{port}", port, stream, rng
        self.submitted: list[str] = []

    def run(self) -> None:
        for _ in range(200):
            try:
                self._once()
            except (OSError, urllib.error.URLError, ValueError):
                time.sleep(0.05)

    def _once(self) -> None:
        kind = self._rng.randrange(4)
        if kind == 0:
            _post(f"{self._url}/decode?format=json", self._stream)
        elif kind == 1:
            answer = json.loads(_post(f"{self._url}/jobs?format=json", self._stream))
            self.submitted.append(answer["id"])
        else:  # an upload that stops half-way, or a reader that reads nothing
            with socket.create_connection(("127.0.0.1", self._port), 5) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                head = f"POST /decode HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(self._stream)}\r\n\r\n"
                body = self._stream[: len(self._stream) // 2] if kind == 2 else self._stream
                client.sendall(head.encode() + body)
                time.sleep(self._rng.uniform(0, 2))


def _start(port: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "perigee.ground.service",
        "--port",
        str(port),
        "--threads",
        "1",
        "--jobs",
        str(folder / "jobs"),
    ]
    command += ["--shutdown-seconds", str(SHUTDOWN_S)]
    settings = os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=settings, stderr=(folder / "log").open("ab"))


def run(rounds: int, seed: int, folder: Path) -> dict[str, Any]:
    """So many services, one after the other; what went wrong."""
    rng = random.Random(seed)
    (folder / "tmp").mkdir()
    y, x = np.mgrid[0:700, 0:700]
    stream = perigee.encode(np.stack([100 + 50 * np.sin(x / 9), 90 + y % 80, (x + y) % 200]).astype(np.uint8), 50)
    submitted: list[str] = []
    seconds: list[float] = []
    made: dict[str, list[int]] = {}
    late = left = 0
    for _ in tqdm(range(rounds), unit="service", disable=None):
        port = _port()
        process = _start(port, folder)
        load = Load(port, stream, rng)
        load.start()
        time.sleep(rng.uniform(*MOMENTS_S))
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SHUTDOWN_S + MARGIN_S)
        except subprocess.TimeoutExpired:
            late += 1
            process.kill()
            process.wait()
        seconds.append(time.monotonic() - start)
        left += sum(1 for _ in (folder / "tmp").iterdir())
        submitted += load.submitted
        for name in submitted:  # a product that is there must not be made again
            product = folder / "jobs" / name / "scene.json"
            with suppress(OSError):
                stamp = product.stat().st_mtime_ns
                made.setdefault(name, []).append(stamp)
    lost = _finish(folder, submitted)
    twice = sum(len(set(stamps)) > 1 for stamps in made.values())
    trace = (folder / "log").read_text(errors="replace").count("Traceback")
    return {
        "services": rounds, "outlived": late, "folders left": left, "jobs": len(submitted), "jobs lost": lost, "jobs made twice": twice,
        "tracebacks": trace, "median s": round(float(np.median(seconds)), 2), "longest s": round(max(seconds), 2),
    }  # fmt: skip


def _finish(folder: Path, submitted: list[str]) -> int:
    """Let one more service make what is left; how many of the kept jobs did not become done."""
    port = _port()
    process = _start(port, folder)
    kept = [name for name in submitted if (folder / "jobs" / name).is_dir()]
    open_jobs, end = set(kept), time.monotonic() + 600
    while open_jobs and time.monotonic() < end:
        time.sleep(0.5)
        with suppress(OSError, ValueError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/jobs", timeout=10) as answer:
                states = {job["id"]: job["status"] for job in json.loads(answer.read())}
            open_jobs = {name for name in open_jobs if states.get(name) not in ("done", None)}
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    return len(open_jobs)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="services to start (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/restarts.json"), help="JSON report")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(args.rounds, args.seed, Path(folder))
    print(json.dumps(found))
    write_report(args.out, [found])


if __name__ == "__main__":
    main()
