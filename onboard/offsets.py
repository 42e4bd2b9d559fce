"""The offsets of the tables: by how much a scene's latents are wider or narrower than the prior expects of them, channel by channel.

The prior was trained on many sensors. What it predicts of one scene is a little off in the same direction everywhere, because the scene
is smoother, noisier or sharper than the average. One number for each component and channel, added to the scale indices, sets that right.
"""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.costs import TableCosts
from perigee.bitstream.prior import Prediction

OFFSETS = np.array([-14, -10, -7, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 10, 14], np.int32)
NONE = int(np.flatnonzero(OFFSETS == 0)[0])
PATCHES_MIN = 10  # of a scene: fewer would not show what it is like
PATCHES_SEEN, SHARE_MIN, SHARE_MAX = 6, 3, 16  # so many patches are looked at, one in 3 to 16
FITTED_BITS, SENT_BITS = 3.0, 6.0  # what a channel must save on the patches that were looked at, and on the whole scene


def share_of(patches: int) -> int:
    """One patch in how many is looked at, of a scene of so many."""
    return min(max(patches // PATCHES_SEEN, SHARE_MIN), SHARE_MAX)


class TableOffsets:
    """Gathers the bits that the latents of some patches would take with each offset."""

    def __init__(self, costs: TableCosts, components: int, latents: int) -> None:
        """``components`` or groups of bands, with so many latent channels each, whose latents ``costs`` tells the price of."""
        self._costs = costs
        self._bits = np.zeros((components, latents, len(OFFSETS)))

    def add(self, component: int, start: int, latents: IntArray, prediction: Prediction) -> None:
        """Take in a pass of a patch that is coded without offsets: the latents, in half steps, of the channels from ``start`` on."""
        bits = self._costs.by_offset(latents, prediction, OFFSETS)
        self._bits[component, start : start + len(bits)] += bits

    def chosen(self, share: int, taken: float = 1.0) -> IntArray:
        """The offsets int8 [components, latents] for a scene, of whose patches one in ``share`` was looked at: 0 where they would save
        less than they cost. ``taken`` is the share of the best offset that is taken."""
        saved = self._bits[..., NONE, None] - self._bits
        worth = (saved - FITTED_BITS) * share - SENT_BITS
        worth[..., NONE] = 0
        return np.asarray(np.trunc(taken * OFFSETS[worth.argmax(-1)]), np.int8)
