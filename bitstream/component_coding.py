"""The components of a patch to words and back: one ANS coder for the hyper-latents and all passes of all components.

Order: the hyper-latents of the components, one component after the other; then slice by slice, and within a slice component by
component its even and its odd pass. So the first words tell the coarse picture of all bands, and a segment that was cut short
decodes to one. Components of which nothing is coded have neither hyper-latents nor passes, and their latents are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.coders import new_coder
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.component_prior import VIEWS, ComponentPriorEngine, Sight, magnitudes_of
from perigee.bitstream.errors import SymbolError
from perigee.bitstream.prior import MEAN_FRACTIONS, PASSES_PER_SLICE, Z_CLAMP, Prediction, RunPass, half, unhalf

Choose = Callable[[int, int, Prediction], IntArray]  # component, pass and prediction to latents


class _Views:
    """What each component sees of those before it: uint8 [2, latents, H, W] each, filled slice by slice."""

    def __init__(self, contract: ComponentContract, components: int, rows: int, cols: int) -> None:
        self._widths = contract.widths
        self.views = np.zeros((components + 1, VIEWS, contract.widths.latents, rows, cols), np.uint8)

    def show(self, component: int, q: IntArray, start: int, stop: int) -> None:
        """Show the channels start..stop - 1 of a component's latents q [latents, H, W] to the component behind it."""
        magnitudes = magnitudes_of(self._widths, q[start:stop])
        before, after = self.views[component, 0, start:stop], self.views[component + 1, :, start:stop]
        np.maximum(before, magnitudes, out=after[0])
        after[1] = magnitudes


@dataclass(frozen=True)
class CodedComponents:
    """What is coded of a patch. ``q`` int32 [components, latents, H, W], in half steps; ``z`` int32 [components, hyper_latents, h, w];
    ``channels`` [components]: how many leading channels of each are coded; ``quality_steps`` [components]; ``offsets`` int8
    [components, latents] are added to the scale indices."""

    q: IntArray
    z: IntArray
    channels: tuple[int, ...]
    quality_steps: tuple[int, ...]
    offsets: IntArray


def _sight(contract: ComponentContract, quality_step: int, offsets: IntArray, views: IntArray) -> Sight:
    return Sight(contract.shifts[quality_step], contract.base[quality_step].astype(np.int16) + offsets, views)


