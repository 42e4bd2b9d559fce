"""Do the borders of patches show in components? ``python -m perigee.benchmarks.component_seams``.

Every scene is coded twice: from its corner, and from half a patch below and right of it. The seam ratio is the squared error within 4 pixels of
the borders of patches the first time, over that of the same pixels the second time, when they lie inside patches; 1 means that no border can be
told. It is given for the integers alone and for the profile's synthesis.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from tqdm import tqdm

from perigee.benchmarks.common import table, write_report
from perigee.benchmarks.multiband import ranges_of
from perigee.bitstream.arrays import FloatArray, Samples
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.source import ArraySource

QUALITIES = (12, 24, 40)
BORDER_PX = 4


def squared_error(
    encoder: ComponentEncoder, ground: GroundComponents, samples: Samples, quality: float, ranges: FloatArray
) -> FloatArray:
    """Mean over the bands of the squared error over the range, [row, col]."""
    data = encoder.encode_scene(ArraySource(np.ascontiguousarray(samples)), quality).data
    decoder = ComponentDecoder(parse_component_stream(data), ground)
    decoded = decoder.region(Region(0, 0, *samples.shape[1:])).samples
    error = (decoded.astype(np.float32) - samples) / ranges[:, None, None]
    return np.asarray(np.square(error).mean(0))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of GeoTIFFs of several patches")
    parser.add_argument("--out", type=Path, default=Path("build/component_seams.json"), help="JSON report")
    args = parser.parse_args()
    profile = find_component_profile(DEFAULT_COMPONENTS)
    encoder, side = ComponentEncoder(profile), profile.contract.patch_side
    grounds = {"integers": GroundComponents(profile, synthesis=False), "synthesis": GroundComponents(profile)}
    rows: list[dict[str, Any]] = []
    for path in tqdm(sorted(args.data.glob("*.tif")), unit="scene", disable=None):
        with rasterio.open(path) as source:
            samples = source.read()
        ranges, half = ranges_of(samples), side // 2
        beside = [
            np.minimum(np.arange(n) % side, side - 1 - np.arange(n) % side) < BORDER_PX for n in samples.shape[1:]
        ]
        seam = beside[0][:, None] | beside[1]
        counted = np.zeros(seam.shape, bool)
        counted[side - half // 2 : -half, side - half // 2 : -half] = True
        for quality in QUALITIES:
            row: dict[str, Any] = {"scene": path.stem, "quality": quality}
            for name, ground in grounds.items():
                first = squared_error(encoder, ground, samples, quality, ranges)
                second = np.zeros_like(first)
                second[half:, half:] = squared_error(encoder, ground, samples[:, half:, half:], quality, ranges)
                chosen = seam & counted
                # pixels beside the second grid's borders do not count
                for axis, length in enumerate(seam.shape):
                    inside = (
                        np.minimum((np.arange(length) - half) % side, side - 1 - (np.arange(length) - half) % side)
                        >= BORDER_PX
                    )
                    chosen &= inside[:, None] if axis == 0 else inside[None]
                row[name] = f"{first[chosen].mean() / second[chosen].mean():.3f}"
            rows.append(row)
    print(table(rows, list(rows[0])))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
