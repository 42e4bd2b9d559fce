"""The choice of latents by what they cost, for encoders: an error is weighed against the bits that it saves.

A latent whose distribution is narrow becomes the nearest whole step, the next one towards its mean, or 0, whichever costs least by the
contract's own tables and centroids. The others are coded on a trellis: they alternate between whole and half steps by a rule that both
sides follow, so that the encoder has twice as many values to choose from as it pays for. It looks for the cheapest way through the
trellis (trellis-coded quantisation, Marcellin and Fischer 1990, with the eight states of dependent quantisation in video coding).

Any decoder reads the result. The choice may differ from machine to machine, and without the compiled library it is not searched for:
each latent then takes the nearest value that the trellis allows.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.compiled import NativeCosts, address, library
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.prior import MEAN_FRACTIONS, SCALE_COUNT, Prediction
from perigee.bitstream.tables import FREQUENCY_TOTAL, OCTAVE, TRELLIS, TRELLIS_FROM, WIDE_SCALE_COUNT, raw_bits_of

BITS_OF_ERROR = 12.5  # what a squared error of one step is worth
BUCKET_MAX = 31
REACHED = np.dtype("V40")  # ``Reached`` in ``csrc/rounding.h``


class Rounding:
    """Chooses the latents of a pass."""

    def __init__(self, contract: ComponentContract, error_bits: float = BITS_OF_ERROR) -> None:
        tables = contract.tables
        self._bits = -np.log2(tables.frequencies.astype(np.float32) / FREQUENCY_TOTAL)
        self._starts = tables.starts.astype(np.int32)
        self._radius = np.repeat(tables.radius.astype(np.int32), MEAN_FRACTIONS)
        self._centroids = np.ascontiguousarray(contract.centroids)
        self._error_bits = error_bits
        arrays = (self._bits, self._starts, self._radius, self._centroids)
        self._native = NativeCosts(*(address(a) for a in arrays), error_bits)

    def choose(self, y: FloatArray, prediction: Prediction) -> IntArray:
        """Latents int32, in half steps, for values ``y`` float32 in steps, of the shape of the prediction."""
        y = np.ascontiguousarray(y, np.float32)
        table, mean = (np.ascontiguousarray(part, np.int32) for part in prediction)
        order = np.argsort(table.reshape(-1).astype(np.uint16), kind="stable").astype(np.uint32)
        if library is None:
            return self._choose(y, table, mean, order)
        out, reached = np.empty(y.shape, np.int32), np.empty(y.size, REACHED)
        parts = (ctypes.c_void_p(address(a)) for a in (y, table, mean, order, reached, out))
        library.perigee_choose(ctypes.byref(self._native), ctypes.c_uint32(y.size), *parts)
        return out

    def bits_by_offset(self, latents: IntArray, prediction: Prediction, offsets: IntArray) -> npt.NDArray[np.float64]:
        """About how many bits the latents of each channel of a pass take, [channel, offset], where each of ``offsets`` int32 is added to
        their scale indices."""
        latents, table, mean = (np.ascontiguousarray(part, np.int32) for part in (latents, *prediction))
        bits = np.zeros((len(latents), len(offsets)))
        if library is None:
            for number, offset in enumerate(offsets.tolist()):
                bits[:, number] = self._bits_of(latents, table, mean, offset).reshape(len(latents), -1).sum(1)
            return bits
        parts = [ctypes.c_void_p(address(a)) for a in (latents, table, mean, offsets, bits)]
        sizes = [ctypes.c_uint32(n) for n in (len(latents), latents[0].size, len(offsets))]
        library.perigee_bits_by_offset(ctypes.byref(self._native), *sizes[:2], *parts[:3], sizes[2], *parts[3:])
        return bits

    def _bits_of(self, x: IntArray, table: IntArray, mean: IntArray, offset: int) -> FloatArray:
        index = np.clip(table // MEAN_FRACTIONS + offset, 0, WIDE_SCALE_COUNT - 1)
        raw = raw_bits_of(index)
        below = mean - (x & 1) * MEAN_FRACTIONS // 2
        row = (index - OCTAVE * raw) * MEAN_FRACTIONS + (below >> raw & MEAN_FRACTIONS - 1)
        return raw + self._symbol_bits(row, (x >> 1 >> raw) - (below >> raw + 4))

    def _symbol_bits(self, row: IntArray, symbol: IntArray) -> FloatArray:
        radius = self._radius[row]
        outside = (symbol < -radius) | (symbol > radius + 1)
        bits = self._bits[self._starts[row] + np.where(outside, 2 * radius + 2, symbol + radius)]
        return np.asarray(bits + np.where(outside, 2 * np.log2(np.abs(symbol) + 1.0) + 1, 0), np.float32)

    def _choose(self, y: FloatArray, table: IntArray, mean: IntArray, order: IntArray) -> IntArray:
        whole = np.rint(y).astype(np.int32)
        distance = MEAN_FRACTIONS * whole - mean
        nearer = np.where(np.abs(distance) > MEAN_FRACTIONS // 2, whole - np.sign(distance), whole)
        narrow = table < TRELLIS_FROM * MEAN_FRACTIONS
        safe = np.where(narrow, table, 0)
        candidates = (whole, nearer, np.zeros_like(whole))
        best = np.argmin(np.stack([self._costs(y, safe, mean, q) for q in candidates]), axis=0)
        out = (2 * np.where(narrow, np.choose(best, candidates), whole)).astype(np.int32)
        flat, state = out.reshape(-1), 0
        on_trellis = (~narrow & (table < SCALE_COUNT * MEAN_FRACTIONS)).reshape(-1)
        values, numbers, means = y.reshape(-1), table.reshape(-1), mean.reshape(-1)
        for i in order[on_trellis[order]].tolist():
            odd = state & 1
            steps = round(float(values[i]) - odd / 2)
            flat[i] = 2 * steps + odd
            symbol, radius = steps - (int(means[i]) - MEAN_FRACTIONS // 2 * odd >> 4), int(self._radius[numbers[i]])
            state = TRELLIS[state][steps & 1 if -radius <= symbol <= radius + 1 else 0]
        return out

    def _costs(self, y: FloatArray, table: IntArray, mean: IntArray, q: IntArray) -> FloatArray:
        distance = MEAN_FRACTIONS * q - mean
        bucket = np.minimum(np.abs(distance) + 2 >> 2, BUCKET_MAX)
        inward = self._centroids[np.minimum(table // MEAN_FRACTIONS, SCALE_COUNT - 1), bucket].astype(np.float32) / 128
        error = y - (q - np.sign(distance) * inward)
        bits = self._symbol_bits(table, q - (mean >> 4))
        return np.asarray(self._error_bits * error * error + bits, np.float32)
