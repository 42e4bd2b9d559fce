"""The latency benchmark compares at equal bytes and counts what it says."""

import numpy as np
import pytest
import tifffile

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.latency import STAGES, bisected, measure, runs_at


@pytest.fixture(scope="module")
def codecs(three):
    return {name: ArrayCodec(three, threads=1, analysis=name) for name in ("swift", "lite")}


def test_all_codecs_are_timed_at_the_same_bytes(codecs, tiles):
    pixels = tifffile.imread(tiles[2])
    runs = runs_at(0.5, pixels, codecs)
    sizes = {name: len(run()) for name, run in runs.items() if ": " not in name}
    assert set(sizes) == {"swift", "lite", "OpenJPEG", "HTJ2K"}
    assert all(abs(size / 4096 - 1) < 0.06 for size in sizes.values()), sizes


def test_rows_hold_every_codec_and_stage_with_ordered_percentiles(codecs, tiles):
    rows = measure(codecs, [tifffile.imread(tiles[0])], 1)
    names = {row["what"] for row in rows}
    assert names == {"swift", "lite", "OpenJPEG", "HTJ2K", *(f"swift: {stage}" for stage in STAGES)}
    for row in rows:
        assert 0 < float(row["p50"]) <= float(row["p95"]) <= float(row["max"])
    assert all(row["ratio"] == "1.00" for row in rows if row["what"] == "OpenJPEG")


def test_bisection_finds_the_setting():
    assert bisected(lambda x: int(100 * x), 0, 100, 4200) == pytest.approx(42, abs=0.5)
    assert bisected(lambda x: int(x), 0, 10, 1e9) > 9.9 and np.isfinite(bisected(lambda x: 0, 0, 1, 5))
