"""The cell of a symbol: the set of values that are rounded to it.

Where an analysis is linear, the received symbols of a patch describe a box in the space of its latents, and the original
picture lies in it. The ground can therefore project any picture to that box (projection onto convex sets) and so makes sure
that coding it again gives the received symbols.
"""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.prior import Q_MAX, Q_MIN

HALF_CELL = (
    0.49  # of a quantisation step: a little less than half, so that the rounding of floats cannot leave the cell
)
HALF_CELL_MIN = 0.25  # however coarsely samples are rounded
ROUNDING = 12**-0.5  # standard deviation of the error of a rounded sample, in samples
PROJECTIONS = (
    2  # times a picture with generated detail is projected to what a product can show and to its cells, in turn
)


def cells_of(q: IntArray, gains: FloatArray, reach: float | FloatArray = HALF_CELL) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bounds, float32 [latents, H, W], of the latents that are rounded to ``q`` [latents, H, W].

    ``gains`` [latents] are those of the analysis; ``reach`` is half the width of a cell in steps, 0.5 at most. A symbol at the
    end of the legal range bounds its latent on one side only, since the encoder may have clipped it.
    """
    gains = gains[:, None, None]
    low = np.where(q == Q_MIN, -np.inf, (q - reach) / gains)
    high = np.where(q == Q_MAX, np.inf, (q + reach) / gains)
    return low.astype(np.float32), high.astype(np.float32)


def reach_within(gains: FloatArray, rounding: float | None) -> float | FloatArray:
    """Half the width of a cell, as ``reach`` of :func:`cells_of`, such that rounding to samples stays inside.

    ``rounding`` is the standard deviation of the samples' rounding in units of the picture: three of it are kept from the cell's
    borders, None keeps nothing.
    """
    if rounding is None:
        return HALF_CELL
    return np.asarray(np.maximum(0.5 - 3 * rounding * gains, HALF_CELL_MIN)[:, None, None], np.float32)
