"""Turns a training checkpoint into a profile folder: contract, graphs, known answers, parity report and manifest."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import perigee
from perigee.bitstream.contract import BLOCK, Contract, answer
from perigee.bitstream.errors import Fault, OutputError
from perigee.bitstream.manifest import MANIFEST_FILE, MANIFEST_VERSION
from perigee.bitstream.prior import (
    ACCUMULATOR_LIMIT,
    MEAN_FRACTIONS,
    QUALITY_STEPS,
    SCALE_COUNT,
    accumulator_bounds,
    layer_shapes,
)
from perigee.bitstream.profile import CONSISTENCY_FILE, CONTRACT_FILE, SELF_TEST_FILE, load_profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.export.codec_graph import write_analysis, write_consistency, write_reconstruction, write_synthesis
from perigee.export.graph import round_to_half
from perigee.export.prior_graph import write_prior
from perigee.export.tables import make_tables
from perigee.models.checkpoint import load_codec
from perigee.models.codec.analysis import ANALYSIS_STAGES
from perigee.models.codec.codec import SPREAD_MAX, SPREAD_MIN, Codec, spread_of

PATCH_SIDE = 256
LOG_STEP = math.log(SPREAD_MAX / SPREAD_MIN) / (SCALE_COUNT - 1)
RECONSTRUCTION_FILE, SYNTHESIS_FILE = "reconstruction.onnx", "synthesis.onnx"
PARITY_QUALITY_STEPS = [25, 125, 225]
Array = npt.NDArray[Any]
Case = tuple[Array, Array, int]  # symbols, hyper-latents and quality step of a self-test


def _landscape(rng: np.random.Generator, side: int) -> Array:
    """Return an image float32 [1, 3, side, side] in 0..1 with the spectrum of natural ones, of random contrast and colour."""
    rows, cols = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    falling = 1 / np.maximum(np.hypot(rows, cols), 1 / side) ** rng.uniform(0.8, 1.6)
    shape = (3, side, side // 2 + 1)
    bands = np.fft.irfft2((rng.normal(size=shape) + 1j * rng.normal(size=shape)) * falling, s=(side, side))
    bands = bands.mean(0) + rng.uniform(0, 0.7) * (bands - bands.mean(0))
    image = rng.uniform(0.15, 0.85, (3, 1, 1)) + rng.uniform(0.02, 0.3) * bands / bands.std()
    return np.asarray(image.clip(0, 1)[None], np.float32)


def _self_test_cases(contract: Contract, codec: Codec, rng: np.random.Generator) -> list[Case]:
    """Return the inputs of the self-test.

    They are zeros, values that reach every clamp of the inputs, alternating extremes, random values of several sizes, and
    latents as landscapes have them, which use channels that noise does not reach.
    """
    w = contract.widths
    side = 8
    shape_q, shape_z = (w.latents, side, side), (w.hyper_latents, side // 4, side // 4)
    board = (np.indices(shape_q).sum(0) % 2 * 2 - 1) * 32767
    falling = np.exp(-np.arange(w.latents) / (w.latents / 5))[:, None, None]  # the first real latents are the largest
    cases: list[Case] = [
        (np.zeros(shape_q), np.zeros(shape_z), 0),
        (np.full(shape_q, 32767), np.full(shape_z, 64), QUALITY_STEPS),
        (np.full(shape_q, -32768), np.full(shape_z, -64), 125),
        (board, rng.choice([-64, 64], shape_z), QUALITY_STEPS),
    ]
    for spread, quality_step in ((0.3, 30), (1.5, 110), (6.0, 190), (40.0, 250)):
        for sizes in (1.0, 4 * falling):
            hyper = np.round(rng.normal(0, 2 + spread / 4, shape_z)).clip(-64, 64)
            cases.append((np.round(rng.laplace(0, spread * sizes, shape_q)), hyper, quality_step))
    for quality_step in (15, 45, 75, 105, 135, 165, 195, 225):
        image = torch.from_numpy(_landscape(rng, BLOCK * side))
        y, z = codec.latents(image, torch.full((1,), float(quality_step)), codec.config.analyses[0])
        cases.append((np.rint(y[0].numpy()), np.rint(z[0].numpy()).clip(-64, 64), quality_step))
    return cases


@torch.no_grad()
def _self_test(contract: Contract, codec: Codec, seed: int = 20) -> dict[str, Array]:
    """Return the inputs of the self-test and the answers of the int64 reference to them."""
    cases = _self_test_cases(contract, codec, np.random.default_rng(seed))
    q = np.stack([case[0] for case in cases]).astype(np.int16)
    z = np.stack([case[1] for case in cases]).astype(np.int8)
    quality_steps = np.array([case[2] for case in cases], np.uint8)
    reference = contract.reference(np.int64)
    answers = [
        answer(reference.all_passes(z[i : i + 1].astype(np.int32), q[i : i + 1].astype(np.int32), int(quality_step)))
        for i, quality_step in enumerate(quality_steps)
    ]
    return {"q": q, "z": z, "quality_step": quality_steps, "answers": np.stack(answers)}


def _parity_image(rng: np.random.Generator) -> Array:
    """Return an image float32 [1, 3, 256, 256] of waves and noise."""
    rows, cols = np.mgrid[0:256, 0:256]
    waves = sum(
        np.sin(rows * rng.uniform(-0.4, 0.4) + cols * rng.uniform(-0.4, 0.4) + rng.uniform(0, 6)) for _ in range(8)
    )
    noisy = [0.5 + 0.05 * waves + rng.normal(0, 0.02, waves.shape) for _ in range(3)]
    return np.asarray(np.stack(noisy)[None], np.float32)


@torch.no_grad()
def _parity(codec: Codec, folder: Path, seed: int = 7) -> dict[str, Any]:
    """Return the differences between the exported graphs in ONNX Runtime and the trained modules.

    At each quality step: the number of latents that differ, over all analyses; and, on the symbols of the last analysis, the
    number of means and scale indices that differ, and the largest difference of a pixel in grey levels.
    """
    profile = load_profile(folder)
    flights = {name: FlightEngine(profile, threads=2, analysis=name) for name in codec.config.analyses}
    ground = GroundEngine(profile, threads=2)
    image = _parity_image(np.random.default_rng(seed))
    latents_differing, scales_differing, pixels = [], [], []
    for quality_step in PARITY_QUALITY_STEPS:
        quality = torch.tensor([float(quality_step)])
        symbols = {name: flight.analyse(image, quality_step) for name, flight in flights.items()}
        expected_y = {name: codec.latents(torch.from_numpy(image), quality, name)[0] for name in flights}
        latents_differing.append(
            sum(int((torch.round(expected_y[name]).numpy() != q).sum()) for name, (q, _) in symbols.items())
        )
        q_engine, z_engine = symbols[codec.config.analyses[-1]]
        q = torch.from_numpy(q_engine).float()
        codec.prior.quantised = True
        mean, index = codec.prior(torch.from_numpy(z_engine).float(), q, quality)
        found = ground.predict(z_engine, q_engine, quality_step)
        scales_differing.append(
            int((found.scale_index != index.numpy()).sum() + (found.mean != MEAN_FRACTIONS * mean.numpy()).sum())
        )
        expected = codec.synthesis(codec.reconstruction(q, mean, spread_of(index), quality)).numpy()
        got = ground.synthesise(ground.reconstruct(q_engine, found.mean, found.scale_index, quality_step))
        pixels.append(float(np.abs(expected - got).max() * 255))
    return {
        "quality_steps": PARITY_QUALITY_STEPS,
        "latents_differing": latents_differing,
        "scale_indices_differing": scales_differing,
        "pixels_max_difference": pixels,
    }


def _write_graphs(codec: Codec, contract: Contract, folder: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Write all graphs; return the files of the analyses by name, the names of the linear analyses, and all files."""
    analyses = {name: f"analysis-{name}.onnx" for name in codec.config.analyses}
    for name, file in analyses.items():
        write_analysis(codec.analysis, name, codec.gains, codec.hyper, folder / file)
    linear = [name for name in analyses if ANALYSIS_STAGES.get(name, ...) is None]
    if linear:
        write_consistency(codec.analysis.linear, folder / CONSISTENCY_FILE)
    write_reconstruction(codec.reconstruction, SPREAD_MIN, LOG_STEP, folder / RECONSTRUCTION_FILE)
    write_synthesis(codec.synthesis, folder / SYNTHESIS_FILE)
    files = [*analyses.values(), RECONSTRUCTION_FILE, SYNTHESIS_FILE, *([CONSISTENCY_FILE] if linear else [])]
    return analyses, linear, files + write_prior(contract.widths, contract.layers, folder)


