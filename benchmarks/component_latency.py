"""How long does coding of components take beside OpenJPEG? ``python -m perigee.benchmarks.component_latency``.

From the array in memory to the bytes, on one thread. Every tile is coded at three rates; OpenJPEG codes the components behind the scene's KLT in
one code-stream of as many bytes, and the time of the KLT itself is not counted for it. Both run in turn on the same arrays. The table gives, by
number of bands, the median over the tiles of the ratio of both times with its quartiles, the times of a tile, the slowest tile against the mean,
and the speed of decoding with and without the synthesis.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from tqdm import tqdm

from perigee.benchmarks.common import table, write_report
from perigee.benchmarks.machine import describe
from perigee.benchmarks.multiband import SpectralKlt, components_by_jpeg2000, ranges_of
from perigee.bitstream.arrays import Samples
from perigee.bitstream.compiled import NativePrior, packings
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.source import ArraySource

RATES = (0.25, 1.0, 3.0)  # bits a sample
BISECTIONS = 7
SIDE_PX = 256


def bisected(size_of: Callable[[float], int], low: float, high: float, wanted: float) -> float:
    """The setting of rising size that comes closest to ``wanted`` bytes from below, after some halvings."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if size_of(middle) < wanted else (low, middle)
    return (low + high) / 2


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def measured(
    encoder: ComponentEncoder, grounds: list[GroundComponents], samples: Samples, rate: float, repeats: int
) -> dict[str, float]:
    """Median milliseconds of both codecs at a rate, and of decoding with each ground engine."""
    wanted = rate * samples.size / 8
    source = ArraySource(samples)
    quality = bisected(lambda q: len(encoder.encode_scene(source, q).data), 0, 100, wanted)
    stream = parse_component_stream(data := encoder.encode_scene(source, quality).data)
    klt = SpectralKlt(samples, ranges_of(samples))
    level = bisected(lambda db: len(components_by_jpeg2000(klt.components, db)) + klt.side_bytes, 10, 110, len(data))
    region = Region(0, 0, *samples.shape[1:])
    contenders: dict[str, Callable[[], Any]] = {
        "ours": lambda: encoder.encode_scene(source, quality),
        "theirs": lambda: components_by_jpeg2000(klt.components, level),
    }
    for number, ground in enumerate(grounds):
        contenders[f"decode {number}"] = lambda ground=ground: ComponentDecoder(stream, ground).region(region)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(timed(run))
    return {name: float(np.median(found)) for name, found in times.items()} | {
        "samples": samples.size,
        "bits": 8 * len(data) / samples.size,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of GeoTIFFs (repeatable)")
    parser.add_argument("--bands", type=int, nargs="+", default=[4, 13], help="numbers of bands (default %(default)s)")
    parser.add_argument("--packing", type=int, choices=packings(), help="packing of the prior (default: the fastest)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each codec on a tile (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/component_latency.json"), help="JSON report")
    args = parser.parse_args()
    profile = find_component_profile(DEFAULT_COMPONENTS)
    encoder = ComponentEncoder(profile)
    if args.packing is not None:
        encoder.engine.prior = NativePrior(profile.contract.widths, profile.contract.layers, args.packing)
    grounds = [GroundComponents(profile, 1, synthesis) for synthesis in (False, True)]
    found: dict[tuple[int, float], list[dict[str, float]]] = {}
    files = sorted(path for folder in args.data for path in folder.glob("*.tif"))
    for path in tqdm(files, unit="file", disable=None):
        with rasterio.open(path) as file:
            if file.count not in args.bands:
                continue
            samples = file.read()[:, :SIDE_PX, :SIDE_PX]
        for rate in RATES:
            found.setdefault((len(samples), rate), []).append(measured(encoder, grounds, samples, rate, args.repeats))
    rows = []
    for (bands, _), tiles in sorted(found.items()):
        ratios = np.percentile([t["ours"] / t["theirs"] for t in tiles], (50, 25, 75))
        ours = np.array([t["ours"] for t in tiles])
        speeds = [np.median([t["samples"] / t[f"decode {k}"] / 1000 for t in tiles]) for k in range(2)]
        rows.append(
            {
                "bands": bands,
                "tiles": len(tiles),
                "bits a sample": f"{np.median([t['bits'] for t in tiles]):.2f}",
                "ratio": f"{ratios[0]:.2f} ({ratios[1]:.2f} .. {ratios[2]:.2f})",
                "ours, theirs ms": f"{np.median(ours):.1f}, {np.median([t['theirs'] for t in tiles]):.1f}",
                "slowest / mean": f"{ours.max() / ours.mean():.2f}",
                "decoded Msamples/s": f"{speeds[0]:.1f}, with synthesis {speeds[1]:.1f}",
            }
        )
    print(", ".join(f"{name}: {value}" for name, value in describe().items()))
    print(table(rows, list(rows[0])))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
