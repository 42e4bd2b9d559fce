"""One meaning per word: identifiers and phrases that were retired stay retired.

The glossary in ``docs/architecture.md`` says what to write instead.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# what must not come back, and what to write instead
RETIRED = {
    r"\bwrite_unit\b|\bread_unit\b": "write_metadata_packet, read_metadata_packet",
    r"\bmetadata unit\b": "metadata packet",
    r"\bCHANNEL_UNIT\b": "CHANNEL_STEP",
    r"\bhold_to_symbols\b|\b_held_to_symbols\b|\bcan_hold\b": "project_to_cells, can_project",
    r"\bheld to (the|its|their) symbols\b": "projected to the cells of its symbols",
    r"\bheld back from training\b": "held out of training",
    r"\bCompensatedDecoder\b": "CompensatedSource, which wraps a decoder",
    r"\bHALF_STEP\b": "HALF_CELL",
    r"\bunit_window\b": "unit_region",
    r"\b_NativeStep\b": "_NativePasses",
    r"\bTEXTURE_UNIT\b": "TEXTURE_PIXELS",
    r"\btiles_over\b": "squares_over",
    r"\bfulfil\(": "orders.make",
    r"\bview_of_decoder\b|\bRasterInfo\b": "SourceInfo",
    r"\bexit_on_error = True\b": "support.command.Parser",
    r"computation whose result cannot be": "a checksum over exact arithmetic failed",
    r"memory or processor has erred": "a bit has flipped",
    r"ride in float32": "are carried in float32",
    r"\bThat of the first channels alone\b": "The prediction restricted to the first `channels` channels",
    r"first issue|codec issue|gates? of the": "targets and results, without who asked for them",
}
PROSE = {".py", ".md", ".c", ".h", ".toml"}


def files():
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if path.suffix in PROSE and path.is_file() and path != Path(__file__).resolve():
            yield path


@pytest.mark.parametrize("pattern", RETIRED)
def test_retired_words_stay_retired(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"write {RETIRED[pattern]!r} instead, in {found}"


def test_the_glossary_defines_the_words_of_the_wire():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for word in ("scene", "patch", "unit", "segment", "stream", "contract", "profile", "quality", "region", "cell"):
        assert re.search(rf"^\| [^|]*\b{word}\b[^|]*\|", text, re.MULTILINE), word
