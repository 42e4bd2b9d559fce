"""A patch as a predicted segment: quantised within bounds, predicted and coded losslessly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perigee.bitstream import version2 as v2
from perigee.bitstream.arrays import BoolArray, FloatArray, IntArray, Samples
from perigee.bitstream.bounded import LOSSLESS, BandCode, Bound, checksum_of_codes, codes_of, samples_of
from perigee.bitstream.errors import SymbolError, UpsetError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.predictive import decode_planes, encode_planes
from perigee.bitstream.version2 import FLOAT
from perigee.onboard.encoder import Timings, fill_invalid
from perigee.onboard.levels import numbered
from perigee.onboard.measured import Settler
from perigee.onboard.prediction import models_of
from perigee.onboard.source import Block


class Predictor:
    """Makes predicted segments of the patches of one scene."""

    def __init__(self, metadata: Metadata, dtype: str, coder: str = "auto") -> None:
        self._coder, self._floats = coder, dtype == FLOAT
        self._settler = Settler(metadata, dtype)

    def segment(
        self, patch: int, window: Block, bounds: Sequence[Bound], timings: Timings, verify: bool = False
    ) -> tuple[v2.ComponentSegment, Samples]:
        """The segment of a patch whose samples stay within the bounds of their bands, and the samples [band, row, col] that the ground will have.

        With ``verify`` it is decoded again; raises UpsetError where its codes differ.
        """
        with timings.stage("quantisation"):
            samples = window.samples if self._floats else filled(window)
            within = self._numbered if self._floats else self._within
            parts = zip(samples, bounds, window.valid, strict=True)
            coded = [within(samples, bound, valid) for samples, bound, valid in parts]
            planes = [one.codes for one in coded]
        with timings.stage("prediction"):
            models = models_of(planes)
        with timings.stage("coding"):
            words = encode_planes(planes, models, self._coder)
        pairs = zip(coded, models, strict=True)
        codes = tuple(BandCode(one.bound, one.low, model, one.values) for one, model in pairs)
        segment = v2.ComponentSegment(patch, v2.PREDICTED, checksum=checksum_of_codes(planes), words=words, codes=codes)
        if verify:
            with timings.stage("verify"):
                self._verify(segment, planes)
        return segment, np.stack([one.decoded for one in coded])

    def _within(self, samples: IntArray, bound: Bound, valid: BoolArray) -> _Coded:
        """A band coded within a bound; exactly where a sample would have to be moved out of it, because it would look like no data."""
        if bound != LOSSLESS:
            codes, low = codes_of(samples, bound)
            decoded = samples_of(codes, bound, low, self._settler.limits)
            self._settler.settle(decoded, valid)
            if (np.abs(decoded - samples) <= bound.allowed(samples))[valid].all():
                return _Coded(codes, low, bound, decoded)
        codes, low = codes_of(samples, LOSSLESS)
        return _Coded(codes, low, LOSSLESS, samples)

    def _numbered(self, samples: FloatArray, bound: Bound, valid: BoolArray) -> _Coded:
        """A band of float samples coded within a bound."""
        codes, values, decoded = numbered(samples, valid, bound, self._settler.nodata)
        return _Coded(codes, 0, bound, decoded, values)

    def _verify(self, segment: v2.ComponentSegment, planes: list[IntArray]) -> None:
        rows, cols = planes[0].shape
        try:
            decoded = decode_planes(segment.words, (rows, cols), [code.model for code in segment.codes], self._coder)
        except SymbolError as error:
            raise UpsetError(f"segment {segment.patch} does not decode: {error}") from error
        if not all(np.array_equal(one, two) for one, two in zip(decoded, planes, strict=True)):
            raise UpsetError(f"segment {segment.patch} does not decode to the samples that were encoded")


@dataclass(frozen=True)
class _Coded:
    """The codes of a band, what 0 stands for, the bound that they keep, and the samples that the ground will have; of floats the table of values."""

    codes: IntArray
    low: int
    bound: Bound
    decoded: Samples
    values: FloatArray | None = None


def filled(window: Block) -> IntArray:
    """The whole samples of a patch, int32; invalid ones are like those around them."""
    samples = window.samples.astype(np.int32)
    if not window.valid.all():
        samples = np.rint(fill_invalid(samples.astype(np.float32), window.valid)).astype(np.int32)
    return samples
