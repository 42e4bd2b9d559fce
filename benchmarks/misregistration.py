"""What the spectral transform gains or costs where bands do not lie on each other: ``python -m perigee.benchmarks.misregistration``.

Real bands are taken by different detectors at different moments. Each scene is disturbed in one way (bands shifted against each other,
columns of one band with other gains, dead columns, steps between detector chips), and coded with the transform that the encoder chooses and
without any. The figure is the BD-rate of the first against the second, over 0.05 to 2 bits a sample: above 0 the encoder chose badly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from tqdm import tqdm

from perigee.benchmarks.common import table, write_report
from perigee.benchmarks.metrics import bd_rate
from perigee.benchmarks.multiband import HIGH, LOW, range_psnr, ranges_of
from perigee.bitstream.arrays import FloatArray, Samples
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.spectral import Spectral, identity
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.fidelity import Fidelity
from perigee.onboard.source import ArraySource, Block, SourceInfo

QUALITIES = (8, 16, 24, 32, 40, 48)
SHIFTS_PX = (1, 2, 3, 5, 10)
MARGIN_PX = 2 * max(SHIFTS_PX)


def shifted(samples: Samples, step: int) -> Samples:
    """Band i lies ``i * step`` pixels lower and half as far to the right, at most twice the largest shift in all."""
    rows, cols = (n - 2 * MARGIN_PX for n in samples.shape[1:])
    out = []
    for i, band in enumerate(samples):
        down = min(i * step, 2 * MARGIN_PX)
        out.append(band[down : down + rows, down // 2 : down // 2 + cols])
    return np.stack(out)


def with_gains(samples: Samples, share: float, width: int, rng: np.random.Generator) -> Samples:
    """Columns of each band, in groups of ``width``, have gains that differ by ``share``: single detectors, or chips."""
    groups = -(-samples.shape[2] // width)
    gains = 1 + share * rng.standard_normal((len(samples), 1, groups)).repeat(width, 2)[..., : samples.shape[2]]
    high = np.iinfo(samples.dtype).max
    return np.clip(np.rint(samples * gains), 0, high).astype(samples.dtype)


def with_dead_columns(samples: Samples, share: float, rng: np.random.Generator) -> Samples:
    """Some columns of each band are 0."""
    out = samples.copy()
    for band in out:
        band[:, rng.random(samples.shape[2]) < share] = 0
    return out


def disturbances() -> dict[str, Callable[[Samples], Samples]]:
    """The ways in which a scene is disturbed, by name."""
    out: dict[str, Callable[[Samples], Samples]] = {"none": lambda s: s}
    for step in SHIFTS_PX:
        out[f"shifted by {step} px a band"] = lambda s, step=step: shifted(s, step)  # type: ignore[misc]
    out["gains of columns off by 1 %"] = lambda s: with_gains(s, 0.01, 1, np.random.default_rng(1))
    out["gains of chips of 128 columns off by 1 %"] = lambda s: with_gains(s, 0.01, 128, np.random.default_rng(2))
    out["gains of chips of 128 columns off by 5 %"] = lambda s: with_gains(s, 0.05, 128, np.random.default_rng(3))
    out["dead columns, 1 %"] = lambda s: with_dead_columns(s, 0.01, np.random.default_rng(4))
    return out


class WithoutTransform(ComponentEncoder):
    """An encoder that codes each band as a component of its own."""

    def spectral(
        self,
        windows: Iterable[Block],
        info: SourceInfo,
        quality_step: int,
        fidelity: Fidelity,
        matrix: FloatArray | None = None,
    ) -> tuple[Spectral, int]:
        """As :meth:`ComponentEncoder.spectral`, always without a matrix."""
        spectral, quality_step = super().spectral(windows, info, quality_step, fidelity, matrix)
        return replace(spectral, matrix=identity(info.bands)), quality_step


def curve_of(
    encoder: ComponentEncoder, engine: GroundComponents, samples: Samples
) -> tuple[list[tuple[float, float]], int]:
    """Rate in bits a sample and PSNR of the range in dB at some qualities, and how many files had a transform."""
    ranges, curve, transforms = ranges_of(samples), [], 0
    for quality in QUALITIES:
        stream = parse_component_stream(data := encoder.encode_scene(ArraySource(samples), quality).data)
        decoder = ComponentDecoder(stream, engine)
        decoded = decoder.region(Region(0, 0, *samples.shape[1:])).samples
        curve.append((8 * len(data) / samples.size, range_psnr(samples, decoded, ranges)))
        transforms += not stream.parameters[0].spectral.is_identity
    return curve, transforms


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of GeoTIFFs; those of several bands are used")
    parser.add_argument("--side", type=int, default=768, help="pixels of a scene that are used (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/misregistration"), help="folder for the JSON")
    args = parser.parse_args()
    profile = find_component_profile(DEFAULT_COMPONENTS)
    chosen, plain, engine = ComponentEncoder(profile), WithoutTransform(profile), GroundComponents(profile)
    rows: list[dict[str, Any]] = []
    for path in tqdm(sorted(args.data.glob("*.tif")), unit="scene", disable=None):
        with rasterio.open(path) as source:
            samples = source.read()[:, : args.side, : args.side]
        if len(samples) == 1:
            continue
        for name, disturb in disturbances().items():
            disturbed = disturb(samples)
            with_transform, used = curve_of(chosen, engine, disturbed)
            without, _ = curve_of(plain, engine, disturbed)
            rate = bd_rate(without, with_transform, LOW, HIGH)
            rows.append(
                {"scene": path.stem, "disturbed": name, "BD-rate %": f"{rate:+.2f}", "with": f"{used}/{len(QUALITIES)}"}
            )
    args.out.mkdir(parents=True, exist_ok=True)
    print(table(rows, list(rows[0])))
    write_report(args.out / "misregistration.json", rows)


if __name__ == "__main__":
    main()
