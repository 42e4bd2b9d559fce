"""Turns the checkpoint of a map guide into a compensator that shares all other graphs with the one that it guides."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import perigee
from perigee.bitstream.conditions import COMPENSATION_WINDOW
from perigee.bitstream.errors import Fault, OutputError
from perigee.bitstream.manifest import COMPENSATOR, MANIFEST_FILE, read_manifest
from perigee.bitstream.map_planes import MAP_PLANES
from perigee.export.compensation import write_graph
from perigee.export.graph import round_to_half
from perigee.models.checkpoint import CheckpointError, brief
from perigee.models.compensation.map_guide import MapGuide
from perigee.models.compensation.trunk import WIDTHS, Features

GUIDE_FILE = "guide.onnx"
KIND = "map guide"
OWN = (
    "name",
    "perigee",
    "files",
    "shared",
    "training",
    "licence",
    "data",
)  # entries that the guided one does not hand on


class _Guide(nn.Module):
    """The guide with the features as three inputs."""

    def __init__(self, guide: MapGuide) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, eighth: Tensor, quarter: Tensor, half: Tensor, planes: Tensor) -> Tensor:
        out: Tensor = self.guide(Features(eighth, quarter, half), planes)
        return out


def export_map_guide(
    state: dict[str, Any], guided: Path, folder: Path, name: str, card: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write the folder of a guided compensator beside that of the compensator ``guided``, and return its manifest.

    ``card`` has further entries. Raises CheckpointError for another kind of checkpoint, CompensationError where ``guided`` is no compensator, and
    OutputError where the folder exists or is not beside the other one.
    """
    base = read_manifest(guided, COMPENSATOR)
    if folder.exists() or folder.resolve().parent != guided.resolve().parent:
        raise OutputError(
            f"{folder}: accepted is a new folder beside {guided}, whose graphs it shares",
            Fault.EXISTS if folder.exists() else Fault.PLACE,
            field="folder",
            found=str(folder),
        )
    guide = MapGuide()
    try:
        guide.load_state_dict(state["mean"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not a checkpoint of perigee-train-map-guide ({brief(error)})", Fault.KIND) from error
    round_to_half(guide)
    folder.mkdir(parents=True)
    _, b, c, d = WIDTHS
    s = COMPENSATION_WINDOW
    inputs: dict[str, tuple[int, ...]] = {
        "eighth": (1, b, s // 8, s // 8), "quarter": (1, c, s // 4, s // 4), "half": (1, d, s // 2, s // 2), "planes": (1, len(MAP_PLANES), s, s),
    }  # fmt: skip
    with torch.no_grad():
        write_graph(_Guide(guide.eval()), folder / GUIDE_FILE, inputs, ["detail"])
    shared = {file: base.shared.get(file, base.folder.name) for file in base.files}
    manifest = {key: value for key, value in base.details.items() if key not in OWN}
    manifest |= {
        "name": name,
        "perigee": perigee.__version__,
        "planes": list(MAP_PLANES),
        "training": {"guide": {"step": state["step"], "seconds": state["seconds"]}},
        "files": dict(base.files) | {GUIDE_FILE: hashlib.sha256((folder / GUIDE_FILE).read_bytes()).hexdigest()},
        "shared": shared,
        **(card or {}),
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
