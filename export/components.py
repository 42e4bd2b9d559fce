"""Turns the checkpoint of a component codec into a profile folder: contract, hyper-analysis, known answers and manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import perigee
from perigee.bitstream import lapped
from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.compiled import NativePrior
from perigee.bitstream.component_coding import CodedComponents, encode_components
from perigee.bitstream.component_contract import CENTROID_BUCKETS, ComponentContract
from perigee.bitstream.component_prior import magnitudes_of
from perigee.bitstream.component_profile import ANALYSIS_FILE, component_answer, load_component_profile
from perigee.bitstream.manifest import COMPONENTS, MANIFEST_FILE, MANIFEST_VERSION
from perigee.bitstream.prior import (
    ACCUMULATOR_LIMIT,
    MEAN_FRACTIONS,
    QUALITY_STEPS,
    SCALE_COUNT,
    Z_CLAMP,
    Prediction,
    check_accumulators,
    half,
)
from perigee.bitstream.profile import CONTRACT_FILE, SELF_TEST_FILE
from perigee.bitstream.reconstruction import STEP_BITS
from perigee.bitstream.rounding import Rounding
from perigee.bitstream.tables import WIDE_SCALE_COUNT, Tables
from perigee.engines.components import ComponentEngine
from perigee.export.tables import latent_tables, z_tables
from perigee.models.codec.component import (
    SPREAD_MIN,
    SPREADS_PER_OCTAVE,
    STEPS_PER_OCTAVE,
    WHOLE_STEP,
    ComponentCodec,
)

PATCH_SIDE = 256
SAMPLES_MIN = 400  # latents that a centroid must be measured on
CENTROID_ROUNDS = 2
Array = npt.NDArray[Any]


@torch.no_grad()
def make_contract(codec: ComponentCodec, crops: Sequence[FloatArray], qualities: Sequence[int]) -> ComponentContract:
    """Return the contract of a trained codec.

    Centroids are measured on ``crops``, the coefficients [component, 256, H, W] of training crops, at ``qualities``.
    """
    spreads = SPREAD_MIN * 2.0 ** (np.arange(SCALE_COUNT) / SPREADS_PER_OCTAVE)
    radius, frequencies = latent_tables(spreads)
    steps = 2.0 ** (STEP_BITS + (WHOLE_STEP - np.arange(QUALITY_STEPS + 1)) / STEPS_PER_OCTAVE)
    contract = ComponentContract(
        codec.prior.widths,
        codec.prior.to_integers(),
        Tables(radius, frequencies, z_tables(codec.hyper_prior), WIDE_SCALE_COUNT),
        np.rint(steps).astype(np.uint32),
        codec.prior.base.numpy().astype(np.int8),
        codec.prior.shifts.numpy().astype(np.uint8),
        codec.order.numpy().astype(np.uint8),
        np.array(lapped.LAP, np.int16),
        np.array(lapped.COSINE, np.int16),
        _centroid_table(_expected(codec, spreads)),
        PATCH_SIDE,
    )
    for _ in range(CENTROID_ROUNDS):  # what an encoder chooses depends on the centroids
        contract = replace(contract, centroids=_centroid_table(_measured(contract, codec, crops, qualities)))
    return contract


def _expected(codec: ComponentCodec, spreads: Array) -> Array:
    """Return the centroids of logistic distributions of these spreads, as :func:`_measured` does."""
    far = torch.arange(CENTROID_BUCKETS).float()[None] / 4
    spread = torch.from_numpy(spreads).float()[:, None]
    inward = far - codec.reconstructed(2 * far, torch.zeros(1), spread, narrow=False)
    return inward.numpy()


def _centroid_table(inward: Array) -> Array:
    return np.asarray(np.clip(np.rint(128 * inward), -64, 64), np.int8)


def _measured(
    contract: ComponentContract, codec: ComponentCodec, crops: Sequence[FloatArray], qualities: Sequence[int]
) -> Array:
    """Return how far values lie inwards of the latents that an encoder chooses for them, in steps, [64, 32].

    Rows are scale indices, columns distances of the latent from its mean in quarters of a step. Where too few latents were seen, the
    contract's own centroid stands.
    """
    sums, counts = (np.zeros(SCALE_COUNT * CENTROID_BUCKETS) for _ in range(2))
    rounding, prior = Rounding(contract), NativePrior(contract.widths, contract.layers)
    for crop in crops:
        for quality_step in qualities:
            y = crop * np.float32(2.0**STEP_BITS / int(contract.steps[quality_step]))
            z = torch.round(codec.hyper(torch.from_numpy(y))).clamp(-Z_CLAMP, Z_CLAMP).numpy().astype(np.int32)

            def choose(component: int, k: int, prediction: Prediction, y: FloatArray = y) -> Array:
                start, _ = contract.widths.slice_of(k)
                values = half(y[component][None], k % 2)[0][start : start + len(prediction.mean)]
                chosen = rounding.choose(values, prediction)
                index, distance = prediction.table // MEAN_FRACTIONS, 8 * chosen - prediction.mean
                place = index * CENTROID_BUCKETS + np.minimum(np.abs(distance) + 2 >> 2, CENTROID_BUCKETS - 1)
                used = (index < SCALE_COUNT) & (distance != 0)
                inward = np.sign(distance) * (chosen / 2 - values)
                sums.__iadd__(np.bincount(place[used], inward[used], len(sums)))
                counts.__iadd__(np.bincount(place[used], minlength=len(sums)))
                return chosen

            patch = CodedComponents(
                np.zeros(y.shape, np.int32),
                z,
                (y.shape[1],) * len(y),
                (quality_step,) * len(y),
                np.zeros(y.shape[:2], np.int8),
            )
            encode_components(contract, prior, patch, choose=choose)
    known = counts >= SAMPLES_MIN
    measured = np.where(known, sums / np.maximum(counts, 1), contract.centroids.reshape(-1) / 128)
    return measured.reshape(SCALE_COUNT, CENTROID_BUCKETS)


def _self_test(contract: ComponentContract, seed: int = 22) -> dict[str, Array]:
    """Return the inputs of the self-test, among them the extremes of every clamp, and the answers of the int64 reference."""
    rng = np.random.default_rng(seed)
    w, side = contract.widths, 8
    shape, z_shape = (w.latents, side, side), (w.hyper_latents, side // 4, side // 4)
    falling = np.exp(-np.arange(w.latents) / (w.latents / 5))[:, None, None]
    board = np.indices(shape).sum(0) % 2 * 2 - 1
    most = (1 << 23) - 1
    cases: list[tuple[Array, Array, Array, int, int]] = [
        (np.zeros(shape), np.zeros(z_shape), np.zeros(shape), 0, 0),
        (np.full(shape, most), np.full(z_shape, 64), np.full(shape, most), QUALITY_STEPS, 31),
        (np.full(shape, -most - 1), np.full(z_shape, -64), np.zeros(shape), 125, 1),
        (board * most, rng.choice([-64, 64], z_shape), board * most, QUALITY_STEPS, 15),
    ]
    for number, (size, quality_step) in enumerate(
        ((0.3, 10), (1.0, 50), (4.0, 90), (30.0, 140), (400.0, 200), (9e3, 250))
    ):
        for scale in (1.0, 4 * falling):
            q, before = (np.rint(rng.laplace(0, size * scale, shape)) for _ in range(2))
            hyper = np.rint(rng.normal(0, 3 + number, z_shape)).clip(-64, 64)
            cases.append((q, hyper, before, quality_step, number % 4))
    q = np.stack([case[0] for case in cases]).clip(-most - 1, most).astype(np.int32)
    z = np.stack([case[1] for case in cases]).astype(np.int8)
    before = magnitudes_of(w, np.stack([case[2] for case in cases]).clip(-most - 1, most).astype(np.int32))
    views = np.stack([np.maximum(before, before[:, ::-1]), before], 1)
    quality, component = (np.array([case[i] for case in cases], np.uint8) for i in (3, 4))
    reference = contract.reference(np.int64)
    answers = [
        component_answer(contract, reference, *case) for case in zip(q, z, views, quality, component, strict=True)
    ]
    return {
        "q": q,
        "z": z,
        "views": views,
        "quality_step": quality,
        "component": component,
        "answers": np.stack(answers),
    }


def hyper_analysis_arrays(codec: ComponentCodec) -> dict[str, Array]:
    """Return the weights of the hyper-analysis as the satellite uses them, float32."""
    state = {name: value.numpy() for name, value in codec.hyper.layers.state_dict().items()}
    names = {"0": "point1", "2": "depth1", "3": "point2", "5": "depth2", "6": "point3"}
    out = {}
    for number, name in names.items():
        weight = state[f"{number}.weight"]
        out[f"{name}.weight"] = weight[:, 0] if name.startswith("depth") else weight[:, :, 0, 0]
        out[f"{name}.bias"] = state[f"{number}.bias"]
    return out


def export_components(
    codec: ComponentCodec,
    folder: Path,
    name: str,
    crops: Sequence[FloatArray],
    qualities: Sequence[int],
    training: dict[str, Any],
) -> ComponentContract:
    """Write the profile of a trained codec to ``folder``, check it as it will be loaded, and return its contract."""
    folder.mkdir(parents=True, exist_ok=True)
    contract = make_contract(codec, crops, qualities)
    stored = {
        CONTRACT_FILE: contract.arrays(),
        ANALYSIS_FILE: hyper_analysis_arrays(codec),
        SELF_TEST_FILE: _self_test(contract),
    }
    for file, arrays in stored.items():
        np.savez_compressed(folder / file, **arrays)  # type: ignore[arg-type]  # its last argument has another type
    bounds = check_accumulators(contract.widths, contract.layers)
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "kind": COMPONENTS,
        "name": name,
        "perigee": perigee.__version__,
        "contract": contract.digest.hex(),
        "training": training,
        "accumulator_proof": {"limit": ACCUMULATOR_LIMIT, "largest": max(bounds.values()), "by_layer": bounds},
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in stored},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    ComponentEngine(load_component_profile(folder))
    return contract
