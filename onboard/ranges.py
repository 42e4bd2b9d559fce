"""The coding range of each band: which sample values are coded as 0 and as 1."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import IntArray
from perigee.onboard.source import Source

RANGE_TAIL = 0.0005  # share of the valid samples that may lie outside the coding range on either side
RANGE_MARGIN = 0.02  # share of the range that is added on either side
RANGE_REACH = 32  # ranges; no sample may lie farther out, since the latents could not carry it


def coding_ranges(source: Source, side: int) -> IntArray:
    """Per band the samples that are coded as 0 and 1, int32 [bands, 2]: a robust range of the valid samples.

    A first pass over the scene counts every value; values outside the range are coded too, beyond 0 and 1.
    """
    info = source.info
    bins = 65536
    shift = 32768 if info.dtype == "int16" else 0
    counts = np.zeros((info.bands, bins), np.int64)
    for top in range(0, info.height, side):
        for left in range(0, info.width, side):
            window = source.read(top, left, min(side, info.height - top), min(side, info.width - left))
            for band in range(info.bands):
                values = window.samples[band][window.valid[band]].astype(np.int64) + shift
                counts[band] += np.bincount(values, minlength=bins)
    out = np.zeros((info.bands, 2), np.int32)
    for band, count in enumerate(counts):
        total = count.sum()
        if not total:
            out[band] = (0, 1)
            continue
        cumulated = np.cumsum(count)
        low = int(np.searchsorted(cumulated, total * RANGE_TAIL, side="right")) - shift
        high = int(np.searchsorted(cumulated, total * (1 - RANGE_TAIL), side="left")) - shift
        values = np.flatnonzero(count) - shift
        widest = int(values[-1] - values[0]) // RANGE_REACH  # no sample lies farther out than the latents can carry
        margin = int(np.ceil(RANGE_MARGIN * (high - low)))
        out[band] = (low - margin, max(high + margin, low - margin + widest, low - margin + 1))
    return out
