"""Flipped bits while encoding, where each is found and what it costs: ``python -m perigee.benchmarks.upsets``.

One flip at a time, at a random bit of a random place, into the real encoder with the compiled prior and coder; then the
stream is decoded as on the ground, by an engine that knows of nothing. *Lost*: the ground finds that the segment is damaged,
which costs this one patch; *lost without --verify*: with it, the patch is encoded again on board. The analysis runs in its library's memory, which is
out of reach; it is covered by a known patch every so many patches, which is not measured here.
"""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.common import images, sample_folder, table, write_report
from perigee.bitstream import format as fmt
from perigee.bitstream.coders import memory_of
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.entropy import decode_symbols
from perigee.bitstream.errors import SymbolError, UpsetError
from perigee.bitstream.prior import Prediction
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile, load_profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.onboard.encoder import Encoder

SIDE = 128
QUALITY_STEPS = (50, 125, 200)
OUTCOMES = ("mended on board", "no effect", "lost without --verify", "lost", "silent")
MEANT_TO_BE_SEEN = (
    "prior's memory",
    "coder's tables",
    "hyper features",
    "predictions",
    "latents, once chosen",
    "words",
)
IN_MEMORY = ("prior's memory", "coder's tables")
NOT_SEEN = ("latents, as they are chosen", "hyper-latents")  # another choice: the stream says what was chosen


def flip(array: np.ndarray[Any, Any], rng: np.random.Generator) -> None:
    """One random bit of a contiguous array."""
    data = array.reshape(-1).view(np.uint8)
    data[rng.integers(len(data))] ^= np.uint8(1 << rng.integers(8))


class Fault:
    """Stands in an engine's analysis and prior, so that one flip happens at ``place`` before or during the next patch."""

    def __init__(self, engine: Any, place: str, rng: np.random.Generator) -> None:
        self.place, self.rng, self.engine = place, rng, engine
        self.analyse, self.prior = engine.analyse, engine.prior
        engine.analyse, engine.prior = self._analyse, self
        parts = []
        if place == "prior's memory":
            parts = [a for a in self.prior.memory() if a.nbytes > 64]  # of its layers
        elif place == "coder's tables":
            cumulated, _, coarse, _ = memory_of(engine.profile.contract.tables)  # where rows start is only a bound
            parts = [cumulated, coarse]
        if parts:
            sizes = np.array([a.nbytes for a in parts], float)
            flip(parts[rng.choice(len(parts), p=sizes / sizes.sum())], rng)

    def remove(self) -> None:
        """Leave the engine as it was, but for what a flip has changed in memory."""
        self.engine.analyse, self.engine.prior = self.analyse, self.prior

    def _analyse(self, image: Any, quality_step: int) -> Any:
        q, z = self.analyse(image, quality_step)
        if self.place == "latents, as they are chosen":
            flip(q, self.rng)
        elif self.place == "hyper-latents":
            z.reshape(-1)[self.rng.integers(z.size)] ^= 1 << self.rng.integers(4)
        return q, z

    def memory(self) -> Any:
        """The wrapped prior's."""
        return self.prior.memory()

    def all_passes(self, z: Any, q: Any, quality_step: int, latents: int | None = None) -> list[Prediction]:
        """The wrapped prior's, with the flip."""
        if self.place == "latents, once chosen":
            flip(q, self.rng)
        step = self.prior.start(z, quality_step)
        if self.place == "hyper features":
            flip(step.features, self.rng)
        widths = self.engine.profile.contract.widths
        counts = [widths.coded_channels(k, latents) for k in range(widths.passes)]
        out = [step(k, q, n) for k, n in enumerate(counts) if n]
        if self.place == "predictions":
            chosen = out[self.rng.integers(len(out))]
            flip(chosen[self.rng.integers(2)], self.rng)
        return out


def decodes(segment: fmt.Segment, profile: Profile, ground: GroundEngine) -> np.ndarray[Any, Any] | None:
    """The latents that the ground decodes, or None where it says that the segment is damaged."""
    contract, size = profile.contract, (SIDE // HYPER_BLOCK, SIDE // HYPER_BLOCK)
    with suppress(SymbolError):
        found = decode_symbols(
            contract.widths, contract.tables, ground.prior, segment.words, segment.quality_step, size, latents=segment.latents
        )  # fmt: skip
        if fmt.checksum_of(found.q) == segment.checksum:
            return found.q
    return None


def outcome(
    encoder: Encoder, place: str, image: Any, step: int, clean: fmt.Segment, ground: GroundEngine, rng: Any
) -> str:
    """What becomes of one flip: one of ``OUTCOMES``."""
    upsets = encoder.guard.upsets
    fault = Fault(encoder.engine, place, rng)
    segment = encoder.encode_image(image, step)
    fault.remove()
    if place == "words":
        words = segment.words.copy()
        flip(words, rng)
        segment = segment._replace(words=words)
    if segment.words.tobytes() == clean.words.tobytes() and segment.checksum == clean.checksum:
        return "mended on board" if encoder.guard.upsets > upsets else "no effect"
    q, sent = (decodes(s, ground.profile, ground) for s in (segment, clean))
    if q is not None and sent is not None:
        return "no effect" if np.array_equal(q, sent) else "silent"
    try:
        encoder.verify(segment, (SIDE, SIDE))
    except UpsetError:
        return "lost without --verify"
    return "lost"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--data", type=Path, default=sample_folder(), help="folder of images (default: the sample)")
    parser.add_argument("--count", type=int, default=10_000, help="flips in all (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/upsets.json"), help="JSON report")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    profile = find_profile(args.profile)
    ground = GroundEngine(profile, 1)
    pictures = [
        np.asarray(p[:SIDE, :SIDE].transpose(2, 0, 1) / np.float32(255), np.float32) for _, p in images(args.data)
    ]

    def fresh() -> Encoder:
        own = load_profile(profile.folder)
        return Encoder(own, FlightEngine(own, 1, check=False))

    encoder = fresh()
    clean = {(i, s): encoder.encode_image(p, s) for i, p in enumerate(pictures) for s in QUALITY_STEPS}
    places = MEANT_TO_BE_SEEN + NOT_SEEN
    found: dict[str, Counter[str]] = {place: Counter() for place in places}
    for n in tqdm(range(args.count), unit="flip", disable=None):
        place = places[n % len(places)]
        picture, step = int(rng.integers(len(pictures))), int(rng.choice(QUALITY_STEPS))
        found[place][outcome(encoder, place, pictures[picture], step, clean[picture, step], ground, rng)] += 1
        if place in IN_MEMORY:
            encoder = fresh()
    rows = []
    for place in places:
        total = sum(found[place].values())
        rows.append({"flips in": place, "flips": total, **{name: found[place][name] for name in OUTCOMES}})
    print(table(rows, list(rows[0])))
    silent = sum(found[place]["silent"] for place in MEANT_TO_BE_SEEN)
    print(
        f"\nsilently wrong where flips are meant to be seen: {silent} of {sum(sum(found[p].values()) for p in MEANT_TO_BE_SEEN)}"
    )
    write_report(args.out, rows)


if __name__ == "__main__":
    main()
