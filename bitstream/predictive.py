"""The predictive coder: integers of several bands, each predicted from its neighbours and from bands before it, and coded with what the
errors around it let expect. ``docs/format2.md``, section 23.

:func:`encode_planes` and :func:`decode_planes` use ``csrc/predictive.c`` where there was a compiler. The definition is :class:`_Reference`,
in Python and many hundred times slower; it gives the same words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import Array, IntArray
from perigee.bitstream.coders import PRECISION
from perigee.bitstream.compiled import NativeBand, NativeCoder, NativeCurve, address, library, pointer
from perigee.bitstream.errors import SymbolError

Words = npt.NDArray[np.uint32]
ABOVE, BELOW, BESIDE = 2, 1, 2  # rows and columns of padding around a plane
# Places, row and column, of what a sample is predicted from: in its own band, in the first band before it, and in further ones. Each counts as its
# difference from the sample above, of the same band.
OWN = ((0, -1), (0, -2), (-2, 0), (-1, -1), (-1, 1), (-1, 2))
NEAR = ((0, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
FAR = NEAR[:4]
BEFORE_MAX = 3
WEIGHT_BITS = 12
WEIGHTS_SUM_MAX = 32767  # of the absolute weights of a band: sums then fit i32
TOP_MAX = 65535
WHOLE = 1 << PRECISION
CURVE_SIZE, PER_SPREAD, FRACTION_BITS = 769, 32, 12
WIDE_SHARE, WIDE = 0.02, 3.0  # of the distribution, and its spread against that of the rest
LOGS_SIZE, LEVELS, LEVEL_ZERO, LEVEL_LEAST = 4096, 2048, 512, 384
COUNT_FIRST, COUNT_MAX = 4, 255
ERROR_MAX = 65535
CHANCE_STEP, CHANCE_LEAST, CHANCE_MOST = 5, 32, 65504
WORDS_MORE = 4


class Curve(NamedTuple):
    """The tables of section 23: ``curve`` uint32 [769], ``logs`` uint16 [4096], ``sharpness`` int64 [2048]; ``spread`` int64 [2048] only helps
    to guess."""

    curve: IntArray
    logs: IntArray
    sharpness: IntArray
    spread: IntArray


@cache
def curve_of() -> Curve:
    """The tables, computed once."""
    reach = CURVE_SIZE // 2 / PER_SPREAD
    x = np.linspace(-reach, reach, CURVE_SIZE)
    share = (1 - WIDE_SHARE) / (1 + np.exp(-x)) + WIDE_SHARE / (1 + np.exp(-x / WIDE))
    curve = np.rint((share - share[0]) / (share[-1] - share[0]) * WHOLE).astype(np.uint32)
    logs = np.zeros(LOGS_SIZE, np.uint16)
    logs[1:] = np.rint(64 * np.log2(np.arange(1, LOGS_SIZE)))
    mean = 2.0 ** ((np.arange(LEVELS) - LEVEL_ZERO) / 64)
    spread = mean / (2 * np.log(2) * (1 - WIDE_SHARE + WIDE_SHARE * WIDE))
    sharpness = np.rint(2.0**16 * PER_SPREAD * 2**FRACTION_BITS / spread).astype(np.int64)
    return Curve(curve, logs, sharpness, np.rint(spread * 2.0**16).astype(np.int64))


@dataclass(frozen=True)
class BandModel:
    """How a band is predicted: ``before`` numbers of at most three bands before it, the nearest first; ``weights`` int16
    [6, 14, 18 or 22] in 2^-12; the samples are 0..``top``; ``start`` stands above the first row; ``repeats`` says whether samples may repeat
    their neighbours."""

    before: tuple[int, ...]
    weights: IntArray
    top: int
    start: int
    repeats: bool


def taps_of(before: int) -> int:
    """How many weights a band has that is predicted from so many bands before it."""
    return len(OWN) + (len(NEAR) if before else 0) + len(FAR) * max(before - 1, 0)


def products_of(rows: Array) -> Array:
    """The products float64 [n, n] of rows [n, length] with each other, on one thread."""
    rows = np.ascontiguousarray(rows, np.float64)
    if library is None:
        return np.asarray(np.einsum("ik,jk->ij", rows, rows))
    out = np.empty((len(rows), len(rows)))
    library.perigee_products(pointer(rows), ctypes.c_uint32(len(rows)), ctypes.c_uint64(rows.shape[1]), pointer(out))
    return out


class _Planes:
    """Padded planes of the bands of a patch, and of their errors."""

    def __init__(self, rows: int, cols: int) -> None:
        self.rows, self.cols = rows, cols
        self.samples: list[IntArray] = []
        self.errors: list[IntArray] = []

    def begin(self, model: BandModel, plane: IntArray | None = None) -> None:
        """A band more; ``plane`` int [rows, cols] where its samples are known."""
        shape = (self.rows + ABOVE + BELOW, self.cols + 2 * BESIDE)
        samples = np.full(shape, model.start, np.int32)
        if plane is not None:
            samples[ABOVE:-BELOW, BESIDE:-BESIDE] = plane
        self.samples.append(samples)
        self.errors.append(np.zeros(shape, np.uint16))

    def band(self, number: int) -> IntArray:
        """The samples of a band, int32 [rows, cols]."""
        return self.samples[number][ABOVE:-BELOW, BESIDE:-BESIDE]


def encode_planes(planes: Sequence[IntArray], models: Sequence[BandModel], kind: str = "auto") -> Words:
    """The words of planes int [rows, cols] of 0..top each. ``kind`` is ``native``, ``integer`` or ``auto``."""
    return _coder(kind).encode(planes, models)


def decode_planes(
    words: Words, shape: tuple[int, int], models: Sequence[BandModel], kind: str = "auto"
) -> list[IntArray]:
    """Inverse of :func:`encode_planes`, int32. Raises SymbolError where words are left over or begin with 0."""
    if len(words) and not words[0]:
        raise SymbolError("the first word of the coder is zero, which no encoder writes")
    return _coder(kind).decode(words, shape, models)


def _coder(kind: str) -> _Native | _Reference:
    native = kind == "native" or kind == "auto" and library is not None
    return _Native() if native else _Reference()


class _Native:
    """The coder in C."""

    def __init__(self) -> None:
        self._tables = curve_of()
        self._curve = NativeCurve(*map(address, self._tables))

    def _band(self, planes: _Planes, model: BandModel) -> tuple[NativeBand, IntArray]:
        stride = planes.cols + 2 * BESIDE
        first = ABOVE * stride + BESIDE
        weights = np.ascontiguousarray(model.weights, np.int16)
        before = [address(planes.samples[b]) + 4 * first for b in model.before]
        near = address(planes.errors[model.before[0]]) + 2 * first if model.before else None
        band = NativeBand(
            address(planes.samples[-1]) + 4 * first, address(planes.errors[-1]) + 2 * first,
            (ctypes.c_void_p * BEFORE_MAX)(*before), near, address(weights),
            planes.rows, planes.cols, stride, len(before), model.repeats, model.top,
        )  # fmt: skip
        return band, weights

    def _scratch(self, cols: int) -> npt.NDArray[np.uint64]:
        return np.empty(-(-library.perigee_predictive_scratch(ctypes.c_uint32(cols)) // 8), np.uint64)

    def encode(self, planes: Sequence[IntArray], models: Sequence[BandModel]) -> Words:
        """As :func:`encode_planes`."""
        rows, cols = planes[0].shape
        held, scratch, found = _Planes(rows, cols), self._scratch(cols), []
        for plane, model in zip(planes, models, strict=True):
            held.begin(model, plane)
            band, _weights = self._band(held, model)
            symbols = np.empty(rows * cols * (1 + model.repeats), np.uint64)
            count = library.perigee_model_band(
                ctypes.byref(self._curve), ctypes.byref(band), pointer(symbols), pointer(scratch)
            )
            found.append((symbols, count))
        words = np.empty(sum(count for _, count in found) + WORDS_MORE, np.uint32)
        coder = NativeCoder(0, address(words), len(words), len(words))
        for symbols, count in reversed(found):
            library.perigee_push_intervals(ctypes.byref(coder), pointer(symbols), ctypes.c_uint64(count))
        library.perigee_flush(ctypes.byref(coder))
        return words[coder.position :].copy()

    def decode(self, words: Words, shape: tuple[int, int], models: Sequence[BandModel]) -> list[IntArray]:
        """As :func:`decode_planes`."""
        words = np.ascontiguousarray(words, np.uint32)
        coder = NativeCoder(0, address(words), 0, len(words))
        while coder.position < len(words) and coder.state < 1 << 32:
            coder.state = coder.state << 32 | int(words[coder.position])
            coder.position += 1
        held, scratch = _Planes(*shape), self._scratch(shape[1])
        for model in models:
            held.begin(model)
            band, _weights = self._band(held, model)
            library.perigee_pop_band(
                ctypes.byref(coder), ctypes.byref(self._curve), ctypes.byref(band), pointer(scratch)
            )
        if coder.state or coder.position < len(words):
            raise SymbolError("words are left over after the last sample")
        return [held.band(number) for number in range(len(models))]


class _Reference:
    """The definition, sample by sample."""

    def __init__(self) -> None:
        tables = curve_of()
        self._curve, self._logs, self._sharpness = (table.tolist() for table in tables[:3])
        self._state = 0
        self._words: list[int] = []

    def encode(self, planes: Sequence[IntArray], models: Sequence[BandModel]) -> Words:
        """As :func:`encode_planes`."""
        held, symbols = _Planes(*planes[0].shape), []
        for plane, model in zip(planes, models, strict=True):
            held.begin(model, plane)
            symbols += list(self._band(held, model, decoding=False))
        for left, size in reversed(symbols):
            if self._state >> (64 - PRECISION) >= size:
                self._words.append(self._state & 0xFFFFFFFF)
                self._state >>= 32
            self._state = (self._state // size << PRECISION) | (left + self._state % size)
        while self._state:
            self._words.append(self._state & 0xFFFFFFFF)
            self._state >>= 32
        return np.array(self._words[::-1], np.uint32)

    def decode(self, words: Words, shape: tuple[int, int], models: Sequence[BandModel]) -> list[IntArray]:
        """As :func:`decode_planes`."""
        self._words = words.tolist()[::-1]
        while self._words and self._state < 1 << 32:
            self._state = self._state << 32 | self._words.pop()
        held = _Planes(*shape)
        for model in models:
            held.begin(model)
            for _ in self._band(held, model, decoding=True):
                pass
        if self._state or self._words:
            raise SymbolError("words are left over after the last sample")
        return [held.band(number) for number in range(len(models))]

    def _advance(self, left: int, size: int) -> None:
        self._state = (self._state >> PRECISION) * size + self._state % WHOLE - left
        if self._state < 1 << 32 and self._words:
            self._state = self._state << 32 | self._words.pop()

    def _log(self, x: int) -> int:
        shift = max(x.bit_length() - 12, 0)
        return int(self._logs[x >> shift] + 64 * shift)

    def _below(self, curve: list[int], sharpness: int, value: int, mean: int, top: int) -> int:
        """The share of all samples below ``value``."""
        if value <= 0 or value > top:
            return WHOLE if value > top else 0
        reach = (CURVE_SIZE // 2) << FRACTION_BITS
        place = min(max((16 * value - 8 - mean) * sharpness >> 16, -reach), reach) + reach
        i, part = place >> FRACTION_BITS, place % (1 << FRACTION_BITS)
        rise = curve[i + 1] - curve[i] if part else 0
        return curve[i] + (rise * part >> FRACTION_BITS) + value

    def _band(self, planes: _Planes, model: BandModel, decoding: bool) -> Iterator[tuple[int, int]]:
        """Code the band that was begun last: its symbols one by one, which decoding takes from the state."""
        p, e = planes.samples[-1], planes.errors[-1]
        before = [planes.samples[b] for b in model.before]
        near = planes.errors[model.before[0]] if model.before else None
        curve = [share * (WHOLE - model.top - 1) >> PRECISION for share in self._curve]
        chances = [1 << 15] * 16
        means: dict[tuple[int, int], tuple[int, int]] = {}
        taps = [(p, place) for place in OWN]
        taps += [(b, place) for k, b in enumerate(before) for place in (FAR if k else NEAR)]
        weights = model.weights.tolist()
        for r in range(ABOVE, ABOVE + planes.rows):
            p[r, :BESIDE], e[r, :BESIDE] = p[r - 1, BESIDE], e[r - 1, BESIDE]
            for c in range(BESIDE, BESIDE + planes.cols):
                above = int(p[r - 1, c])
                found = sum(
                    w * (int(plane[r + dr, c + dc]) - int(plane[r - 1, c]))
                    for w, (plane, (dr, dc)) in zip(weights, taps, strict=True)
                )
                mean = min(max(16 * above + (found + 128 >> 8), 0), 16 * model.top)
                value = int(p[r, c])
                across, down = p[r, c - 1] == p[r - 1, c - 1], p[r - 1, c] == p[r - 1, c - 1]
                known = False
                if model.repeats and (across or down):
                    further, after = p[r, c - 2] == p[r - 1, c - 2], p[r - 1, c + 1] == p[r - 1, c]
                    number = across + 2 * further + 4 * down + 8 * after
                    share = chances[number] << 8
                    repeated = above if across else int(p[r, c - 1])
                    known = self._state % WHOLE < share if decoding else value == repeated
                    symbol = (0, share) if known else (share, WHOLE - share)
                    if decoding:
                        self._advance(*symbol)
                    yield symbol
                    value = repeated if known else value
                    chance = chances[number]
                    chance += (65535 - chance >> CHANCE_STEP) if known else -(chance >> CHANCE_STEP)
                    chances[number] = min(max(chance, CHANCE_LEAST), CHANCE_MOST)
                if not known:
                    around = 2 * int(e[r - 1, c]) + int(e[r - 1, c - 1]) + int(e[r - 1, c + 1]) + int(e[r - 2, c])
                    activity = around + 2 * int(e[r, c - 1]) + int(e[r, c - 2]) >> 3
                    bucket = self._log(activity + 4) // 32, 0
                    if near is not None:
                        beside = 4 * int(near[r, c]) + sum(int(near[r + dr, c + dc]) for dr, dc in NEAR[1:4])
                        bucket = bucket[0], self._log((beside + int(near[r - 1, c]) >> 3) + 4) // 64
                    total, count = means.get(bucket, (COUNT_FIRST * (activity + 4), COUNT_FIRST))
                    level = max(self._log(total) - self._log(count) + LEVEL_ZERO, LEVEL_LEAST)
                    sharpness = self._sharpness[level]
                    if decoding:
                        low, high, at = 0, model.top, self._state % WHOLE
                        while low < high:
                            middle = (low + high + 1) // 2
                            low, high = (
                                (middle, high)
                                if self._below(curve, sharpness, middle, mean, model.top) <= at
                                else (low, middle - 1)
                            )
                        value = low
                    left, right = (self._below(curve, sharpness, v, mean, model.top) for v in (value, value + 1))
                    if decoding:
                        self._advance(left, right - left)
                    yield left, right - left
                    total, count = total + min(abs(16 * value - mean), ERROR_MAX), count + 1
                    means[bucket] = (total >> 1, count >> 1) if count > COUNT_MAX else (total, count)
                p[r, c], e[r, c] = value, min(abs(16 * value - mean), ERROR_MAX)
            for plane in (p, e):
                plane[r, :BESIDE], plane[r, -BESIDE:] = plane[r, BESIDE], plane[r, -BESIDE - 1]
        for plane in (p, e):
            plane[:ABOVE], plane[-BELOW:] = plane[ABOVE], plane[-BELOW - 1]