def encode_components(
    contract: ComponentContract,
    prior: ComponentPriorEngine,
    patch: CodedComponents,
    kind: str = "auto",
    choose: Choose | None = None,
) -> npt.NDArray[np.uint32]:
    """The words of a patch. ``choose`` may change the latents of each pass in ``patch.q`` once their prediction is known.

    Raises SymbolError for values that no stream can carry.
    """
    widths = contract.widths
    if patch.z.size and np.abs(patch.z).max() > Z_CLAMP:
        raise SymbolError(
            f"a hyper-latent of {int(patch.z.min())}..{int(patch.z.max())} is outside -{Z_CLAMP}..{Z_CLAMP}"
        )
    coded = [c for c, channels in enumerate(patch.channels) if channels]
    views = _Views(contract, len(patch.q), *patch.q.shape[2:])
    by_slice: list[list[tuple[IntArray, Prediction]]] = [[] for _ in widths.slices]
    for c in range(len(patch.q)):
        q = patch.q[c : c + 1]
        if c in coded:
            sight = _sight(contract, patch.quality_steps[c], patch.offsets[c], views.views[c])
            step = prior.start_component(patch.z[c : c + 1], patch.quality_steps[c], c, sight)
            for k in range(widths.passes):
                count = widths.coded_channels(k, patch.channels[c])
                if count:
                    start, _ = widths.slice_of(k)
                    found = step(k, q, count)
                    prediction = Prediction(found.table[0], found.mean[0])
                    if choose is None:
                        values = half(q[:, start : start + count], k % 2)[0]
                    else:
                        values = choose(c, k, prediction)
                        unhalf(values[None], k % 2, q[:, start : start + count])
                    by_slice[k // PASSES_PER_SLICE].append((values, prediction))
        views.show(c, q[0], 0, widths.latents)
    passes = [one for found in by_slice for one in found]
    symbols = sum(values.size for values, _ in passes) + patch.z.size
    coder = new_coder(contract.tables, kind=kind, symbols=symbols)
    coder.push_passes(passes)
    for c in reversed(coded):
        first = contract.tables.first_z_table(patch.quality_steps[c], widths.hyper_latents)
        coder.push(patch.z[c].reshape(widths.hyper_latents, -1).astype(np.int32) + Z_CLAMP, first)
    return coder.to_words()


@dataclass(frozen=True)
class DecodedComponents:
    """Latents of a patch: ``q`` int32 [components, latents, H, W], in half steps; ``mean`` (1/16) and ``scale_index`` of the coded channels, of
    the same shape; ``passes``: how many passes of all components count."""

    q: IntArray
    mean: IntArray
    scale_index: IntArray
    passes: int


def decode_components(
    contract: ComponentContract,
    prior: ComponentPriorEngine,
    words: npt.NDArray[np.uint32],
    channels: Sequence[int],
    quality_steps: Sequence[int],
    offsets: IntArray,
    hyper_size: tuple[int, int],
    cut: bool = False,
    kind: str = "auto",
) -> DecodedComponents:
    """Inverse of :func:`encode_components`; ``hyper_size`` is (h, w) of z. The other arguments are those of the segment.

    Of a segment that was cut short, the passes that are certainly complete count (never the last), and the latents of the others
    are the prior's mean. Raises SymbolError where the words cannot come from an encoder.
    """
    widths, tables = contract.widths, contract.tables
    low, high = tables.latent_range
    h, w = hyper_size
    rows, cols = 4 * h, 4 * w
    coder = new_coder(tables, words, kind)
    shape = (len(channels), widths.latents, rows, cols)
    q, means, indices = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    views = _Views(contract, len(channels), rows, cols)
    steps: dict[int, RunPass] = {}
    dry = False
    for c, count in enumerate(channels):
        if not 0 <= count <= widths.latents:
            raise SymbolError(f"{count} coded channels, accepted are 0 to {widths.latents}")
        if not count:
            continue
        z = np.zeros((1, widths.hyper_latents, h, w), np.int32)
        if not dry:
            first = tables.first_z_table(quality_steps[c], widths.hyper_latents)
            popped = coder.pop(first, widths.hyper_latents, h * w).reshape(z.shape) - Z_CLAMP
            dry = cut and coder.words_left < 2
            z = z if dry else popped
        sight = _sight(contract, quality_steps[c], offsets[c], views.views[c])
        steps[c] = prior.start_component(z.astype(np.int32), quality_steps[c], c, sight)
    complete = 0
    for number in range(len(widths.slices)):
        start, stop = widths.slice_of(PASSES_PER_SLICE * number)
        for c, count in enumerate(channels):
            for k in (PASSES_PER_SLICE * number, PASSES_PER_SLICE * number + 1):
                wanted = widths.coded_channels(k, count)
                if not wanted:
                    continue
                found = steps[c](k, q[c : c + 1], wanted)
                values = np.clip(2 * (found.mean[0] + 8 >> 4), low, high - 1)  # the mean stands for what was cut off
                if not dry:
                    try:
                        decoded = coder.pop_pass(Prediction(found.table[0], found.mean[0]))
                        dry = cut and coder.words_left < 2
                    except SymbolError:
                        if not cut:  # past the end of a cut segment anything can be read
                            raise
                        dry = True
                    if not dry:
                        values, complete = decoded, complete + 1
                unhalf(values[None], k % 2, q[c : c + 1, start : start + wanted])
                unhalf(found.mean, k % 2, means[c : c + 1, start : start + wanted])
                unhalf(found.table // MEAN_FRACTIONS, k % 2, indices[c : c + 1, start : start + wanted])
            views.show(c, q[c], start, stop)
    if not cut and coder.words_left:
        raise SymbolError(f"{coder.words_left} words are left over after the last symbol")
    return DecodedComponents(q, means, indices, complete)