def export_profile(checkpoint: Path, folder: Path, name: str, card: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write a complete profile to ``folder`` and return its manifest; ``card`` adds entries to the manifest.

    Raises OutputError where the folder holds a profile already, CheckpointError for an unusable checkpoint, and OSError where
    files cannot be read or written.
    """
    if (folder / MANIFEST_FILE).exists():
        raise OutputError(
            f"{folder} already holds a profile; export to a new folder", Fault.EXISTS, field="folder", found=str(folder)
        )
    codec, training = load_codec(checkpoint)
    for module in (codec.analysis, codec.hyper, codec.synthesis):
        round_to_half(module)
    folder.mkdir(parents=True, exist_ok=True)
    contract = Contract(
        codec.config.prior,
        codec.prior.to_integers(),
        make_tables(codec.hyper_prior),
        codec.gains.knots.detach().numpy().astype(np.float32),
        PATCH_SIDE,
    )
    np.savez_compressed(folder / CONTRACT_FILE, **contract.arrays())  # type: ignore[arg-type]
    np.savez_compressed(folder / SELF_TEST_FILE, **_self_test(contract, codec))  # type: ignore[arg-type]
    analyses, linear, graphs = _write_graphs(codec, contract, folder)
    files = [CONTRACT_FILE, SELF_TEST_FILE, *graphs]
    shapes = layer_shapes(contract.widths)
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
        "accumulator_proof": {"limit": ACCUMULATOR_LIMIT, "largest": max(bounds.values()), "by_layer": bounds},
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files},
        **(card or {}),
    }
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    manifest["parity"] = _parity(codec, folder)
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
