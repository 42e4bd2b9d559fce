"""Map guidance after MAGC: detail that a map adds to what the compensator adds, made at each scale from the map's planes.

MAGC injects map features at each scale of its diffusion network (its semantic adapter). Here the planes pass through layers that are homogeneous
and have no bias, with the compensator's features as factors, as z0 does in the detail decoder: where a map knows nothing it adds nothing, bit
for bit. It adds nothing either where the map knows the ground and has no object near, so that it cannot change the look of open land.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perigee.bitstream.map_planes import MAP_CLASSES, MAP_PLANES
from perigee.models.compensation.trunk import WIDTHS, Features, Modulated
from perigee.models.layers import start_small

CLASSES, KNOWN, EDGE = len(MAP_CLASSES), MAP_PLANES.index("known"), MAP_PLANES.index("edge")
FAINT = 1 / 16  # of the distance to which edges reach


def near_objects(planes: Tensor) -> Tensor:
    """Return 1 where planes [N, len(MAP_PLANES), H, W] have an object, or an edge within reach, and 0 elsewhere, [N, 1, H, W]."""
    drawn = planes[:, :CLASSES].amax(1, keepdim=True)
    reached = (
        planes[:, EDGE : EDGE + 1] + planes[:, KNOWN : KNOWN + 1]
    )  # 0 beyond the reach of edges, and where nothing is known
    return torch.maximum((drawn > 0).to(planes), (reached > FAINT).to(planes))


class MapGuide(nn.Module):
    """Turns planes and the trunk's features into detail."""

    def __init__(self) -> None:
        super().__init__()
        _, b, c, d = WIDTHS
        self.enter = nn.Conv2d(4 * len(MAP_PLANES), d, 3, padding=1, bias=False)
        self.down4 = nn.Conv2d(d, c, 3, stride=2, padding=1, bias=False)
        self.down8 = nn.Conv2d(c, b, 3, stride=2, padding=1, bias=False)
        self.level8, self.level8b = Modulated(b), Modulated(b)
        self.up8 = nn.Conv2d(b, 4 * c, 1, bias=False)
        self.level4, self.level4b = Modulated(c), Modulated(c)
        self.up4 = nn.Conv2d(c, 4 * d, 1, bias=False)
        self.level2, self.level2b = Modulated(d), Modulated(d)
        self.leave = start_small(nn.Conv2d(d, 12, 3, padding=1, bias=False), 0.0)

    def forward(self, features: Features, planes: Tensor) -> Tensor:
        """Return detail [N, 3, H, W] of planes [N, len(MAP_PLANES), H, W] (``bitstream.map_planes``); zero at first, and without a map."""
        half = F.leaky_relu(self.enter(F.pixel_unshuffle(planes, 2)), 0.1)
        quarter = F.leaky_relu(self.down4(half), 0.1)
        v: Tensor = self.level8b(self.level8(self.down8(quarter), features.eighth), features.eighth)
        v = F.pixel_shuffle(self.up8(v), 2) + quarter
        v = self.level4b(self.level4(v, features.quarter), features.quarter)
        v = F.pixel_shuffle(self.up4(v), 2) + half
        v = self.level2b(self.level2(v, features.half), features.half)
        return 0.25 * F.pixel_shuffle(self.leave(v), 2) * near_objects(planes)
