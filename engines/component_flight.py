"""The engine of component profiles on board: analysis, prior and choice of latents make the words of a patch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.component_coding import CodedComponents, DecodedComponents, encode_components
from perigee.bitstream.component_profile import ComponentProfile
from perigee.bitstream.format import CHANNEL_STEP
from perigee.bitstream.prior import MEAN_FRACTIONS, PASSES_PER_SLICE, Prediction, half, unhalf
from perigee.bitstream.reconstruction import STEP_BITS
from perigee.bitstream.rounding import Rounding
from perigee.engines.component_analysis import ComponentAnalysis
from perigee.engines.components import ComponentEngine

SIGNIFICANT = 0.75  # steps: what is smaller and stands alone becomes 0
Watch = Callable[[int, int, IntArray, Prediction], None]  # component, first channel, latents and their prediction


class CodedPatch(NamedTuple):
    """A patch as words: its latents with what the prior predicted of them, and how many leading channels of each component count."""

    latents: DecodedComponents
    channels: tuple[int, ...]
    words: npt.NDArray[np.uint32]


class ComponentFlight(ComponentEngine):
    """A component profile that codes patches."""

    def __init__(self, profile: ComponentProfile, coder: str = "auto") -> None:
        """``coder`` chooses the entropy coder; the words are the same. Raises ProfileError as ``ComponentEngine`` does."""
        super().__init__(profile)
        self._coder = coder
        self.analysis = ComponentAnalysis(profile.contract, profile.analysis())
        self.rounding = Rounding(profile.contract)

    def per_step(self, quality_step: int) -> np.float32:
        """How many steps the range is at Q."""
        return np.float32(2.0**STEP_BITS / int(self.profile.contract.steps[quality_step]))

    def code(
        self, coefficients: FloatArray, offsets: IntArray, quality_step: int, watch: Watch | None = None
    ) -> CodedPatch:
        """Code the coefficients [components, 256, H, W] of a patch, as shares of the range; ``offsets`` int8 [components, 256] are those of
        the tables. ``watch`` is called with each pass. Raises SymbolError or UpsetError."""
        contract = self.profile.contract
        low, high = contract.tables.latent_range  # in half steps
        values = np.clip(coefficients * self.per_step(quality_step), low / 2 + 1, high / 2 - 1)
        z = np.stack([self.analysis.hyper_latents(y) for y in values])
        channels = tuple(coded_channels(y) for y in values)
        q, means, indices = (np.zeros(values.shape, np.int32) for _ in range(3))
        halves: dict[tuple[int, int], FloatArray] = {}

        def choose(component: int, k: int, prediction: Prediction) -> IntArray:
            key = (component, k % PASSES_PER_SLICE)
            if key not in halves:
                halves[key] = half(values[component][None], key[1])[0]
            start, _ = contract.widths.slice_of(k)
            part = slice(start, start + len(prediction.mean))
            latents = self.rounding.choose(halves[key][part], prediction)
            unhalf(prediction.mean[None], k % PASSES_PER_SLICE, means[component, None, part])
            unhalf(prediction.table[None] // MEAN_FRACTIONS, k % PASSES_PER_SLICE, indices[component, None, part])
            if watch:
                watch(component, start, latents, prediction)
            return latents

        patch = CodedComponents(q, z, channels, (quality_step,) * len(q), offsets)
        words = encode_components(contract, self.prior, patch, self._coder, choose)
        return CodedPatch(DecodedComponents(q, means, indices, len(q) * contract.widths.passes), channels, words)


def coded_channels(y: FloatArray) -> int:
    """How many leading channels of ``y`` [channels, H, W], in steps, are to be coded: a multiple of 8, 0 where none has a value that
    is worth its bits."""
    used = np.flatnonzero(np.abs(y).reshape(len(y), -1).max(axis=1) >= SIGNIFICANT)
    return (int(used[-1]) // CHANNEL_STEP + 1) * CHANNEL_STEP if len(used) else 0
