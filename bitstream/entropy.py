"""Symbols to bytes and back, given the prior's predictions: one ANS coder for the hyper-latents and all passes.

Probabilities are the profile's integer tables (16 bit, every frequency >= 1); the coder is ANS (``coders.py``). Words are
stored in the order in which the decoder reads them, so that a segment cut short still decodes pass by pass.

Order of symbols: first ``z`` channel by channel; then the passes. Within a pass, symbols are grouped by table number
(ascending; within one table in the order channel, half row, column of the pass array), then the escapes of the pass in
the same order: a sign bit and the excess in Exp-Golomb code, each bit with probability 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.coders import new_coder
from perigee.bitstream.errors import SymbolError
from perigee.bitstream.prior import MEAN_FRACTIONS, Q_MAX, Q_MIN, Z_CLAMP, Prediction, PriorEngine, Widths, unhalf
from perigee.bitstream.tables import Tables


def encode_symbols(
    widths: Widths,
    tables: Tables,
    z: IntArray,
    passes: Sequence[tuple[IntArray, Prediction]],
    quality_step: int,
    kind: str = "auto",
) -> npt.NDArray[np.uint32]:
    """Words of one patch. ``z`` int [hyper_latents, h, w]; per coded pass the latents int [channels, H, W/2] at its half
    and the prediction of the same shape. Raises SymbolError for values that no stream can carry."""
    if np.abs(z).max() > Z_CLAMP:
        raise SymbolError(f"a hyper-latent of {int(z.min())}..{int(z.max())} is outside -{Z_CLAMP}..{Z_CLAMP}")
    coder = new_coder(tables, kind=kind, symbols=z.size + sum(values.size for values, _ in passes))
    coder.push_passes(passes)
    first = tables.first_z_table(quality_step, widths.hyper_latents)
    coder.push(z.reshape(widths.hyper_latents, -1).astype(np.int32) + Z_CLAMP, first)
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
    latents: int | None = None,
    offsets: IntArray | None = None,
    passes: int | None = None,
) -> DecodedPatch:
    """Inverse of :func:`encode_symbols`; ``hyper_size`` is (h, w) of z. Only the first ``latents`` channels are coded
    (None: all); the others are 0, and have a mean and a scale index all the same. ``offsets`` int8 [latents] were added to
    the scale indices for coding; the scale indices that are returned are without them.

    With ``passes`` no more than these are decoded, and the latents, means and scale indices of the others are 0.

    Of a segment cut short, the passes that are certainly complete are used (never the last), and the latents of the
    others are the prior's mean. Raises SymbolError where the words cannot come from an encoder.
    """
    if latents is not None and not 1 <= latents <= widths.latents:
        raise SymbolError(f"{latents} coded channels, accepted are 1 to {widths.latents}")
    h, w = hyper_size
    rows, cols = 4 * h, 4 * w
    coder = new_coder(tables, words, kind)
    first = tables.first_z_table(quality_step, widths.hyper_latents)
    z = coder.pop(first, widths.hyper_latents, h * w).reshape(-1, h, w) - Z_CLAMP
    dry = cut and coder.words_left < 2
    if dry:
        z = np.zeros_like(z)
    step = prior.start(z[None].astype(np.int32), quality_step)
    q = np.zeros((1, widths.latents, rows, cols), np.int32)
    means, indices = np.zeros_like(q), np.zeros_like(q)
    complete = 0
    last = widths.passes if passes is None else min(passes, widths.passes)
    for k in range(last):
        start, stop = widths.slice_of(k)
        channels = widths.coded_channels(k, latents)
        prediction = step(k, q)
        coded = prediction.first(channels)
        values = coded.mean[0] + 8 >> 4  # the mean, rounded: stands for what was cut off
        if channels and not dry:
            decoded = None
            try:
                shifted = coded if offsets is None else coded.shifted(offsets[start : start + channels])
                decoded = coder.pop_pass(Prediction(shifted.table[0], shifted.mean[0]))
            except SymbolError:
                if not cut:  # past the end of a cut segment anything can be read
                    raise
            dry = decoded is None or (cut and coder.words_left < 2)
            if decoded is not None and not dry:
                values, complete = decoded, k + 1
        unhalf(np.clip(values, Q_MIN, Q_MAX)[None], k % 2, q[:, start : start + channels])
        unhalf(prediction.mean, k % 2, means[:, start:stop])
        unhalf(prediction.table // MEAN_FRACTIONS, k % 2, indices[:, start:stop])
    if not cut and last == widths.passes and coder.words_left:
        raise SymbolError(f"{coder.words_left} words are left over after the last symbol")
    return DecodedPatch(q[0], means[0], indices[0], complete)
