"""What the spectral transform gains or costs where bands do not lie on each other: ``python -m perigee.benchmarks.misregistration``.

Real bands are taken by different detectors at different moments. Each scene is disturbed in one way (bands shifted against each other,
columns of one band with other gains, dead columns, steps between detector chips), and coded with the transform that the encoder chooses and
without any. The figure is the BD-rate of the first against the second, over 0.05 to 2 bits a sample: above 0 the encoder chose badly. Shifted
bands are also coded by an encoder that was told where they lie.
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
from perigee.onboard.sensor import ANY_SENSOR, Sensor
from perigee.onboard.source import ArraySource, Block, SourceInfo

QUALITIES = (8, 16, 24, 32, 40, 48)
SHIFTS_PX = (1, 2, 3, 5, 10)
SHIFTED = {f"shifted by {step} px a band": step for step in SHIFTS_PX}
MARGIN_PX = 2 * max(SHIFTS_PX)


def places(bands: int, step: int) -> list[tuple[int, int]]:
    """Line and column at which each band begins: ``step`` lines after the band before and half as many columns."""
    return [(down, down // 2) for down in (min(i * step, 2 * MARGIN_PX) for i in range(bands))]


def shifted(samples: Samples, step: int) -> Samples:
    """Bands that begin at different places, at most twice the largest shift apart."""
    rows, cols = (n - 2 * MARGIN_PX for n in samples.shape[1:])
    begins = places(len(samples), step)
    return np.stack([band[y : y + rows, x : x + cols] for band, (y, x) in zip(samples, begins, strict=True)])


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
    for name, step in SHIFTED.items():
        out[name] = lambda s, step=step: shifted(s, step)  # type: ignore[misc]
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
    encoder: ComponentEncoder, engine: GroundComponents, samples: Samples, sensor: Sensor = ANY_SENSOR
) -> tuple[list[tuple[float, float]], int]:
    """Rate in bits a sample and PSNR of the range in dB at some qualities, and how many files had a transform."""
    ranges, curve, transforms = ranges_of(samples), [], 0
    for quality in QUALITIES:
        stream = parse_component_stream(data := encoder.encode_scene(ArraySource(samples), quality, sensor=sensor).data)
        decoder = ComponentDecoder(stream, engine)
        decoded = decoder.region(Region(0, 0, *samples.shape[1:])).samples
        curve.append((8 * len(data) / samples.size, range_psnr(samples, decoded, ranges)))
        transforms += any(not found.spectral.is_identity for found in stream.parameters.values())
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
            found = {name: (with_transform, used)}
            if name in SHIFTED:
                offsets = tuple((-line, -column) for line, column in places(len(samples), SHIFTED[name]))
                known = curve_of(chosen, engine, disturbed, Sensor(band_offsets=offsets))
                found[f"{name}, told to the encoder"] = known
            for told, (curve, used) in found.items():
                rate = f"{bd_rate(without, curve, LOW, HIGH):+.2f}"
                rows.append(
                    {"scene": path.stem, "disturbed": told, "BD-rate %": rate, "with": f"{used}/{len(QUALITIES)}"}
                )
    args.out.mkdir(parents=True, exist_ok=True)
    print(table(rows, list(rows[0])))
    write_report(args.out / "misregistration.json", rows)


if __name__ == "__main__":
    main()
