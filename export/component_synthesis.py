"""Adds a trained synthesis to a component profile: the graph ``synthesis.onnx``, named in the manifest. Streams do not change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from perigee.bitstream.component_profile import SYNTHESIS_FILE, load_component_profile
from perigee.bitstream.manifest import MANIFEST_FILE
from perigee.export.graph import GraphWriter, round_to_half
from perigee.models.codec.component_synthesis import (
    LATENTS,
    LOCAL,
    REACH,
    REDUCTION,
    WIDE,
    WIDE_SHARE,
    ComponentSynthesis,
)


def write_component_synthesis(network: ComponentSynthesis, path: Path) -> None:
    """Write the graph; its weights are stored in fp16. Inputs and output are those of ``ComponentSynthesis.forward``."""
    writer = GraphWriter("component synthesis", half=True)
    latents = writer.input("latents", ["N", LATENTS, "H", "W"])
    index = writer.input("index", ["N", LATENTS, "H", "W"])
    plane = writer.input("plane", ["N", 1, "Y", "X"])
    guide = writer.input("guide", ["N", 1, "Y", "X"])
    quality = writer.input("quality", ["N", 1, "H", "W"])

    def away(x: str, side: int, reach: float, factor: float) -> str:
        mean = x
        for _ in range(
            2
        ):  # along the rows, then along the columns; a square at a time, or upright, would take far longer
            pads = [0, side // 2] * 2
            mean = writer.node("AveragePool", mean, kernel_shape=[1, side], pads=pads, count_include_pad=0)
            mean = writer.node("Transpose", mean, perm=[0, 1, 3, 2])
        clipped = writer.clip(writer.node("Sub", x, mean), -reach, reach)
        return writer.node("SpaceToDepth", writer.scalar("Mul", clipped, factor), blocksize=REDUCTION)

    known = writer.node(
        "Concat",
        writer.scalar("Mul", writer.clip(latents, -REACH, REACH), 0.25),
        writer.scalar("Mul", index, 1 / 64),
        quality,
        axis=1,
    )
    carried = writer.depth_to_space(writer.module(network.coarse, known), REDUCTION)
    views = [away(x, LOCAL, REACH, 0.25) for x in (plane, guide)]
    views.append(away(plane, WIDE, REACH / WIDE_SHARE, 0.25 * WIDE_SHARE))
    joined = writer.module(network.join, writer.node("Concat", carried, *views, axis=1))
    writer.output(writer.depth_to_space(writer.module(network.fine, joined), REDUCTION), "added", ["N", 1, "Y", "X"])
    writer.save(path)


def add_synthesis(network: ComponentSynthesis, folder: Path, training: dict[str, object]) -> None:
    """Write the graph into a profile's folder and name it in the manifest. Raises ProfileError for another folder."""
    load_component_profile(folder)
    round_to_half(network)
    path = folder / SYNTHESIS_FILE
    write_component_synthesis(network, path)
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest["files"][SYNTHESIS_FILE] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["synthesis_training"] = training
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
