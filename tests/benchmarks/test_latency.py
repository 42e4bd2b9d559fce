"""The latency benchmark compares at equal bytes, counts what it says, and finds its sensors by itself."""

import json

import numpy as np
import pytest
import tifffile

from perigee.benchmarks.latency import (
    END_TO_END,
    STAGES,
    Contender,
    bisected,
    codecs_of,
    contenders,
    endurance,
    idle_use,
    link_rows,
    main,
    reading,
    sample,
)
from perigee.benchmarks.machine import has_htj2k
from perigee.bitstream.errors import EngineError

OURS = ("onnxruntime lite", "onnxruntime light")
STANDARDS = {"OpenJPEG", "HTJ2K"} if has_htj2k() else {"OpenJPEG"}


@pytest.fixture(scope="module")
def runs(two_analyses, tiles):
    return contenders(0.5, [tifffile.imread(path) for path in tiles[:2]], codecs_of(["onnxruntime"], two_analyses))


def test_all_codecs_are_timed_at_the_same_bytes(runs):
    assert set(runs) == {*OURS, *STANDARDS}
    for name, run in runs.items():
        sizes = [len(encode()) for encode in run.encode]
        assert all(abs(size / 4096 - 1) < 0.06 for size in sizes), (name, sizes)
        assert run.bpp == pytest.approx(8 * np.mean(sizes) / 65536)


def test_rows_hold_every_run_of_every_codec_and_stage(runs):
    rows = sample(0.5, runs, 3)
    expected = {(name, stage) for name in OURS for stage in (END_TO_END, *STAGES)}
    assert {(r["codec"], r["stage"]) for r in rows} == expected | {(name, END_TO_END) for name in STANDARDS}
    for row in rows:
        assert row["samples"] == 6
        assert 0 < row["p50"] <= row["p95"] <= row["p99"] <= row["max"]
        assert all(row[f"x {standard}"] > 0 for standard in STANDARDS)
    assert all(r["x OpenJPEG"] == 1 for r in rows if r["codec"] == "OpenJPEG")


def test_nothing_is_trimmed():
    times = iter([1.0] * 8 + [50.0, 1.0] + [2.0] * 10)
    slow = Contender([lambda: b""], [lambda: {"analysis": next(times)}])
    row = sample(1.0, {"ours": slow, "OpenJPEG": Contender([lambda: b""])}, 20)[1]
    assert row["stage"] == "analysis" and row["samples"] == 20 and row["max"] == 50.0 and row["p50"] == 2.0


def test_a_sustained_run_does_whole_rounds_and_carries_the_energy(tmp_path):
    from perigee.benchmarks.energy import system_sensors

    chip = tmp_path / "sys/class/hwmon/hwmon1"
    chip.mkdir(parents=True)
    for name, text in {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "2000"}.items():
        (chip / name).write_text(text + "\n")
    sensors = list(system_sensors(tmp_path))
    calls = []
    run = Contender([lambda: calls.append(0) or b"", lambda: calls.append(1) or b""])
    speed, energy = endurance(0.5, {"ours": run}, 0.05, sensors, idle_use(0.05, sensors))
    assert calls.count(0) == calls.count(1) > 0
    assert speed[0]["Mpx"] == pytest.approx(len(calls) * 65536 / 1e6, abs=0.06)
    assert energy[0]["codec"] == "ours" and energy[0]["W"] == pytest.approx(10)


def test_only_geotiffs_are_read(tiles):
    assert reading([], 3) == []
    (row,) = reading(tiles[:2], 3)
    assert row["files"] == 2 and row["samples"] == 6 and row["Mpx/s"] > 0


def test_bisection_finds_the_setting():
    assert bisected(lambda x: int(100 * x), 0, 100, 4200) == pytest.approx(42, abs=0.5)
    assert bisected(lambda x: int(x), 0, 10, 1e9) > 9.9 and np.isfinite(bisected(lambda x: 0, 0, 1, 5))


def test_an_engine_that_is_not_there_is_named(two_analyses, capsys):
    with pytest.raises(EngineError, match="abacus.*onnxruntime"):
        codecs_of(["onnxruntime", "abacus"], two_analyses)
    assert main(["--engine", "abacus"]) == 1
    assert "abacus" in capsys.readouterr().err


def test_the_link_is_reckoned_from_the_figure_given():
    assert link_rows(None, None) == []
    assert [row["J/Mpx"] for row in link_rows(1e-7, 0.2)] == pytest.approx([0.025, 0.05, 0.1, 0.02])


@pytest.mark.parametrize("wrong", (["--bpp-saved", "0.1"], ["--repeats", "0"], ["--sustain", "nan"]))
def test_usage_errors(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2 and wrong[0] in capsys.readouterr().err


def test_the_report_says_what_is_needed_to_doubt_it(tmp_path, capsys):
    out = tmp_path / "latency.json"
    assert main(["--limit", "1", "--repeats", "2", "--sustain", "0.05", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "sustained" in printed and "reading GeoTIFFs" in printed and "energy: " in printed
    report = json.loads(out.read_text())
    (rows,) = report["rows"]
    assert rows["machine"]["cores"] >= 1 and rows["libraries"]["OpenJPEG"]
    assert rows["warm_up_runs"] == 50 and rows["repeats"] == 2 and rows["tiles"] == 1
    assert {"commit", "command", "versions"} <= set(report["facts"])
    assert {row["samples"] for row in rows["times"]} == {2}
    assert {row["codec"] for row in rows["sustained"]} >= STANDARDS
