"""``ground-serve doctor`` on this machine."""

import json

import pytest

from perigee.engines import ground_choice
from perigee.ground.service import cli


def findings(capsys, *arguments):
    code = cli.main(["doctor", "--json", "--threads", "2", *arguments])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_says_what_works_and_how_fast(capsys, monkeypatch):
    monkeypatch.setattr(ground_choice, "DRIVER", "libnothing.so.1")
    code, found = findings(capsys)
    engines = {f["what"].removeprefix("engine "): f for f in found if f["what"].startswith("engine")}
    assert code == 0 and list(engines) == list(ground_choice.ENGINES)
    assert engines["onnxruntime"]["ok"] and "no NVIDIA driver" in engines["cuda"]["details"]
    said = " ".join(f["details"] for f in found if f["what"] == "speed on onnxruntime")
    assert all(name in said for name in ("flight3", "spectral1", "cosmic:one-step", "cosmic:diffusion", "restore"))


def test_an_engine_that_fails_is_a_fault(capsys, monkeypatch):
    monkeypatch.setattr(ground_choice, "driver_missing", lambda: None)
    monkeypatch.setattr(ground_choice, "missing", lambda *_: None)
    monkeypatch.setattr(ground_choice, "failing", lambda name, _: f"{name} crashed (SIGSEGV)")
    code, found = findings(capsys)
    assert code == 69 and [f["ok"] for f in found if f["what"].startswith("engine")] == [False] * len(
        ground_choice.ENGINES
    )


def test_a_device_must_be_one(capsys):
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--device", "gpu"])
    assert "neither cpu nor the number of a GPU" in capsys.readouterr().err
