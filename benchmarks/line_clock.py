"""Lines that cannot wait, at more than the machine can sustain: ``python -m perigee.benchmarks.line_clock``.

A simulated detector of 4,096 columns and four bands of 12 bits sends real pictures, line by line, to ``onboard-encode -`` through a pipe. First
as fast as they are taken, which gives the rate that can be sustained at the quality; then by a clock that is faster, for some minutes, with
``--lowest-quality``. The detector has room for 64 lines; a line that comes when it is full is lost. The clock starts once the encoder reads. Each
line carries its number as its record. At the end every stream is read: all numbers must be there once, and each change of quality must stand
in the reports. The table gives rates, lines lost, the most memory of the encoder, and the qualities.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

import numpy as np
import rasterio

from perigee.benchmarks.common import table, write_report
from perigee.benchmarks.machine import describe
from perigee.bitstream.arrays import Samples
from perigee.bitstream.format import NETWORK
from perigee.bitstream.samples import quality_of, quality_step_of
from perigee.bitstream.version2_parsing import parse_component_stream

COLUMNS, BANDS, BITS = 4096, 4, 12
SCENE_LINES, ROOM_LINES = 16384, 64
FIRST_LINES = 9  # more than a pipe holds
COMMAND = [sys.executable, "-m", "perigee.onboard"]


def picture(folder: Path) -> Samples:
    """Tiles of four bands side by side, uint16 [line, band, column] of 12 bits."""
    tiles = []
    for path in sorted(folder.rglob("*.tif")):
        with rasterio.open(path) as file:
            if file.count == BANDS:
                tiles.append(file.read()[:, :256, :256])
    across = COLUMNS // 256
    if not tiles:
        raise SystemExit(f"{folder} has no image of {BANDS} bands")
    order = [np.concatenate([tiles[(row + i) % len(tiles)] for i in range(across)], 2) for row in range(len(tiles))]
    whole = np.concatenate(order, 1)
    return np.ascontiguousarray(np.minimum(whole, (1 << BITS) - 1).transpose(1, 0, 2).astype("<u2"))


class Detector:
    """Sends lines into a pipe, each with its number, and counts those that found no room."""

    def __init__(self, lines: Samples, pipe: IO[bytes]) -> None:
        self._lines: list[bytes] = [line.tobytes() for line in lines]
        self._pipe, self._room = pipe, deque[int]()
        self._changed, self._done = threading.Condition(), False
        self.lost: list[int] = []

    def line(self, number: int) -> bytes:
        """A line as it is sent."""
        counter: bytes = number.to_bytes(8, "little")
        return counter + self._lines[number % len(self._lines)]

    def send_freely(self, seconds: float) -> int:
        """Send lines as fast as they are taken; how many."""
        number, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            self._pipe.write(self.line(number))
            number += 1
        self._pipe.close()
        return number

    def send_by_clock(self, rate: float, seconds: float) -> int:
        """Send lines at so many a second, once the first are taken; how many came due."""
        for number in range(FIRST_LINES):
            self._pipe.write(self.line(number))
        self._pipe.flush()
        sender = threading.Thread(target=self._send)
        sender.start()
        start, number = time.monotonic() - FIRST_LINES / rate, FIRST_LINES
        while (now := time.monotonic() - start) < seconds:
            due = int(now * rate)
            with self._changed:
                for n in range(number, due):
                    (self._room if len(self._room) < ROOM_LINES else self.lost).append(n)
                self._changed.notify()
            number = due
            time.sleep(0.002)
        with self._changed:
            self._done = True
            self._changed.notify()
        sender.join()
        self._pipe.close()
        return number

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._room or self._done)
                if not self._room:
                    return
                number = self._room.popleft()
            self._pipe.write(self.line(number))


def encoder(folder: Path, quality: float, more: list[str]) -> subprocess.Popen[bytes]:
    """``onboard-encode`` on standard input, one thread."""
    description = folder / "lines.json"
    members = {
        "width": COLUMNS,
        "bands": BANDS,
        "dtype": "uint16",
        "interleave": "bil",
        "bits": BITS,
        "prefix_bytes": 8,
    }
    description.write_text(json.dumps(members))
    command = [*COMMAND, "-", "--lines", str(description), "-o", str(folder / "scene.peri"), "-q", str(quality)]
    command += ["--scene-lines", str(SCENE_LINES), "--overwrite", "--json", *more]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def most_memory(process: subprocess.Popen[bytes]) -> float:
    """The most memory of a running process up to now, MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def checked(folder: Path, reports: list[dict[str, Any]], lost: list[int]) -> tuple[int, list[float]]:
    """How many lines all streams hold, and the quality of each strip. Raises SystemExit where a line or a change of quality is missing."""
    numbers, qualities = [], []
    for report in reports:
        stream = parse_component_stream(Path(report["output"]).read_bytes())
        assert stream.records is not None
        numbers.append(stream.records.data.copy().view("<u8")[:, 0])
        changes = {change["line"]: change["quality"] for change in report["quality_changes"]}
        quality, side = report["asked"], stream.header.patch_side
        for row in range(stream.header.grid[0]):
            quality = changes.get(row * side, quality)
            qualities.append(quality)
            first = row * stream.header.grid[1]
            for patch in range(first, first + stream.header.grid[1]):
                segment = stream.segments[patch]
                if segment.mode == NETWORK and abs(quality_of(segment.quality_step) - quality) > 0.01:
                    raise SystemExit(f"{report['output']}: patch {patch} has a quality that no report tells")
    found = np.concatenate(numbers)
    wanted = np.setdiff1d(np.arange(len(found) + len(lost)), lost)
    if not np.array_equal(found, wanted):
        raise SystemExit("lines are missing, double or out of order")
    return len(found), qualities


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of GeoTIFFs; those of four bands are used")
    parser.add_argument("--quality", type=float, default=40, help="that is asked for (default %(default)g)")
    parser.add_argument("--lowest", type=float, default=15, help="that is accepted (default %(default)g)")
    parser.add_argument("--share", type=float, default=1.2, help="of the sustained rate (default %(default)g)")
    parser.add_argument("--seconds", type=float, default=600, help="by the clock (default %(default)g)")
    parser.add_argument("--buffer-mib", type=int, default=256, help="of the encoder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/line_clock.json"), help="JSON report")
    args = parser.parse_args()
    lines = picture(args.data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = encoder(folder, args.quality, [])
        assert process.stdin and process.stdout
        start = time.monotonic()
        sent = Detector(lines, process.stdin).send_freely(min(60, args.seconds))
        process.stdout.read()
        if process.wait():
            raise SystemExit("onboard-encode failed")
        sustained = sent / (time.monotonic() - start)
        more = ["--lowest-quality", str(args.lowest), "--buffer-mib", str(args.buffer_mib)]
        process = encoder(folder, args.quality, more)
        assert process.stdin and process.stdout
        reports: list[dict[str, Any]] = []
        stdout = process.stdout
        reader = threading.Thread(target=lambda: reports.extend(json.loads(line) for line in stdout))
        reader.start()
        detector = Detector(lines, process.stdin)
        memory = 0.0
        clock = threading.Thread(target=detector.send_by_clock, args=(args.share * sustained, args.seconds))
        clock.start()
        while clock.is_alive():
            clock.join(1)
            memory = max(memory, most_memory(process)) if process.poll() is None else memory
        reader.join()
        if process.wait():
            raise SystemExit("onboard-encode failed")
        for report in reports:
            report["asked"] = quality_of(quality_step_of(args.quality))
        received, qualities = checked(folder, reports, detector.lost)
    rows = [
        {
            "asked": args.quality,
            "sustained lines/s": f"{sustained:.0f}",
            "Msamples/s": f"{sustained * COLUMNS * BANDS / 1e6:.1f}",
            "clock lines/s": f"{args.share * sustained:.0f}",
            "seconds": f"{args.seconds:.0f}",
            "lines": received,
            "lost": len(detector.lost),
            "memory MiB": f"{memory:.0f}",
            "changes": sum(len(report["quality_changes"]) for report in reports),
            "quality of strips": f"{min(qualities):.1f} .. {max(qualities):.1f}, median {np.median(qualities):.1f}",
        }
    ]
    print(", ".join(f"{key}: {value}" for key, value in describe().items()))
    print(table(rows, list(rows[0])))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
