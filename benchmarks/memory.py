"""Peak memory and speed of the two commands on growing scenes: ``python -m perigee.benchmarks.memory``.

The images are laid side by side, again and again, to square scenes. Each command runs as a process of its own, as an operator starts
it, and the system says how much memory it had at most: it has to be flat, since scenes may be as large as they like. Speed is in
millions of samples of all bands in a second, of the whole command.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from perigee.benchmarks.common import sample_folder, table, write_report
from perigee.bitstream.arrays import Samples

SIDES = (1024, 2048, 4096, 8192)
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


def pictures_of(folder: Path, bands: int) -> list[Samples]:
    """Every image of so many bands in a folder, [band, row, col]."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".tif")):
        with rasterio.open(path) as image:
            if image.count == bands:
                found.append(image.read())
    if not found:
        raise SystemExit(f"{folder} has no image of {bands} bands")
    return found


def write_scene(path: Path, pictures: list[Samples], side: int) -> None:
    """Write a square of ``side`` pixels, tiled as patches are, that is filled with the pictures in turn, cut to the smallest of them."""
    bands, dtype = len(pictures[0]), pictures[0].dtype
    cell = min(min(p.shape[1:]) for p in pictures)
    count = -(-side // cell)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "bigtiff": "if_safer"}
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=bands, dtype=dtype, **options
    ) as target:
        for row in range(count):
            top = row * cell
            line = np.concatenate(
                [pictures[(row * count + i) % len(pictures)][:, :cell, :cell] for i in range(count)], 2
            )
            line = line[:, : side - top, :side]
            target.write(line, window=Window(0, top, side, line.shape[1]))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=sample_folder(), help="folder of images (default: the sample)")
    parser.add_argument("--bands", type=int, default=3, help="of the images that are taken (default 3)")
    parser.add_argument("--profile", default="auto", help="that encodes (default auto)")
    parser.add_argument("--quality", default="50", help="that is encoded (default 50)")
    parser.add_argument("--side", type=int, action="append", help="of a scene, in pixels (repeatable)")
    parser.add_argument("--out", type=Path, default=Path("build/memory.json"), help="JSON report")
    args = parser.parse_args()
    pictures = pictures_of(args.data, args.bands)
    rows = []
    for side in args.side or SIDES:
        with tempfile.TemporaryDirectory() as folder:
            source, stream, product = (str(Path(folder) / name) for name in ("scene.tif", "scene.peri", "product.tif"))
            write_scene(Path(source), pictures, side)
            encode = [str(BIN / "onboard-encode"), source, "-o", stream, "-q", args.quality, "--profile", args.profile]
            row: dict[str, object] = {"side": side, "bands": args.bands}
            row |= _told("onboard-encode", encode, side * side * args.bands)
            for effort in ("fast", "full"):
                decode = [str(BIN / "ground-decode"), stream, "-o", product, "--effort", effort, "--overwrite"]
                row |= _told(f"ground-decode {effort}", decode, side * side * args.bands)
        rows.append(row)
    print(table(rows, list(rows[0])))
    write_report(args.out, rows)


def _told(name: str, command: list[str], samples: int) -> dict[str, object]:
    memory, seconds = peak(command)
    return {f"{name} MiB": f"{memory:.0f}", f"{name} Ms/s": f"{samples / 1e6 / seconds:.2f}"}


if __name__ == "__main__":
    main()
