"""How faithful each band has to be: evenly over the bands' ranges, by weights, or to a step in counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.spectral import SCALE_BITS, SCALE_MAX


@dataclass(frozen=True)
class Fidelity:
    """``weights``: how much the errors of each band matter, 1 for a band as faithful as its range asks for, 2 for one that is
    to have half the error. ``counts``: the step in counts of each band, which sets the quality too. One value serves all bands.
    """

    weights: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    def scales(self, width: FloatArray, quality_step: int, steps: FloatArray) -> tuple[FloatArray, int]:
        """The range by which each band is scaled, in counts, and the quality step; ``width`` [bands] are the bands' own ranges,
        ``steps`` [251] the step at each Q as a share of the range.

        Raises RasterError for another number of values than bands, or where a range would be too small or large.
        """
        scale = np.asarray(width, np.float64)
        if self.counts:
            step = _for_bands(self.counts, len(width), "counts")
            share = np.exp2(np.log2(step / scale).mean())
            quality_step = int(np.abs(np.log2(steps / share)).argmin())
            scale = step / steps[quality_step]
        elif self.weights:
            weights = _for_bands(self.weights, len(width), "weights")
            scale = scale / weights
        most = SCALE_MAX / (1 << SCALE_BITS)
        return np.asarray(np.clip(scale, 1 / (1 << SCALE_BITS), most), np.float32), quality_step


EVEN = Fidelity()


def _for_bands(values: tuple[float, ...], bands: int, name: str) -> FloatArray:
    if len(values) not in (1, bands) or min(values) <= 0:
        raise RasterError(
            f"{len(values)} {name} for {bands} bands; accepted is one for all or one for each, all above 0",
            Fault.COUNT,
            field=name,
            expected=f"1 or {bands}",
            found=len(values),
        )
    return np.broadcast_to(np.asarray(values, np.float64), (bands,))
