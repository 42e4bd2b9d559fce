"""What latents cost by the tables of a contract, in bits: for encoders, which choose by it."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.compiled import NativeCosts, address, library
from perigee.bitstream.prior import MEAN_FRACTIONS, Prediction
from perigee.bitstream.tables import FREQUENCY_TOTAL, OCTAVE, Tables, raw_bits_of


class TableCosts:
    """The cost of each entry of the tables. Latents are counted in half steps."""

    def __init__(self, tables: Tables) -> None:
        self.bits = -np.log2(tables.frequencies.astype(np.float32) / FREQUENCY_TOTAL)
        self.starts = tables.starts.astype(np.int32)
        self.radius = np.repeat(tables.radius.astype(np.int32), MEAN_FRACTIONS)
        self.scales = tables.scales

    def native(self, centroids: IntArray | None = None, error_bits: float = 0.0) -> NativeCosts:
        """The costs for the compiled library; the arrays must live as long."""
        arrays = (self.bits, self.starts, self.radius)
        place = None if centroids is None else address(centroids)
        return NativeCosts(*(address(a) for a in arrays), place, error_bits, self.scales)

    def by_offset(self, latents: IntArray, prediction: Prediction, offsets: IntArray) -> npt.NDArray[np.float64]:
        """About how many bits the latents of each channel of a pass take, [channel, offset], where each of ``offsets`` int32 is added to
        their scale indices."""
        latents, table, mean = (np.ascontiguousarray(part, np.int32) for part in (latents, *prediction))
        bits = np.zeros((len(latents), len(offsets)))
        if library is None:
            for number, offset in enumerate(offsets.tolist()):
                bits[:, number] = (
                    self._with_offset(latents, table, mean, offset).reshape(len(latents), -1).sum(1, dtype=np.float64)
                )
            return bits
        native = self.native()
        parts = [ctypes.c_void_p(address(a)) for a in (latents, table, mean, offsets, bits)]
        sizes = [ctypes.c_uint32(n) for n in (len(latents), latents[0].size, len(offsets))]
        library.perigee_bits_by_offset(ctypes.byref(native), *sizes[:2], *parts[:3], sizes[2], *parts[3:])
        return bits

    def _with_offset(self, x: IntArray, table: IntArray, mean: IntArray, offset: int) -> FloatArray:
        index = np.clip(table // MEAN_FRACTIONS + offset, 0, self.scales - 1)
        raw = raw_bits_of(index)
        below = mean - (x & 1) * MEAN_FRACTIONS // 2
        row = (index - OCTAVE * raw) * MEAN_FRACTIONS + (below >> raw & MEAN_FRACTIONS - 1)
        return raw + self.of_symbols(row, (x >> 1 >> raw) - (below >> raw + 4))

    def of_symbols(self, row: IntArray, symbol: IntArray) -> FloatArray:
        """Bits of symbols, each by the table of a number below 1024. An escape costs about twice the bits of its excess."""
        radius = self.radius[row]
        outside = (symbol < -radius) | (symbol > radius + 1)
        bits = self.bits[self.starts[row] + np.where(outside, 2 * radius + 2, symbol + radius)]
        return np.asarray(bits + np.where(outside, 2 * np.log2(np.abs(symbol) + 1.0) + 1, 0), np.float32)
