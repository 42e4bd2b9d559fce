"""ANS coders with a 64-bit state, 32-bit words and 24-bit probabilities ``256 * f``: three of the same bytes.

:class:`IntegerAns` is the definition; :class:`NativeAns`, compiled from ``csrc/coder.c`` where there was a compiler, and
:class:`ConstrictionAns` are faster. All are stacks: what is pushed last comes back first.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.compiled import NativeCoder, NativePass, NativeTables, address, library, pointer
from perigee.bitstream.errors import SymbolError
from perigee.bitstream.prior import SCALE_COUNT, Prediction
from perigee.bitstream.tables import TRELLIS, Tables

try:
    import constriction
except ImportError:  # every aarch64 machine: no wheel there
    constriction = None

PRECISION = 24
WORDS_PER_SYMBOL = 3  # more than any symbol can take: 16 bits, an escape of 51 and 11 bits as they are
_MASK = (1 << PRECISION) - 1
SORTED = np.dtype("V12")  # ``Sorted`` in ``csrc/coder.h``


class Coder(ABC):
    """What the symbols of a patch are pushed to and popped from."""

    @abstractmethod
    def push(self, entries: npt.NDArray[np.int32], table: int) -> None:
        """Push entries [runs, count], the rows of tables ``table``, ``table + 1``, ..., so that they pop in this order."""

    @abstractmethod
    def pop(self, table: int, runs: int, count: int) -> npt.NDArray[np.int32]:
        """Pop entries [runs, count] of tables ``table``, ``table + 1``, ..."""

    @abstractmethod
    def push_passes(self, passes: Sequence[tuple[IntArray, Prediction]]) -> None:
        """Push the passes of a patch so that they pop in this order: the latents of each, int of any shape, and a prediction of
        the same shape. Raises SymbolError for what no stream can carry."""

    @abstractmethod
    def pop_pass(self, prediction: Prediction) -> IntArray:
        """Pop the latents of a pass, int32 of the prediction's shape. Raises SymbolError for what no encoder writes."""

    @abstractmethod
    def to_words(self) -> npt.NDArray[np.uint32]:
        """The words in reading order; nothing may be pushed afterwards."""

    @property
    @abstractmethod
    def words_left(self) -> int:
        """Words not yet consumed, the state's included; below 2 a further read may have run dry."""


