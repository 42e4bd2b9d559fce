"""What a map on board would save: ``python -m perigee.benchmarks.map_prior --maps FOLDER --hold-out PATTERN``.

A copy of a profile's prior, as real numbers, is trained further on the symbols of images with maps: once with the map's planes as a further input of
its hyper features, and once without, for as many steps from the same start. Told is the code length of held-out images by both, at the rates for
which maps are meant, and what of the whole file the map saves. Satellite and ground would have to hold the same map, bit for bit.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import table, write_report
from perigee.bitstream.contract import Contract
from perigee.bitstream.map_planes import MAP_CLASSES, MAP_PLANES, planes_of
from perigee.bitstream.prior import layer_shapes
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.engines.flight import FlightEngine
from perigee.models.codec.codec import spread_of
from perigee.models.codec.prior import PriorLayer, TrainedPrior
from perigee.models.layers import start_small
from perigee.models.segmenter import SEEN
from perigee.training.map_tiles import MapTile, load_map_tiles
from perigee.training.pairs import guessed_quality_step, turned
from perigee.training.run import cosine_fall, warm_up

RATES = (0.02, 0.1)  # bits per pixel
VERSIONS, BATCH = 4, 8
LEARNING_RATE, MAP_FACTOR = 1e-4, 10.0  # of the prior; the map's own layers learn so many times as fast
MIXED = "hyper.mix"


class MapPrior(TrainedPrior):
    """A profile's prior with features of a map added to its hyper features; at first they are zero."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract.widths)
        for name, shape in layer_shapes(contract.widths).items():
            module, layer = self.layers[name.replace(".", "_")], contract.layers[name]
            assert isinstance(module, PriorLayer)
            bits = layer.shift.astype(np.float64) - (shape.input_fraction - shape.output_fraction)
            weight = layer.weight * np.exp2(-bits)[:, None, None, None]
            module.weight.data = torch.from_numpy(weight.astype(np.float32))
            module.bias.data = torch.from_numpy((layer.bias * np.exp2(-bits - shape.input_fraction)).astype(np.float32))
        self.map_layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * len(MAP_PLANES), 64, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(96, 128, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            start_small(nn.Conv2d(128, contract.widths.hyper, 1), 0.0),
        )
        self.seen: Tensor | None = None  # the map's features of the batch

    def layer(self, name: str, x: Tensor) -> Tensor:
        """As the prior's, with the map's features where all that is known on both sides is mixed."""
        out = super().layer(name, x)
        return F.relu(out + self.seen) if name == MIXED and self.seen is not None else out

    def bits(self, coded: Coded, with_map: bool) -> Tensor:
        """Code length of the latents of each image [N], in bits."""
        self.seen = self.map_layers(coded.planes) if with_map else None
        mean, index = self(coded.z, coded.q, coded.quality)
        distance, spread = (coded.q - mean).abs(), spread_of(index)
        probability = torch.sigmoid((0.5 - distance) / spread) - torch.sigmoid((-0.5 - distance) / spread)
        return -torch.log2(probability.clamp_min(1e-7)).flatten(1).sum(1)


class Coded:
    """Symbols of images at quality steps, with the planes of their maps."""

    def __init__(self, z: Tensor, q: Tensor, quality: Tensor, planes: Tensor) -> None:
        self.z, self.q, self.quality, self.planes = z, q, quality, planes

    def of(self, numbers: Any) -> Coded:
        """Some of the images, as float32."""
        return Coded(*(part[numbers].float() for part in (self.z, self.q, self.quality, self.planes)))


