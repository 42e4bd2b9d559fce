"""A differentiable form of the ground's projection, so that a compensator is trained on images as a product shows them.

The ground moves a compensated image to where it agrees with the received symbols (decisions 0005 and 0009). Each symbol stands
for a quantisation cell: an interval in which the latent lies.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.cells import HALF_CELL_MIN, PROJECTIONS, ROUNDING
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.profile import Profile
from perigee.engines.ground import GroundEngine
from perigee.models.codec.transform import Gains


class ProjectToCells(nn.Module):
    """Projects images alternately onto what an 8-bit product can show and onto the cells of the received symbols.

    The transform is that of the profile's own graph: its inverse is measured by applying the graph to single latents.
    """

    analysis: Tensor
    inverse: Tensor

    def __init__(self, profile: Profile) -> None:
        """Raises ProfileError where the profile has no linear analysis."""
        super().__init__()
        latents = profile.contract.widths.latents
        engine = GroundEngine(profile)
        one = np.eye(latents, dtype=np.float32).reshape(latents, latents, 1, 1)
        grey = np.full((latents, 3, BLOCK, BLOCK), 0.5, np.float32)  # its transform is zero
        columns = (engine.project_to_cells(grey, one, one) - grey).reshape(latents, -1).astype(np.float64)
        weight = np.linalg.pinv(columns.T).reshape(latents, 3, BLOCK, BLOCK)
        self.register_buffer("analysis", torch.from_numpy(weight.astype(np.float32)))
        self.register_buffer("inverse", torch.from_numpy(columns.T.astype(np.float32)[:, :, None, None].copy()))
        self.gains = Gains(latents, torch.zeros(len(profile.contract.gain_knots))).requires_grad_(False)
        self.gains.knots.copy_(torch.from_numpy(profile.contract.gain_knots))

    def forward(self, image: Tensor, symbols: Tensor, quality_step: Tensor) -> Tensor:
        """Return the projected images, [N, 3, H, W].

        ``image`` is [N, 3, H, W] in 0..1, ``symbols`` [N, latents, H/16, W/16], ``quality_step`` [N] in 0..250.
        """
        gains = self.gains(quality_step)
        reach = (0.5 - 3 * ROUNDING / 255 * gains).clamp_min(HALF_CELL_MIN)
        low, high = (symbols - reach) / gains, (symbols + reach) / gains
        for _ in range(PROJECTIONS):
            image = image.clamp(0, 1)
            y = F.conv2d(image - 0.5, self.analysis, stride=BLOCK)
            missing = torch.minimum(torch.maximum(y, low), high) - y
            image = image + F.pixel_shuffle(F.conv2d(missing, self.inverse), BLOCK)
        return image
