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

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.compiled import address, library
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.costs import TableCosts
from perigee.bitstream.prior import MEAN_FRACTIONS, SCALE_COUNT, Prediction
from perigee.bitstream.tables import TRELLIS, TRELLIS_FROM

BITS_OF_ERROR = 12.5  # what a squared error of one step is worth
BUCKET_MAX = 31
CELL = np.float32(128)  # centroids are in 1/128 step
REACHED = np.dtype("V24")  # ``Reached`` in ``csrc/rounding.h``


class Rounding:
    """Chooses the latents of a pass."""

    def __init__(self, contract: ComponentContract, error_bits: float = BITS_OF_ERROR) -> None:
        self.costs = TableCosts(contract.tables)
        self._centroids = np.ascontiguousarray(contract.centroids, np.float32) / CELL
        self._error_bits = error_bits
        self._native = self.costs.native(self._centroids, error_bits)

    def choose(self, y: FloatArray, prediction: Prediction) -> IntArray:
        """Latents int32, in half steps, for values ``y`` float32 in steps, of the shape of the prediction."""
        y = np.ascontiguousarray(y, np.float32)
        table, mean = (np.ascontiguousarray(part, np.int32) for part in prediction)
        if library is None:
            return self._choose(y, table, mean)
        out, order, reached = np.empty(y.shape, np.int32), np.empty(y.size, np.uint32), np.empty(y.size, REACHED)
        parts = (ctypes.c_void_p(address(a)) for a in (y, table, mean, order, reached, out))
        library.perigee_choose(ctypes.byref(self._native), ctypes.c_uint32(y.size), *parts)
        return out

    def _choose(self, y: FloatArray, table: IntArray, mean: IntArray) -> IntArray:
        order = np.argsort(table.reshape(-1), kind="stable")
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
            symbol, radius = (
                steps - (int(means[i]) - MEAN_FRACTIONS // 2 * odd >> 4),
                int(self.costs.radius[numbers[i]]),
            )
            state = TRELLIS[state][steps & 1 if -radius <= symbol <= radius + 1 else 0]
        return out

    def _costs(self, y: FloatArray, table: IntArray, mean: IntArray, q: IntArray) -> FloatArray:
        distance = MEAN_FRACTIONS * q - mean
        bucket = np.minimum(np.abs(distance) + 2 >> 2, BUCKET_MAX)
        inward = self._centroids[np.minimum(table // MEAN_FRACTIONS, SCALE_COUNT - 1), bucket]
        error = y - (q - np.sign(distance) * inward)
        bits = self.costs.of_symbols(table, q - (mean >> 4))
        return np.asarray(self._error_bits * error * error + bits, np.float32)