def coded_tiles(
    engine: FlightEngine, tiles: list[MapTile], versions: int, rng: np.random.Generator
) -> tuple[Coded, list[Any]]:
    """Tiles, turned at random where there are several versions, coded at rates drawn from ``RATES``; and the pixels."""
    parts: list[tuple[Tensor, ...]] = []
    images = []
    for tile in tqdm([t for t in tiles for _ in range(versions)], desc="coding", disable=None):
        both = np.concatenate([tile.pixels, 255 * tile.masks.transpose(1, 2, 0).astype(np.uint8)], 2)
        both = turned(both, rng) if versions > 1 else both
        pixels, masks = np.ascontiguousarray(both[..., :3]), both[..., 3:].transpose(2, 0, 1) > 0
        step = guessed_quality_step(engine.profile, pixels, math.exp(rng.uniform(*np.log(RATES))))
        q, z = engine.analyse(pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255), step)
        shares = np.zeros((len(MAP_CLASSES), *masks.shape[1:]), np.float32)
        shares[[MAP_CLASSES.index(name) for name in SEEN]] = masks
        planes = planes_of(shares, np.ones(masks.shape[1:], bool))
        found = (z[0].astype(np.int16), q[0].astype(np.int16), np.float32(step), planes.astype(np.float16))
        parts.append(tuple(torch.from_numpy(np.asarray(a)) for a in found))
        images.append((pixels, step))
    return Coded(*(torch.stack(part) for part in zip(*parts, strict=True))), images


def trained(contract: Contract, coded: Coded, with_map: bool, steps: int) -> MapPrior:
    """The prior after so many steps of training."""
    torch.manual_seed(1)
    prior, rng = MapPrior(contract), np.random.default_rng(1)
    own = list(prior.layers.parameters())
    groups = [{"params": own, "factor": 1.0}, {"params": list(prior.map_layers.parameters()), "factor": MAP_FACTOR}]
    optimiser = torch.optim.Adam(groups, lr=LEARNING_RATE)
    for step in tqdm(range(steps), desc="with the map" if with_map else "without it", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * group["factor"] * warm_up(step) * cosine_fall(step / steps, 0.02)
        batch = coded.of(rng.integers(0, len(coded.q), BATCH))
        bits = prior.bits(batch, with_map)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward((bits / (bits.detach() + 200)).mean())  # no image dominates
        optimiser.step()
    return prior


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, required=True, help="folder of images and class rasters with an index.csv")
    parser.add_argument("--hold-out", action="append", default=[], metavar="PATTERN", help="files to measure on")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="of each training (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/map-prior.json"), help="JSON report")
    args = parser.parse_args()
    profile = find_profile(args.profile)
    engine, codec = FlightEngine(profile, 1), ArrayCodec(args.profile)
    rng = np.random.default_rng(1)
    tiles, others = load_map_tiles(args.maps, args.hold_out)
    coded, _ = coded_tiles(engine, tiles, VERSIONS, rng)
    held, images = coded_tiles(engine, others, 1, rng)
    size = np.array([8 * len(codec.encode(pixels, step / 2.5)) for pixels, step in images])  # bits
    priors = {"as shipped": MapPrior(profile.contract)}
    priors |= {
        name: trained(profile.contract, coded, name == "with the map", args.steps)
        for name in ("without a map", "with the map")
    }
    bits: dict[str, Any] = {}
    with torch.no_grad():
        for name, prior in priors.items():
            parts = [
                prior.bits(held.of(np.arange(n, min(n + 8, len(images)))), name == "with the map")
                for n in range(0, len(images), 8)
            ]
            bits[name] = torch.cat(parts).numpy()
    places = np.array([tile.place for tile in others])
    rows = []
    for place in ("all", *dict.fromkeys(places)):
        chosen = np.ones(len(places), bool) if place == "all" else places == place
        row: dict[str, Any] = {
            "place": f"{place} ({chosen.sum()})",
            "bpp of the files": round(float(np.median(size[chosen])) / 65536, 3),
        }
        row |= {f"bits {name}": round(float(found[chosen].mean())) for name, found in bits.items()}
        saved = (bits["without a map"] - bits["with the map"])[chosen]
        row["saved of the latents, %"] = round(100 * float(saved.sum() / bits["without a map"][chosen].sum()), 2)
        row["saved of the files, %"] = round(100 * float(saved.sum() / size[chosen].sum()), 2)
        rows.append(row)
    print(table(rows, list(rows[0])))
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
