"""The preset ``paper``: COSMIC's own parts, a frozen Stable Diffusion VAE as image encoder and its U-Net to be fine-tuned.

The weights are not ours to give: they are read from a local folder in the layout of diffusers (``vae/`` and ``unet/``, each
with ``config.json`` and safetensors). z0 then describes the image, not what the base image lacks; where it is zero the
decoder still adds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from perigee.bitstream.errors import CompensationError
from perigee.models.compensation.compensator import Compensator, CompensatorConfig
from perigee.models.compensation.denoiser import DenoiserConfig
from perigee.models.compensation.latent import CHANNELS

LICENCE = (
    "Stable Diffusion's weights come under a CreativeML Open RAIL licence with use restrictions, which whoever downloads "
    "them accepts; what is trained from them comes under it too"
)
PARTS = ("vae", "unet")


class VaeEncoder(nn.Module):
    """The posterior's mean of a frozen VAE, scaled to about unit deviation: [N, 4, H/8, W/8] of images in 0..1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)

    def forward(self, image: Tensor, base: Tensor) -> Tensor:
        """``base`` is not looked at: the interface is that of ``DetailEncoder``."""
        out: Tensor = self.vae.encode(2 * image - 1).latent_dist.mean * self.vae.config.scaling_factor
        return out


def _config_of(unet: Any) -> DenoiserConfig:
    """Our sizes of a U-Net of diffusers."""
    c = unet.config
    return DenoiserConfig(
        widths=tuple(c.block_out_channels),
        attention=tuple(kind.startswith("CrossAttn") for kind in c.down_block_types),
        layers=c.layers_per_block,
        token=c.cross_attention_dim,
        features=0,
        unet={name: value for name, value in c.items() if not name.startswith("_")},
    )


def paper_compensator(folder: Path, latents: int) -> Compensator:
    """A compensator that begins with the weights in ``folder``. Raises CompensationError where there are none that fit."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    missing = [part for part in PARTS if not (folder / part / "config.json").is_file()]
    if missing:
        raise CompensationError(
            f"{folder}: no {' and no '.join(f'{part}/config.json' for part in missing)}; expected is a folder of Stable "
            f"Diffusion in the layout of diffusers, with {' and '.join(f'{part}/' for part in PARTS)}. {LICENCE}"
        )
    try:
        vae: Any = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)  # type: ignore[no-untyped-call]
        unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError) as error:
        raise CompensationError(f"{folder}: diffusers cannot read it ({error})") from error
    if vae.config.latent_channels != CHANNELS or unet.config.in_channels != CHANNELS:
        raise CompensationError(f"{folder}: latents of {vae.config.latent_channels} channels, expected {CHANNELS}")
    net = Compensator(CompensatorConfig(latents, _config_of(unet)))
    net.encoder = VaeEncoder(vae)  # type: ignore[assignment]
    net.denoiser.unet = unet
    return net
