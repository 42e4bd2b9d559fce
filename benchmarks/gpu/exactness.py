"""Whether a GPU gives the same symbols, and how near its pixels are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perigee.benchmarks.gpu.speed import Timed
from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.errors import BitstreamError
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile
from perigee.engines.backend import CPU_BACKEND, CPU_DEVICE, Backend
from perigee.engines.flight import FlightEngine
from perigee.engines.graph import HYPER_PRIOR, GraphPrior
from perigee.engines.ground import GroundEngine
from perigee.engines.torch import TorchGraph, device_named
from perigee.ground.decoder import SceneDecoder
from perigee.ground.regions import Region

QUALITY_STEPS = (25, 100, 200)
GREY_LEVELS = 255


def _place(device: str) -> str:
    return device_named(device)[0]


def _loader(device: str) -> Backend:
    place = _place(device)
    return Backend("torch", device, lambda path, threads: TorchGraph(path, threads, place))


def _on_device(profile: Profile, device: str) -> GraphPrior:
    """The prior of a profile, pass by pass on the device."""
    widths, load = profile.contract.widths, _loader(device)
    passes = [load(profile.file(f"prior_pass{k}.onnx")) for k in range(widths.passes)]
    return GraphPrior(widths, hyper=load(profile.file(HYPER_PRIOR)), passes=passes)


def _profile_of(path: Path) -> Profile:
    """The profile of a golden stream, which its name tells: version, profile, contract and kind."""
    return find_profile(path.name.split("_")[1])


def _units(decoder: SceneDecoder) -> list[int]:
    return [unit for unit, segment in decoder.stream.segments.items() if segment.mode == fmt.NETWORK]


def symbols(streams: Sequence[Path], device: str) -> dict[str, Any]:
    """Decode streams with the prior on the device; segments whose symbols are others than the encoder's are counted."""
    found: dict[str, Any] = {"streams": 0, "symbols": 0, "segments that differ": 0, "profiles": set()}
    for path in streams:
        profile = _profile_of(path)
        if not profile.manifest.has(HYPER_PRIOR):  # superseded profiles come without graphs
            continue
        prior = _on_device(profile, device)
        profile.self_test(prior)
        decoder = SceneDecoder(parse_stream(path.read_bytes()), GroundEngine(profile, prior=prior))
        for unit in _units(decoder):
            try:
                found["symbols"] += int(decoder.symbols(unit).q.size)
            except BitstreamError:
                found["segments that differ"] += 1
        found["streams"] += 1
        found["profiles"].add(profile.name)
    return found | {"profiles": sorted(found["profiles"])}


def _images(streams: Sequence[Path]) -> list[FloatArray]:
    """What the default profile's golden streams show, float32 [1, 3, 256, 256] in 0..1."""
    images = []
    for path in streams:
        if _profile_of(path).name == DEFAULT_PROFILE:
            decoder = SceneDecoder(parse_stream(path.read_bytes()), GroundEngine(_profile_of(path)))
            region = Region(0, 0, min(256, decoder.height) // 64 * 64, min(256, decoder.width) // 64 * 64)
            if region.rows and region.cols:
                images.append(np.asarray(decoder.image(0, region)[None], np.float32))
    return images


def analyses(streams: Sequence[Path], device: str) -> dict[str, Any]:
    """Analyses of the default profile on the device against the CPU: latents that differ, and whether the priors agree on what was coded."""
    profile = find_profile(DEFAULT_PROFILE)
    found: dict[str, Any] = {}
    for name in profile.analyses:
        cpu, gpu = FlightEngine(profile, analysis=name), FlightEngine(profile, graph=_loader(device), analysis=name)
        latents = differing = priors = 0
        for image in _images(streams):
            for step in QUALITY_STEPS:
                (q, _), (q_gpu, z_gpu) = cpu.analyse(image, step), gpu.analyse(image, step)
                latents += q.size
                differing += int((q != q_gpu).sum())
                priors += _differing(cpu, gpu, z_gpu.astype(np.int32), q_gpu.astype(np.int32), step)
        found[name] = {"latents": latents, "differing": differing, "predictions that differ": priors}
    return found


def _differing(cpu: FlightEngine, gpu: FlightEngine, z: IntArray, q: IntArray, step: int) -> int:
    pairs = zip(cpu.prior.all_passes(z, q, step), gpu.prior.all_passes(z, q, step), strict=True)
    return sum(int((a.table != b.table).sum()) + int((a.mean != b.mean).sum()) for a, b in pairs)


def pixels(streams: Sequence[Path], backend: Backend) -> dict[str, Any]:
    """Decoded samples on the backend against ONNX Runtime on the CPU."""
    samples = differing = largest = 0
    for path in streams:
        profile, data = _profile_of(path), path.read_bytes()
        decoders = [SceneDecoder(parse_stream(data), GroundEngine(profile, backend=b)) for b in (CPU_BACKEND, backend)]
        region = Region(0, 0, decoders[0].height, decoders[0].width)
        one, two = (d.region(region).samples.astype(np.int64) for d in decoders)
        samples += one.size
        differing += int((one != two).sum())
        largest = max(largest, int(np.abs(one - two).max()))
    return {"samples": samples, "differing": differing, "largest difference in counts": largest}


def half(device: str, timed: Timed) -> dict[str, Any]:
    """The synthesis in half precision: how many grey levels it moves, and its speed by batch, which a CPU emulates and is not asked for. For
    information: no engine uses it."""
    profile = find_profile(DEFAULT_PROFILE)
    path = profile.file("synthesis.onnx")
    kind, dtype = ("cpu", torch.bfloat16) if device == CPU_DEVICE else ("cuda", torch.float16)
    graph = TorchGraph(path, None, _place(device))
    shape = (1, profile.contract.widths.latents + 1, 16, 16)
    latents = np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
    latents[:, -1] = 0.5

    def run(feeds: dict[str, Any]) -> list[Any]:
        with torch.autocast(kind, dtype):
            return graph(feeds)

    one, two = (
        np.rint(np.clip(GREY_LEVELS * f({"latents": latents})[0], 0, GREY_LEVELS)) for f in (CPU_BACKEND(path), run)
    )
    return {
        "type": str(dtype),
        "equal samples": float((one == two).mean()),
        "largest difference in grey levels": int(np.abs(one - two).max()),
        "speed": [] if device == CPU_DEVICE else timed.by_batch(run, {"latents": latents}, 256 * 256),
    }
