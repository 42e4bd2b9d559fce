"""Turns a compensator's checkpoint into its folder: graphs in ONNX and a manifest with their digests.

``ground.compensation.model`` reads such a folder.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import perigee
from perigee.bitstream.conditions import COMPENSATION_WINDOW, FIELDS
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import Fault, OutputError
from perigee.bitstream.manifest import MANIFEST_FILE, MANIFEST_VERSION
from perigee.bitstream.profile import Profile
from perigee.export.graph import OPSET, round_to_half
from perigee.models.checkpoint import HALF_FROM, CheckpointError, brief, read_checkpoint
from perigee.models.compensation.compensator import Compensator, config_from
from perigee.models.compensation.denoiser import DIFFUSION_STEPS
from perigee.models.compensation.latent import CHANNELS, SIDE
from perigee.models.compensation.trunk import NOISE, WIDTHS, Features

Shapes = dict[str, tuple[int, ...]]  # of a graph's inputs, by name
Graph = tuple[nn.Module, Shapes, list[str]]  # what computes it, its inputs, and the names of its outputs


class _Features(nn.Module):
    """The trunk."""

    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, base: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: Features = self.net.trunk(base, latents)
        return found.eighth, found.quarter, found.half


class _OneStep(nn.Module):
    """One step without texture, from the trunk's features."""

    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, half: Tensor) -> Tensor:
        out: Tensor = self.net.one_step(half)
        return out


class _Textured(nn.Module):
    """One step with texture, from features at 1/8 and noise."""

    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, base: Tensor, eighth: Tensor, noise: Tensor) -> Tensor:
        return self.net.detail(Features(eighth, eighth, eighth), base, noise)


class _Remainder(nn.Module):
    """The decoder of the diffusion."""

    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, eighth: Tensor, quarter: Tensor, half: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.net.decoder(Features(eighth, quarter, half), z)
        return out


class _Denoiser(nn.Module):
    """The denoiser of the diffusion, with the scaling of the latents."""

    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, z: Tensor, diffusion_step: Tensor, eighth: Tensor, latents: Tensor, values: Tensor, known: Tensor
    ) -> Tensor:
        scaled = self.net.trunk.scaled(latents)
        out: Tensor = self.net.denoiser(z, diffusion_step, Features(eighth, eighth, eighth), scaled, values, known)
        return out


class _Scale(nn.Module):
    """The scale head."""

    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, half: Tensor, base: Tensor, detail: Tensor) -> Tensor:
        out: Tensor = self.net.scale(Features(half, half, half), base, detail)
        return out


def load_checkpoint(path: Path) -> tuple[Compensator, dict[str, Any]]:
    """Return the compensator of a checkpoint with its averaged weights, and what is known of each finished stage.

    Raises CheckpointError where the file is not such a checkpoint or its stage ``one-step`` is not finished, and OSError where
    it cannot be opened.
    """
    state = read_checkpoint(path)
    try:
        net = Compensator(config_from(state["config"]))
        # only training needs the encoder, which may be another network; not all runs have a texture
        spare = ("encoder.",) if "texture" in state["done"] else ("encoder.", "finish.", "texture.")
        kept = {k: v for k, v in state["mean"].items() if not k.startswith(spare)}
        missing = net.load_state_dict(kept, strict=False)
        if missing.unexpected_keys or any(not k.startswith(spare) for k in missing.missing_keys):
            raise KeyError(f"weights {[*missing.unexpected_keys, *missing.missing_keys][:3]}...")
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a perigee-train-compensator checkpoint ({brief(error)})", Fault.KIND, field=str(path)
        ) from error
    done = {name: stage for name, stage in state["done"].items() if stage.get("finished")}
    if "one-step" not in done:
        raise CheckpointError(
            f"{path}: its stage one-step is not finished",
            Fault.MISSING,
            field="stage",
            expected="one-step",
            found=", ".join(done) or "none",
        )
    return net.eval(), done


