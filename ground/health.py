"""``ground-serve doctor``: what this machine has, which engines pass their self-tests, and how fast they decode and restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.conditions import COMPENSATION_WINDOW, FIELDS, coding_condition
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import EngineError, PerigeeError
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.engines import enhancer as enhancers
from perigee.engines import ground_choice
from perigee.engines.backend import CPU_BACKEND, CPU_DEVICE, Backend
from perigee.engines.ground import GroundEngine
from perigee.engines.ground_components import GroundComponents
from perigee.ground.compensation import compensator as compensators
from perigee.support.findings import Finding, machine_findings

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "rasterio", "fastapi", "constriction")
SIDE = 32  # blocks on the side of the window that is timed, 512 pixels
QUALITY_STEP = 100
RUNS = 3
CONDITION = coding_condition(0.5, "jpeg2000")


def _median_s(run: Callable[[], object]) -> float:
    """Seconds of a call, after one that is not counted."""
    run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _engine(name: str, device: str | None) -> tuple[Finding, Backend | None]:
    """Whether an engine works here, found in a process of its own; one that is not here is no fault."""
    where = device or (CPU_DEVICE if name == CPU_BACKEND.engine_name else "0")
    try:
        absent = ground_choice.missing(name, where)
        reason = absent or ground_choice.failing(name, where)
        backend = None if reason else ground_choice.load(name, where)
    except EngineError as error:
        absent, reason, backend = None, str(error), None
    if backend is None:
        return Finding(
            f"engine {name}", None if absent else False, f"not here: {absent}" if absent else str(reason)
        ), None
    passed = "self-test passed" if backend is not CPU_BACKEND else "what the self-tests of the others compare with"
    return Finding(f"engine {name}", True, f"{passed}, on {backend.device}"), backend


def _prior(threads: int | None) -> Finding:
    """How fast the exact prior is, which runs on the CPU whatever the engine."""
    engine = GroundEngine(find_profile(DEFAULT_PROFILE), threads)
    widths = engine.profile.contract.widths
    z = np.zeros((1, widths.hyper_latents, SIDE // 8, SIDE // 8), np.int32)
    q = np.zeros((1, widths.latents, SIDE // 2, SIDE // 2), np.int32)
    seconds = _median_s(lambda: engine.predict(z, q, QUALITY_STEP))
    return Finding("speed of the prior", None, _speed((SIDE // 2 * BLOCK) ** 2, seconds) + " a thread, all passes")


def _speed(pixels: int, seconds: float, unit: str = "Mpx/s") -> str:
    return f"{pixels / seconds / 1e6:.2f} {unit}"


def _decoding(backend: Backend, threads: int | None) -> Iterator[Finding]:
    """The synthesis of both default profiles, projection included."""
    rng = np.random.default_rng(1)
    engine = GroundEngine(find_profile(DEFAULT_PROFILE), threads, backend)
    widths = engine.profile.contract.widths
    latents = rng.normal(0, 1, (1, widths.latents + 1, SIDE, SIDE)).astype(np.float32)
    low = np.full((1, widths.latents, SIDE, SIDE), -np.inf, np.float32)
    pixels = (SIDE * BLOCK) ** 2
    seconds = _median_s(lambda: engine.project_to_cells(engine.synthesise(latents), low, -low))
    what = f"speed on {backend.engine_name}"
    yield Finding(what, None, f"synthesis of {DEFAULT_PROFILE}: {_speed(pixels, seconds)}")
    components = GroundComponents(find_component_profile(DEFAULT_COMPONENTS), threads, backend=backend)
    if components.can_synthesise:
        shape = (1, components.profile.contract.widths.latents, SIDE, SIDE)
        inner = rng.normal(0, 1, shape).astype(np.float32)
        index = np.full(shape, 10, np.float32)
        plane = rng.normal(0, 1, (1, 1, SIDE * BLOCK, SIDE * BLOCK)).astype(np.float32)
        quality = np.full((1, 1, SIDE, SIDE), 0.3, np.float32)
        seconds = _median_s(lambda: components.synthesise(inner, index, plane, plane, quality))
        yield Finding(what, None, f"synthesis of {DEFAULT_COMPONENTS}: {_speed(pixels, seconds, 'Msamples/s')}")


def _restoring(backend: Backend, threads: int | None) -> Iterator[Finding]:
    """Every compensator by each of its methods, and every enhancer, on one window."""
    rng = np.random.default_rng(2)
    side, what = COMPENSATION_WINDOW, f"speed on {backend.engine_name}"
    base = rng.random((1, 3, side, side), np.float32)
    contract = find_profile(DEFAULT_PROFILE).contract
    latents = rng.random((1, contract.widths.latents + 1, side // BLOCK, side // BLOCK), np.float32)
    for name, folder in compensators.shipped_folders().items():
        c = compensators.Compensator(folder, threads, backend=backend)
        if contract.digest not in c.contracts:
            continue
        for method in c.methods:
            seconds = _median_s(lambda c=c, method=method: _restored(c, method, base, latents))  # type: ignore[misc]
            steps = f", {c.settings.default_steps} steps" if method == compensators.DIFFUSION else ""
            yield Finding(what, None, f"compensator {name}:{method}{steps}: {_speed(side * side, seconds)}")
    for name, folder in enhancers.shipped_enhancers().items():
        e = enhancers.Enhancer(folder, threads, backend)
        noise = np.zeros((e.tokens, *[enhancers.WINDOW // enhancers.TOKEN] * 2), np.float32) if e.tokens else None
        image = rng.random((3, enhancers.WINDOW, enhancers.WINDOW), np.float32)
        seconds = _median_s(lambda e=e, image=image, noise=noise: e.added(image, CONDITION, noise))  # type: ignore[misc]
        yield Finding(what, None, f"enhancer {name}: {_speed(enhancers.WINDOW**2, seconds)}")


def _restored(c: compensators.Compensator, method: str, base: FloatArray, latents: FloatArray) -> None:
    """What a compensator computes for a window."""
    features = c.features(base, latents)
    side = base.shape[-1]
    c.one_step(features, base, np.zeros((1, c.settings.noise, side // 2, side // 2), np.float32))
    if method == compensators.ONE_STEP:
        return
    z = np.zeros((1, 4, side // 8, side // 8), np.float32)
    values, known = np.zeros((len(FIELDS), 2), np.float32), np.zeros(len(FIELDS), np.float32)
    for _ in range(c.settings.default_steps):
        z = c.denoise(z, 1.0, features, latents, values, known)
    c.remainder(features, z)


def examine(device: str | None = None, threads: int | None = None) -> Iterator[Finding]:
    """All findings, one after the other; ``device`` is the number of a GPU, or ``cpu``."""
    yield from machine_findings(PACKAGES)
    driver = ground_choice.driver_missing()
    yield Finding("GPU driver", None, f"not here: {driver}" if driver else "NVIDIA")
    yield _prior(threads)
    for name in ground_choice.ENGINES:
        if device == CPU_DEVICE and name not in ground_choice.ON_CPU:
            continue
        finding, backend = _engine(name, None if name == CPU_BACKEND.engine_name else device)
        yield finding
        if backend is not None:
            try:
                yield from _decoding(backend, threads)
                yield from _restoring(backend, threads)
            except PerigeeError as error:
                yield Finding(f"engine {name}", False, str(error))
