"""What the ground will have at least: the errors of each band, measured on board by the integers of the contract."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import BoolArray, Samples
from perigee.bitstream.component_coding import DecodedComponents
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.reconstruction import Reconstruction
from perigee.bitstream.samples import keep_from_nodata, sample_range
from perigee.bitstream.spectral import Spectral
from perigee.bitstream.version2 import FLOAT, BandErrors
from perigee.onboard.source import Block


class Settler:
    """What the ground does with decoded samples: valid ones stay in range and do not look like no data."""

    def __init__(self, metadata: Metadata, dtype: str) -> None:
        self.limits = (0, 0) if dtype == FLOAT else sample_range(dtype, metadata.nbits)  # of whole samples
        self.nodata = None if metadata.masked else metadata.nodata

    def settle(self, decoded: Samples, valid: BoolArray) -> None:
        """Keep valid whole samples from looking like no data, in place."""
        if self.nodata is not None:
            keep_from_nodata(decoded, valid, int(self.nodata), self.limits[1])


class ErrorMeter:
    """Compares patches with what a decoder makes of them, valid samples alone."""

    def __init__(self, contract: ComponentContract, metadata: Metadata, bands: int, dtype: str) -> None:
        self._reconstruction = Reconstruction(contract)
        self._dtype, self._settler = dtype, Settler(metadata, dtype)
        self._counts = np.zeros(bands, np.int64)
        self._sums, self._squares, self._largest = np.zeros(bands), np.zeros(bands), np.zeros(bands, np.int64)

    def add_decoded(self, window: Block, decoded: Samples) -> None:
        """Take in a patch and its samples as the ground will have them."""
        error = np.where(window.valid, decoded.astype(np.int32) - window.samples, 0).reshape(len(decoded), -1)
        self._counts += window.valid.reshape(len(decoded), -1).sum(1)
        self._sums += error.sum(1)
        self._squares += np.square(error.astype(np.float64)).sum(1)
        self._largest = np.maximum(self._largest, np.abs(error).max(1))

    def add(self, window: Block, spectral: Spectral, latents: DecodedComponents, quality_step: int) -> None:
        """Take in a patch, its latents and what the prior predicted of them."""
        self.add_decoded(window, self.decoded(window, spectral, latents, quality_step))

    def decoded(self, window: Block, spectral: Spectral, latents: DecodedComponents, quality_step: int) -> Samples:
        """The samples that the ground will have of a patch, [band, row, col]."""
        _, rows, cols = window.samples.shape
        parts = zip(latents.q, latents.mean, latents.scale_index, strict=True)
        planes = [self._reconstruction.plane(*part, quality_step)[:rows, :cols] for part in parts]
        decoded = self._reconstruction.samples(spectral, np.stack(planes), self._dtype, self._settler.limits)
        self._settler.settle(decoded, window.valid)
        return decoded

    @property
    def errors(self) -> BandErrors:
        """The errors of all that was taken in; 0 for a band without valid samples."""
        counts = np.maximum(self._counts, 1)
        rms, bias = np.sqrt(self._squares / counts), self._sums / counts
        return BandErrors(rms.astype(np.float32), self._largest.astype(np.uint32), bias.astype(np.float32))
