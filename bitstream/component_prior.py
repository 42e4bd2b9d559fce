"""The integer prior of spectral components: ``prior.py`` with what latents of any size and several components need.

The network is the same. What differs is what it sees and how its outputs are read:

* latents enter the context shifted right, by channel and quality, and the predicted means are shifted back;
* their magnitudes are logarithms of the whole latent, so that no size is too large to be told from another;
* two views show the components that were coded before at the same place: the largest of their magnitudes, and those of the
  component before;
* two planes hold the quality step and the number of the component;
* a table of the contract is added to the scale index, of which there are 128.

Arrays are ``[N, C, H, W]``; a component is one patch, N = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from perigee.bitstream.arrays import IntArray
from perigee.bitstream.prior import (
    CONTEXT_CLAMP,
    MEAN_FRACTIONS,
    Layer,
    NumpyOps,
    Prediction,
    RunPass,
    Widths,
    even_only,
    half,
    hyper_features,
    pass_outputs,
)
from perigee.bitstream.tables import raw_bits_of

VIEWS = 2
COMPONENT_STEP, COMPONENT_MAX = 16, 15  # the plane of component n is 16 * min(n, 15)
MAGNITUDE_BITS = 7  # larger latents are looked up by their first seven bits
MAGNITUDE_MAX = 1 << 16  # from here on all magnitudes are the largest
MAGNITUDES_PER_OCTAVE = 8


class Sight(NamedTuple):
    """What the prior of one component knows beside the hyper-latents.

    ``shifts`` [latents]: bits that each channel loses in the context; ``base`` [latents]: what is added to its scale index;
    ``views`` [2, latents, H, W]: magnitudes 0..127 of earlier components.
    """

    shifts: IntArray
    base: IntArray
    views: IntArray


class ComponentPriorEngine(Protocol):
    """What an engine offers for the prior of components; every one returns the integers of ``ComponentPrior(int64)``."""

    def start_component(self, z: IntArray, quality_step: int, component: int, sight: Sight) -> RunPass:
        """Begin a component: z int [1, hyper_latents, h, w], Q = 0..250, its number from 0."""
        ...

    def memory(self) -> Sequence[IntArray]:
        """The arrays that it reads and that a check of memory can reach."""
        ...


def planes_of(quality_step: int, component: int) -> tuple[int, int]:
    """The values 0..255 of the two planes beside the hyper features."""
    return quality_step, COMPONENT_STEP * min(component, COMPONENT_MAX)


@lru_cache(maxsize=4)
def magnitude_table(magnitudes: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The magnitudes uint8 [65537] of latents of absolute value 0..65536; larger ones have the last.

    ``magnitudes`` has those of 0..127. Each octave above adds 8, up to 127.
    """
    size = np.arange(MAGNITUDE_MAX + 1)
    length = np.zeros_like(size)
    for bit in range(MAGNITUDE_MAX.bit_length()):
        length += size >> bit > 0
    over = np.maximum(length - MAGNITUDE_BITS, 0)
    table = np.array(magnitudes)[size >> over] + MAGNITUDES_PER_OCTAVE * over
    return np.asarray(np.minimum(table, CONTEXT_CLAMP), np.uint8)


def magnitudes_of(widths: Widths, q: IntArray) -> npt.NDArray[np.uint8]:
    """Magnitudes 0..127, uint8, of latents of any shape."""
    return np.asarray(magnitude_table(widths.magnitudes)[np.minimum(np.abs(q), MAGNITUDE_MAX)])


class ComponentPrior:
    """The prior in numpy: the arbiter (int64), or the same integers through BLAS (float64, float32)."""

    def __init__(self, widths: Widths, layers: Mapping[str, Layer], dtype: type = np.int64) -> None:
        self.widths = widths
        self.ops = NumpyOps(widths, layers, dtype)

    def memory(self) -> Sequence[IntArray]:
        return [part for layer in self.ops.layers.values() for part in (layer.weight, layer.bias, layer.shift)]

    def start_component(self, z: IntArray, quality_step: int, component: int, sight: Sight) -> RunPass:
        n, _, rows, cols = z.shape
        dtype, widths = self.ops.dtype, self.widths
        planes = np.empty((n, widths.planes, 4 * rows, 4 * cols), dtype)
        planes[:] = np.array(planes_of(quality_step, component))[:, None, None]
        features = hyper_features(self.ops, z.astype(dtype), planes)
        halves = [half(features, 0), half(features, 1)]

        def step(k: int, q: IntArray, channels: int | None = None) -> Prediction:
            start, stop = widths.slice_of(k)
            context = self._context(k, q, sight).astype(dtype)
            outputs = pass_outputs(self.ops, k, halves[k % 2], context).astype(np.int32)
            mean, scale = np.split(outputs, 2, axis=1)
            mean = mean << sight.shifts[start:stop, None, None].astype(np.int32)
            index = (8 * scale + 328 >> 4) + sight.base[start:stop, None, None].astype(np.int32)
            index = np.clip(index, 0, widths.scales - 1)
            table = index * MEAN_FRACTIONS + (mean >> raw_bits_of(index) & MEAN_FRACTIONS - 1)
            return Prediction(table, mean).first(channels)

        return step

    def _context(self, k: int, q: IntArray, sight: Sight) -> IntArray:
        """What pass ``k`` sees, int32 [N, context_inputs(k), H, W]: views, latents, their magnitudes."""
        start, stop = self.widths.slice_of(k)
        seen = self.widths.context_channels(k)
        latents = q[:, :seen].astype(np.int32)
        magnitudes = magnitudes_of(self.widths, latents).astype(np.int32)
        latents = np.clip(latents >> sight.shifts[:seen, None, None].astype(np.int32), -CONTEXT_CLAMP, CONTEXT_CLAMP)
        if k % 2:
            latents, magnitudes = even_only(latents, start), even_only(magnitudes, start)
        views = sight.views[:, start:stop].reshape(1, -1, *q.shape[2:]).astype(np.int32)
        return np.concatenate([views, latents, magnitudes], axis=1)
