"""How fast quick looks are, and what they lose: ``python -m perigee.benchmarks.quicklook --data FOLDER``.

Every image is coded at some qualities and decoded on one thread, in full and as a quick look, at full size and reduced. Told are megapixels of
the scene a second, how many times as fast as the full decoding at full size that is, and the PSNR against the original, reduced likewise. Images of
other bands or types than 8-bit colour are coded as components.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from tqdm import tqdm

import perigee
from perigee.benchmarks.common import table, write_report
from perigee.bitstream.arrays import Samples
from perigee.ground.library import Library
from perigee.ground.orders import FAST, FULL, Order, open_source
from perigee.ground.views import SCALES, blocks_of, view_of

QUALITIES = (20.0, 50.0, 80.0)


def decoded(data: bytes, library: Library, effort: str, reduction: int) -> tuple[Samples, float]:
    """Samples of a stream [band, row, col], and the seconds that they took."""
    start = time.perf_counter()
    source = open_source(Order(effort=effort), data, library)
    view = view_of(source, reduction=reduction)
    out = np.empty((source.bands, *view.size), source.dtype)
    for place, block in blocks_of(source, view):
        out[:, place.top : place.bottom, place.left : place.right] = block.samples
    return out, time.perf_counter() - start


def reduced(samples: Samples, factor: int) -> Samples:
    """Means over ``factor`` x ``factor`` samples, as float64, without an incomplete last row or column."""
    bands, rows, cols = samples.shape
    whole = samples[:, : rows // factor * factor, : cols // factor * factor].astype(np.float64)
    return np.asarray(whole.reshape(bands, rows // factor, factor, cols // factor, factor).mean((2, 4)))


def psnr(found: Samples, wanted: Samples, width: float) -> float:
    """PSNR in dB over a range, of the rows and columns that both have."""
    rows, cols = wanted.shape[1:]
    error = np.square(found[:, :rows, :cols].astype(np.float64) - wanted).mean()
    return float(10 * np.log10(width**2 / max(float(error), 1e-12)))


def measured(samples: Samples, library: Library, repeats: int) -> list[dict[str, Any]]:
    """A row for each quality, effort and size of one image."""
    width = 255.0 if samples.dtype == np.uint8 else float(np.percentile(samples, 99.9) - np.percentile(samples, 0.1))
    rows = []
    for quality in QUALITIES:
        data = perigee.encode(samples, quality, threads=1)
        for effort in (FULL, FAST):
            for reduction in SCALES:
                found, _ = decoded(data, library, effort, reduction)
                seconds = float(np.median([decoded(data, library, effort, reduction)[1] for _ in range(repeats)]))
                rows.append(
                    {"quality": quality, "effort": effort, "reduction": reduction, "seconds": seconds, "pixels": samples[0].size,
                     "psnr": psnr(found, reduced(samples, reduction), width)}
                )  # fmt: skip
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each effort and size, over all images and qualities."""
    out = []
    full = {(r["image"], r["quality"]): r for r in rows if r["effort"] == FULL and r["reduction"] == 1}
    plain = {(r["image"], r["quality"], r["reduction"]): r["psnr"] for r in rows if r["effort"] == FULL}
    for effort in (FULL, FAST):
        for reduction in SCALES:
            own = [r for r in rows if (r["effort"], r["reduction"]) == (effort, reduction)]
            speeds = [r["pixels"] / r["seconds"] / 1e6 for r in own]
            times = [full[r["image"], r["quality"]]["seconds"] / r["seconds"] for r in own]
            loss = [plain[r["image"], r["quality"], reduction] - r["psnr"] for r in own]
            out.append(
                {"effort": effort, "scale": f"1/{reduction}", "Mpx/s, median": f"{np.median(speeds):.2f}", "least": f"{min(speeds):.2f}",
                 "times full": f"{np.median(times):.1f}", "loss dB, median": f"{np.median(loss):.2f}", "largest": f"{max(loss):.2f}"}
            )  # fmt: skip
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of GeoTIFFs (repeatable)")
    parser.add_argument("--limit", type=int, help="only the first N images of each folder")
    parser.add_argument("--repeats", type=int, default=3, help="times of which the median counts (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/quicklook.json"), help="JSON report")
    args = parser.parse_args()
    library = Library([], 1)
    rows = []
    for folder in args.data:
        for path in tqdm(sorted(folder.glob("*.tif"))[: args.limit], desc=folder.name, disable=None):
            with rasterio.open(path) as image:
                samples = image.read()
            rows += [row | {"image": f"{folder.name}/{path.stem}"} for row in measured(samples, library, args.repeats)]
    found = summary(rows)
    print(table(found, list(found[0])))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
