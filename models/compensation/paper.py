"""A compensator with COSMIC's own parts: Stable Diffusion's frozen VAE as image encoder and its U-Net to be fine-tuned.

The project does not distribute these weights: they are read from a local folder in the layout of diffusers (``vae/`` and
``unet/``, each with ``config.json`` and safetensors). z0 then describes the image and not only what the base image lacks;
where z0 is zero the decoder still adds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from perigee.bitstream.errors import CompensationError, Fault
from perigee.models.compensation.compensator import Compensator, CompensatorConfig
from perigee.models.compensation.denoiser import DenoiserConfig
from perigee.models.compensation.latent import CHANNELS

LICENCE = (
    "Stable Diffusion's weights have a CreativeML Open RAIL licence with use restrictions: whoever downloads them accepts "
    "it, and it covers weights that are trained from them as well"
)
PARTS = ("vae", "unet")


class VaeEncoder(nn.Module):
    """The mean of a frozen VAE's posterior, scaled to about unit deviation."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)

    def forward(self, image: Tensor, first: Tensor) -> Tensor:
        """Return z0 [N, 4, H/8, W/8] of images [N, 3, H, W] in 0..1.

        ``first`` is ignored; it is there because ``RemainderEncoder`` has the same interface.
        """
        out: Tensor = self.vae.encode(2 * image - 1).latent_dist.mean * self.vae.config.scaling_factor
        return out


def _config_of(unet: Any) -> DenoiserConfig:
    """Return the sizes of a diffusers U-Net as a configuration."""
    c = unet.config
    return DenoiserConfig(
        widths=tuple(c.block_out_channels),
        attention=tuple(kind.startswith("CrossAttn") for kind in c.down_block_types),
        layers=c.layers_per_block,
        token=c.cross_attention_dim,
        features=0,
        unet={name: value for name, value in c.items() if not name.startswith("_")},
    )


def stable_diffusion(folder: Path) -> tuple[Any, Any]:
    """Return the VAE and the U-Net in a folder in the layout of diffusers.

    Raises CompensationError where it has no weights that fit, and ModuleNotFoundError without diffusers.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    missing = [part for part in PARTS if not (folder / part / "config.json").is_file()]
    if missing:
        raise CompensationError(
            f"{folder} has no {' and no '.join(f'{part}/config.json' for part in missing)}; it must hold Stable Diffusion "
            f"in the layout of diffusers, with {' and '.join(f'{part}/' for part in PARTS)}. {LICENCE}",
            Fault.MISSING,
            field=str(folder),
            expected=", ".join(f"{part}/config.json" for part in PARTS),
        )
    try:
        vae: Any = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)  # type: ignore[no-untyped-call]
        unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError) as error:
        raise CompensationError(
            f"{folder}: diffusers cannot read it ({error})", Fault.UNREADABLE, field=str(folder)
        ) from error
    for field, channels in (
        ("latent_channels of the VAE", vae.config.latent_channels),
        ("in_channels of the U-Net", unet.config.in_channels),
    ):
        if channels != CHANNELS:
            raise CompensationError(
                f"{folder}: {field} is {channels}, expected {CHANNELS}",
                Fault.SHAPE,
                field=field,
                expected=CHANNELS,
                found=channels,
            )
    return vae, unet


def paper_compensator(folder: Path, latents: int) -> Compensator:
    """Return a compensator that starts from Stable Diffusion's weights in ``folder``.

    ``latents`` is the number of the codec's latents. Raises CompensationError where the folder has no weights that fit, and
    ModuleNotFoundError without diffusers.
    """
    vae, unet = stable_diffusion(folder)
    net = Compensator(CompensatorConfig(latents, _config_of(unet)))
    net.encoder = VaeEncoder(vae)  # type: ignore[assignment]
    net.denoiser.unet = unet
    return net
