"""The offsets of the tables: by how much a scene's latents are wider or narrower than the prior expects of them, channel by channel.

The prior was trained on many sensors. What it predicts of one scene is a little off in the same direction everywhere, because the scene
is smoother, noisier or sharper than the average. One number for each component and channel, added to the scale indices, sets that right.
"""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.component_contract import LATENTS
from perigee.bitstream.prior import Prediction
from perigee.bitstream.rounding import Rounding
from perigee.engines.component_flight import Watch

OFFSETS = np.array([-14, -10, -7, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 10, 14], np.int32)
NONE = int(np.flatnonzero(OFFSETS == 0)[0])
EVERY = 7  # of so many patches one is looked at
PATCHES_MIN = 10  # of a scene: fewer would not show what it is like
FITTED_BITS, SENT_BITS = 2.0, 4.0  # what a channel must save on the patches that were looked at, and on the whole scene
TAKEN = 0.75  # of the best offset: the choice of latents by their cost makes the distributions narrower, and would do so twice


class TableOffsets:
    """Gathers the bits that the latents of some patches would take with each offset."""

    def __init__(self, components: int) -> None:
        self._bits = np.zeros((components, LATENTS, len(OFFSETS)))

    def watch(self, rounding: Rounding) -> Watch:
        """What takes in each pass of a patch that is coded without offsets."""

        def take(component: int, start: int, latents: IntArray, prediction: Prediction) -> None:
            bits = rounding.bits_by_offset(latents, prediction, OFFSETS)
            self._bits[component, start : start + len(bits)] += bits

        return take

    def chosen(self, share: int) -> IntArray:
        """The offsets int8 [components, 256] for a scene, of whose patches one in ``share`` was looked at: 0 where they would save less
        than they cost."""
        saved = self._bits[..., NONE, None] - self._bits
        worth = (saved - FITTED_BITS) * share - SENT_BITS
        worth[..., NONE] = 0
        return np.asarray(np.trunc(TAKEN * OFFSETS[worth.argmax(-1)]), np.int8)