class RunCoder(Coder):
    """A coder that takes a pass run by run: symbols of one table at a time."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    @abstractmethod
    def push_run(self, entries: npt.NDArray[np.int32], table: int) -> None:
        """Push entries [count] of one table."""

    @abstractmethod
    def pop_run(self, table: int, count: int) -> npt.NDArray[np.int32]:
        """Pop ``count`` entries of one table."""

    def push(self, entries: npt.NDArray[np.int32], table: int) -> None:
        for i in range(len(entries) - 1, -1, -1):
            self.push_run(entries[i], table + i)

    def pop(self, table: int, runs: int, count: int) -> npt.NDArray[np.int32]:
        return np.stack([self.pop_run(table + i, count) for i in range(runs)])

    @abstractmethod
    def push_bits(self, bits: Sequence[int]) -> None:
        """Push bits of probability 1/2 so that they pop in the given order."""

    @abstractmethod
    def pop_bit(self) -> int:
        """Pop one bit."""

    def push_passes(self, passes: Sequence[tuple[IntArray, Prediction]]) -> None:
        for values, prediction in reversed(passes):
            self._push_pass(values, prediction)

    def _push_pass(self, values: IntArray, prediction: Prediction) -> None:
        self._check(values)
        order, ordered, runs = _runs(prediction.table)
        radius = self._tables.table_radius[ordered]
        symbols = (values - (prediction.mean >> 4)).reshape(-1)[order].astype(np.int32)
        outside = (symbols < -radius) | (symbols > radius + 1)
        entries = symbols + radius
        if outside.any():
            where = np.flatnonzero(outside)
            entries[where] = 2 * radius[where] + 2
            for i in where[::-1].tolist():
                self.push_bits(_escape_of(int(symbols[i]), int(radius[i])))
        for table, start, stop in reversed(runs):
            self.push_run(entries[start:stop], table)

    def pop_pass(self, prediction: Prediction) -> IntArray:
        order, ordered, runs = _runs(prediction.table)
        entries = np.concatenate([self.pop_run(table, stop - start) for table, start, stop in runs])
        radius = self._tables.table_radius[ordered]
        symbols = entries - radius
        for i in np.flatnonzero(entries == 2 * radius + 2).tolist():
            symbols[i] = self._pop_escape(int(radius[i]))
        out = np.empty_like(symbols)
        out[order] = symbols
        values = out.reshape(prediction.table.shape) + (prediction.mean >> 4)
        self._check(values)
        return np.asarray(values)

    def _check(self, values: IntArray) -> None:
        low, high = self._tables.latent_range
        if values.size and (values.min() < low or values.max() > high):
            raise SymbolError(f"a latent of {int(values.min())}..{int(values.max())} is outside {low}..{high}")

    def _pop_escape(self, radius: int) -> int:
        """The symbol that an escape stands for."""
        negative = self.pop_bit()
        zeros = 0
        while not self.pop_bit():
            zeros += 1
            if zeros > self._tables.escape_bits:
                raise SymbolError(f"an escape announces more than {self._tables.escape_bits} bits")
        value = 1
        for _ in range(zeros):
            value = value << 1 | self.pop_bit()
        return -radius - value if negative else radius + 1 + value


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


def _escape_of(symbol: int, radius: int) -> list[int]:
    """The bits of a symbol outside -radius..radius + 1."""
    excess = -symbol - radius if symbol < 0 else symbol - radius - 1
    digits = bin(excess)[2:]
    return [int(symbol < 0), *([0] * (len(digits) - 1)), *map(int, digits)]


class IntegerAns(RunCoder):
    """The coder in integers: definition, arbiter, and fall-back where constriction is missing."""

    def __init__(self, tables: Tables, words: npt.NDArray[np.uint32] | None = None) -> None:
        super().__init__(tables)
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

    def push_run(self, entries: npt.NDArray[np.int32], table: int) -> None:
        for entry in entries[::-1].tolist():
            self._push_entry(entry, table)

    def pop_run(self, table: int, count: int) -> npt.NDArray[np.int32]:
        return np.array([self._pop_entry(table) for _ in range(count)], np.int32)

    def _push_entry(self, entry: int, table: int) -> None:
        row = self._row(table)
        self._push(row[entry], row[entry + 1] - row[entry])

    def _pop_entry(self, table: int) -> int:
        row = self._row(table)
        entry = bisect_right(row, self._state & _MASK) - 1
        self._advance(row[entry], row[entry + 1] - row[entry])
        return entry

    # Latents of components, which count half steps, one by one: the table of each may depend on the one before it.

    def _push_pass(self, values: IntArray, prediction: Prediction) -> None:
        if self._tables.scales == SCALE_COUNT:
            return super()._push_pass(values, prediction)
        self._check(values)
        order = np.argsort(prediction.table.reshape(-1), kind="stable").tolist()
        latents, mean, number = (part.reshape(-1).tolist() for part in (values, prediction.mean, prediction.table))
        pushed: list[tuple[int, int]] = []
        followed: list[tuple[int, int, int, int]] = []  # symbol, radius, raw bits and their number
        state = 0
        for i in order:
            place = self._tables.place_of(number[i], mean[i], state)
            steps, odd = divmod(latents[i], 2)
            if odd != place.odd:
                raise SymbolError("a latent is not on its trellis")
            symbol = (steps >> place.raw) - place.mean
            inside = -place.radius <= symbol <= place.radius + 1
            pushed.append((symbol + place.radius if inside else 2 * place.radius + 2, place.table))
            if place.on_trellis:
                state = TRELLIS[state][steps & 1 if inside else 0]
            if place.raw or not inside:
                followed.append((symbol, place.radius, steps & (1 << place.raw) - 1, place.raw))
        for symbol, radius, value, bits in reversed(followed):
            if bits:
                self._push(value << (PRECISION - bits), 1 << (PRECISION - bits))
            if not -radius <= symbol <= radius + 1:
                self.push_bits(_escape_of(symbol, radius))
        for entry, table in reversed(pushed):
            self._push_entry(entry, table)
        return None

    def pop_pass(self, prediction: Prediction) -> IntArray:
        if self._tables.scales == SCALE_COUNT:
            return super().pop_pass(prediction)
        order = np.argsort(prediction.table.reshape(-1), kind="stable").tolist()
        mean, number = (part.reshape(-1).tolist() for part in (prediction.mean, prediction.table))
        places, entries = [], []
        state = 0
        for i in order:
            place = self._tables.place_of(number[i], mean[i], state)
            entry = self._pop_entry(place.table)
            if place.on_trellis:
                inside = entry < 2 * place.radius + 2
                state = TRELLIS[state][(entry - place.radius + place.mean) & 1 if inside else 0]
            places.append(place)
            entries.append(entry)
        out = np.empty(len(order), np.int64)
        for i, place, entry in zip(order, places, entries, strict=True):
            escaped = entry == 2 * place.radius + 2
            steps = (self._pop_escape(place.radius) if escaped else entry - place.radius) + place.mean
            if place.raw:
                value = (self._state & _MASK) >> (PRECISION - place.raw)
                self._advance(value << (PRECISION - place.raw), 1 << (PRECISION - place.raw))
                steps = (steps << place.raw) + value
            out[i] = 2 * steps + place.odd
        self._check(out)
        return out.astype(np.int32).reshape(prediction.table.shape)

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


class ConstrictionAns(RunCoder):
    """The same coder from constriction. ``perfect=False`` with weights ``256 f - 1`` makes its models the integer tables."""

    def __init__(self, tables: Tables, words: npt.NDArray[np.uint32] | None = None) -> None:
        super().__init__(tables)
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

    def push_run(self, entries: npt.NDArray[np.int32], table: int) -> None:
        self._coder.encode_reverse(entries, self._model(table))

    def pop_run(self, table: int, count: int) -> npt.NDArray[np.int32]:
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


def _native_error(status: int, tables: Tables) -> SymbolError:
    low, high = tables.latent_range
    reasons = {
        -1: "a table number is out of range",
        -2: "more words than any patch can have",
        -3: f"an escape announces more than {tables.escape_bits} bits",
        -4: f"a latent is outside {low}..{high}",
        -5: "an entry is not in its table",
        -6: "a latent is not on its trellis",
    }
    return SymbolError(reasons[status])


def _native_tables(tables: Tables) -> tuple[NativeTables, tuple[IntArray, ...]]:
    """The tables as ``csrc/coder.c`` wants them, and the arrays that keep them alive."""
    latents, hyper = tables.latent_tables, len(tables.z_frequencies)
    numbers = [*np.unique(tables.shared).tolist(), *range(latents, latents + hyper)]
    place = np.array([*tables.shared, *range(len(numbers) - hyper, len(numbers))])  # among those with frequencies
    rows = [tables.row(t) for t in numbers]
    cumulated = [np.concatenate([[0], np.cumsum(row.astype(np.int64))]) for row in rows]
    steps = np.arange(256) * 256
    starts = np.concatenate([[0], np.cumsum([len(c) for c in cumulated])[:-1]])
    coarse = np.stack([np.searchsorted(c, steps, side="right") - 1 for c in cumulated])
    arrays = (
        np.concatenate(cumulated).astype(np.uint32),
        starts[place].astype(np.uint32),
        coarse[place].astype(np.uint16),
        np.array([len(row) for row in rows], np.uint32)[place],
        np.concatenate([tables.raw_bits, np.zeros(hyper)]).astype(np.uint8),
    )
    low, high = tables.latent_range
    return NativeTables(*(array.ctypes.data for array in arrays), latents, tables.escape_bits, low, high), arrays


class NativeAns(Coder):
    """The same coder from ``csrc/coder.c``, which takes a pass in one call."""

    def __init__(self, tables: Tables, words: npt.NDArray[np.uint32] | None = None, symbols: int = 0) -> None:
        """``symbols`` bounds how many symbols will be pushed."""
        if "native" not in tables.models:
            tables.models["native"] = _native_tables(tables)
        self._source = tables
        self._tables, self._keep = tables.models["native"]
        encoding = words is None
        self._words = np.empty(symbols * WORDS_PER_SYMBOL + 4, np.uint32) if words is None else words.astype(np.uint32)
        size = len(self._words)
        self._coder = NativeCoder(0, self._words.ctypes.data, size if encoding else 0, size)
        while not encoding and self._coder.position < size and self._coder.state < 1 << 32:
            self._coder.state = self._coder.state << 32 | int(self._words[self._coder.position])
            self._coder.position += 1

    def _call(self, name: str, *args: Any) -> None:
        status = getattr(library, name)(ctypes.byref(self._coder), *args)
        if status < 0:
            raise _native_error(status, self._source)

    def push_passes(self, passes: Sequence[tuple[IntArray, Prediction]]) -> None:
        kept = []
        for values, prediction in passes:
            if not values.shape == prediction.table.shape == prediction.mean.shape:
                raise SymbolError(
                    f"{list(values.shape)} values for {list(prediction.table.shape)} tables and {list(prediction.mean.shape)} means"
                )
            kept.append([np.ascontiguousarray(a, np.int32) for a in (values, *prediction)])
        described = (NativePass * len(kept))(*(NativePass(*map(address, arrays), arrays[0].size) for arrays in kept))
        room = np.empty(max((arrays[0].size for arrays in kept), default=0), SORTED)
        tables, count = ctypes.byref(self._tables), ctypes.c_uint32(len(kept))
        self._call("perigee_push_passes", tables, count, described, pointer(room))

    def pop_pass(self, prediction: Prediction) -> IntArray:
        table, mean = (np.ascontiguousarray(a, np.int32) for a in prediction)
        if table.shape != mean.shape:
            raise SymbolError(f"{list(table.shape)} tables and {list(mean.shape)} means")
        values, order = np.empty(table.shape, np.int32), np.empty(table.size, SORTED)
        described = NativePass(address(values), address(table), address(mean), table.size)
        self._call("perigee_pop_pass", ctypes.byref(self._tables), ctypes.byref(described), pointer(order))
        return values

    def _runs(self, name: str, entries: npt.NDArray[np.int32], table: int) -> None:
        sizes = (ctypes.c_uint32(n) for n in (table, *entries.shape))
        self._call(name, ctypes.byref(self._tables), *sizes, pointer(entries))

    def push(self, entries: npt.NDArray[np.int32], table: int) -> None:
        self._runs("perigee_push_runs", np.ascontiguousarray(entries, np.int32), table)

    def pop(self, table: int, runs: int, count: int) -> npt.NDArray[np.int32]:
        entries = np.empty((runs, count), np.int32)
        self._runs("perigee_pop_runs", entries, table)
        return entries

    def to_words(self) -> npt.NDArray[np.uint32]:
        self._call("perigee_flush")
        return self._words[self._coder.position :].copy()

    @property
    def words_left(self) -> int:
        state = int(self._coder.state)
        return int(self._coder.length - self._coder.position) + (state.bit_length() + 31) // 32


def memory_of(tables: Tables, kind: str = "auto") -> tuple[IntArray, ...]:
    """The arrays that a coder of this kind reads when it codes, for whoever checks memory."""
    kind = available_coders()[0] if kind == "auto" else kind
    if kind != "native":
        return tables.frequencies, tables.z_frequencies
    NativeAns(tables, np.zeros(0, np.uint32))
    kept: tuple[IntArray, ...] = tables.models["native"][1]
    return kept


def available_coders(components: bool = False) -> list[str]:
    """Coders that work here, the preferred first: ``native``, ``constriction`` (not for components), ``integer``."""
    faster = [("native", library), *([] if components else [("constriction", constriction)])]
    return [name for name, module in faster if module is not None] + ["integer"]


def new_coder(
    tables: Tables, words: npt.NDArray[np.uint32] | None = None, kind: str = "auto", symbols: int = 0
) -> Coder:
    """A coder by its name in :func:`available_coders`, or ``auto`` for the first of them.

    ``words`` are to be read; without, up to ``symbols`` can be pushed. Raises SymbolError for words that start with 0.
    """
    if words is not None and len(words) and not words[0]:
        raise SymbolError("the first word of the coder is zero, which no encoder writes")
    components = tables.scales > SCALE_COUNT
    kind = available_coders(components)[0] if kind == "auto" else kind
    if kind == "native":
        return NativeAns(tables, words, symbols)
    if kind == "constriction" and not components:
        return ConstrictionAns(tables, words)
    return IntegerAns(tables, words)
