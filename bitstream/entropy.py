"""Symbols to bytes and back, given the prior's predictions: one ANS coder for the hyper-latents and all passes.

Probabilities are the profile's integer tables (16 bit, every frequency >= 1). The coder is ANS with a 64-bit state,
32-bit words and 24-bit probabilities ``256 * f``; :class:`IntegerAns` below is its definition, and constriction gives
the same bytes faster where it is installed. Words are stored in the order in which the decoder reads them, so that a
segment cut short still decodes pass by pass.

Order of symbols: first ``z`` channel by channel; then the passes. Within a pass, symbols are grouped by table number
(ascending; within one table in the order channel, half row, column of the pass array), then the escapes of the pass in
the same order: a sign bit and the excess in Exp-Golomb code, each bit with probability 1/2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from perigee.bitstream.errors import ProfileError, SymbolError
from perigee.bitstream.prior import (
    MEAN_FRACTIONS,
    Q_MAX,
    Q_MIN,
    SCALE_COUNT,
    Z_CLAMP,
    IntArray,
    Prediction,
    PriorEngine,
    Widths,
    unhalf,
)

try:
    import constriction
except ImportError:  # every aarch64 machine: no wheel there
    constriction = None

PRECISION = 24
FREQUENCY_TOTAL = 1 << 16
ESCAPE_BITS_MAX = 17
_MASK = (1 << PRECISION) - 1


@dataclass(frozen=True)
class Tables:
    """Integer frequencies: Gaussian tables for latents and one table per hyper-latent channel.

    ``radius`` uint16 [64]: table (i, f) covers the symbols -radius[i] .. radius[i] + 1, then the escape.
    ``frequencies`` uint16: all latent tables one after the other, table number 16 * i + f.
    ``z_frequencies`` uint16 [hyper_latents, 129]: for z = -64..64.
    """

    radius: IntArray
    frequencies: IntArray
    z_frequencies: IntArray

    def __post_init__(self) -> None:
        if (
            self.radius.shape != (SCALE_COUNT,)
            or self.z_frequencies.ndim != 2
            or self.z_frequencies.shape[1] != 2 * Z_CLAMP + 1
        ):
            raise ProfileError(f"tables need 64 radii and {2 * Z_CLAMP + 1} frequencies a hyper-latent channel")
        if self.frequencies.shape != (int(self.sizes.sum()),):
            raise ProfileError(f"{self.frequencies.shape} latent frequencies, expected {int(self.sizes.sum())}")
        sums = np.add.reduceat(self.frequencies.astype(np.int64), self.starts)
        z_sums = self.z_frequencies.astype(np.int64).sum(1)
        if (sums != FREQUENCY_TOTAL).any() or (z_sums != FREQUENCY_TOTAL).any():
            raise ProfileError(f"the frequencies of each table must sum to {FREQUENCY_TOTAL}")
        if not self.frequencies.all() or not self.z_frequencies.all():
            raise ProfileError("every frequency must be at least 1")
        if any(part.dtype != np.uint16 for part in (self.radius, self.frequencies, self.z_frequencies)):
            raise ProfileError("tables are of type uint16")

    @cached_property
    def table_radius(self) -> npt.NDArray[np.int32]:
        """Radius by table number."""
        return np.repeat(self.radius.astype(np.int32), MEAN_FRACTIONS)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Entries of each table, escape included."""
        return np.repeat(2 * self.radius.astype(np.int64) + 3, MEAN_FRACTIONS)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First entry of each table in ``frequencies``."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]])

    @cached_property
    def models(self) -> dict[int, Any]:
        """Coder models by table number, made when first used: building one costs more than a run of symbols."""
        return {}

    def row(self, table: int) -> IntArray:
        """Frequencies of one table: 0..1023 for latents, 1024 + channel for hyper-latents."""
        if table >= SCALE_COUNT * MEAN_FRACTIONS:
            return np.asarray(self.z_frequencies[table - SCALE_COUNT * MEAN_FRACTIONS])
        start = int(self.starts[table])
        return self.frequencies[start : start + int(self.sizes[table])]


class Coder(Protocol):
    """A stack of symbols; what is pushed last comes back first."""

    def push(self, entries: npt.NDArray[np.int32], table: int) -> None:
        """Push table entries so that they pop in the given order."""
        ...

    def pop(self, table: int, count: int) -> npt.NDArray[np.int32]:
        """Pop ``count`` entries."""
        ...

    def push_bits(self, bits: Sequence[int]) -> None:
        """Push bits of probability 1/2 so that they pop in the given order."""
        ...

    def pop_bit(self) -> int:
        """Pop one bit."""
        ...

    def to_words(self) -> npt.NDArray[np.uint32]:
        """The words in reading order."""
        ...

    @property
    def words_left(self) -> int:
        """Words not yet consumed, the state's included; below 2 a further read may have run dry."""
        ...


