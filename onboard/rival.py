"""Prediction as a rival of the transform in lossy modes: a patch is a predicted segment where that needs fewer bytes for as little error."""

from __future__ import annotations

import numpy as np

from perigee.bitstream import version2 as v2
from perigee.bitstream.arrays import Array, Samples
from perigee.bitstream.bounded import LOSSLESS, Bound
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

# Bits a sample from which on prediction is tried, and where samples repeat; it is also tried where the transform's cells are about single counts.
TRIED_FROM, TRIED_FROM_REPEATED = 1.5, 0.8
SINGLE_COUNTS = 3.5


class Rival:
    """Tries prediction on the patches of one scene."""

    def __init__(self, contract: ComponentContract, metadata: Metadata, bands: int, dtype: str, coder: str) -> None:
        self.rests = False  # whether there is no time for it
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
        if self.rests or not self._may_pay(
            8 * len(written) / window.samples.size, window, spectral, segment.quality_step
        ):
            return None
        with timings.stage("measure"):
            allowed = _errors(window, self._meter.decoded(window, spectral, latents, segment.quality_step))
        bounds = [_bound_for(error) for error in allowed.tolist()]
        predicted, decoded = self._predictor.segment(segment.patch, window, bounds, timings, verify)
        chunk = v2.write_component_segment(predicted)
        if len(chunk) >= len(written):
            return None
        with timings.stage("measure"):
            scale = np.square(spectral.scale.astype(np.float64))
            closer = (_errors(window, decoded) / scale).sum() <= (allowed / scale).sum()
        return (chunk, decoded) if closer else None

    def exactly(self, patch: int, window: Block, timings: Timings, verify: bool) -> tuple[bytes, Samples]:
        """The chunk of a predicted segment without any error, and the samples that the ground will have of it."""
        bounds = [LOSSLESS] * len(window.samples)
        segment, decoded = self._predictor.segment(patch, window, bounds, timings, verify)
        return v2.write_component_segment(segment), decoded

    def _may_pay(self, bits: float, window: Block, spectral: Spectral, quality_step: int) -> bool:
        """Whether prediction may need fewer bytes than the transform at so many bits a sample."""
        step = float(self._contract.steps[quality_step]) * 2.0 ** -(STEP_BITS + SCALE_BITS)
        return (
            bits >= TRIED_FROM
            or step * float(spectral.scale.max()) < SINGLE_COUNTS
            or bits >= TRIED_FROM_REPEATED
            and any(map(repeats, window.samples))
        )


def _bound_for(error: float) -> Bound:
    """The largest bound whose levels make a mean squared error of at most so much: that of 2 k + 1 equally frequent errors is k (k + 1) / 3."""
    return Bound(int((np.sqrt(12 * error + 1) - 1) / 2))


def _errors(window: Block, decoded: Samples) -> Array:
    """The mean squared error of each band over its valid samples, in counts."""
    error = decoded.astype(np.float32) - window.samples.astype(np.float32)
    if not window.valid.all():
        error[~window.valid] = 0
    flat = error.reshape(len(error), -1)
    counts = np.maximum(window.valid.reshape(len(error), -1).sum(1), 1)
    return np.asarray(np.einsum("bi,bi->b", flat, flat, dtype=np.float64, casting="safe") / counts)
