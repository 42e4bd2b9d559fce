"""Hostile streams through the whole decoder: a typed error, a marked cut, or equal symbols; nothing else."""

import tracemalloc
from collections import Counter

import numpy as np

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.hostile import mutate, outcome, sources
from perigee.bitstream import format as fmt
from perigee.bitstream.parsing import parse_stream


def test_mutated_streams(profile, tiles):
    codec = ArrayCodec(profile, threads=1)
    valid = sources(codec, tiles[0].parent)
    originals = {s.checksum for data in valid for s in parse_stream(data).segments.values()}
    rng = np.random.default_rng(7)
    results = Counter(outcome(mutate(valid[i % len(valid)], rng), codec.ground, originals) for i in range(1500))
    assert not results["WRONG"], results
    reached = {
        "ChecksumError",
        "TruncatedError",
        "FormatError",
        "UnsupportedError",
        "SymbolError",
        "LimitError",
        "cut, marked",
    }
    assert reached <= set(results), "the mutations must reach every kind of error"


def test_a_small_file_cannot_claim_much_memory():
    """Headers that announce huge scenes, chunks and masks allocate nothing."""
    rng = np.random.default_rng(3)
    tracemalloc.start()
    for _ in range(300):
        width, height = (int(v) for v in rng.integers(1, 1 << 20, 2))
        header = fmt.Header(bytes(8), width, height, int(rng.integers(1, 33)), "uint16", 256)
        data = (
            fmt.write_header(header)
            + bytes([int(rng.integers(1, 5))])
            + fmt.write_varint(int(rng.integers(1 << 32)))
            + rng.bytes(50)
        )
        try:
            parse_stream(data, damaged=True)
        except Exception as error:
            assert type(error).__module__ == "perigee.bitstream.errors"
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_many_bad_chunks_cost_little_memory():
    header = fmt.write_header(fmt.Header(bytes(8), 256, 256, 3, "uint8", 256))
    tracemalloc.start()
    stream = parse_stream(header + b"\x01\x00aaaa" * 300_000, damaged=True)
    assert len(stream.damage) < 200 and tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
