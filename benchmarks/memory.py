"""Peak memory of the two commands on growing scenes: ``python -m perigee.benchmarks.memory``.

The images are laid side by side, again and again, to square scenes; each command runs as a process of its own, as an operator
starts it, and the system says how much memory it had at most. It has to be flat: scenes may be as large as they like.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from perigee.benchmarks.common import images, sample_folder, table, write_report
from perigee.bitstream.arrays import Pixels

SIDES = (1024, 2048, 4096, 8192)
QUALITY = "50"
BIN = Path(sys.executable).parent
# a process is charged with the memory of whoever starts it, so that must be a small one
LAUNCHER = """import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))"""


def peak(command: list[str]) -> tuple[float, float]:
    """Peak resident memory in MiB and seconds of a command that must succeed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-ISc", LAUNCHER, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.returncode}")
    return int(done.stdout.split()[-1]) / 1024, time.perf_counter() - start


def scene(pictures: list[Pixels], side: int) -> Pixels:
    """A square of ``side`` pixels filled with the pictures in turn, cut to the smallest of them."""
    cell = min(min(p.shape[:2]) for p in pictures)
    count = -(-side // cell)
    out = np.empty((count * cell, count * cell, 3), np.uint8)
    for i in range(count * count):
        row, col = i // count * cell, i % count * cell
        out[row : row + cell, col : col + cell] = pictures[i % len(pictures)][:cell, :cell]
    return out[:side, :side]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=sample_folder(), help="folder of images (default: the sample)")
    parser.add_argument("--side", type=int, action="append", help="of a scene, in pixels (repeatable)")
    parser.add_argument("--out", type=Path, default=Path("build/memory.json"), help="JSON report")
    args = parser.parse_args()
    pictures = [pixels for _, pixels in images(args.data)]
    rows = []
    for side in args.side or SIDES:
        with tempfile.TemporaryDirectory() as folder:
            source, stream, product = (str(Path(folder) / name) for name in ("scene.tif", "scene.peri", "product.tif"))
            tifffile.imwrite(source, scene(pictures, side), tile=(256, 256), photometric="rgb", compression="deflate")
            encode, encode_s = peak([str(BIN / "onboard-encode"), source, "-o", stream, "-q", QUALITY])
            decode, decode_s = peak([str(BIN / "ground-decode"), stream, "-o", product])
        rows.append(
            {
                "side": side,
                "megapixels": f"{side * side / 1e6:.1f}",
                "onboard-encode MiB": f"{encode:.0f}",
                "Mpx/s": f"{side * side / 1e6 / encode_s:.2f}",
                "ground-decode MiB": f"{decode:.0f}",
                "Mpx/s ": f"{side * side / 1e6 / decode_s:.2f}",
            }
        )
    print(table(rows, list(rows[0])))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
