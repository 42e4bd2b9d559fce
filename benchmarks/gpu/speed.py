"""How fast an engine is on its device, by batch, and what energy it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from perigee.benchmarks.gpu.machine import Watts
from perigee.bitstream.arrays import Array
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, SYNTHESIS_FILE, find_component_profile
from perigee.bitstream.conditions import COMPENSATION_WINDOW, FIELDS, coding_condition
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile
from perigee.engines import enhancer as enhancers
from perigee.engines.backend import Backend
from perigee.engines.graph import Graph
from perigee.ground.compensation import compensator as compensators

PATCH, MARGIN = 16, 8  # latents on the side of a patch, and around a window
ENERGY_S = 10.0
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Timed:
    """Times calls for ``seconds`` each, at the sizes of ``batches``."""

    seconds: float
    batches: tuple[int, ...]

    def ms(self, run: Callable[[], object]) -> dict[str, float]:
        """Percentiles of the milliseconds of a call, after two that are not counted."""
        run(), run()
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - start))
        return {f"p{n}": round(float(np.percentile(times, n)), 3) for n in (50, 95, 99)} | {"runs": len(times)}

    def by_batch(self, graph: Graph, feeds: Feeds, pixels: int) -> list[dict[str, Any]]:
        """Times and Mpx/s by batch; each image has so many pixels. It ends with the first batch that does not fit."""
        rows = []
        for batch in self.batches:
            many = {name: np.ascontiguousarray(np.repeat(array, batch, 0)) for name, array in feeds.items()}
            try:
                times = self.ms(lambda many=many: graph(many))  # type: ignore[misc]
            except Exception as error:
                rows.append({"batch": batch, "failed": str(error)[:200]})
                break
            rows.append(
                {
                    "batch": batch,
                    "ms": times,
                    "Mpx/s": round(batch * pixels / times["p50"] / 1000, 2),
                    **_alike(graph, feeds, many),
                }
            )
        return rows


def _alike(graph: Graph, feeds: Feeds, many: Feeds) -> dict[str, float]:
    """How much the first image of a batch differs from the same image alone."""
    return {"differs from alone by": float(np.abs(graph(many)[0][:1] - graph(feeds)[0]).max())}


def _latents(count: int, side: int) -> Array:
    latents = np.random.default_rng(1).normal(0, 1, (1, count, side, side)).astype(np.float32)
    latents[:, -1] = 0.5
    return latents


def synthesis(backend: Backend, timed: Timed, device: str) -> dict[str, Any]:
    """The synthesis of both default profiles: of one patch, and of a window of four by four; joules of the best batch of patches."""
    profile = find_profile(DEFAULT_PROFILE)
    graph, planes = backend(profile.file("synthesis.onnx")), profile.contract.widths.latents + 1
    out: dict[str, Any] = {}
    patch = {"latents": _latents(planes, PATCH + 2 * MARGIN)}
    out["patches of 256x256 with their margin"] = rows = timed.by_batch(graph, patch, (PATCH * BLOCK) ** 2)
    window = {"latents": _latents(planes, 4 * PATCH + 2 * MARGIN)}
    few = Timed(timed.seconds, tuple(b for b in timed.batches if b <= (1 if backend.on_cpu else 4)))
    out["windows of 1024x1024 with their margin"] = few.by_batch(graph, window, (4 * PATCH * BLOCK) ** 2)
    best = max((row for row in rows if "Mpx/s" in row), key=lambda row: float(row["Mpx/s"]))
    many = {"latents": np.repeat(patch["latents"], best["batch"], 0)}
    with Watts(device) as watts:
        end, runs, start = time.perf_counter() + min(ENERGY_S, 4 * timed.seconds), 0, time.perf_counter()
        while time.perf_counter() < end:
            graph(many)
            runs += 1
        seconds = time.perf_counter() - start
    if watts.mean is not None:
        megapixels = runs * best["batch"] * (PATCH * BLOCK) ** 2 / 1e6
        out["watts"], out["J/Mpx"] = round(watts.mean, 1), round(watts.mean * seconds / megapixels, 3)
    components = find_component_profile(DEFAULT_COMPONENTS)
    side, inner = PATCH, components.contract.widths.latents
    plane = np.random.default_rng(2).normal(0, 1, (1, 1, side * BLOCK, side * BLOCK)).astype(np.float32)
    feeds = {
        "latents": _latents(inner, side),
        "index": np.full((1, inner, side, side), 10, np.float32),
        "plane": plane,
        "guide": plane,
        "quality": np.full((1, 1, side, side), 0.3, np.float32),
    }
    out["components of 256x256"] = timed.by_batch(backend(components.file(SYNTHESIS_FILE)), feeds, plane.size)
    return out


def restoring(backend: Backend, timed: Timed) -> dict[str, Any]:
    """Compensators by method and enhancers, on one window of 256x256 pixels. LDM-RSIC names 0.213 s for its enhancement on a 3090 Ti."""
    side, rng = COMPENSATION_WINDOW, np.random.default_rng(4)
    contract = find_profile(DEFAULT_PROFILE).contract
    base = rng.random((1, 3, side, side), np.float32)
    latents = _latents(contract.widths.latents + 1, side // BLOCK)
    out: dict[str, Any] = {}
    for name, folder in compensators.shipped_folders().items():
        c = compensators.Compensator(folder, backend=backend)
        if contract.digest not in c.contracts:
            continue
        out[f"{name}: features"] = timed.ms(lambda c=c: c.features(base, latents))  # type: ignore[misc]
        features = c.features(base, latents)
        noise = np.zeros((1, c.settings.noise, side // 2, side // 2), np.float32)
        if compensators.ONE_STEP in c.methods:
            out[f"{name}: one step"] = timed.ms(lambda c=c, f=features, n=noise: c.one_step(f, base, n))  # type: ignore[misc]
        if compensators.DIFFUSION in c.methods:
            z = np.zeros((1, 4, side // 8, side // 8), np.float32)
            values, known = np.zeros((len(FIELDS), 2), np.float32), np.zeros(len(FIELDS), np.float32)
            out[f"{name}: a step of diffusion"] = timed.ms(
                lambda c=c, f=features, z=z, v=values, k=known: c.denoise(z, 1.0, f, latents, v, k)  # type: ignore[misc]
            )
            out[f"{name}: its decoder"] = timed.ms(lambda c=c, f=features, z=z: c.decode(f, z))  # type: ignore[misc]
    for name, folder in enhancers.shipped_enhancers().items():
        e = enhancers.Enhancer(folder, backend=backend)
        image = rng.random((3, enhancers.WINDOW, enhancers.WINDOW), np.float32)
        out[f"enhancer {name}"] = timed.ms(lambda e=e, image=image: e.added(image, coding_condition(0.5, "jpeg2000")))  # type: ignore[misc]
    return out
