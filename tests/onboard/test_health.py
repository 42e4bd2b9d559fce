"""``onboard-encode doctor`` on this machine, healthy and with something broken."""

import hashlib
import json
import shutil

import pytest

from perigee.bitstream.component_profile import find_component_profile
from perigee.bitstream.profile import find_profile
from perigee.onboard import cli


def test_a_healthy_machine_passes_and_says_how_fast_it_is(capsys):
    assert cli.main(["doctor", "--json", "--threads", "1", "--profile", "flight"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {line["what"]: line for line in lines}
    assert all(line["ok"] is not False for line in lines)
    assert found["engine onnxruntime"]["ok"] and found["compiled prior"]["ok"] and found["coder integer"]["ok"]
    assert "Mpx/s" in found["speed of lite"]["details"] and "speed of light" in found


@pytest.mark.parametrize("file", ["analysis-lite.onnx", "selftest.npz"])
def test_a_changed_file_is_found(tmp_path, capsys, two_analyses, file):
    folder = tmp_path / "p"
    shutil.copytree(two_analyses.folder, folder)
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / file).write_bytes(data)
    assert cli.main(["doctor", "--profile", str(folder)]) == 69
    out = capsys.readouterr().out
    assert "FAILED" in out and file in out and "SHA-256" in out


def test_a_file_that_is_no_graph_is_a_finding(tmp_path, capsys, profile):
    folder = tmp_path / "p"
    shutil.copytree(profile.folder, folder)
    (folder / "prior.onnx").write_bytes(b"garbage")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["prior.onnx"] = hashlib.sha256(b"garbage").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["doctor", "--profile", str(folder)]) == 69
    assert "ONNX Runtime cannot load it" in capsys.readouterr().out


def test_an_unknown_profile_is_a_configuration_error(capsys):
    assert cli.main(["doctor", "--profile", "nowhere"]) == 78
    assert find_profile("flight").name in capsys.readouterr().err


def test_a_component_profile_is_examined_too(tmp_path, capsys):
    assert cli.main(["doctor", "--json", "--profile", "spectral1"]) == 0
    findings = {line["what"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert findings["reconstruction"]["ok"] and "Msamples/s" in findings["speed"]["details"]
    assert all(finding["ok"] is not False for finding in findings.values())
    source = find_component_profile("spectral1").folder
    folder = tmp_path / "damaged"
    shutil.copytree(source, folder)
    (folder / "analysis.npz").write_bytes(b"no weights")
    assert cli.main(["doctor", "--profile", str(folder)]) == 69
    assert "analysis.npz has SHA-256" in capsys.readouterr().out
