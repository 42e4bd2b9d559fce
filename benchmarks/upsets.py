"""Flipped bits while encoding, where each is found and what it costs: ``python -m perigee.benchmarks.upsets``.

One flip at a time, at a random bit of a random place, into the real encoder with the compiled prior and coder; then the
stream is decoded as on the ground, by an engine that knows of nothing. *Lost*: the ground finds that the segment is damaged,
which costs this one patch; *lost without --verify*: with it, the patch is encoded again on board. The analysis runs in its library's memory, which is
out of reach; it is covered by a known patch every so many patches, which is not measured here.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.common import images, sample_folder, table, write_report
from perigee.bitstream import format as fmt
from perigee.bitstream.coders import memory_of
from perigee.bitstream.entropy import decode_symbols
from perigee.bitstream.errors import SymbolError, UpsetError
from perigee.bitstream.prior import Prediction
from perigee.bitstream.profile import DEFAULT_PROFILE, HYPER_BLOCK, Profile, find_profile, load_profile
from perigee.engines.onnxruntime import FlightEngine, GroundEngine
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
NOT_SEEN = ("latents, as they are chosen", "hyper-latents")  # another choice: the stream says what was chosen


def flip(array: np.ndarray[Any, Any], rng: np.random.Generator) -> None:
    """One random bit of a contiguous array."""
    data = array.reshape(-1).view(np.uint8)
    data[rng.integers(len(data))] ^= np.uint8(1 << rng.integers(8))


class Fault:
    """Wraps an engine's analysis and prior so that one flip happens at ``place`` during the next patch."""

    def __init__(self, encoder: Encoder, place: str, rng: np.random.Generator) -> None:
        self.place, self.rng = place, rng
        self.engine: Any = encoder.engine
        self.analyse, self.prior = self.engine.analyse, self.engine.prior
        self.engine.analyse, self.engine.prior = self._analyse, self
        if place == "prior's memory":
            parts = self.prior.memory()
            sizes = np.array([a.nbytes if a.nbytes > 64 else 0 for a in parts], float)
            flip(parts[rng.choice(len(parts), p=sizes / sizes.sum())], rng)
        elif place == "coder's tables":
            self._in_tables(encoder)

    def _in_tables(self, encoder: Encoder) -> None:
        parts = memory_of(encoder.engine.profile.contract.tables)
        flip(parts[self.rng.choice(len(parts), p=[0.5, 0, 0.5, 0])], self.rng)  # where entries start is only a bound

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
    make: Callable[[], Encoder], place: str, image: Any, step: int, clean: fmt.Segment, ground: GroundEngine, rng: Any
) -> str:
    """What becomes of one flip: one of ``OUTCOMES``."""
    encoder = make()
    Fault(encoder, place, rng)
    try:
        segment = encoder.encode_image(image, step)
    except (
        SymbolError,
        UpsetError,
    ):  # the coder found a value that cannot be: an error for this scene, nothing is written
        return "mended on board"
    if place == "words":
        words = segment.words.copy()
        flip(words, rng)
        segment = segment._replace(words=words)
    if segment.words.tobytes() == clean.words.tobytes() and segment.checksum == clean.checksum:
        return "mended on board" if encoder.guard.upsets else "no effect"
    q = decodes(segment, ground.profile, ground)
    if q is not None:
        return "no effect" if np.array_equal(q, decodes(clean, ground.profile, ground)) else "silent"
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
    pictures = [p[:SIDE, :SIDE].transpose(2, 0, 1).astype(np.float32) / 255 for _, p in images(args.data)]
    state: dict[str, Encoder] = {}

    def fresh() -> Encoder:
        own = load_profile(profile.folder)
        return Encoder(own, FlightEngine(own, 1, check=False))

    def encoder() -> Encoder:
        """One that no fault has touched: making them anew each time would take most of the run."""
        used = state.get("encoder")
        if used is None or used.guard.upsets or state.get("dirty"):
            state["encoder"] = fresh()
        return state["encoder"]

    reference = fresh()
    clean = {(i, s): reference.encode_image(p, s) for i, p in enumerate(pictures) for s in QUALITY_STEPS}
    places = MEANT_TO_BE_SEEN + NOT_SEEN
    found: dict[str, Counter[str]] = {place: Counter() for place in places}
    for n in tqdm(range(args.count), unit="flip", disable=None):
        place = places[n % len(places)]
        picture, step = int(rng.integers(len(pictures))), int(rng.choice(QUALITY_STEPS))
        made = encoder()
        engine: Any = made.engine
        found[place][
            outcome(lambda made=made: made, place, pictures[picture], step, clean[picture, step], ground, rng)  # type: ignore[misc]
        ] += 1
        if place in ("prior's memory", "coder's tables"):
            del state["encoder"]
        elif made.engine is engine:
            del engine.analyse
            engine.prior = engine.prior.prior
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