class IntegerAns:
    """The coder in integers: definition, arbiter, and fall-back where constriction is missing."""

    def __init__(self, tables: Tables, words: npt.NDArray[np.uint32] | None = None) -> None:
        self._tables = tables
        self._cumulated: dict[int, list[int]] = {}
        self._bulk: list[int] = [] if words is None else [int(w) for w in words[::-1]]
        self._state = 0
        while self._bulk and self._state < 1 << 32:
            self._state = self._state << 32 | self._bulk.pop()

    def _row(self, table: int) -> list[int]:
        row = self._cumulated.get(table)
        if row is None:
            row = [0, *np.cumsum(self._tables.row(table).astype(np.int64) * 256).tolist()]
            self._cumulated[table] = row
        return row

    def _push(self, left: int, probability: int) -> None:
        if self._state >> (64 - PRECISION) >= probability:
            self._bulk.append(self._state & 0xFFFFFFFF)
            self._state >>= 32
        quotient, remainder = divmod(self._state, probability)
        self._state = quotient << PRECISION | (left + remainder)

    def _advance(self, left: int, probability: int) -> None:
        self._state = (self._state >> PRECISION) * probability + (self._state & _MASK) - left
        if self._state < 1 << 32 and self._bulk:
            self._state = self._state << 32 | self._bulk.pop()

    def push(self, entries: npt.NDArray[np.int32], table: int) -> None:
        row = self._row(table)
        for entry in entries[::-1].tolist():
            self._push(row[entry], row[entry + 1] - row[entry])

    def pop(self, table: int, count: int) -> npt.NDArray[np.int32]:
        row = self._row(table)
        out = np.empty(count, np.int32)
        for i in range(count):
            entry = bisect_right(row, self._state & _MASK) - 1
            out[i] = entry
            self._advance(row[entry], row[entry + 1] - row[entry])
        return out

    def push_bits(self, bits: Sequence[int]) -> None:
        for bit in reversed(bits):
            self._push(bit << (PRECISION - 1), 1 << (PRECISION - 1))

    def pop_bit(self) -> int:
        bit = (self._state & _MASK) >> (PRECISION - 1)
        self._advance(bit << (PRECISION - 1), 1 << (PRECISION - 1))
        return bit

    def to_words(self) -> npt.NDArray[np.uint32]:
        words = list(self._bulk)
        state = self._state
        while state:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        return np.array(words[::-1], np.uint32)

    @property
    def words_left(self) -> int:
        return len(self._bulk) + (self._state.bit_length() + 31) // 32


class ConstrictionAns:
    """The same coder from constriction. ``perfect=False`` with weights ``256 f - 1`` makes its models the integer tables."""

    def __init__(self, tables: Tables, words: npt.NDArray[np.uint32] | None = None) -> None:
        self._tables = tables
        self._known = tables.models
        self._bit = constriction.stream.model.Uniform(2)
        ans = constriction.stream.stack.AnsCoder
        self._coder = ans() if words is None or not len(words) else ans(np.ascontiguousarray(words[::-1]))

    def _model(self, table: int) -> Any:
        model = self._known.get(table)
        if model is None:
            weights = self._tables.row(table).astype(np.float64) * 256 - 1
            model = constriction.stream.model.Categorical(weights, perfect=False)
            self._known[table] = model
        return model

    def push(self, entries: npt.NDArray[np.int32], table: int) -> None:
        self._coder.encode_reverse(entries, self._model(table))

    def pop(self, table: int, count: int) -> npt.NDArray[np.int32]:
        out: npt.NDArray[np.int32] = self._coder.decode(self._model(table), count)
        return out

    def push_bits(self, bits: Sequence[int]) -> None:
        self._coder.encode_reverse(np.array(bits, np.int32), self._bit)

    def pop_bit(self) -> int:
        return int(self._coder.decode(self._bit))

    def to_words(self) -> npt.NDArray[np.uint32]:
        words: npt.NDArray[np.uint32] = self._coder.get_compressed()
        return words[::-1]

    @property
    def words_left(self) -> int:
        return int(self._coder.num_words())


def new_coder(tables: Tables, words: npt.NDArray[np.uint32] | None = None, kind: str = "auto") -> Coder:
    """A coder of the given kind: ``constriction``, ``integer``, or ``auto`` for the first that is installed."""
    if words is not None and len(words) and not words[0]:
        raise SymbolError("the first word of the coder is zero, which no encoder writes")
    if kind == "integer" or (kind == "auto" and constriction is None):
        return IntegerAns(tables, words)
    return ConstrictionAns(tables, words)


def _runs(tables: IntArray) -> tuple[IntArray, IntArray, list[tuple[int, int, int]]]:
    """Coding order of a pass: permutation, sorted table numbers, and runs (table, start, stop)."""
    flat = tables.reshape(-1).astype(np.uint16)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = [0, *edges.tolist()]
    stops = [*edges.tolist(), len(ordered)]
    numbers = ordered[starts].tolist() if len(ordered) else []
    return order, ordered, list(zip(numbers, starts, stops, strict=True))


def _escape_bits(excess: int, negative: bool) -> list[int]:
    digits = bin(excess + 1)[2:]
    return [int(negative), *([0] * (len(digits) - 1)), *map(int, digits)]


