"""Restores a checkpoint from a shipped profile with a linear analysis, where its run is gone, see decision 0007.

Every weight is what the profile stores: integers of the prior, fp16 of the networks. Only the distributions of the
hyper-latents are fitted again, to their tables. The rates come out the same to the last digit in the training log. The recipe
reads profiles whose reconstruction and synthesis are those of release 0.6.0 or later (decision 0010).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.bitstream.prior import Z_CLAMP, layer_shapes
from perigee.bitstream.profile import Profile, find_profile
from perigee.bitstream.tables import FREQUENCY_TOTAL
from perigee.models.codec.codec import SPREAD_MIN, Z_BANDS, Codec, CodecConfig
from perigee.models.codec.prior import PriorLayer
from perigee.models.codec.synthesis import Synthesis
from perigee.support.command import Parser, run

PROGRAM = "python -m perigee.training.recipes.restore_checkpoint"
FIT_STEPS, FIT_RATE = 600, 0.03  # of the hyper-latents' distributions
Array = npt.NDArray[Any]


def constants(path: Path) -> list[Array]:
    """Return a graph's constants in their order, with all floats as float32."""
    found = [numpy_helper.to_array(c).copy() for c in onnx.load(str(path)).graph.initializer]
    return [c.astype(np.float32) if c.dtype.kind == "f" else c for c in found]


def fill(module: nn.Module, values: list[Array], orders: dict[nn.Module, Any]) -> None:
    """Set the weights and biases of a module's convolutions, in their order.

    ``orders`` undoes the order in which the export puts the input channels of some convolutions.
    """
    rest = iter(values)
    for conv in [m for m in module.modules() if isinstance(m, nn.Conv2d)]:
        weight = next(rest)
        conv.weight.copy_(torch.from_numpy(weight[:, orders[conv]] if conv in orders else weight))
        if conv.bias is not None:
            conv.bias.copy_(torch.from_numpy(next(rest)))


@torch.no_grad()
def restore(profile: Profile, blocks: tuple[int, int, int, int]) -> Codec:
    """Return the codec of a profile whose only analysis is the separable linear transform.

    ``blocks`` are the residual blocks of its synthesis at 1/16, 1/8, 1/4 and 1/2 resolution. Raises ProfileError where the
    profile has no analysis ``swift`` or lacks a file.
    """
    codec = Codec(CodecConfig(("swift",), prior=profile.contract.widths, synthesis_blocks=blocks))
    analysis, linear = constants(profile.analysis("swift")[1]), codec.analysis.linear
    first = analysis[0][..., 0].reshape(3, 16, 3, 16)  # [colour, row frequency, band, row], rows times colours
    for c in range(3):
        left, size, right = np.linalg.svd(first[c].transpose(1, 0, 2).reshape(3, -1), full_matrices=False)
        linear.colours[c] = torch.from_numpy(left[:, 0])
        linear.rows[c] = torch.from_numpy((size[0] * right[0]).reshape(16, 16))
    linear.columns.copy_(torch.from_numpy(analysis[2].reshape(3, 16, 16, 16)))
    linear.order.copy_(torch.from_numpy(analysis[3]))
    codec.gains.knots.copy_(torch.from_numpy(profile.contract.gain_knots))
    fill(codec.hyper, analysis[10:20], {})
    for name, shape in layer_shapes(profile.contract.widths).items():
        module, layer = codec.prior.layers[name.replace(".", "_")], profile.contract.layers[name]
        assert isinstance(module, PriorLayer)
        bits = layer.shift.astype(int) - (shape.input_fraction - shape.output_fraction)
        module.weight.copy_(torch.from_numpy(np.ldexp(layer.weight.astype(float), -bits[:, None, None, None])))
        module.bias.copy_(torch.from_numpy(np.ldexp(layer.bias.astype(float), -(bits + shape.input_fraction))))
    by_shape = {c.shape: torch.from_numpy(c) for c in constants(profile.file("reconstruction.onnx"))}
    latents = profile.contract.widths.latents
    codec.reconstruction.narrowing.copy_(by_shape[1, latents, 1, 1].reshape(-1) - np.log(SPREAD_MIN))
    codec.reconstruction.inverse_gains.knots.copy_(by_shape[KNOTS, latents])
    restore_synthesis(codec.synthesis, constants(profile.file("synthesis.onnx")))
    return codec


