"""The GPU under a measurement, and what it draws."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from perigee.bitstream import compiled
from perigee.engines.backend import CPU_DEVICE
from perigee.support.cores import usable_cores

PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "cuda-bindings")
QUERY = ("nvidia-smi", "--format=csv,noheader,nounits")


def _asked(device: str, field: str) -> str:
    """What ``nvidia-smi`` says of a field; empty where it is missing."""
    try:
        command = [*QUERY, f"--query-gpu={field}", "-i", device]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def described(device: str) -> dict[str, Any]:
    """GPU, driver, packages and processor."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpu = {} if device == CPU_DEVICE else {"gpu": _asked(device, "name"), "driver": _asked(device, "driver_version")}
    library = "compiled" if compiled.library is not None else "numpy"
    return gpu | {
        "system": f"{platform.machine()}, {usable_cores()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "prior": library,
    }


class Watts:
    """The power of a GPU, sampled ten times a second by ``nvidia-smi`` while a block runs."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.mean: float | None = None

    def __enter__(self) -> Watts:
        self._process: subprocess.Popen[str] | None = None
        if self._device != CPU_DEVICE:
            try:
                command: Sequence[str] = (*QUERY, "--query-gpu=power.draw", "-i", self._device, "-lms", "100")
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            except OSError:
                pass
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        out = self._process.communicate(timeout=20)[0]
        watts = [float(line) for line in out.split() if line.replace(".", "", 1).isdigit()]
        self.mean = float(np.mean(watts)) if watts else None
