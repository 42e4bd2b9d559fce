"""Work on an archive against plain processes: ``python -m perigee.benchmarks.archive --data FOLDER``.

Small streams of the images, at several qualities, lie in a bucket of an S3 server on loopback (moto). Two plain processes and two workers of
Ray decode the same streams in turn, halves of the set changing places, into the same bucket. Told are objects and megapixels a second, what Ray
has spilled to disk, the memory of its processes at the beginning and at the end, and how long a run takes that finds everything made.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import perigee
from perigee.archive.records import KEPT, MADE, Record
from perigee.archive.sources import keys_of
from perigee.archive.stores import Key, store_of, write
from perigee.archive.work import DECODE, Work, Worker
from perigee.benchmarks.common import image_paths, read_rgb, table, write_report

BUCKET = "archive"
WORKERS = 2


def start_s3(python: Path) -> subprocess.Popen[bytes]:
    """An S3 server on loopback with an empty bucket, to which the environment then points; ``python`` has moto."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(python), "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip
    for _ in range(300):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"))
            return server
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("the S3 server does not answer")


def fill(folder: Path, qualities: Sequence[float], limit: int) -> None:
    """Put so many streams into the bucket."""
    store = store_of(f"s3://{BUCKET}")
    paths = list(image_paths(folder))
    for number in tqdm(range(limit), desc="encode", disable=None):
        pixels = read_rgb(paths[number % len(paths)])[:256, :256].transpose(2, 0, 1)
        quality = qualities[number // len(paths) % len(qualities)] + number // (len(paths) * len(qualities)) * 0.4
        write(store, f"raw/{number:06d}.peri", perigee.encode(np.ascontiguousarray(pixels), quality))


def _plain(work: Work, keys: list[Key], ready: Any, go: Any, out: Any) -> None:
    worker = Worker(work, 1)
    ready.release()
    go.wait()
    out.put([worker.do(key) for key in keys])


def by_processes(work: Work, keys: list[Key]) -> tuple[list[Record], float]:
    """Records of plain processes, and the seconds from when all are ready."""
    context = multiprocessing.get_context("spawn")
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    own = [context.Process(target=_plain, args=(work, keys[n::WORKERS], ready, go, out)) for n in range(WORKERS)]
    for process in own:
        process.start()
    for _ in own:
        ready.acquire()
    start = time.perf_counter()
    go.set()
    records = [record for _ in own for record in out.get()]
    seconds = time.perf_counter() - start
    for process in own:
        process.join()
    return records, seconds


def _ray_memory_mib() -> tuple[float, float]:
    """Resident memory of Ray's own processes and of the workers."""
    listed = subprocess.run(["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True).stdout.splitlines()[
        1:
    ]
    sizes = {"engine": 0, "workers": 0}
    for line in listed:
        size, _, command = line.strip().partition(" ")
        if "ray::_Actor" in command:
            sizes["workers"] += int(size)
        elif "/ray/" in command or "raylet" in command:
            sizes["engine"] += int(size)
    return sizes["engine"] / 1024, sizes["workers"] / 1024


def by_ray(work: Work, keys: list[Key]) -> tuple[list[Record], float, dict[str, Any]]:
    """Records of workers on Ray, the seconds from when all are ready, and what Ray took."""
    import ray

    from perigee.archive.pool import Pool

    with Pool(work, WORKERS, device="cpu") as pool:
        start, before = time.perf_counter(), _ray_memory_mib()
        records = list(pool.done(keys))
        seconds, after = time.perf_counter() - start, _ray_memory_mib()
        node: Any = ray._private.worker._global_node
        session = Path(node.get_session_dir_path())
        spilled = [path for path in session.rglob("*") if "spill" in path.parent.name and path.is_file()]
        size = sum(path.stat().st_size for path in spilled)
    return records, seconds, {"spilled bytes": size, "memory before, MiB": before, "memory after, MiB": after}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of RGB images")
    parser.add_argument("--count", type=int, default=10_000, help="streams (default %(default)s)")
    parser.add_argument(
        "--qualities", type=float, nargs="+", default=[20, 40, 60, 80], help="qualities (default %(default)s)"
    )
    parser.add_argument(
        "--moto", type=Path, default=Path("build/moto/bin/python"), help="Python that has moto (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/archive.json"), help="JSON report")
    args = parser.parse_args()
    server = start_s3(args.moto)
    try:
        fill(args.data, args.qualities, args.count)
        keys = keys_of(f"s3://{BUCKET}/raw", (".peri",))
        work = Work(DECODE, f"s3://{BUCKET}", "plain")
        rows: list[dict[str, Any]] = []
        halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
        for turn, half in enumerate(halves):
            for who in ("processes", "ray") if turn == 0 else ("ray", "processes"):
                own = replace(work, prefix=who)
                if who == "ray":
                    records, seconds, taken = by_ray(own, half)
                else:
                    (records, seconds), taken = by_processes(own, half), {}
                assert all(record.status == MADE for record in records), [r for r in records if r.status != MADE][:3]
                pixels = sum(record.pixels for record in records)
                rows.append(
                    {"who": who, "half": turn + 1, "objects": len(records), "seconds": seconds, "objects/s": len(records) / seconds,
                     "Mpx/s": pixels / seconds / 1e6} | taken
                )  # fmt: skip
        records, seconds, taken = by_ray(replace(work, prefix="ray"), keys)
        assert all(record.status == KEPT for record in records)
        rows.append(
            {
                "who": "ray, everything made",
                "half": "both",
                "objects": len(records),
                "seconds": seconds,
                "objects/s": len(records) / seconds,
            }
            | taken
        )
    finally:
        server.kill()
    shown = [{name: f"{row[name]:.2f}" if isinstance(row.get(name), float) else row.get(name, "-") for name in
              ("who", "half", "objects", "seconds", "objects/s", "Mpx/s")} for row in rows]  # fmt: skip
    print(table(shown, list(shown[0])))
    speed = {
        who: sum(r["objects"] for r in rows if r["who"] == who) / sum(r["seconds"] for r in rows if r["who"] == who)
        for who in ("ray", "processes")
    }
    print(f"Ray has {100 * speed['ray'] / speed['processes']:.1f} % of the throughput of plain processes")
    for row in rows:
        if "spilled bytes" in row:
            print(
                row["who"],
                row["half"],
                {name: row[name] for name in ("spilled bytes", "memory before, MiB", "memory after, MiB")},
            )
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
