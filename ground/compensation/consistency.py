"""Does a compensated image still say what the satellite sent? It is coded again, and its symbols are compared with the received.

Most symbols cost next to nothing because they are 0 anyway; those that cost more than ``COSTLY_BITS`` carry the information, so both
shares are told.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.entropy import DecodedPatch
from perigee.bitstream.prior import MEAN_FRACTIONS
from perigee.bitstream.tables import FREQUENCY_TOTAL, Tables

COSTLY_BITS = 0.1
TOLERANCE = 1e-3


class Agreement(NamedTuple):
    """Shares of equal symbols, 0..1, of all and of those that cost something: of the compensated image and of its base."""

    all: float
    costly: float
    base_all: float
    base_costly: float

    @property
    def kept(self) -> bool:
        """Whether the compensated image agrees as well as its base, but for what rounding to 8 bits tips either way."""
        return self.costly >= self.base_costly - TOLERANCE and self.all >= self.base_all - TOLERANCE


def costly(tables: Tables, patch: DecodedPatch) -> npt.NDArray[np.bool_]:
    """Which symbols of a patch cost more than ``COSTLY_BITS`` [latents, H, W]."""
    whole, fraction = patch.mean // MEAN_FRACTIONS, patch.mean % MEAN_FRACTIONS
    number = patch.scale_index * MEAN_FRACTIONS + fraction
    radius = tables.table_radius[number]
    place = patch.q - whole + radius
    escaped = (place < 0) | (place > 2 * radius + 1)
    frequency = tables.frequencies[tables.starts[number] + np.where(escaped, 0, place)]
    return np.asarray(escaped | (frequency < FREQUENCY_TOTAL * 2.0**-COSTLY_BITS))


def shares(found: npt.NDArray[Any], received: npt.NDArray[Any], dear: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Shares of equal symbols: of all, and of the dear ones (1 where there are none)."""
    equal = found == received
    return float(equal.mean()), float(equal[dear].mean()) if dear.any() else 1.0