def _halve(path: Path) -> None:
    """Rewrite a graph with its large constants stored in fp16; it still computes in float32."""
    model = onnx.load(str(path))
    nodes, kept = [], []
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or value.size < HALF_FROM:
            kept.append(tensor)
            continue
        kept.append(numpy_helper.from_array(value.astype(np.float16), f"{tensor.name}_half"))
        nodes.append(helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT))
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    model.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_graph(module: nn.Module, path: Path, inputs: Shapes, outputs: list[str]) -> None:
    """Write a module as a graph with fixed shapes."""
    examples = tuple(torch.rand(shape) for shape in inputs.values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            examples,
            str(path),
            opset_version=OPSET,
            dynamo=False,
            input_names=list(inputs),
            output_names=outputs,
        )
    _halve(path)


def _graphs(net: Compensator, done: dict[str, Any]) -> dict[str, Graph]:
    """Return the graphs of the finished stages by file name."""
    _, b, c, d = WIDTHS
    s, latents = COMPENSATION_WINDOW, net.config.latents + 1
    eighth, quarter, half = (1, b, s // 8, s // 8), (1, c, s // 4, s // 4), (1, d, s // 2, s // 2)
    base, y = (1, 3, s, s), (1, latents, s // BLOCK, s // BLOCK)
    z = (1, CHANNELS, s // SIDE, s // SIDE)
    fields = len(FIELDS)
    graphs: dict[str, Graph] = {
        "features.onnx": (_Features(net), {"base": base, "latents": y}, ["eighth", "quarter", "half"]),
        "one_step.onnx": (_OneStep(net), {"half": half}, ["detail"]),
    }
    if "texture" in done:
        noise = (1, NOISE, s // 2, s // 2)
        graphs["one_step.onnx"] = (_Textured(net), {"base": base, "eighth": eighth, "noise": noise}, ["detail"])
    if "scale" in done:
        graphs["scale.onnx"] = (_Scale(net), {"half": half, "base": base, "detail": base}, ["scale"])
    if "diffusion" in done:
        features: Shapes = {"eighth": eighth, "quarter": quarter, "half": half}
        graphs["remainder.onnx"] = (_Remainder(net), {**features, "z": z}, ["detail"])
        conditions: Shapes = {"values": (1, fields, 2), "known": (1, fields)}
        inputs: Shapes = {"z": z, "step": (1,), "eighth": eighth, "latents": y, **conditions}
        graphs["denoiser.onnx"] = (_Denoiser(net), inputs, ["v"])
    return graphs


def export_compensator(
    checkpoint: Path, folder: Path, name: str, profiles: list[Profile], card: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a compensator for streams of ``profiles`` to ``folder`` and return its manifest.

    The profiles have the same transform. ``card`` adds entries to the manifest. Raises OutputError where the folder holds a
    compensator already, CheckpointError for an unusable checkpoint, and OSError where files cannot be read or written.
    """
    if (folder / MANIFEST_FILE).exists():
        raise OutputError(
            f"{folder} already holds a compensator; export to a new folder",
            Fault.EXISTS,
            field="folder",
            found=str(folder),
        )
    net, done = load_checkpoint(checkpoint)
    round_to_half(net)
    folder.mkdir(parents=True, exist_ok=True)
    graphs = _graphs(net, done)
    for file, (module, inputs, outputs) in graphs.items():
        write_graph(module, folder / file, inputs, outputs)
    manifest: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "kind": "compensator",
        "name": name,
        "perigee": perigee.__version__,
        "contracts": [p.contract.digest.hex() for p in profiles],
        "window": COMPENSATION_WINDOW,
        "steps": DIFFUSION_STEPS,
        "fields": list(FIELDS),
        "fields_seen": done.get("diffusion", {}).get("fields", []),
        "noise": NOISE if "texture" in done else 0,
        "training": done,
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in graphs},
        **(card or {}),
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
