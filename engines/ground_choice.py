"""Which engine the ground uses, and on which device: the one asked for, or the first of several whose self-test passes.

As on board (``choice``) a GPU engine is tried in a process of its own before ``auto`` takes it. An engine asked for by name is taken or
refused, never replaced.
"""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from perigee.bitstream.errors import EngineError, Fault
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.engines import probing
from perigee.engines.backend import CPU_BACKEND, CPU_DEVICE, GPU_BATCH, Backend
from perigee.engines.probing import PassedOver

# In the order in which auto tries them. TensorRT builds plans for minutes, and half precision moves pixels, so these are taken by name alone.
AUTO = ("cuda", "torch")
TORCH_HALF = "torch-half"
ENGINES = (*AUTO, TORCH_HALF, "tensorrt", CPU_BACKEND.engine_name)
ON_CPU = (CPU_BACKEND.engine_name, "torch", TORCH_HALF)  # that run without a GPU, the others do not
DRIVER = "libcuda.so.1"
# The spread of the latents that an engine is tried with, the largest difference from the CPU in shares of full scale, and how many samples may
# have a larger one. In float32 it is a quarter of a grey level: engines differ by less than a tenth of that, while TF32 shows on latents of this
# spread. In half precision it is a grey level, on latents of real images.
FULL_TEST, HALF_TEST = (1.0, 1e-3, 0.0), (0.3, 1 / 255, 1e-3)
TEST_LATENTS = (16, 24)  # rows and columns


class GroundChoice(NamedTuple):
    """The engine that will be used; ``passed_over`` is empty unless the choice was free."""

    backend: Backend
    passed_over: list[PassedOver]


def load(name: str, device: str | None = None, threads: int | None = None) -> Backend:
    """One of ``ENGINES`` on a device (``cpu`` or the number of a GPU; None: the first GPU, or the CPU for ONNX Runtime), after its self-test.

    Raises EngineError that says what is missing, ProfileError.
    """
    if name == CPU_BACKEND.engine_name:
        if device not in (None, CPU_DEVICE):
            raise EngineError(
                f"engine {name} runs on the CPU; for GPU {device} take cuda, tensorrt or torch",
                Fault.MISFIT,
                field="device",
                expected=CPU_DEVICE,
                found=device,
            )
        return CPU_BACKEND
    if name not in ENGINES:
        raise probing.unknown(name, ENGINES)
    backend = _backend(name, device or "0")
    check(backend, threads)
    return backend


def _backend(name: str, device: str) -> Backend:
    """A backend that has not been tried. Raises EngineError where its package or device is missing."""
    if name in ("torch", TORCH_HALF):
        from perigee.engines.torch import TorchGraph, device_named, half_of

        place, model = device_named(device)
        half = name == TORCH_HALF
        make = partial(TorchGraph, device=place, half=half)
        return Backend(
            name, model, make, 1 if device == CPU_DEVICE else GPU_BATCH, half_of(place) if half else "float32"
        )
    from perigee.engines import cuda

    if device == CPU_DEVICE:
        raise EngineError(
            f"engine {name} needs a GPU; onnxruntime and torch run on the CPU",
            Fault.MISFIT,
            field="device",
            expected="the number of a GPU",
            found=device,
        )
    kind = cuda.CudaGraph if name == "cuda" else cuda.TensorRTSession
    if reason := cuda.missing(_provider(name), cuda.GROUND_INSTALL):
        raise EngineError(reason, Fault.ABSENT, field=name)
    return Backend(name, f"GPU {device}", partial(kind, device=int(device)), GPU_BATCH)


def _provider(name: str) -> str:
    """The provider of ONNX Runtime behind an engine."""
    from perigee.engines import cuda

    return cuda.PROVIDER if name == "cuda" else cuda.TENSORRT_PROVIDER


def check(backend: Backend, threads: int | None = None) -> None:
    """Compare an engine's synthesis with that of ONNX Runtime on the CPU. Raises EngineError where they differ, or where it does not run."""
    profile = find_profile(DEFAULT_PROFILE)
    half = backend.engine_name == TORCH_HALF
    spread, accepted, share = HALF_TEST if half else FULL_TEST
    shape = (1, profile.contract.widths.latents + 1, *TEST_LATENTS)
    latents = np.random.default_rng(1).normal(0, spread, shape).astype(np.float32)
    latents[:, -1] = 0.5  # the quality plane
    path = profile.file("synthesis.onnx")
    expected, found = (graph(path, threads)({"latents": latents})[0] for graph in (CPU_BACKEND, backend))
    same = found.shape == expected.shape
    difference = float(np.quantile(np.abs(expected - found), 1 - share, method="lower")) if same else np.inf
    if not difference <= accepted:
        raise EngineError(
            f"the self-test of engine {backend.engine_name} on {backend.device} fails: its image differs by {difference:.2g} of full "
            f"scale from that of the CPU; at most {accepted:.2g} is accepted (is TF32 or a lower precision forced?)",
            Fault.SELF_TEST,
            field="engine",
            expected=accepted,
            found=difference,
        )


def driver_missing() -> str | None:
    """Why no NVIDIA GPU can be here, or None."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"no NVIDIA driver is installed ({DRIVER})"
    return None


def missing(name: str, device: str = "0") -> str | None:
    """Why an engine cannot be here at all, found without loading a GPU library; None where only trying can tell."""
    if device != CPU_DEVICE and (reason := driver_missing()):
        return reason
    if name in ("torch", TORCH_HALF):
        absent = [package for package in ("torch", "onnx") if find_spec(package) is None]
        return f"{' and '.join(absent)} missing: pip install '.[torch]' in Perigee's checkout" if absent else None
    if name == CPU_BACKEND.engine_name:
        return None
    from perigee.engines import cuda

    return cuda.missing(_provider(name), cuda.GROUND_INSTALL)


def failing(name: str, device: str) -> str | None:
    """Why an engine does not work, tried in a process of its own; None where its self-test passes."""
    return probing.failing(__name__, [name, device])


def choose(wanted: str = "auto", device: str | None = None, threads: int | None = None) -> GroundChoice:
    """The engine ``wanted`` (one of ``ENGINES``), or with ``auto`` the first that works on the device.

    Raises EngineError or ProfileError where that engine, or with ``auto`` and the number of a GPU any that runs there, cannot be used.
    """
    if wanted != "auto":
        return GroundChoice(load(wanted, device, threads), [])
    passed_over: list[PassedOver] = []
    for name in AUTO if device != CPU_DEVICE else ():
        reason = missing(name) or failing(name, device or "0")
        if reason is None:
            try:
                return GroundChoice(load(name, device, threads), passed_over)
            except Exception as error:  # the probe passed, yet a GPU library may still raise anything
                reason = str(error) or type(error).__name__
        passed_over.append(PassedOver(name, reason))
    if device not in (None, CPU_DEVICE):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
        raise EngineError(f"no engine runs on GPU {device} ({reasons})", Fault.ABSENT, field="device", found=device)
    return GroundChoice(CPU_BACKEND, passed_over)


if __name__ == "__main__":
    sys.exit(probing.tried(lambda: load(sys.argv[1], sys.argv[2])))
