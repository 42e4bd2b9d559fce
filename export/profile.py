"""From a training checkpoint to a profile folder: contract, graphs, self-test vectors, parity report, manifest."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import perigee
from perigee.bitstream.contract import BLOCK, Contract, answer
from perigee.bitstream.errors import ProfileError
from perigee.bitstream.manifest import MANIFEST_FILE, MANIFEST_VERSION
from perigee.bitstream.prior import QUALITY_STEPS, SCALE_COUNT, accumulator_bounds, layer_shapes
from perigee.bitstream.profile import CONSISTENCY_FILE, CONTRACT_FILE, SELF_TEST_FILE, load_profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.export.graph import (
    round_to_half,
    write_analysis,
    write_consistency,
    write_prior,
    write_reconstruction,
    write_synthesis,
)
from perigee.export.tables import make_tables
from perigee.models.codec.codec import SPREAD_MAX, SPREAD_MIN, Codec, config_from, spread_of
from perigee.models.codec.flight import ANALYSIS_STAGES

PATCH_SIDE = 256
LOG_STEP = math.log(SPREAD_MAX / SPREAD_MIN) / (SCALE_COUNT - 1)


def load_checkpoint(path: Path) -> tuple[Codec, dict[str, Any]]:
    """The codec with its averaged weights, and what the checkpoint says of its training. Raises ProfileError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        codec = Codec(config_from(state["codec_config"]))
        codec.load_state_dict(state["mean"])
    except (OSError, KeyError, RuntimeError, TypeError, EOFError) as error:
        raise ProfileError(f"{path}: not a perigee-train checkpoint ({error})") from error
    training = {"config": state["training_config"], "steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}
    return codec.eval(), training


def _landscape(rng: np.random.Generator, side: int) -> np.ndarray[Any, Any]:
    """An image float32 [1, 3, side, side] in 0..1 with the spectrum of natural ones, of random contrast and colour."""
    rows, cols = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    falling = 1 / np.maximum(np.hypot(rows, cols), 1 / side) ** rng.uniform(0.8, 1.6)
    shape = (3, side, side // 2 + 1)
    bands = np.fft.irfft2((rng.normal(size=shape) + 1j * rng.normal(size=shape)) * falling, s=(side, side))
    bands = bands.mean(0) + rng.uniform(0, 0.7) * (bands - bands.mean(0))
    image = rng.uniform(0.15, 0.85, (3, 1, 1)) + rng.uniform(0.02, 0.3) * bands / bands.std()
    return np.asarray(image.clip(0, 1)[None], np.float32)


@torch.no_grad()
def _self_test(contract: Contract, codec: Codec, seed: int = 20) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs and the int64 reference's answers: zeros, every input clamp hit, alternating extremes, random sizes of values,
    and latents as landscapes have them, which wake the channels that noise leaves asleep."""
    rng = np.random.default_rng(seed)
    w = contract.widths
    side = 8
    shape_q, shape_z = (w.latents, side, side), (w.hyper_latents, side // 4, side // 4)
    board = (np.indices(shape_q).sum(0) % 2 * 2 - 1) * 32767
    falling = np.exp(-np.arange(w.latents) / (w.latents / 5))[:, None, None]  # as real latents: first channels large
    cases = [
        (np.zeros(shape_q), np.zeros(shape_z), 0),
        (np.full(shape_q, 32767), np.full(shape_z, 64), QUALITY_STEPS),
        (np.full(shape_q, -32768), np.full(shape_z, -64), 125),
        (board, rng.choice([-64, 64], shape_z), QUALITY_STEPS),
    ]
    for spread, step in ((0.3, 30), (1.5, 110), (6.0, 190), (40.0, 250)):
        for profile in (1.0, 4 * falling):
            hyper = np.round(rng.normal(0, 2 + spread / 4, shape_z)).clip(-64, 64)
            cases.append((np.round(rng.laplace(0, spread * profile, shape_q)), hyper, step))
    for step in (15, 45, 75, 105, 135, 165, 195, 225):
        image = torch.from_numpy(_landscape(rng, BLOCK * side))
        y, latent_z = codec.latents(image, torch.full((1,), float(step)), codec.config.presets[0])
        cases.append((np.rint(y[0].numpy()), np.rint(latent_z[0].numpy()).clip(-64, 64), step))
    q = np.stack([c[0] for c in cases]).astype(np.int16)
    z = np.stack([c[1] for c in cases]).astype(np.int8)
    steps = np.array([c[2] for c in cases], np.uint8)
    reference = contract.reference(np.int64)
    answers = [
        answer(reference.all_passes(z[i : i + 1].astype(np.int32), q[i : i + 1].astype(np.int32), int(steps[i])))
        for i in range(len(cases))
    ]
    return {"q": q, "z": z, "quality_step": steps, "answers": np.stack(answers)}


@torch.no_grad()
def _parity(codec: Codec, folder: Path, seed: int = 7) -> dict[str, Any]:
    """Differences between the exported graphs in ONNX Runtime and the trained modules, on structured noise."""
    profile = load_profile(folder)
    flights = {preset: FlightEngine(profile, threads=2, analysis=preset) for preset in codec.config.presets}
    ground = GroundEngine(profile, threads=2)
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[0:256, 0:256]
    waves = sum(
        np.sin(rows * rng.uniform(-0.4, 0.4) + cols * rng.uniform(-0.4, 0.4) + rng.uniform(0, 6)) for _ in range(8)
    )
    image = np.stack([0.5 + 0.05 * waves + rng.normal(0, 0.02, waves.shape) for _ in range(3)])[None].astype(np.float32)
    report: dict[str, Any] = {
        "quality_steps": [25, 125, 225],
        "latents_differing": [],
        "scale_indices_differing": [],
        "pixels_max_difference": [],
    }
    for step in report["quality_steps"]:
        quality = torch.tensor([float(step)])
        differing = 0
        for preset, flight in flights.items():
            y, z = codec.latents(torch.from_numpy(image), quality, preset)
            q_engine, z_engine = flight.analyse(image, step)
            differing += int((torch.round(y).numpy() != q_engine).sum())
        report["latents_differing"].append(differing)
        q = torch.from_numpy(q_engine).float()
        codec.prior.quantised = True
        mean, index = codec.prior(torch.from_numpy(z_engine).float(), q, quality)
        found = ground.predict(z_engine, q_engine, step)
        report["scale_indices_differing"].append(
            int((found.scale_index != index.numpy()).sum() + (found.mean != 16 * mean.numpy()).sum())
        )
        expected = codec.synthesis(codec.reconstruction(q, mean, spread_of(index), quality)).numpy()
        got = ground.synthesise(ground.reconstruct(q_engine, found.mean, found.scale_index, step))
        report["pixels_max_difference"].append(float(np.abs(expected - got).max() * 255))
    return report


def export_profile(checkpoint: Path, folder: Path, name: str, card: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write a complete profile to ``folder`` (which must not hold one yet) and return its manifest.

    Raises ProfileError for an unusable checkpoint or an existing profile.
    """
    if (folder / MANIFEST_FILE).exists():
        raise ProfileError(f"{folder} holds a profile already; export to a new folder")
    codec, training = load_checkpoint(checkpoint)
    for module in (codec.analysis, codec.hyper, codec.synthesis):
        round_to_half(module)
    folder.mkdir(parents=True, exist_ok=True)
    widths = codec.config.prior
    contract = Contract(
        widths,
        codec.prior.to_integers(),
        make_tables(codec.hyper_prior),
        codec.gains.knots.detach().numpy().astype(np.float32),
        PATCH_SIDE,
    )
    np.savez_compressed(folder / CONTRACT_FILE, **contract.arrays())  # type: ignore[arg-type]
    np.savez_compressed(folder / SELF_TEST_FILE, **_self_test(contract, codec))  # type: ignore[arg-type]
    analyses = {preset: f"analysis-{preset}.onnx" for preset in codec.config.presets}
    for preset, file in analyses.items():
        write_analysis(codec.analysis, preset, codec.gains, codec.hyper, folder / file)
    linear = [preset for preset in codec.config.presets if ANALYSIS_STAGES.get(preset, ...) is None]
    if linear:
        write_consistency(codec.analysis.linear, folder / CONSISTENCY_FILE)
    write_reconstruction(codec.reconstruction, SPREAD_MIN, LOG_STEP, folder / "reconstruction.onnx")
    write_synthesis(codec.synthesis, folder / "synthesis.onnx")
    files = [CONTRACT_FILE, SELF_TEST_FILE, *analyses.values(), "reconstruction.onnx", "synthesis.onnx"]
    files += [CONSISTENCY_FILE] if linear else []
    files += write_prior(widths, contract.layers, folder)
    shapes = layer_shapes(widths)
    bounds = {n: int(accumulator_bounds(shapes[n], layer).max()) for n, layer in contract.layers.items()}
    manifest: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "name": name,
        "perigee": perigee.__version__,
        "contract": contract.digest.hex(),
        "analyses": analyses,
        "linear": linear,
        "quality_lambda": [codec.config.lambda_min, codec.config.lambda_max],
        "training": training,
        "accumulator_proof": {"limit": 1 << 24, "largest": max(bounds.values()), "by_layer": bounds},
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files},
        **(card or {}),
    }
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    manifest["parity"] = _parity(codec, folder)
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
