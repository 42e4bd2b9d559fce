"""Quick looks at streams of a linear analysis: its exact inverse instead of the synthesis network, at full size or reduced at once.

Both the dequantised latents and the inverse transform are read from the profile's own graphs when it is loaded. A reduced image needs the
strongest channels alone, which are coded first, and the fewer of them the lower the quality, so that the later passes of the prior are left
out.
"""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import Array, FloatArray, IntArray
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.entropy import DecodedPatch
from perigee.bitstream.errors import Fault, ProfileError
from perigee.bitstream.prior import MEAN_FRACTIONS, QUALITY_STEPS
from perigee.engines.ground import GroundEngine

# By reduction: up to which quality so many channels are enough. On images of training the others cost at most half a decibel of PSNR each,
# and less than a tenth in the median.
ENOUGH = {
    2: ((10, 40), (40, 80), (50, 128), (60, 288)),
    4: ((10, 40), (40, 80), (50, 192), (70, 288)),
    8: ((10, 16), (40, 80), (60, 128), (80, 288)),
    16: ((60, 8), (80, 16), (100, 80)),
}
DISTANCES = 128  # sixteenths of a step between a latent and its mean; beyond, the shift stays the same
COLOURS = 3


class QuickLook:
    """What a ground engine can do without its synthesis."""

    def __init__(self, engine: GroundEngine) -> None:
        """Raises ProfileError where the profile has no linear analysis."""
        if not engine.can_project:
            raise ProfileError(
                f"{engine.profile.name} has no linear analysis, so that its streams need the synthesis",
                Fault.MISFIT,
                field="analysis",
                expected="a linear analysis",
            )
        self._contract = engine.profile.contract
        self._scales = self._contract.widths.scales
        self._shift = _shifts(engine)
        self._constant, basis = _inverse(engine)
        self._basis = {f: np.ascontiguousarray(_reduced(basis, f)) for f in (1, 2, 4, 8, 16)}

    def passes(self, reduction: int, quality_step: int) -> int:
        """How many passes of the prior an image of this reduction (1 to 16) needs where it has this quality."""
        widths, quality = self._contract.widths, quality_step * 100 / QUALITY_STEPS
        channels = next((enough for most, enough in ENOUGH.get(reduction, ()) if quality <= most), widths.latents)
        return 2 * sum(widths.slice_of(k)[0] < channels for k in range(0, widths.passes, 2))

    def latents(self, decoded: DecodedPatch, quality_step: int) -> FloatArray:
        """Dequantised latents float32 [latents, H, W] of a patch; those of passes that were not decoded are 0."""
        count = self._contract.widths.slice_of(decoded.passes - 1)[1] if decoded.passes else 0
        q = decoded.q[:count]
        away = MEAN_FRACTIONS * q - decoded.mean[:count]
        place = decoded.scale_index[:count] * DISTANCES + np.minimum(np.abs(away), DISTANCES - 1)
        place += (np.arange(count, dtype=np.int32) * (self._scales * DISTANCES))[:, None, None]
        shift = self._shift.reshape(-1)[place]
        np.negative(shift, out=shift, where=away < 0)
        out = np.zeros(decoded.q.shape, np.float32)
        np.divide(q + shift, self._contract.gains(quality_step)[:count, None, None], out=out[:count])
        return out

    def image(self, latents: FloatArray, reduction: int = 1) -> FloatArray:
        """Image float32 [3, 16 H / reduction, 16 W / reduction], nominally 0..1, of latents [latents, H, W]."""
        count, rows, cols = latents.shape
        side = BLOCK // reduction
        flat = self._basis[reduction].T @ latents.reshape(count, rows * cols)
        blocks = flat.reshape(COLOURS, side, side, rows, cols).transpose(0, 3, 1, 4, 2)
        return np.asarray(blocks.reshape(COLOURS, rows * side, cols * side) + self._constant, np.float32)


def _shifts(engine: GroundEngine) -> FloatArray:
    """By how much a symbol's latent is moved towards its mean, in steps: float32 [latents, scale, distance in sixteenths], for symbols above it.

    The profile's reconstruction is asked for a symbol of 0 that lies so far above its mean.
    """
    widths = engine.profile.contract.widths
    latents, scales = widths.latents, widths.scales
    shape = (1, latents, scales, DISTANCES)
    zero = np.zeros(shape, np.int32)
    distance: IntArray = np.broadcast_to(-np.arange(DISTANCES, dtype=np.int32), shape)
    scale: IntArray = np.broadcast_to(np.arange(scales, dtype=np.int32)[:, None], shape)
    found = engine.reconstruct(zero, np.ascontiguousarray(distance), np.ascontiguousarray(scale), 0)[0, :latents]
    return np.asarray(found * engine.profile.contract.gains(0)[:, None, None], np.float32)


def _inverse(engine: GroundEngine) -> tuple[np.float32, FloatArray]:
    """The inverse of the linear analysis: its grey level, and what each latent adds, float32 [latents, 3, 16, 16].

    A flat image that is projected to cells of no width becomes the image that has exactly these latents.
    """
    latents = engine.profile.contract.widths.latents
    wanted = np.zeros((latents, 1, latents + 1), np.float32)
    wanted[np.arange(latents), 0, np.arange(latents)] = 1
    flat = np.zeros((1, COLOURS, BLOCK, BLOCK * (latents + 1)), np.float32)
    image: Array = engine.project_to_cells(flat, wanted[None], wanted[None])[0]
    blocks = image.reshape(COLOURS, BLOCK, latents + 1, BLOCK).transpose(2, 0, 1, 3)
    return np.float32(blocks[latents].mean()), blocks[:latents] - blocks[latents]


def _reduced(basis: FloatArray, factor: int) -> FloatArray:
    """The basis [latents, 3 * side * side] of images that are means over ``factor`` x ``factor`` pixels."""
    count, side = len(basis), BLOCK // factor
    return np.asarray(
        basis.reshape(count, COLOURS, side, factor, side, factor).mean((3, 5)).reshape(count, -1), np.float32
    )
