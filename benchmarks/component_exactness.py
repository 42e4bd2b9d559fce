"""Do all priors, coders and reconstructions of components agree? ``python -m perigee.benchmarks.component_exactness``.

Every file is encoded at some qualities with each prior; the streams must have the same bytes. Each is decoded with every prior and
coder, and its samples are reconstructed by the compiled library and by numpy. What differs is counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from tqdm import tqdm

from perigee.benchmarks.common import table, write_report
from perigee.bitstream import compiled
from perigee.bitstream.bounded import checksum_of_codes
from perigee.bitstream.component_coding import decode_components
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.predictive import decode_planes
from perigee.bitstream.reconstruction import Reconstruction
from perigee.bitstream.samples import DTYPE_RANGE
from perigee.bitstream.version2 import PREDICTED, checksum_of_components
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.source import ArraySource

QUALITIES = (8, 24, 40, 60, 100)
SIDE_PX = 256


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of GeoTIFFs (repeatable)")
    parser.add_argument("--profile", default=DEFAULT_COMPONENTS, help="name or folder (default %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first N files of a folder")
    parser.add_argument(
        "--int64", type=int, default=2, metavar="N", help="files for the slow int64 (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/component_exactness.json"), help="JSON report")
    args = parser.parse_args()
    profile = find_component_profile(args.profile)
    contract = profile.contract
    priors: dict[str, Any] = {
        f"compiled, {compiled.PACKING_NAMES[packing]}": compiled.NativePrior(contract.widths, contract.layers, packing)
        for packing in compiled.packings()
    }
    priors |= {f"numpy, {kind.__name__}": contract.reference(kind) for kind in (np.float32, np.float64, np.int64)}
    reconstructions = {name: Reconstruction(contract, name == "compiled") for name in ("compiled", "numpy")}
    counts: dict[str, dict[str, Any]] = {}

    def add(what: str, found: int, differing: int) -> None:
        row = counts.setdefault(what, {"what": what, "compared": 0, "differing": 0})
        row["compared"] += found
        row["differing"] += differing

    files = [path for folder in args.data for path in sorted(folder.glob("*.tif"))[: args.limit]]
    for number, path in enumerate(tqdm(files, unit="file", disable=None)):
        with rasterio.open(path) as source:
            samples = source.read()[:, :SIDE_PX, :SIDE_PX]
        used = {name: prior for name, prior in priors.items() if number < args.int64 or not name.endswith("int64")}
        for quality in QUALITIES:
            encoder = ComponentEncoder(profile)
            streams = {}
            for name, prior in used.items():
                encoder.engine.prior = prior
                streams[name] = encoder.encode_scene(ArraySource(samples), quality).data
            data = next(iter(streams.values()))
            for name, other in streams.items():
                add(f"streams by {name}", 1, other != data)
            stream = parse_component_stream(data)
            segment = stream.segments[0]
            if segment.mode == PREDICTED:
                high, wide = stream.header.patch_region(0)[2:]
                codes = decode_planes(segment.words, (high, wide), [code.model for code in segment.codes])
                add(
                    "codes of predicted segments",
                    samples.size,
                    samples.size * (checksum_of_codes(codes) != segment.checksum),
                )
                continue
            parameters = stream.parameters[0]
            size = tuple(-(-n // HYPER_BLOCK) for n in stream.header.patch_region(0)[2:])
            products = []
            for name, prior in used.items():
                for coder in ("native", "integer") if name == next(iter(used)) else ("native",):
                    decoded = decode_components(
                        contract, prior, segment.words, segment.channels, segment.quality_steps, parameters.offsets,
                        (size[0], size[1]), kind=coder,
                    )  # fmt: skip
                    sound = checksum_of_components(decoded.q, segment.channels) == segment.checksum
                    add(f"latents by {name}, {coder} coder", decoded.q.size, 0 if sound else decoded.q.size)
                    products.append(decoded)
            expected = None
            for decoded in products:
                for kind, reconstruction in reconstructions.items():
                    parts = zip(decoded.q, decoded.mean, decoded.scale_index, segment.quality_steps, strict=True)
                    planes = np.stack([reconstruction.plane(*part) for part in parts])
                    found = reconstruction.samples(
                        parameters.spectral, planes, samples.dtype.name, DTYPE_RANGE[samples.dtype.name]
                    )
                    expected = found if expected is None else expected
                    add(f"samples by {kind}", found.size, int((found != expected).sum()))
    rows = list(counts.values())
    print(f"{len(files)} files at qualities {QUALITIES}, contract {contract.digest.hex()}")
    print(table(rows, ["what", "compared", "differing"]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
