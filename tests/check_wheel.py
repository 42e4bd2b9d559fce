"""Build the wheel and compare its files with the rooms: a checkout without links would build an empty one, green."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

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
    "benchmarks",
]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)]
        result = subprocess.run(build, capture_output=True, text=True)
        if result.returncode:
            print(result.stdout[-2000:], result.stderr[-2000:])
            return 1
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = {name.removeprefix("perigee/") for name in archive.namelist() if name.startswith("perigee/")}
    wanted = {
        str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts
    }
    wanted |= {
        str(p.relative_to(ROOT)) for p in (ROOT / "profiles").rglob("*") if p.suffix in {".onnx", ".npz", ".json"}
    }
    wanted |= {
        str(p.relative_to(ROOT)) for name in ("sample", "segmenter") for p in (ROOT / "benchmarks" / name).iterdir()
    }
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "ground" / "service" / "static").rglob("*") if p.is_file()}
    missing = sorted(wanted - packed)
    strange = sorted(
        name
        for name in packed - wanted
        if name.endswith((".py", ".onnx")) and name not in {"__init__.py"} and not name.startswith("profiles/")
    )
    if not any(name.startswith("bitstream/_native") for name in packed):
        missing.append("the compiled coder")  # optional for users, but a wheel that is passed on has it
    for title, names in (("missing from the wheel", missing), ("in the wheel but in no room", strange)):
        if names:
            print(f"{title}: {names}")
    print(f"wheel: {len(packed)} files")
    return int(bool(missing or strange))


if __name__ == "__main__":
    sys.exit(main())
