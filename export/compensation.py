"""From a compensator's checkpoint to its folder: graphs in ONNX, manifest with hashes; see ``ground.compensation.model``."""

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
from perigee.bitstream.errors import ProfileError
from perigee.bitstream.manifest import MANIFEST_FILE, MANIFEST_VERSION
from perigee.bitstream.profile import Profile
from perigee.export.graph import HALF_FROM, OPSET
from perigee.models.compensation.compensator import Compensator, config_from
from perigee.models.compensation.denoiser import STEPS
from perigee.models.compensation.latent import CHANNELS, SIDE
from perigee.models.compensation.trunk import NOISE, WIDTHS, Features


class _Features(nn.Module):
    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, base: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: Features = self.net.trunk(base, latents)
        return found.eighth, found.quarter, found.half


class _OneStep(nn.Module):
    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, half: Tensor) -> Tensor:
        out: Tensor = self.net.one_step(half)
        return out


class _Textured(nn.Module):
    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, base: Tensor, eighth: Tensor, noise: Tensor) -> Tensor:
        return self.net.detail(Features(eighth, eighth, eighth), base, noise)


class _Decoder(nn.Module):
    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, eighth: Tensor, quarter: Tensor, half: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.net.decoder(Features(eighth, quarter, half), z)
        return out


class _Denoiser(nn.Module):
    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, z: Tensor, step: Tensor, eighth: Tensor, latents: Tensor, values: Tensor, known: Tensor
    ) -> Tensor:
        scaled = self.net.trunk.scaled(latents)
        out: Tensor = self.net.denoiser(z, step, Features(eighth, eighth, eighth), scaled, values, known)
        return out


class _Scale(nn.Module):
    def __init__(self, net: Compensator) -> None:
        super().__init__()
        self.net = net

    def forward(self, half: Tensor, base: Tensor, detail: Tensor) -> Tensor:
        out: Tensor = self.net.scale(Features(half, half, half), base, detail)
        return out


def load_checkpoint(path: Path) -> tuple[Compensator, dict[str, Any]]:
    """The averaged weights and what was trained. Raises ProfileError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net = Compensator(config_from(state["config"]))
        # the encoder serves training alone, and may be another's; not all runs have a texture
        spare = ("encoder.",) if "texture" in state["done"] else ("encoder.", "finish.", "texture.")
        kept = {k: v for k, v in state["mean"].items() if not k.startswith(spare)}
        missing = net.load_state_dict(kept, strict=False)
        if missing.unexpected_keys or any(not k.startswith(spare) for k in missing.missing_keys):
            raise KeyError(f"weights {[*missing.unexpected_keys, *missing.missing_keys][:3]}...")
    except (OSError, KeyError, RuntimeError, TypeError, EOFError) as error:
        raise ProfileError(f"{path}: not a perigee-train-compensator checkpoint ({error})") from error
    done = {name: stage for name, stage in state["done"].items() if stage.get("finished")}
    if "one-step" not in done:
        raise ProfileError(f"{path}: its stage one-step is not finished")
    return net.eval(), done


def _halved(path: Path) -> None:
    """Store the graph's large constants in fp16; what it computes in stays float32."""
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


def _write(module: nn.Module, path: Path, inputs: dict[str, tuple[int, ...]], outputs: list[str]) -> None:
    """A module as a graph of fixed shapes."""
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
    _halved(path)


def export_compensator(
    checkpoint: Path, folder: Path, name: str, profiles: list[Profile], card: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a compensator for streams of ``profiles`` (of one transform) to ``folder`` and return its manifest.

    Raises ProfileError for an unusable checkpoint or a folder that holds one already.
    """
    if (folder / MANIFEST_FILE).exists():
        raise ProfileError(f"{folder} holds a compensator already; export to a new folder")
    net, done = load_checkpoint(checkpoint)
    for parameter in net.parameters():
        if parameter.numel() >= HALF_FROM:
            parameter.data.copy_(parameter.data.half())
    folder.mkdir(parents=True, exist_ok=True)
    _, b, c, d = WIDTHS
    s, latents = COMPENSATION_WINDOW, net.config.latents + 1
    eighth, quarter, half = (1, b, s // 8, s // 8), (1, c, s // 4, s // 4), (1, d, s // 2, s // 2)
    base, y = (1, 3, s, s), (1, latents, s // BLOCK, s // BLOCK)
    z = (1, CHANNELS, s // SIDE, s // SIDE)
    fields = len(FIELDS)
    graphs: dict[str, tuple[nn.Module, dict[str, tuple[int, ...]], list[str]]] = {
        "features.onnx": (_Features(net), {"base": base, "latents": y}, ["eighth", "quarter", "half"]),
        "one_step.onnx": (_OneStep(net), {"half": half}, ["detail"]),
    }
    if "texture" in done:
        noise = (1, NOISE, s // 2, s // 2)
        graphs["one_step.onnx"] = (_Textured(net), {"base": base, "eighth": eighth, "noise": noise}, ["detail"])
    if "scale" in done:
        graphs["scale.onnx"] = (_Scale(net), {"half": half, "base": base, "detail": base}, ["scale"])
    if "diffusion" in done:
        graphs["decoder.onnx"] = (
            _Decoder(net),
            {"eighth": eighth, "quarter": quarter, "half": half, "z": z},
            ["detail"],
        )
        conditions = {"values": (1, fields, 2), "known": (1, fields)}
        graphs["denoiser.onnx"] = (
            _Denoiser(net),
            {"z": z, "step": (1,), "eighth": eighth, "latents": y, **conditions},
            ["v"],
        )
    for file, (module, inputs, outputs) in graphs.items():
        _write(module, folder / file, inputs, outputs)
    manifest: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "kind": "compensator",
        "name": name,
        "perigee": perigee.__version__,
        "contracts": [p.contract.digest.hex() for p in profiles],
        "window": COMPENSATION_WINDOW,
        "steps": STEPS,
        "fields": list(FIELDS),
        "fields_seen": done.get("diffusion", {}).get("fields", []),
        "noise": NOISE if "texture" in done else 0,
        "training": done,
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in graphs},
        **(card or {}),
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
