"""Damaged and hostile streams: ``python -m perigee.benchmarks.hostile [--count N] [--url http://127.0.0.1:8080]``.

Mutates valid streams (flips, truncations, extensions, swaps, chunks rewritten with sound checksums) and decodes each.
Allowed are a typed error, a decoded cut segment that is marked, or the same symbols; anything else is printed and fails.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import images, sample_folder
from perigee.bitstream import format as fmt
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE
from perigee.engines.ground import GroundEngine
from perigee.ground.decoder import SceneDecoder

LIMITS = fmt.Limits(samples=1 << 22)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One damaged copy of a stream."""
    out = bytearray(data)
    kind = rng.integers(8)
    place = int(rng.integers(len(out)))
    if kind == 0:  # flip bits
        for _ in range(int(rng.integers(1, 9))):
            out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    elif kind == 1:  # cut off
        del out[place:]
    elif kind == 2:  # extend
        out += rng.bytes(int(rng.integers(1, 64)))
    elif kind == 3:  # overwrite a stretch
        stretch = rng.bytes(int(rng.integers(1, 40)))
        out[place : place + len(stretch)] = stretch
    elif kind == 4:  # remove or repeat a stretch
        stop = place + int(rng.integers(1, 40))
        out[place:stop] = out[place:stop] * int(rng.integers(0, 3))
    elif kind == 5:  # only the start of the file, where sizes are
        out[int(rng.integers(min(40, len(out))))] = int(rng.integers(256))
    else:  # rewrite a chunk or the header with a sound checksum: the parser lets it through
        return _forge(data, rng)
    return bytes(out)


def _forge(data: bytes, rng: np.random.Generator) -> bytes:
    header, offset = fmt.read_header(data)
    stream = parse_stream(data)
    if rng.random() < 0.2:
        fixed = bytearray(data[: offset - 4])
        fixed[int(rng.integers(4, len(fixed)))] = int(rng.integers(256))
        import zlib

        return bytes(fixed) + zlib.crc32(fixed).to_bytes(4, "little") + data[offset:]
    chunks = []
    victim = int(rng.integers(header.units))
    for unit, segment in sorted(stream.segments.items()):
        if unit == victim and len(segment.words):
            words = segment.words.copy()
            choice = rng.integers(5)
            if choice == 0:
                segment = fmt.cut_segment(segment, int(rng.integers(0, len(words))))
            elif choice == 1:
                words[int(rng.integers(len(words)))] = int(rng.integers(1 << 32))
                segment = segment._replace(words=words, cut=bool(rng.integers(2)))
            elif choice == 2:
                segment = segment._replace(quality_step=int(rng.integers(251)))
            elif choice == 3:
                segment = segment._replace(words=rng.integers(0, 1 << 32, int(rng.integers(0, 2000)), np.uint32))
            else:
                segment = segment._replace(words=words[: int(rng.integers(len(words)))])
        chunks.append(fmt.write_segment(segment))
    if rng.random() < 0.3:
        chunks.insert(
            int(rng.integers(len(chunks) + 1)),
            fmt.write_chunk(int(rng.integers(256)), rng.bytes(int(rng.integers(200)))),
        )
    return fmt.write_header(header) + b"".join(chunks) + fmt.write_end(len(chunks))


def outcome(data: bytes, engine: GroundEngine, originals: set[int]) -> str:
    """What decoding does: the name of a typed error, ``cut``, ``equal``, or ``WRONG``. Other exceptions pass through."""
    try:
        stream = parse_stream(data, LIMITS)
        if stream.header.contract != engine.profile.contract.digest:
            return "UnknownProfileError"
        decoder = SceneDecoder(stream, engine)
        good = True
        for unit, segment in stream.segments.items():
            if segment.mode != fmt.NETWORK:
                continue
            decoded = decoder.symbols(unit)
            good &= segment.cut or fmt.checksum_of(decoded.q) in originals
    except PerigeeError as error:
        return type(error).__name__
    if decoder.report.cut:
        return "cut, marked"
    return "equal" if good else "WRONG"


def post(url: str, data: bytes) -> str:
    """Status of a POST /decode."""
    request = urllib.request.Request(
        f"{url}/decode?format=json&scale=1/16", data, {"Content-Type": "application/octet-stream"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return f"{answer.status}{' marked' if answer.headers.get('Perigee-Damage') else ''}"
    except urllib.error.HTTPError as error:
        return str(error.code)


def sources(codec: ArrayCodec, folder: Path) -> list[bytes]:
    """Valid streams to mutate: small ones, so that many fit into the time."""
    tiles = [pixels for _, pixels in images(folder)][:3]
    return [
        codec.encode(p[:size, : size + 32], q)
        for p, (size, q) in zip(tiles * 2, ((96, 20), (64, 60), (128, 90), (40, 5)), strict=False)
    ]


def main() -> int:
    """Entry point; 1 if anything but the allowed happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="mutations (default %(default)s)")
    parser.add_argument("--url", help="send them to a running service instead")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    codec = ArrayCodec(args.profile)
    valid = sources(codec, sample_folder())
    originals = {s.checksum for data in valid for s in parse_stream(data).segments.values()}
    rng = np.random.default_rng(args.seed)
    results: Counter[str] = Counter()
    slowest = 0.0
    bad = 0
    for _ in tqdm(range(args.count), unit="stream", disable=None):
        data = mutate(valid[int(rng.integers(len(valid)))], rng)
        start = time.perf_counter()
        result = post(args.url, data) if args.url else outcome(data, codec.ground, originals)
        slowest = max(slowest, time.perf_counter() - start)
        results[result] += 1
        if result == "WRONG" or result.startswith("5"):
            bad += 1
            print(f"{result}: {data.hex()[:400]}", file=sys.stderr)
    for name, count in results.most_common():
        print(f"{count:8} {name}")
    print(f"slowest {slowest:.2f} s; not allowed: {bad}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