def _pop_escape(coder: Coder) -> tuple[int, int]:
    negative = coder.pop_bit()
    zeros = 0
    while not coder.pop_bit():
        zeros += 1
        if zeros > ESCAPE_BITS_MAX:
            raise SymbolError(f"an escape announces more than {ESCAPE_BITS_MAX} bits")
    value = 1
    for _ in range(zeros):
        value = value << 1 | coder.pop_bit()
    return value - 1, negative


def encode_symbols(
    widths: Widths, tables: Tables, z: IntArray, passes: Sequence[tuple[IntArray, Prediction]], kind: str = "auto"
) -> npt.NDArray[np.uint32]:
    """Words of one patch. ``z`` int [hyper_latents, h, w]; per pass the latents int [slice, H, W/2] at its half and
    the prediction of the same shape."""
    coder = new_coder(tables, kind=kind)
    for values, prediction in reversed(passes):
        order, ordered, runs = _runs(prediction.table)
        radius = tables.table_radius[ordered]
        symbols = (values - (prediction.mean >> 4)).reshape(-1)[order].astype(np.int32)
        outside = (symbols < -radius) | (symbols > radius + 1)
        entries = symbols + radius
        if outside.any():
            where = np.flatnonzero(outside)
            entries[where] = 2 * radius[where] + 2
            for i in where[::-1].tolist():
                symbol, reach = int(symbols[i]), int(radius[i])
                negative = symbol < 0
                coder.push_bits(_escape_bits(-symbol - reach - 1 if negative else symbol - reach - 2, negative))
        for table, start, stop in reversed(runs):
            coder.push(entries[start:stop], table)
    first = SCALE_COUNT * MEAN_FRACTIONS
    for channel in range(widths.hyper_latents - 1, -1, -1):
        coder.push((z[channel].reshape(-1) + Z_CLAMP).astype(np.int32), first + channel)
    return coder.to_words()


@dataclass(frozen=True)
class DecodedPatch:
    """Symbols of one patch: ``q`` int32 [latents, H, W], per-latent ``mean`` (1/16) and scale index, passes decoded."""

    q: IntArray
    mean: IntArray
    scale_index: IntArray
    passes: int


def decode_symbols(
    widths: Widths,
    tables: Tables,
    prior: PriorEngine,
    words: npt.NDArray[np.uint32],
    quality_step: int,
    hyper_size: tuple[int, int],
    cut: bool = False,
    kind: str = "auto",
) -> DecodedPatch:
    """Inverse of :func:`encode_symbols`; ``hyper_size`` is (h, w) of z.

    Of a segment cut short, the passes that are certainly complete are used (never the last), and the latents of the
    others are the prior's mean. Raises SymbolError where the words cannot come from an encoder.
    """
    h, w = hyper_size
    rows, cols = 4 * h, 4 * w
    coder = new_coder(tables, words, kind)
    first = SCALE_COUNT * MEAN_FRACTIONS
    z = np.stack([coder.pop(first + c, h * w).reshape(h, w) - Z_CLAMP for c in range(widths.hyper_latents)])
    dry = cut and coder.words_left < 2
    if dry:
        z = np.zeros_like(z)
    step = prior.start(z[None].astype(np.int32), quality_step)
    q = np.zeros((1, widths.latents, rows, cols), np.int32)
    means, indices = np.zeros_like(q), np.zeros_like(q)
    complete = 0
    for k in range(widths.passes):
        start, stop = widths.slice_of(k)
        prediction = step(k, q)
        values = prediction.mean[0] + 8 >> 4  # the mean, rounded: stands for what was cut off
        if not dry:
            decoded = None
            try:
                decoded = _decode_pass(tables, coder, prediction)
            except SymbolError:
                if not cut:  # past the end of a cut segment anything can be read
                    raise
            dry = decoded is None or (cut and coder.words_left < 2)
            if decoded is not None and not dry:
                values, complete = decoded, k + 1
        unhalf(np.clip(values, Q_MIN, Q_MAX)[None], k % 2, q[:, start:stop])
        unhalf(prediction.mean, k % 2, means[:, start:stop])
        unhalf(prediction.table // MEAN_FRACTIONS, k % 2, indices[:, start:stop])
    if not cut and coder.words_left:
        raise SymbolError(f"{coder.words_left} words are left over after the last symbol")
    return DecodedPatch(q[0], means[0], indices[0], complete)


def _decode_pass(tables: Tables, coder: Coder, prediction: Prediction) -> IntArray:
    order, ordered, runs = _runs(prediction.table)
    entries = np.concatenate([coder.pop(table, stop - start) for table, start, stop in runs])
    radius = tables.table_radius[ordered]
    symbols = entries - radius
    for i in np.flatnonzero(entries == 2 * radius + 2).tolist():
        excess, negative = _pop_escape(coder)
        symbols[i] = -excess - int(radius[i]) - 1 if negative else excess + int(radius[i]) + 2
    out = np.empty_like(symbols)
    out[order] = symbols
    values = out.reshape(prediction.table.shape[1:]) + (prediction.mean[0] >> 4)
    if values.min() < Q_MIN or values.max() > Q_MAX:
        raise SymbolError(f"a latent of {int(values.min())}..{int(values.max())} is outside {Q_MIN}..{Q_MAX}")
    return np.asarray(values)
