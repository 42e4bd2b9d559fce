"""Prediction as a rival of the transform in lossy modes: a patch is a predicted segment where that needs fewer bytes for as little error."""

from __future__ import annotations

import numpy as np

from perigee.bitstream import version2 as v2
from perigee.bitstream.arrays import Array, Samples
from perigee.bitstream.bounded import Bound
from perigee.bitstream.component_coding import DecodedComponents
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.reconstruction import STEP_BITS
from perigee.bitstream.spectral import SCALE_BITS, Spectral
from perigee.onboard.encoder import Timings
from perigee.onboard.measured import ErrorMeter
from perigee.onboard.predicted import Predictor
from perigee.onboard.prediction import repeats
from perigee.onboard.source import Block

# Bits a sample from which on prediction is tried; below, only where samples repeat or where cells are single counts. The width of its cells is a
# share of that of the transform, whose errors are smaller since its latents lie on a trellis; where the error is larger still, finer cells are tried.
TRIED_FROM, CELL_SHARE, TRIES = 1.5, 0.86, 2


class Rival:
    """Tries prediction on the patches of one scene."""

    def __init__(self, contract: ComponentContract, metadata: Metadata, bands: int, dtype: str, coder: str) -> None:
        self._contract = contract
        self._predictor = Predictor(metadata, dtype, coder)
        self._meter = ErrorMeter(contract, metadata, bands, dtype)

    def instead_of(
        self,
        written: bytes,
        window: Block,
        spectral: Spectral,
        segment: v2.ComponentSegment,
        latents: DecodedComponents,
        timings: Timings,
        verify: bool = False,
    ) -> tuple[bytes, Samples] | None:
        """The chunk of a predicted segment and the samples that the ground will have of it, where they are better than a segment of the transform
        and its chunk; else None."""
        bounds = self._bounds(spectral, segment.quality_step)
        dear = 8 * len(written) > TRIED_FROM * window.samples.size or not any(bound.counts for bound in bounds)
        if not dear and not any(map(repeats, window.samples)):
            return None
        allowed: float | None = None
        scale = spectral.scale.astype(np.float64)
        for _ in range(TRIES):
            predicted, decoded = self._predictor.segment(segment.patch, window, bounds, timings, verify)
            chunk = v2.write_component_segment(predicted)
            if len(chunk) >= len(written):
                return None
            with timings.stage("measure"):
                if allowed is None:
                    other = self._meter.decoded(window, spectral, latents, segment.quality_step)
                    allowed = _error(window, other, scale)
                found = _error(window, decoded, scale)
            if found <= allowed:
                return chunk, decoded
            bounds = [_of_cell((2 * bound.counts + 1) * (allowed / found) ** 0.5) for bound in bounds]
        return None

    def _bounds(self, spectral: Spectral, quality_step: int) -> list[Bound]:
        """Bounds of the bands whose cells are about as coarse as those of the transform."""
        step = float(self._contract.steps[quality_step]) * 2.0**-STEP_BITS
        cells = spectral.scale * (CELL_SHARE * step * 2.0**-SCALE_BITS)
        return [_of_cell(cell) for cell in cells.tolist()]


def _of_cell(counts: float) -> Bound:
    """The bound whose levels are at most so many counts apart, or 0."""
    return Bound(max(int((counts - 1) / 2), 0))


def _error(window: Block, decoded: Samples, scale: Array) -> float:
    """The squared error of the valid samples, each band's in its range."""
    error = np.where(window.valid, decoded.astype(np.float64) - window.samples, 0).reshape(len(decoded), -1)
    return float((np.square(error).sum(1) / np.square(scale)).sum())
