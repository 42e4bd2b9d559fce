"""A patch in a coding that others have defined: JPEG-LS where that was asked for, Deflate for classes, of which no neighbour is a good prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perigee.bitstream import version2 as v2
from perigee.bitstream.arrays import BoolArray, IntArray
from perigee.bitstream.bounded import Bound
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.stored import JPEG_LS, NEAR_MAX, StoredBand, deflated
from perigee.onboard.measured import Settler
from perigee.onboard.predicted import filled
from perigee.onboard.source import Block

HEADERS_BYTES = 4096


def deflated_segment(patch: int, window: Block) -> v2.ComponentSegment:
    """The segment of a patch whose samples are stored as they are."""
    return v2.ComponentSegment(patch, v2.STORED, stored=tuple(deflated(samples) for samples in window.samples))


class JpegLs:
    """Makes segments of JPEG-LS images of the patches of one scene."""

    def __init__(self, metadata: Metadata, dtype: str) -> None:
        self._settler = Settler(metadata, dtype)

    def segment(self, patch: int, window: Block, bounds: Sequence[Bound]) -> tuple[v2.ComponentSegment, IntArray]:
        """The segment of a patch, each band within its bound, and the samples [band, row, col] that the ground will have. Raises RasterError for a
        bound that JPEG-LS does not have."""
        parts = zip(filled(window), window.valid, bounds, strict=True)
        coded = [self._within(*part) for part in parts]
        segment = v2.ComponentSegment(patch, v2.STORED, stored=tuple(band for band, _ in coded))
        return segment, np.stack([decoded for _, decoded in coded])

    def _within(self, samples: IntArray, valid: BoolArray, bound: Bound) -> tuple[StoredBand, IntArray]:
        """A band within its bound; exactly where a sample would have to be moved out of it, because it would look like no data."""
        if bound.relative or bound.counts > NEAR_MAX:
            raise RasterError(
                f"JPEG-LS keeps bounds of 0 to {NEAR_MAX} counts, and none that is relative",
                Fault.RANGE,
                field="max-error",
                expected=f"0 to {NEAR_MAX}",
                found=bound.counts,
            )
        import imagecodecs

        low, span = int(samples.min()), int(samples.max() - samples.min())
        image = np.ascontiguousarray(samples - low, np.uint8 if span < 256 else np.uint16)
        near = min(bound.counts, span // 2)
        for counts in sorted({near, 0}, reverse=True):
            data = bytes(imagecodecs.jpegls_encode(image, level=counts, out=2 * image.nbytes + HEADERS_BYTES))
            decoded = np.clip(imagecodecs.jpegls_decode(data).astype(np.int32) + low, *self._settler.limits)
            self._settler.settle(decoded, valid)
            if (np.abs(decoded - samples) <= counts)[valid].all():
                break
        return StoredBand(JPEG_LS, counts, low, data), decoded
