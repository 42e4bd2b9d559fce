"""The house itself: links, import rules, what an installation contains."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS = [
    "archive",
    "bitstream",
    "support",
    "onboard",
    "engines",
    "ground",
    "models",
    "training",
    "export",
    "profiles",
    "benchmarks",
]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_a_relative_link(room):
    link = ROOT / "src" / "perigee" / room
    assert link.is_symlink() and os.readlink(link) == f"../../{room}" and link.resolve() == ROOT / room


def test_no_other_links_and_no_room_forgotten():
    assert sorted(p.name for p in (ROOT / "src" / "perigee").iterdir() if p.is_symlink()) == sorted(ROOMS)


@pytest.mark.parametrize(
    "module", ["perigee.bitstream.format", "perigee.bitstream.profile", "perigee.bitstream.metadata"]
)
def test_the_bitstream_needs_numpy_alone(module):
    code = (
        f"import sys; sys.modules['constriction'] = None; import {module}; "
        "third = {m.split('.')[0] for m in sys.modules} & {'torch', 'tifffile', 'rasterio', 'onnxruntime', 'fastapi', 'PIL'}; assert not third, third"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        ("perigee.onboard.cli", "onnxruntime", "onboard"),
        ("perigee.ground.cli", "rasterio", "ground"),
        ("perigee.training.cli", "torch", "train"),
        ("perigee.export.cli", "onnx", "export"),
    ],
)
def test_a_missing_extra_names_the_command_that_installs_it(command, missing, extra, tmp_path):
    (tmp_path / "x").write_text("")
    args = {"perigee.training.cli": [str(tmp_path / "run"), "--data", "."], "perigee.export.cli": ["x", "-o", "y"]}.get(
        command, ["x.peri"] if "ground" in command else ["x.tif", "--profile", "flight3"]
    )
    code = f"import sys; sys.modules[{missing!r}] = None; from {command} import main; raise SystemExit(main({args!r}))"
    (tmp_path / "x.peri").write_bytes(b"")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == os.EX_UNAVAILABLE, result.stderr
    assert f"pip install '.[{extra}]'" in result.stderr


def test_readme_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_tracked_files_stay_small():
    result = subprocess.run(["git", "ls-files", "-z"], capture_output=True, cwd=ROOT)
    if result.returncode:
        pytest.skip("not a git checkout")
    sizes = {
        name: (ROOT / name).stat().st_size
        for name in result.stdout.decode().split("\0")
        if name and Path(ROOT / name).is_file()
    }
    assert sum(sizes.values()) < 90e6
