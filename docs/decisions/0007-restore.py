"""A shipped linear profile as a checkpoint to go on from, where its run is gone: ``python 0007-restore.py PROFILE OUT.pt [BLOCKS...]``
(of the synthesis, four numbers).

Every weight is what the profile stores: integers of the prior, fp16 of the networks. Only the distributions of the hyper-latents
are fitted again to their tables. The rates come out as
they were to the last digit that the log has. Since 0.6.0 it reads the reconstruction and synthesis of that release (0010).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from perigee.bitstream.contract import BLOCK, KNOTS
from perigee.bitstream.prior import layer_shapes
from perigee.bitstream.profile import Profile, find_profile
from perigee.models.codec.codec import SPREAD_MIN, Z_BANDS, Codec, CodecConfig
from perigee.models.codec.flight import Synthesis


def constants(path: Path) -> list[np.ndarray[Any, Any]]:
    """The graph's constants in order, floats as float32."""
    found = [numpy_helper.to_array(c).copy() for c in onnx.load(str(path)).graph.initializer]
    return [c.astype(np.float32) if c.dtype.kind == "f" else c for c in found]


def fill(module: nn.Module, values: list[np.ndarray[Any, Any]], orders: dict[nn.Module, Any]) -> None:
    """Weights and biases of a module's convolutions, in order; ``orders`` undoes the exporter's order of input channels."""
    rest = iter(values)
    for conv in [m for m in module.modules() if isinstance(m, nn.Conv2d)]:
        weight = next(rest)
        conv.weight.copy_(torch.from_numpy(weight[:, orders[conv]] if conv in orders else weight))
        if conv.bias is not None:
            conv.bias.copy_(torch.from_numpy(next(rest)))


@torch.no_grad()
def restore(profile: Profile, blocks: tuple[int, ...]) -> Codec:
    """The codec of a profile whose one analysis is the separable linear transform."""
    codec = Codec(CodecConfig(("swift",), prior=profile.contract.widths, synthesis_blocks=blocks))
    analysis, linear = constants(profile.analysis("swift")[1]), codec.analysis.linear
    first = analysis[0][..., 0].reshape(3, 16, 3, 16)  # colour, row frequency, band, row: rows times colours
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
        bits = layer.shift.astype(int) - (shape.input_fraction - shape.output_fraction)
        module.weight.copy_(torch.from_numpy(np.ldexp(layer.weight.astype(float), -bits[:, None, None, None])))
        module.bias.copy_(torch.from_numpy(np.ldexp(layer.bias.astype(float), -(bits + shape.input_fraction))))
    by_shape = {c.shape: torch.from_numpy(c) for c in constants(profile.file("reconstruction.onnx"))}
    latents = profile.contract.widths.latents
    codec.reconstruction.narrowing.copy_(by_shape[1, latents, 1, 1].reshape(-1) - np.log(SPREAD_MIN))
    codec.reconstruction.inverse_gains.knots.copy_(by_shape[KNOTS, latents])
    restore_synthesis(codec.synthesis, constants(profile.file("synthesis.onnx")))
    return codec


def restore_synthesis(synthesis: Synthesis, values: list[np.ndarray[Any, Any]]) -> None:
    """From the constants of ``write_synthesis``."""
    synthesis.linear.weight.copy_(torch.from_numpy(values[8][:, :, 0, 0].T.reshape(-1, 3, 16, 16).copy()))
    synthesis.input_scale.copy_(torch.from_numpy(values[9].reshape(-1)))
    strength = next(v for v in values if v.shape == (BLOCK**2, KNOTS, 1, 1))
    synthesis.strength.copy_(torch.from_numpy(strength[0, :, 0, 0]))
    weights = [v for v in values[15:] if v.ndim == 4 or v.ndim == 1 and v.size > 1]

    def place(side: int) -> Any:
        return np.arange(side * side * 3).reshape(side * side, 3).T.reshape(-1)

    fill(synthesis, weights, {synthesis.image4: place(4), synthesis.image2: place(2)})


def fit_hyper_prior(codec: Codec, profile: Profile) -> None:
    """The mixtures of the hyper-latents, by gradient to the tables."""
    tables = torch.from_numpy(profile.contract.tables.z_frequencies / 65536).float().reshape(Z_BANDS, -1, 129)
    z = torch.arange(-64, 65).float().reshape(1, 1, 129, 1).expand(*tables.shape, 1)
    optimiser = torch.optim.Adam(codec.hyper_prior.parameters(), lr=0.03)
    for _ in range(600):
        loss = -(tables * torch.log(codec.hyper_prior.likelihood(z, torch.arange(Z_BANDS))[..., 0])).sum(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def main() -> None:
    profile = find_profile(sys.argv[1])
    codec = restore(profile, tuple(int(n) for n in sys.argv[3:]) or (2, 3, 2, 1))
    fit_hyper_prior(codec, profile)
    torch.save({"mean": codec.state_dict(), "codec_config": asdict(codec.config)}, sys.argv[2])


if __name__ == "__main__":
    main()
