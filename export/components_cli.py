"""``export-components``: turn the checkpoint of a component codec into a profile. Exit codes are those of ``sysexits.h``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from perigee.support.command import Parser, prepare_streams, run

PROGRAM = "export-components"
QUALITIES = (10, 35, 60, 80, 100, 120, 150)  # quality steps at which centroids are measured


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Turn a checkpoint of perigee-train-components into a profile folder, and check it as it will be loaded.",
        epilog="Exit codes: 0 exported, 64 usage, 65 unusable checkpoint or data, 66 input missing, 69 package missing, 74 I/O error.",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="checkpoint.pt of a run, with crops.npz beside it; that of a synthesis needs none",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the profile; a synthesis is added to it")
    parser.add_argument("--name", metavar="NAME", help="name of the profile (default: that of its folder)")
    return parser


def _export(args: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from perigee.export.component_synthesis import add_synthesis
    from perigee.export.components import export_components
    from perigee.models.checkpoint import read_checkpoint
    from perigee.models.codec.component import CROPS_FILE, ComponentCodec
    from perigee.models.codec.component_synthesis import ComponentSynthesis

    state = read_checkpoint(args.checkpoint, torch.device("cpu"))
    facts = {"steps": int(state["step"]), "minutes": round(state["seconds"] / 60, 1)}
    if "network" in state:
        network = ComponentSynthesis()
        network.load_state_dict(state["mean"])
        add_synthesis(network, args.folder, facts)
        print(f"{args.folder}: has a synthesis", file=sys.stderr)
        return os.EX_OK
    codec = ComponentCodec()
    codec.load_state_dict(state["mean"])
    with np.load(args.checkpoint.parent / CROPS_FILE) as stored:
        crops = [stored[name].astype(np.float32) for name in stored.files]
    contract = export_components(codec, args.folder, args.name or args.folder.name, crops, QUALITIES, facts)
    print(f"{args.folder}: contract {contract.digest.hex()}", file=sys.stderr)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``export-components``; returns the exit code."""
    prepare_streams()
    args = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    return run(PROGRAM, "export", lambda: _export(args))