def restore_synthesis(synthesis: Synthesis, values: list[Array]) -> None:
    """Set a synthesis from the constants of its graph, in the order in which the export writes them."""
    synthesis.linear.weight.copy_(torch.from_numpy(values[8][:, :, 0, 0].T.reshape(-1, 3, 16, 16).copy()))
    synthesis.input_scale.copy_(torch.from_numpy(values[9].reshape(-1)))
    strength = next(v for v in values if v.shape == (BLOCK**2, KNOTS, 1, 1))
    synthesis.strength.copy_(torch.from_numpy(strength[0, :, 0, 0]))
    weights = [v for v in values[15:] if v.ndim == 4 or v.ndim == 1 and v.size > 1]

    def place(side: int) -> Array:
        return np.arange(side * side * 3).reshape(side * side, 3).T.reshape(-1)

    fill(synthesis, weights, {synthesis.image4: place(4), synthesis.image2: place(2)})


def fit_hyper_prior(codec: Codec, profile: Profile) -> None:
    """Fit the mixtures of the hyper-latents to the profile's tables by gradient descent."""
    tables = torch.from_numpy(profile.contract.tables.z_frequencies / FREQUENCY_TOTAL).float()
    tables = tables.reshape(Z_BANDS, -1, 2 * Z_CLAMP + 1)
    z = torch.arange(-Z_CLAMP, Z_CLAMP + 1).float().reshape(1, 1, -1, 1).expand(*tables.shape, 1)
    optimiser = torch.optim.Adam(codec.hyper_prior.parameters(), lr=FIT_RATE)
    for _ in range(FIT_STEPS):
        loss = -(tables * torch.log(codec.hyper_prior.likelihood(z, torch.arange(Z_BANDS))[..., 0])).sum(2).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def build_parser() -> argparse.ArgumentParser:
    """Return the recipe's argument parser."""
    parser = Parser(
        prog=PROGRAM,
        description="Restore a checkpoint from a profile with a linear analysis. Training can start from it, and it can be "
        "exported.",
        epilog="Exit codes: 0 written, 64 usage, 69 package missing, 78 unusable profile.",
    )
    parser.add_argument("profile", metavar="PROFILE", help="name or folder of the profile")
    parser.add_argument("out", type=Path, metavar="OUT", help="checkpoint to write")
    parser.add_argument(
        "blocks",
        type=int,
        nargs="*",
        metavar="BLOCKS",
        help="number of residual blocks of its synthesis at 1/16, 1/8, 1/4 and 1/2 resolution (default: 2 3 2 1)",
    )
    return parser


def _restore_file(args: argparse.Namespace, blocks: tuple[int, int, int, int]) -> int:
    """Restore as the parsed arguments say."""
    profile = find_profile(args.profile)
    codec = restore(profile, blocks)
    fit_hyper_prior(codec, profile)
    state = {"mean": codec.state_dict(), "codec_config": codec.config.plain()}
    torch.save({**state, "training_config": {}, "step": 0, "seconds": 0.0}, args.out)
    return os.EX_OK


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if len(args.blocks) not in (0, 4):
        parser.error(f"BLOCKS are four numbers, found {len(args.blocks)}")
    a, b, c, d = args.blocks or (2, 3, 2, 1)
    return run(PROGRAM, "export", lambda: _restore_file(args, (a, b, c, d)))


if __name__ == "__main__":
    raise SystemExit(main())
