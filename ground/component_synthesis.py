"""What the synthesis of a component profile adds to decoded components, window by window.

The network sees the latents, the spreads that the prior predicted of them, the component itself and the strongest one at the same place;
``models.codec.component_synthesis`` says in which form. A window is seen with a margin of its neighbours as far as they have the same
spectral transform, so that no seams show at the borders of patches. From ``STEPS_MAX`` on there is nothing to add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.lapped import BLOCK
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.bitstream.reconstruction import CELL_BITS, UNIT_BITS, centroids_of
from perigee.bitstream.version2 import ComponentHeader
from perigee.engines.ground_components import GroundComponents
from perigee.ground.ahead import in_order
from perigee.ground.regions import Place, Region, squares_over

MARGIN = 4  # blocks on each side of a window: with two, samples would depend on the window by up to a third of a step
STEPS_MAX = 120  # the quality step from which on the synthesis gains less than 0.02 dB
CHANNELS_MIN = (
    8  # of a component in a patch: where so few are coded the synthesis gains 0.02 dB and takes a quarter of its time
)
FRACTIONS = 16  # latents are kept in sixteenths of a step, within the 8 steps that the network tells apart


@dataclass(frozen=True)
class DecodedPlanes:
    """The components of a patch: planes int32 [16 H, 16 W] in 2**-20 of the range, None where nothing is coded; what the synthesis wants of
    their latents, int8 and uint8 [256, H, W], None where it adds nothing; the quality steps."""

    planes: list[IntArray | None]
    inputs: list[tuple[IntArray, IntArray] | None]
    quality_steps: tuple[int, ...]


Found = Sequence[tuple[DecodedPlanes, Place, Place]]  # patches, where they lie in themselves and in an area in blocks


class ComponentSynthesis:
    """The synthesis of one profile for the scenes of one header."""

    def __init__(self, engine: GroundComponents, header: ComponentHeader) -> None:
        self._engine, self._header = engine, header
        self._side = header.patch_side // BLOCK

    def inputs_of(self, q: IntArray, mean: IntArray, index: IntArray, step: int) -> tuple[IntArray, IntArray] | None:
        """What is kept of a component's latents: where they are expected, in sixteenths of a step, and their scale indices."""
        if step >= STEPS_MAX:
            return None
        within = centroids_of(self._engine.profile.contract, q, mean, index) * FRACTIONS >> CELL_BITS
        return np.clip(within, -128, 127).astype(np.int8), index.astype(np.uint8)

    def added(
        self, planes_of: Callable[[int], DecodedPlanes | None], region: Region, rows: tuple[int, int]
    ) -> IntArray | None:
        """What is added to the components of a pixel region, int32 [components, rows, cols] in 2**-20 of the range, or None where that is
        nothing. ``planes_of`` gives a patch; ``rows`` are the first and last row of patches that have the region's parameters."""
        around = region.blocks(BLOCK).grown(MARGIN, self._extent(rows))
        found = []
        for row, col, inner, outer in squares_over(around, self._side):
            patch = planes_of(row * self._header.grid[1] + col)
            if patch is not None:
                found.append((patch, inner, outer))
        used = [c for c in range(self._header.bands) if any(patch.inputs[c] is not None for patch, _, _ in found)]
        if not used:
            return None
        out = np.zeros((self._header.bands, region.rows, region.cols), np.int32)
        strongest = np.zeros((BLOCK * around.rows, BLOCK * around.cols), np.float32)
        for patch, inner, outer in found:
            if patch.planes[0] is not None:
                strongest[_pixels(outer)] = patch.planes[0][_pixels(inner)] * np.float32(2.0**-UNIT_BITS)
        inside = region.within(around.times(BLOCK))
        wholes = in_order(lambda c: self._of_component(c, found, around, strongest), used, self._engine.backend.batch)
        for c, whole in zip(used, wholes, strict=True):
            out[c] = np.rint(whole[inside] * np.float32(1 << UNIT_BITS)).astype(np.int32)
        return out

    def _of_component(self, c: int, found: Found, around: Region, strongest: FloatArray) -> FloatArray:
        """What is added to component ``c`` of an area in blocks, float32 [16 rows, 16 cols], as a share of the range."""
        latents, index = (np.zeros((1, BLOCK * BLOCK, around.rows, around.cols), np.float32) for _ in range(2))
        plane = strongest if c == 0 else np.zeros_like(strongest)
        steps, quality, gains = (np.zeros((around.rows, around.cols), np.float32) for _ in range(3))
        for patch, inner, outer in found:
            step = patch.quality_steps[c]
            steps[outer] = self._engine.step(step)
            quality[outer] = step / QUALITY_STEPS
            part, inputs = patch.planes[c], patch.inputs[c]
            if c and part is not None:
                plane[_pixels(outer)] = part[_pixels(inner)] * np.float32(2.0**-UNIT_BITS)
            if inputs is not None:
                gains[outer] = steps[outer]
                latents[(0, slice(None), *outer)] = inputs[0][(slice(None), *inner)] * np.float32(1 / FRACTIONS)
                index[(0, slice(None), *outer)] = inputs[1][(slice(None), *inner)]
        size = steps.repeat(BLOCK, 0).repeat(BLOCK, 1)
        per_step = np.divide(1, size, out=np.zeros_like(size), where=size > 0)
        guide = strongest * per_step if c else np.zeros_like(plane)
        added = self._engine.synthesise(
            latents, index, (plane * per_step)[None, None], guide[None, None], quality[None, None]
        )
        return np.asarray(added[0, 0] * gains.repeat(BLOCK, 0).repeat(BLOCK, 1))

    def _extent(self, rows: tuple[int, int]) -> Region:
        """Rows of patches in blocks, the padding of the scene's last patches included."""
        header, side = self._header, self._side
        first, last = rows
        bottom = (last + 1) * side if last + 1 < header.grid[0] else _padded(header.height, header.patch_side)
        return Region(first * side, 0, bottom - first * side, _padded(header.width, header.patch_side))


def _pixels(place: Place) -> Place:
    """A place in blocks as one in pixels."""
    rows, cols = (slice(BLOCK * part.start, BLOCK * part.stop) for part in place)
    return rows, cols


def _padded(length: int, patch_side: int) -> int:
    """Blocks along a side of the scene, the padding of its last patch included."""
    last = (length - 1) % patch_side + 1
    return (length - last) // BLOCK + -(-last // HYPER_BLOCK) * (HYPER_BLOCK // BLOCK)
