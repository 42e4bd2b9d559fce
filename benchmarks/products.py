"""What users compute from bands, after compression: ``python -m perigee.benchmarks.products``.

For each scene and quality: the vegetation index NDVI = (nir - red) / (nir + red), the water index NDWI = (green - nir) / (green + nir) and the
ratio nir / red, each as RMS error and as the share of pixels that change sides of a threshold; and the largest error of the means of lines and
columns in counts, which shows stripes. JPEG 2000 behind the scene's KLT stands beside it at equal bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from tqdm import tqdm

import perigee
from perigee.benchmarks.common import table, write_report
from perigee.benchmarks.false_colour import by_jpeg2000
from perigee.bitstream.arrays import Samples
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS

QUALITIES = (20, 32, 44, 60)
Plane = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bands:
    """Numbers of a file's green, red and near-infrared bands, from 0 on."""

    green: int
    red: int
    nir: int


def parse_scene(text: str) -> tuple[Path, Bands]:
    """A scene of ``PATH@GREEN,RED,NIR``, the bands counted from 1."""
    path, _, numbers = text.rpartition("@")
    try:
        green, red, nir = (int(n) - 1 for n in numbers.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH@GREEN,RED,NIR") from error
    return Path(path), Bands(green, red, nir)


def _normalised(a: Plane, b: Plane) -> Plane:
    return (a - b) / np.maximum(a + b, 1)


# name: how it is computed from green, red and near infrared, and the threshold between two kinds of land
INDICES: dict[str, tuple[Callable[[Plane, Plane, Plane], Plane], float]] = {
    "NDVI": (lambda green, red, nir: _normalised(nir, red), 0.4),
    "NDWI": (lambda green, red, nir: _normalised(green, nir), 0.0),
    "nir / red": (lambda green, red, nir: nir / np.maximum(red, 1), 2.0),
}


def errors_of(original: Samples, decoded: Samples, bands: Bands) -> dict[str, str]:
    """The errors of all products of a decoded scene."""
    out = {}
    planes = [
        [samples[n].astype(np.float64) for n in (bands.green, bands.red, bands.nir)] for samples in (original, decoded)
    ]
    for name, (compute, threshold) in INDICES.items():
        wanted, found = (compute(*three) for three in planes)
        moved = float(((wanted > threshold) != (found > threshold)).mean())
        rms = float(np.sqrt(np.square(wanted - found).mean()))
        out[name] = f"{rms:.4f}, {100 * moved:.2f} %"
    difference = decoded.astype(np.float64) - original
    for name, axis in (("lines", 2), ("columns", 1)):
        out[name] = f"{np.abs(difference.mean(axis)).max():.2f}"
    return out


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scene", type=parse_scene, action="append", required=True, metavar="PATH@GREEN,RED,NIR", help="repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("build/products"), help="folder for the JSON")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path, bands in tqdm(args.scene, unit="scene", disable=None):
        with rasterio.open(path) as source:
            samples = source.read()
        for quality in QUALITIES:
            data = perigee.encode(samples, quality, DEFAULT_COMPONENTS)
            size, theirs = by_jpeg2000(samples, len(data))
            for codec, found, decoded in (
                ("Perigee", len(data), perigee.decode(data).samples),
                ("JPEG 2000", size, theirs),
            ):
                rate = f"{8 * found / samples.size:.3f}"
                rows.append(
                    {"scene": path.stem, "quality": quality, "codec": codec, "bits": rate}
                    | errors_of(samples, decoded, bands)
                )
    args.out.mkdir(parents=True, exist_ok=True)
    print(table(rows, ["scene", "quality", "codec", "bits", *INDICES, "lines", "columns"]))
    write_report(args.out / "products.json", rows)


if __name__ == "__main__":
    main()
