"""The machine under a measurement: what it is, how it is set, how warm it is.

Read from files below ``root``, so that a copy of another machine's will do; what a machine does not tell is left out.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import imagecodecs
from PIL import features

ROOT = Path("/")
INSTRUCTION_SETS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
ENGINE_PACKAGES = ("onnxruntime-gpu", "tensorrt", "cuda-bindings", "nvidia-ml-py", "tifffile")


def read_text(path: Path) -> str:
    """Contents of a small file without surrounding blanks and zeros; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \t\r\n\0")
    except OSError:
        return ""


def _fields(text: str) -> dict[str, str]:
    """The lines ``name : value`` of a text; of several of a name the first."""
    pairs = [[part.strip() for part in line.split(":", 1)] for line in text.splitlines() if ":" in line]
    return {name: value for name, value in reversed(pairs)}


def _cpu(text: str) -> dict[str, Any]:
    known = _fields(text)
    flags = (known.get("flags") or known.get("Features") or "").split()
    part = f"implementer {known['CPU implementer']}, part {known.get('CPU part')}" if "CPU implementer" in known else ""
    return {
        "cpu": known.get("model name") or part,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "cores": len(re.findall(r"^processor\s*:", text, re.MULTILINE)),
    }


def _power_mode(root: Path) -> str:
    """The mode of nvpmodel by number and, where its catalogue can be read, by name."""
    mode = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status"))
    if not mode:
        return ""
    number = int(mode[1])
    name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", read_text(root / "etc/nvpmodel.conf"))
    return f"{number} {name[1]}" if name else str(number)


def describe(root: Path = ROOT) -> dict[str, Any]:
    """Board, processor, memory (GiB), kernel, clock governor, power mode and the load of the last minute."""
    memory = re.match(r"\d+", _fields(read_text(root / "proc/meminfo")).get("MemTotal", ""))
    governors = {read_text(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")}
    known = {
        "board": read_text(root / "proc/device-tree/model"),
        "jetson_linux": read_text(root / "etc/nv_tegra_release").partition("\n")[0],
        **_cpu(read_text(root / "proc/cpuinfo")),
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "kernel": read_text(root / "proc/sys/kernel/osrelease"),
        "governor": ", ".join(sorted(governors - {""})),
        "power_mode": _power_mode(root),
        "load": read_text(root / "proc/loadavg").partition(" ")[0],
    }
    return {name: value for name, value in known.items() if value}


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone; empty where there are none."""
    found = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = read_text(zone / "temp")
        if re.fullmatch(r"-?\d+", value):
            found[read_text(zone / "type") or zone.name] = int(value) / 1000
    return found


def has_htj2k() -> bool:
    """Whether imagecodecs brings high-throughput JPEG 2000; older versions, as for Python 3.10, do not."""
    return bool(getattr(getattr(imagecodecs, "HTJ2K", None), "available", False))


def libraries() -> dict[str, str]:
    """Versions of the JPEG 2000 libraries inside the wheels, and of the engines' packages that are installed."""
    found = {"OpenJPEG": features.version("jpg_2000") or "unknown"}
    if has_htj2k():
        found["OpenJPH"] = str(imagecodecs.htj2k_version())
    for name in ENGINE_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
