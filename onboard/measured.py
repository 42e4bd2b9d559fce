"""What the ground will have at least: the errors of each band, measured on board by the integers of the contract."""

from __future__ import annotations

import numpy as np

from perigee.bitstream.arrays import Samples
from perigee.bitstream.component_coding import DecodedComponents
from perigee.bitstream.component_contract import ComponentContract
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.reconstruction import Reconstruction
from perigee.bitstream.samples import keep_from_nodata, sample_range
from perigee.bitstream.spectral import Spectral
from perigee.bitstream.version2 import BandErrors
from perigee.onboard.source import Block


class ErrorMeter:
    """Compares patches with what a decoder makes of them, valid samples alone."""

    def __init__(self, contract: ComponentContract, metadata: Metadata, bands: int, dtype: str) -> None:
        self._reconstruction = Reconstruction(contract)
        self._nodata = None if metadata.nodata is None or metadata.masked else int(metadata.nodata)
        self._dtype, self._limits = dtype, sample_range(dtype, metadata.nbits)
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
        decoded = self._reconstruction.samples(spectral, np.stack(planes), self._dtype, self._limits)
        if self._nodata is not None:
            keep_from_nodata(decoded, window.valid, self._nodata, self._limits[1])
        return decoded

    @property
    def errors(self) -> BandErrors:
        """The errors of all that was taken in; 0 for a band without valid samples."""
        counts = np.maximum(self._counts, 1)
        rms, bias = np.sqrt(self._squares / counts), self._sums / counts
        return BandErrors(rms.astype(np.float32), self._largest.astype(np.uint32), bias.astype(np.float32))
