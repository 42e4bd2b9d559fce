"""The weights of an exported compensator, read back from its graphs, so that a training can start from a shipped one.

An export keeps the names of most weights; of the denoiser's some are merged or renamed, so a denoiser is not read. The encoder is not exported.
So the stages that need them count as not trained.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from perigee.bitstream.errors import Fault
from perigee.bitstream.manifest import COMPENSATOR, read_manifest
from perigee.models.checkpoint import CheckpointError

GRAPHS = ("features.onnx", "one_step.onnx", "remainder.onnx", "scale.onnx")
NOT_READ = ("latent", "diffusion", "sampling")  # stages whose weights are not, or not all, in the graphs
PREFIX, HALF = "net.", "_half"
INPUT_SCALE = "trunk.input_scale"
FINISH = re.compile(
    r"^trunk\.(?=up8|image4|level4|up4|image2|level2)"
)  # named so before these layers were a module of their own


def exported_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights by name, float32, and what is known of the stages that were trained.

    Raises CompensationError where the folder holds no compensator, and CheckpointError where its graphs have no named weights.
    """
    manifest = read_manifest(folder, COMPENSATOR)
    weights: dict[str, Tensor] = {}
    for name in GRAPHS:
        if name not in manifest.files:
            continue
        for constant in onnx.load(str(manifest.file(name))).graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(constant).astype(np.float32))
            if constant.name.startswith(PREFIX):
                weight = constant.name.removeprefix(PREFIX).removesuffix(HALF)
                weights[FINISH.sub("trunk.finish.", weight)] = value
            elif name == "features.onnx" and value.ndim == 4:  # the only constant there that is no weight
                weights[INPUT_SCALE] = value.flatten()
    if INPUT_SCALE not in weights:
        raise CheckpointError(f"{folder}: its graphs do not name their weights", Fault.MISSING, field=str(folder))
    done = dict(manifest.details.get("training", {}))
    return weights, {stage: state for stage, state in done.items() if stage not in NOT_READ}
