"""A scene to a stream of format version 2 whose samples are all within a bound: each patch is quantised, predicted and coded losslessly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream import version2 as v2
from perigee.bitstream.arrays import Samples
from perigee.bitstream.bounded import LOSSLESS, SHARE_BITS, Bound
from perigee.bitstream.component_profile import ComponentProfile
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.masks import pack_mask
from perigee.bitstream.metadata import Acquisition
from perigee.bitstream.predictive import TOP_MAX
from perigee.bitstream.records import write_records
from perigee.bitstream.version2 import FLOAT
from perigee.onboard.component_encoder import begun
from perigee.onboard.encoder import EncodedScene, Timings, needs_mask
from perigee.onboard.measured import ErrorMeter
from perigee.onboard.predicted import Predictor
from perigee.onboard.sensor import ANY_SENSOR, Sensor
from perigee.onboard.source import Block, Source, SourceInfo, not_light
from perigee.onboard.stored import JpegLs, deflated_segment
from perigee.onboard.strips import Strips

PERCENT_MAX = 50.0


@dataclass(frozen=True)
class ErrorBounds:
    """What is promised: the largest error in ``counts`` (of float samples in their unit), for all bands or for each, or of ``percent`` of the
    sample."""

    counts: tuple[float, ...] = ()
    percent: float = 0.0

    def __post_init__(self) -> None:
        if bool(self.counts) == bool(self.percent):
            raise ValueError("a bound is either in counts or in percent")
        if any(not 0 <= c < math.inf for c in self.counts) or not 0 <= self.percent <= PERCENT_MAX:
            raise ValueError(f"accepted are errors of 0 and more, or more than 0 to {PERCENT_MAX:g} percent")

    @property
    def lossless(self) -> bool:
        """Whether samples come back as they are."""
        return bool(self.counts) and not any(self.counts)

    def of_bands(self, info: SourceInfo) -> list[Bound]:
        """The bound of each band. Raises RasterError for another number of values than bands, and for a bound that such samples cannot have."""
        bands = info.bands
        if info.classes and not self.lossless:
            raise not_light("classes of a palette are coded losslessly alone: --lossless", "lossless")
        if self.percent:
            share = int(self.percent / 100 * (1 << SHARE_BITS))
            return [Bound(share, relative=True) if share else LOSSLESS] * bands
        if len(self.counts) not in (1, bands):
            raise RasterError(
                f"{len(self.counts)} bounds for {bands} bands; accepted is one for all or one for each",
                Fault.COUNT,
                field="max-error",
                expected=f"1 or {bands}",
                found=len(self.counts),
            )
        if info.dtype == FLOAT:
            return [Bound(_bits(error)) for error in (self.counts * bands)[:bands]]
        if any(error != int(error) or error > TOP_MAX for error in self.counts):
            raise RasterError(
                f"bounds of {', '.join(map(str, self.counts))} for samples of {info.dtype}; accepted are whole numbers from 0 to {TOP_MAX}",
                Fault.RANGE,
                field="max-error",
                expected=f"0 to {TOP_MAX}",
            )
        return [Bound(int(counts)) for counts in (self.counts * bands)[:bands]]


def _bits(error: float) -> int:
    """The bits of the largest finite float32 that is at most ``error``."""
    near = np.float32(min(error, float(np.finfo(np.float32).max)))
    return int((near if float(near) <= error else np.nextafter(near, np.float32(0))).view(np.uint32))


class BoundedEncoder:
    """Encodes within bounds. Of the profile only its identity and the side of its patches count."""

    def __init__(
        self, profile: ComponentProfile, bounds: ErrorBounds, coder: str = "auto", jpeg_ls: bool = False
    ) -> None:
        """With ``jpeg_ls`` all patches are JPEG-LS images, which others can decode, and a little larger."""
        self.profile, self.bounds, self.coder, self.jpeg_ls = profile, bounds, coder, jpeg_ls
        self.upsets = 0

    def encode_scene(
        self,
        source: Source,
        acquisition: Acquisition | None = None,
        verify: bool = False,
        progress: Callable[[int, int], None] | None = None,
        sensor: Sensor = ANY_SENSOR,
        out: IO[bytes] | None = None,
    ) -> EncodedScene:
        """The stream of a whole scene; arguments and errors are those of ``component_encoder.ComponentEncoder.encode_scene``. The errors of the
        bands are always measured, but of float samples, and travel in the stream."""
        timings = Timings()
        source, places = sensor.prepared(source)
        info = source.info
        wanted = self.bounds.of_bands(info)
        header, stream = begun(self.profile, source, places, acquisition, out)
        meter = None if header.floats else ErrorMeter(self.profile.contract, source.metadata, info.bands, info.dtype)
        coder = _Coder(source, self.coder, wanted, self.jpeg_ls)
        strips = Strips(source, header, 1)
        for strip in strips:
            if records := strips.records(strip):
                stream.add(write_records(records))
            for patch in strip.patches:
                with timings.stage("read"):
                    (window,) = strips.sample(range(patch, patch + 1))
                stream.add(*_chunks(patch, window, coder, verify, timings, meter, strips.is_exact(patch)))
                if progress:
                    progress(patch + 1, header.patches)
        errors = meter.errors if meter else None
        if errors:
            stream.add(v2.write_errors(errors))
        stream.header = v2.write_component_header(strips.header)
        data, patches = stream.finish(), strips.header.patches
        return EncodedScene(
            data, stream.size, strips.header, fmt.QUALITY_STEP_MAX, timings, self.upsets, errors, patches, stream.header
        )


def _chunks(
    patch: int,
    window: Block,
    coder: _Coder,
    verify: bool,
    timings: Timings,
    meter: ErrorMeter | None,
    exact: bool,
) -> list[bytes]:
    """The chunks of a patch: its mask where it needs one, and its segment."""
    if not window.valid.any():
        return [v2.write_component_segment(v2.ComponentSegment(patch, fmt.EMPTY))]
    chunks = []
    if needs_mask(window):
        chunks.append(fmt.write_chunk(fmt.MASK, pack_mask(patch, window.valid, window.alpha)))
    segment, decoded = coder.segment(patch, window, timings, verify, exact)
    if meter:
        meter.add_decoded(window, decoded)
    return [*chunks, v2.write_component_segment(segment)]


class _Coder:
    """Codes the patches of a scene within bounds, each in the shorter of the ways that suit it."""

    def __init__(self, source: Source, coder: str, bounds: list[Bound], jpeg_ls: bool) -> None:
        info, self._bounds = source.info, bounds
        if jpeg_ls and info.dtype == FLOAT:
            raise not_light(f"samples of {FLOAT} are no JPEG-LS images", "whole samples")
        self._predictor = Predictor(source.metadata, info.dtype, coder)
        self._jpeg_ls = JpegLs(source.metadata, info.dtype) if jpeg_ls else None
        self._deflates = info.dtype != FLOAT and all(bound == LOSSLESS for bound in bounds)

    def segment(
        self, patch: int, window: Block, timings: Timings, verify: bool, exact: bool
    ) -> tuple[v2.ComponentSegment, Samples]:
        """The segment of a patch, and the samples [band, row, col] that the ground will have; with ``exact`` those that there are."""
        bounds = [LOSSLESS] * len(self._bounds) if exact else self._bounds
        if self._jpeg_ls:
            with timings.stage("coding"):
                return self._jpeg_ls.segment(patch, window, bounds)
        segment, decoded = self._predictor.segment(patch, window, bounds, timings, verify)
        if self._deflates and all(code.model.repeats for code in segment.codes):
            with timings.stage("coding"):
                stored = deflated_segment(patch, window)
            if len(v2.write_component_segment(stored)) < len(v2.write_component_segment(segment)):
                return stored, window.samples
        return segment, decoded
