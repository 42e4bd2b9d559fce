"""Turns an enhancer's checkpoint into its folder: one graph in ONNX, which ``engines.enhancer`` runs, the weights by name, from which a training
can start, and a manifest with their digests.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import perigee
from perigee.bitstream.errors import Fault, OutputError
from perigee.bitstream.manifest import ENHANCER, MANIFEST_FILE, MANIFEST_VERSION
from perigee.engines.enhancer import GRAPH_FILE
from perigee.export.enhancement_graph import write_enhancer
from perigee.export.graph import round_to_half
from perigee.models.checkpoint import WEIGHTS_FILE, CheckpointError, brief, write_weights
from perigee.models.enhancement.network import Preset
from perigee.models.enhancement.prior import Enhancer


def is_enhancer(state: dict[str, Any]) -> bool:
    """Whether a checkpoint is one of ``perigee-train-enhancer``."""
    return "prior" in state and "preset" in state


def enhancer_of(state: dict[str, Any]) -> Enhancer:
    """The averaged network of a checkpoint. Raises CheckpointError where its parts do not fit together."""
    try:
        network = Enhancer(Preset(**state["preset"]), state["prior"])
        network.load_state_dict(state["mean"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint is no enhancer's ({brief(error)})") from error
    return network.eval()


def export_enhancer(
    state: dict[str, Any], folder: Path, name: str, card: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write the folder of an enhancer and return its manifest; ``card`` has further entries.

    Raises CheckpointError for a checkpoint without fitted strengths or of stage I, and OutputError where the folder exists.
    """
    if state.get("prior") == "oracle":
        raise CheckpointError("a prior that the oracle reads needs the original; export a run of stage II")
    if not state.get("strength"):
        raise CheckpointError(
            "the run has no fitted strengths; perigee-train-enhancer fits them when its budget is spent"
        )
    if folder.exists():
        raise OutputError(f"{folder} exists; choose another", Fault.EXISTS, found=str(folder))
    network = enhancer_of(state)
    round_to_half(network)
    folder.mkdir(parents=True)
    with torch.no_grad():
        write_enhancer(network, folder / GRAPH_FILE)
    write_weights(network, folder / WEIGHTS_FILE)
    manifest: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "kind": ENHANCER,
        "name": name,
        "perigee": perigee.__version__,
        "prior": state["prior"],
        "tokens": network.tokens if state["prior"] == "generated" else 0,
        "strength": state["strength"],
        "interval": state.get("interval", {}),
        "training": {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1)},
        **(card or {}),
        "files": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (GRAPH_FILE, WEIGHTS_FILE)
        },
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
