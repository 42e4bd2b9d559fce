"""Rounding of latents by what they cost, for encoders: an error is weighed against the bits that it saves.

Each latent is rounded to the nearest integer, to the next one towards its mean, or to 0, whichever costs least by the contract's own
tables and centroids. Any decoder reads the result. It only chooses integers, so it may differ from machine to machine.
"""

from __future__ import annotations

import ctypes

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.compiled import NativeCosts, address, library
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.prior import MEAN_FRACTIONS, SCALE_COUNT, Prediction
from perigee.bitstream.tables import FREQUENCY_TOTAL

BITS_OF_ERROR = 10.0  # what a squared error of one step is worth
INDEX_MAX = 58  # of the scale: wider distributions are rounded to the nearest
BUCKET_MAX = 31


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
        self._native = NativeCosts(*(address(a) for a in arrays), error_bits, INDEX_MAX * MEAN_FRACTIONS)

    def choose(self, y: FloatArray, prediction: Prediction) -> IntArray:
        """Latents int32 for values ``y`` float32 in steps, of the shape of the prediction."""
        y = np.ascontiguousarray(y, np.float32)
        table, mean = (np.ascontiguousarray(part, np.int32) for part in prediction)
        if library is None:
            return self._choose(y, table, mean)
        out = np.empty(y.shape, np.int32)
        parts = (ctypes.c_void_p(address(a)) for a in (y, table, mean, out))
        library.perigee_round(ctypes.byref(self._native), ctypes.c_uint32(y.size), *parts)
        return out

    def _choose(self, y: FloatArray, table: IntArray, mean: IntArray) -> IntArray:
        nearest = np.rint(y).astype(np.int32)
        distance = MEAN_FRACTIONS * nearest - mean
        nearer = np.where(np.abs(distance) > MEAN_FRACTIONS // 2, nearest - np.sign(distance), nearest)
        narrow = table < INDEX_MAX * MEAN_FRACTIONS
        safe = np.where(narrow, table, 0)
        candidates = (nearest, nearer, np.zeros_like(nearest))
        best = np.argmin(np.stack([self._costs(y, safe, mean, q) for q in candidates]), axis=0)
        return np.where(narrow, np.choose(best, candidates), nearest).astype(np.int32)

    def _costs(self, y: FloatArray, table: IntArray, mean: IntArray, q: IntArray) -> FloatArray:
        distance = MEAN_FRACTIONS * q - mean
        bucket = np.minimum(np.abs(distance) + 2 >> 2, BUCKET_MAX)
        inward = self._centroids[np.minimum(table // MEAN_FRACTIONS, SCALE_COUNT - 1), bucket].astype(np.float32) / 128
        error = y - (q - np.sign(distance) * inward)
        radius, symbol = self._radius[table], q - (mean >> 4)
        outside = (symbol < -radius) | (symbol > radius + 1)
        bits = self._bits[self._starts[table] + np.where(outside, 2 * radius + 2, symbol + radius)]
        bits = bits + np.where(outside, 2 * np.log2(np.abs(symbol) + 1.0) + 1, 0)
        return np.asarray(self._error_bits * error * error + bits, np.float32)
