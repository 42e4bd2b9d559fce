"""Do all engines agree? ``python -m perigee.benchmarks.exactness``: the test matrix of the integer prior as a report.

Every tile is encoded at several qualities by every flight engine and decoded by every prior; what differs is counted in
symbols. Beside it, what is avoided: the same prior as a naive float network, run twice with different arithmetic.

Numpy's float64 stands for the integers in the circle over all tiles: by the accumulator proof it holds every sum exactly,
and the matrix of the prior alone compares it with int64.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from perigee.benchmarks.common import images, sample_folder, table, write_report
from perigee.benchmarks.int8 import int8_engine
from perigee.bitstream import compiled
from perigee.bitstream import prior as P
from perigee.bitstream.coders import available_coders
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.entropy import decode_symbols, encode_symbols
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile
from perigee.bitstream.samples import quality_step_of
from perigee.engines.backend import CPU_DEVICE, Backend
from perigee.engines.flight import FlightEngine
from perigee.engines.graph import HYPER_PRIOR, WHOLE_PRIOR, GraphPrior
from perigee.engines.ground import GroundEngine
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.engines.torch import TorchGraph
from perigee.onboard.encoder import coded_latents, pad_to_multiple

QUALITIES = (10, 30, 50, 70, 90)


class NaiveOps:
    """The prior as a float network would run it: no rounding between layers, ``dtype`` and thread count as they come."""

    def __init__(self, profile: Profile, dtype: torch.dtype) -> None:
        contract = profile.contract
        self.shapes, self.dtype = P.layer_shapes(contract.widths), dtype
        self.weights = {
            n: tuple(torch.from_numpy(a).to(dtype) for a in P.folded(layer)) for n, layer in contract.layers.items()
        }

    def layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        shape, (weight, bias) = self.shapes[name], self.weights[name]
        out = F.conv2d(x, weight, bias - 0.5, padding=shape.kernel // 2, groups=shape.inputs if shape.depthwise else 1)
        return out.clamp(P.OUTPUT_MIN, P.OUTPUT_MAX) if shape.final else out.clamp(0, P.ACTIVATION_MAX)

    def shuffle(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(x, 2)

    def concat(self, xs: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(xs), 1)

    def half(self, x: torch.Tensor, parity: int) -> torch.Tensor:
        return torch.from_numpy(P.half(x.float().numpy(), parity)).to(self.dtype)


def naive_tables(ops: NaiveOps, widths: P.Widths, z: Any, q: Any, quality_step: int) -> np.ndarray[Any, Any]:
    """Table numbers of the naive float prior, all passes in one row."""
    plane = torch.full((len(z), 1, *q.shape[2:]), P.quality_plane_value(quality_step), dtype=ops.dtype)
    features = P.hyper_features(ops, torch.from_numpy(z).to(ops.dtype), plane)
    out = []
    for k in range(widths.passes):
        given = P.context_of_pass(widths, k, q)
        context = None if given is None else torch.from_numpy(given).to(ops.dtype)
        outputs = P.pass_outputs(ops, k, ops.half(features, k % 2), context).float().numpy()
        out.append(P.split_outputs(np.floor(outputs + 0.5)).table.reshape(-1))
    return np.concatenate(out)


def _segment(engine: FlightEngine, image: Any, step: int) -> tuple[Any, Any, int | None, Any, Any]:
    """Latents, hyper-latents, number of coded channels, predictions and words that an engine makes of a patch."""
    contract = engine.profile.contract
    q, z = engine.analyse(image, step)
    latents = coded_latents(q[0])
    predictions = engine.prior.all_passes(z, q, step, latents)
    passes = []
    for k, p in enumerate(predictions):
        start, _ = contract.widths.slice_of(k)
        values = P.half(q[:, start : start + p.mean.shape[1]], k % 2)[0]
        passes.append((values, P.Prediction(p.table[0], p.mean[0])))
    words = {
        kind: encode_symbols(contract.widths, contract.tables, z[0], passes, step, kind) for kind in available_coders()
    }
    return q, z, latents, predictions, words


def _differing(a: list[P.Prediction], b: list[P.Prediction]) -> int:
    return sum(int((x.table != y.table).sum() + (x.mean != y.mean).sum()) for x, y in zip(a, b, strict=True))


def circle(profile: Profile, tiles: list[tuple[str, Any]], analysis: str | None = None) -> list[dict[str, Any]]:
    """Whole circle over all tiles and qualities: encode with each engine, decode with each prior, compare symbols and pixels."""
    contract = profile.contract
    flights = {
        "onnxruntime, 1 thread": FlightEngine(profile, 1, analysis=analysis, use_compiled_prior=False),
        "onnxruntime, 2 threads": FlightEngine(profile, 2, analysis=analysis, use_compiled_prior=False),
        "the compiled prior": FlightEngine(profile, 1, analysis=analysis),
        "torch": FlightEngine(profile, graph=TorchGraph, analysis=analysis),
    }
    int8 = int8_engine(profile, analysis)
    if int8:
        flights["onnxruntime, int8 analysis"] = int8
    reference = contract.reference(np.float64)
    ground = GroundEngine(profile, 2, use_compiled_prior=False)
    torch_ground = GroundEngine(profile, 2, Backend("torch", CPU_DEVICE, TorchGraph))
    hyper, *passes = (
        TorchGraph(profile.file(name))
        for name in (HYPER_PRIOR, *(f"prior_pass{k}.onnx" for k in range(contract.widths.passes)))
    )
    priors = {
        "numpy, integer coder": reference,
        "onnxruntime, constriction": ground.prior,
        "torch, constriction": GraphPrior(contract.widths, hyper=hyper, passes=passes),
        "compiled prior, compiled coder": flights["the compiled prior"].prior,
    }
    coders = {"constriction": "constriction", "compiled coder": "native", "integer coder": "integer"}
    naive = {"float32": NaiveOps(profile, torch.float32), "bfloat16": NaiveOps(profile, torch.bfloat16)}
    naive64 = NaiveOps(profile, torch.float64)
    counts: dict[str, int] = {}
    pixels = {"samples": 0, "differing": 0, "largest": 0}

    def add(name: str, value: int) -> None:
        counts[name] = counts.get(name, 0) + int(value)

    for _, tile in tqdm(tiles, unit="tile", disable=None):
        image = pad_to_multiple(tile.transpose(2, 0, 1).astype(np.float32) * np.float32(1 / 255))[None]
        size = tuple(n // HYPER_BLOCK for n in image.shape[2:])
        for quality in QUALITIES:
            step = quality_step_of(quality)
            done: set[bytes] = set()
            answers: dict[bytes, list[P.Prediction]] = {}
            for flight_name, flight in flights.items():
                q, z, latents, predictions, words = _segment(flight, image, step)
                add("symbols", q.size)
                distinct = {w.tobytes() for w in words.values()}
                add(f"streams whose bytes differ between {', '.join(words)}", len(distinct) > 1)
                seen = q.tobytes() + z.tobytes()
                if seen not in answers:
                    answers[seen] = reference.all_passes(z, q, step, latents)
                add(
                    f"encoded with {flight_name}: prior differs from numpy",
                    _differing(predictions, answers[seen]),
                )
                if words["integer"].tobytes() in done:  # the very bytes were decoded a moment ago
                    continue
                done.add(words["integer"].tobytes())
                for prior_name, prior in priors.items():
                    kind = coders[prior_name.split(", ")[1]]
                    decoded = decode_symbols(
                        contract.widths,
                        contract.tables,
                        prior,
                        words["integer"],
                        step,
                        size,
                        kind=kind,
                        latents=latents,
                    )
                    add(f"decoded with {prior_name}: differing symbols", (decoded.q != q[0]).sum())
                if flight_name.endswith("1 thread"):
                    twin = naive_tables(naive64, contract.widths, z, q, step)
                    for kind, ops in naive.items():
                        other = naive_tables(ops, contract.widths, z, q, step)
                        add(f"naive float prior, {kind} against float64: differing tables", (other != twin).sum())
                        add(f"naive float prior, {kind} against float64: patches lost", (other != twin).any())
                    found = ground.predict(z, q, step)
                    canvas = ground.reconstruct(q, found.mean, found.scale_index, step)
                    one, two = (np.clip(np.rint(e.synthesise(canvas) * 255), 0, 255) for e in (ground, torch_ground))
                    pixels["samples"] += one.size
                    pixels["differing"] += int((one != two).sum())
                    pixels["largest"] = max(pixels["largest"], int(np.abs(one - two).max()))
    rows = [{"what": name, "count": value} for name, value in counts.items()]
    rows.append(
        {"what": "pixels, onnxruntime against torch: largest difference, grey levels", "count": pixels["largest"]}
    )
    rows.append(
        {
            "what": "pixels, onnxruntime against torch: equal %",
            "count": round(100 - 100 * pixels["differing"] / max(pixels["samples"], 1), 4),
        }
    )
    return rows


def matrix(profile: Profile, tiles: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The prior alone: engines x threads x batch x memory layout x graph optimisation, against int64."""
    contract = profile.contract
    flight = FlightEngine(profile, 1)
    inputs = []
    rng = np.random.default_rng(5)
    latents, hyper = contract.widths.latents, contract.widths.hyper_latents
    inputs.append((np.zeros((8, latents, 16, 16), np.int32), np.zeros((8, hyper, 4, 4), np.int32), 0))
    inputs.append(
        (
            rng.choice([-32768, 32767], (8, latents, 16, 16)).astype(np.int32),
            rng.choice([-64, 64], (8, hyper, 4, 4)).astype(np.int32),
            250,
        )
    )
    inputs.append(
        (
            np.rint(rng.laplace(0, 3, (8, latents, 16, 16))).astype(np.int32),
            rng.integers(-8, 9, (8, hyper, 4, 4)).astype(np.int32),
            125,
        )
    )
    for start in range(0, min(len(tiles), 40) // 8 * 8, 8):
        pixels = np.stack([t[:256, :256].transpose(2, 0, 1) for _, t in tiles[start : start + 8]])
        if pixels.shape[2:] == (256, 256):
            for quality in QUALITIES:
                q, z = flight.analyse((pixels / 255).astype(np.float32), quality_step_of(quality))
                inputs.append((q, z, quality_step_of(quality)))
    reference = contract.reference(np.int64)
    answers = [reference.all_passes(z, q, step) for q, z, step in inputs]
    engines: dict[str, Any] = {
        "numpy float64": contract.reference(np.float64),
        "numpy float32": contract.reference(np.float32),
    }
    for packing in compiled.packings():
        name = compiled.PACKING_NAMES[packing]
        engines[f"compiled, {name}"] = compiled.NativePrior(contract.widths, contract.layers, packing)
    graphs = WHOLE_PRIOR in profile.manifest.files  # superseded profiles come without
    for threads in (1, 2, 4):
        for optimise in (True, False) if graphs else ():
            graph = OnnxRuntimeGraph(profile.file(WHOLE_PRIOR), threads, optimise)
            engines[f"onnxruntime, {threads} threads, optimisation {'all' if optimise else 'none'}"] = GraphPrior(
                contract.widths, graph
            )
        if graphs:
            engines[f"torch, {threads} threads"] = FlightEngine(profile, threads, TorchGraph).prior
    rows = []
    for name, engine in tqdm(engines.items(), unit="engine", disable=None):
        if name.startswith("torch"):
            torch.set_num_threads(int(name.split()[1]))
        for size in (1, 8):
            for layout in ("contiguous", "channels last"):
                wrong, symbols = 0, 0
                for (q, z, step), answer in zip(inputs, answers, strict=True):
                    for start in range(0, len(q), size):
                        part = [a[start : start + size] for a in (z, q)]
                        if layout == "channels last":
                            part = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in part]
                        found = engine.all_passes(part[0], part[1], step)
                        wanted = [
                            P.Prediction(p.table[start : start + size], p.mean[start : start + size]) for p in answer
                        ]
                        wrong += _differing(found, wanted)
                        symbols += part[1].size
                rows.append({"engine": name, "batch": size, "layout": layout, "symbols": symbols, "differing": wrong})
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", help="folder of tiles (repeatable; default: the bundled sample)"
    )
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="name or folder (default %(default)s)")
    parser.add_argument("--analysis", help="one of the profile's analyses (default: its first)")
    parser.add_argument("--limit", type=int, help="only the first N tiles of a folder")
    parser.add_argument("--out", type=Path, default=Path("build/exactness.json"), help="JSON report")
    args = parser.parse_args()
    profile = find_profile(args.profile)
    tiles = [tile for folder in args.data or [sample_folder()] for tile in list(images(folder))[: args.limit]]
    print(f"prior against int64, contract {profile.contract.digest.hex()}")
    second = matrix(profile, tiles)
    print(table(second, ["engine", "batch", "layout", "symbols", "differing"]))
    first = circle(profile, tiles, args.analysis)
    print(f"\n{len(tiles)} tiles at qualities {QUALITIES}, profile {profile.name}\n" + table(first, ["what", "count"]))
    write_report(args.out, [{"circle": first, "matrix": second, "contract": profile.contract.digest.hex()}])


if __name__ == "__main__":
    main()
