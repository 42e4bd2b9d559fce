"""Does more quality always cost more and err less, and where does it end? ``python -m perigee.benchmarks.scale``.

Every file is encoded at 26 qualities. Over them the bytes must never fall and the squared error never rise. For each sensor the table says
how many files break that, the rate at both ends, the quality from which the RMS error of all bands is at most one count, and the errors there.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from tqdm import tqdm

from perigee.benchmarks.common import table, write_report
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.source import ArraySource

QUALITIES = tuple(range(0, 101, 4))
SIDE_PX = 256
COLUMNS = [
    "sensor",
    "files",
    "bytes fall",
    "error rises",
    "bits a sample",
    "RMS <= 1 from",
    "largest there",
    "RMS, largest at 100",
]


def _sensors(folder: Path) -> dict[str, str]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as handle:
        return {
            Path(row["file"]).name: f"{row['sensor']} {row['level']}, {row['bands']} bands"
            for row in csv.DictReader(handle)
        }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of GeoTIFFs with an index.csv")
    parser.add_argument("--profile", default=DEFAULT_COMPONENTS, help="name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/scale"), help="folder for CSV and JSON")
    args = parser.parse_args()
    profile = find_component_profile(args.profile)
    encoder, engine = ComponentEncoder(profile), GroundComponents(profile)
    sensors = _sensors(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[list[tuple[int, float, float, int]]]] = {}
    with (args.out / "points.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["file", "quality", "bytes", "bits a sample", "rms", "largest", "bias"])
        for path in tqdm(sorted(args.data.glob("*.tif")), unit="file", disable=None):
            with rasterio.open(path) as source:
                samples = source.read()[:, :SIDE_PX, :SIDE_PX]
            curve = []
            for quality in QUALITIES:
                data = encoder.encode_scene(ArraySource(samples), quality).data
                decoder = ComponentDecoder(parse_component_stream(data), engine)
                error = decoder.region(Region(0, 0, *samples.shape[1:])).samples.astype(np.int64) - samples
                rms = float(np.sqrt(np.square(error).mean()))
                curve.append((len(data), 8 * len(data) / samples.size, rms, int(np.abs(error).max())))
                writer.writerow([path.name, quality, *curve[-1], float(error.mean())])
            found.setdefault(sensors.get(path.name, "unknown"), []).append(curve)
    rows: list[dict[str, Any]] = []
    for sensor, curves in sorted(found.items()):
        sizes, rates, errors, largest = (np.array([[p[k] for p in curve] for curve in curves]) for k in range(4))
        first = [int(np.argmax(e <= 1)) if (e <= 1).any() else -1 for e in errors]
        at = [int(most[k]) for most, k in zip(largest, first, strict=True)]
        rows.append(
            dict(
                zip(
                    COLUMNS,
                    [
                        sensor,
                        len(curves),
                        int((np.diff(sizes) < 0).any(1).sum()),
                        int((np.diff(errors) > 0).any(1).sum()),
                        f"{np.median(rates[:, 0]):.3f} .. {np.median(rates[:, -1]):.2f}",
                        ", ".join(str(QUALITIES[k]) if k >= 0 else "never" for k in sorted(set(first))),
                        max(at),
                        f"{errors[:, -1].max():.2f}, {largest[:, -1].max()}",
                    ],
                    strict=True,
                )
            )
        )
    print(table(rows, COLUMNS))
    write_report(args.out / "summary.json", rows)


if __name__ == "__main__":
    main()
