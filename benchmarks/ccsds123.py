"""How many bits a coder like that of CCSDS 123.0-B-2 takes, as a reference for bounded errors. It counts bits and writes none.

It follows the standard's full prediction with wide neighbour-oriented local sums and three previous bands (sections 4.4 to 4.10), its quantiser
for absolute error limits (4.8), and the sample-adaptive entropy coder (5.4.3.2). What the standard leaves to the user is what its implementations
take by default. Left out are the hybrid entropy coder, which is better below one bit a sample, sample representatives other than the centres
of the bins, and headers; so this is a coder like the standard's and not the standard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import Samples

PREVIOUS = 3  # bands
OMEGA = 19  # weights are in 2^-OMEGA
V_MIN, V_MAX, T_INC = -1, 3, 64  # how fast weights follow
COUNTER_FIRST, COUNTER_BITS, ACCUMULATOR_FIRST, UNARY_MAX = 1, 6, 3, 18

Ints = npt.NDArray[np.int64]


def bits_of(images: Sequence[Samples], counts: int) -> list[int]:
    """The bits of images of one shape [band, row, col] and unsigned samples, each with errors of at most ``counts``. They are coded side by side."""
    whole = np.stack([image.astype(np.int64) for image in images], -1)  # [band, row, col, image]
    bands, rows, cols, many = whole.shape
    depth = np.array([max(int(image.max()).bit_length(), 2) for image in images], np.int64)
    coder = _Coder(whole, depth, counts)
    total = np.zeros(many, np.int64)
    for band in range(bands):
        coder.begin(band)
        for row in range(rows):
            for col in range(cols):
                total += coder.code(band, row, col)
    return [int(bits) for bits in total]


class _Coder:
    """The state of the prediction and of the entropy coder of a band; the last axis of all arrays counts images."""

    def __init__(self, samples: Ints, depth: Ints, counts: int) -> None:
        self._samples, self._depth, self._counts = samples, depth, counts
        self._found = np.zeros_like(samples)  # what the decoder has
        self._central = np.zeros_like(samples)  # central local differences
        self._largest, self._middle = (1 << depth) - 1, 1 << (depth - 1)

    def begin(self, band: int) -> None:
        """Begin a band."""
        many = self._samples.shape[-1]
        before = min(band, PREVIOUS)
        self._weights = np.zeros((3 + before, many), np.int64)
        for k in range(before):
            self._weights[3 + k] = (7 << (OMEGA - 3)) >> 3 * k
        self._counter = 1 << COUNTER_FIRST
        first = ((3 << (ACCUMULATOR_FIRST + 6)) - 49) * self._counter >> 7
        self._accumulator = np.full(many, first, np.int64)

    def code(self, band: int, row: int, col: int) -> Ints:
        """Code a sample; its bits."""
        found, samples = self._found[band], self._samples[band, row, col]
        cols = found.shape[1]
        differences = None
        if not row and not col:
            twice = 2 * (self._found[band - 1, 0, 0] if band else self._middle)
            twice = np.minimum(twice, 2 * self._largest)
        else:
            local, around = self._surroundings(found, row, col, cols)
            before = [self._central[band - k, row, col] for k in range(1, min(band, PREVIOUS) + 1)]
            differences = np.stack([*around, *before])
            predicted = (self._weights * differences).sum(0)
            high = (
                predicted + ((local - 4 * self._middle) << OMEGA) + (self._middle << (OMEGA + 2)) + (1 << (OMEGA + 1))
            )
            twice = np.clip(high >> (OMEGA + 1), 0, 2 * self._largest)
        mean = twice >> 1
        width = 2 * self._counts + 1
        off = samples - mean
        level = np.sign(off) * ((np.abs(off) + self._counts) // width)
        decoded = np.clip(mean + level * width, 0, self._largest)
        found[row, col] = decoded
        if differences is not None:
            self._central[band, row, col] = 4 * decoded - local
            self._adapt(2 * decoded - twice, differences, row * cols + col, cols)
        return self._length(self._mapped(level, mean, twice, width), first=differences is None)

    def _surroundings(self, found: Ints, row: int, col: int, cols: int) -> tuple[Ints, list[Ints]]:
        """The local sum, and the directional local differences north, west and north-west."""
        if not row:
            west = found[0, col - 1]
            return 4 * west, [np.zeros_like(west)] * 3
        north = found[row - 1, col]
        if not col:
            north_east = found[row - 1, min(1, cols - 1)]
            local = 2 * (north + north_east)
            return local, [4 * north - local] * 3
        west, north_west = found[row, col - 1], found[row - 1, col - 1]
        north_east = found[row - 1, col + 1] if col + 1 < cols else north
        local = west + north_west + north + north_east
        return local, [4 * north - local, 4 * west - local, 4 * north_west - local]

    def _adapt(self, error: Ints, differences: Ints, number: int, cols: int) -> None:
        shift = min(max(V_MIN + (number - cols) // T_INC, V_MIN), V_MAX) + self._depth - OMEGA
        signed = np.where(error < 0, -1, 1) * differences
        scaled = np.where(shift > 0, signed >> np.maximum(shift, 0), signed << np.maximum(-shift, 0))
        most = 1 << (OMEGA + 2)
        self._weights = np.clip(self._weights + ((scaled + 1) >> 1), -most, most - 1)

    def _mapped(self, level: Ints, mean: Ints, twice: Ints, width: int) -> Ints:
        """Levels as numbers from 0 on (section 4.11)."""
        room = np.minimum((mean + self._counts) // width, (self._largest - mean + self._counts) // width)
        size = np.abs(level)
        even = np.where(twice % 2, -level, level) >= 0
        return np.where(size > room, size + room, np.where(even, 2 * size, 2 * size - 1))

    def _length(self, number: Ints, first: bool) -> Ints:
        """The bits of a number, and what the coder learns of it."""
        if first:
            return self._depth
        wanted = (self._accumulator + (49 * self._counter >> 7)) // self._counter
        low = np.clip(np.floor(np.log2(np.maximum(wanted, 1))).astype(np.int64), 0, np.maximum(self._depth - 2, 0))
        ones = number >> low
        bits = np.where(ones < UNARY_MAX, ones + 1 + low, UNARY_MAX + self._depth)
        if self._counter < (1 << COUNTER_BITS) - 1:
            self._accumulator = self._accumulator + number
            self._counter += 1
        else:
            self._accumulator = (self._accumulator + number + 1) >> 1
            self._counter = (self._counter + 1) >> 1
        return bits
