"""Lossless and bounded coding against other codecs: ``python -m perigee.benchmarks.bounded``.

Whole streams of Perigee, headers included, against JPEG-LS (CharLS) with the same largest error, JPEG XL (effort 7) and reversible JPEG 2000
(OpenJPEG, 5/3; three bands with its reversible colour transform), both lossless. These code band by band, without any container. Beside them
stand the bits of a coder like that of CCSDS 123.0-B-2 (``ccsds123.py``), on tiles. Bits a sample, by number of bands and sensor, and Msamples
a second of Perigee on one thread, from the array to the stream and back.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import rasterio
from tqdm import tqdm

from perigee.benchmarks.ccsds123 import bits_of
from perigee.benchmarks.common import table, write_report
from perigee.benchmarks.machine import describe
from perigee.benchmarks.multiband import rows_of
from perigee.bitstream.arrays import Samples
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.onboard.bounded_encoder import BoundedEncoder, ErrorBounds
from perigee.onboard.source import ArraySource

COUNTS = (0, 1, 2, 4, 16)
REFERENCE_SIDE = 256  # pixels of the largest image that the slow reference codes


@dataclass(frozen=True)
class Size:
    """Bits a sample of one file at one largest error, and the speed of Perigee in Msamples a second. NaN where a codec has no such mode."""

    file: str
    sensor: str
    bands: int
    counts: int
    perigee: float
    jpegls: float
    jpegxl: float
    jpeg2000: float
    ccsds123: float
    encoding: float
    decoding: float


def others(samples: Samples, counts: int) -> tuple[float, float, float]:
    """Bits a sample of JPEG-LS, JPEG XL and JPEG 2000."""
    unsigned = samples if samples.dtype != np.int16 else (samples.astype(np.int32) + 32768).astype(np.uint16)
    bits = 8 / samples.size
    jpegls = bits * sum(len(imagecodecs.jpegls_encode(band, level=counts)) for band in unsigned)
    if counts:
        return jpegls, np.nan, np.nan
    jpegxl = bits * sum(len(imagecodecs.jpegxl_encode(band, lossless=True, effort=7)) for band in unsigned)
    if len(unsigned) == 3:
        image = np.ascontiguousarray(unsigned.transpose(1, 2, 0))
        jpeg2000 = bits * len(imagecodecs.jpeg2k_encode(image, level=0, reversible=True, mct=True, codecformat="J2K"))
    else:
        jpeg2000 = bits * sum(
            len(imagecodecs.jpeg2k_encode(band, level=0, reversible=True, codecformat="J2K")) for band in unsigned
        )
    return jpegls, jpegxl, jpeg2000


def references(paths: list[Path]) -> dict[tuple[Path, int], float]:
    """Bits a sample of a coder like CCSDS 123.0-B-2's, by file and largest error; of tiles alone, since it is slow."""
    shapes: dict[tuple[int, ...], dict[Path, Samples]] = {}
    for path in paths:
        with rasterio.open(path) as image:
            if max(image.shape) <= REFERENCE_SIDE and image.dtypes[0] != "int16":
                shapes.setdefault((image.count, *image.shape), {})[path] = image.read()
    found = {}
    for images in tqdm(shapes.values(), desc="reference", unit="shape", disable=None):
        for counts in COUNTS:
            for (path, samples), bits in zip(images.items(), bits_of(list(images.values()), counts), strict=True):
                found[path, counts] = bits / samples.size
    return found


def sizes_of(path: Path, sensor: str, engine: GroundComponents, known: dict[tuple[Path, int], float]) -> list[Size]:
    """Every bound of one file. Raises SystemExit where a bound is not kept."""
    with rasterio.open(path) as image:
        samples = image.read()
    out = []
    for counts in COUNTS:
        start = time.perf_counter()
        data = BoundedEncoder(engine.profile, ErrorBounds((counts,))).encode_scene(ArraySource(samples)).data
        middle = time.perf_counter()
        decoder = ComponentDecoder(parse_component_stream(data), engine)
        found = decoder.region(Region(0, 0, *samples.shape[1:])).samples
        end = time.perf_counter()
        if np.abs(found.astype(np.int64) - samples).max() > counts:
            raise SystemExit(f"{path}: an error exceeds {counts}")
        speeds = (samples.size / 1e6 / seconds for seconds in (middle - start, end - middle))
        out.append(
            Size(
                path.stem, sensor, len(samples), counts, 8 * len(data) / samples.size,
                *others(samples, counts), known.get((path, counts), np.nan), *speeds,
            )
        )  # fmt: skip
    return out


def summary(sizes: list[Size]) -> list[dict[str, Any]]:
    """A row for each group of files and bound."""
    groups = {
        "1 band": lambda s: s.bands == 1,
        "3 to 10 bands": lambda s: 3 <= s.bands <= 10,
        "13 bands": lambda s: s.bands == 13,
    } | {name: (lambda s, n=name: s.sensor == n) for name in dict.fromkeys(s.sensor for s in sizes)}
    rows = []
    for name, within in groups.items():
        for counts in COUNTS:
            own = [s for s in sizes if within(s) and s.counts == counts]
            if not own:
                continue
            change = {
                other: np.array([100 * (s.perigee / getattr(s, other) - 1) for s in own])
                for other in ("jpegls", "jpegxl", "jpeg2000", "ccsds123")
            }
            rows.append(
                {
                    "files": f"{name} ({len(own)})", "largest error": counts,
                    "bits a sample": f"{np.median([s.perigee for s in own]):.2f}",
                    **{f"against {other} %": _spread(values) for other, values in change.items()},
                    "encoding Ms/s": f"{np.median([s.encoding for s in own]):.1f}",
                    "decoding Ms/s": f"{np.median([s.decoding for s in own]):.1f}",
                }
            )  # fmt: skip
    return rows


def _spread(values: Any) -> str:
    """Median and quartiles."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:+.1f} ({low:+.1f} .. {high:+.1f})"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of GeoTIFFs (repeatable)")
    parser.add_argument(
        "--reference", action="store_true", help="count the bits of the reference coder too, which takes ten minutes"
    )
    parser.add_argument("--limit", type=int, help="only the first N files of each folder")
    parser.add_argument("--out", type=Path, default=Path("build/bounded.json"), help="JSON report")
    args = parser.parse_args()
    engine = GroundComponents(find_component_profile(DEFAULT_COMPONENTS), 1, synthesis=False)
    sizes: list[Size] = []
    for folder in args.data:
        rows, paths = rows_of(folder), sorted(folder.glob("*.tif"))[: args.limit]
        known = references(paths) if args.reference else {}
        for path in tqdm(paths, desc=folder.name, unit="file", disable=None):
            sizes += sizes_of(path, rows.get(path.name, {"sensor": "unknown"})["sensor"], engine, known)
    found = summary(sizes)
    print(table(found, list(found[0])))
    write_report(args.out, [describe(), *map(asdict, sizes)])


if __name__ == "__main__":
    main()
