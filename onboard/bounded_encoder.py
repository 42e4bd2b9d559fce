"""A scene to a stream of format version 2 whose samples are all within a bound: each patch is quantised, predicted and coded losslessly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from perigee.bitstream import format as fmt
from perigee.bitstream import version2 as v2
from perigee.bitstream.bounded import SHARE_BITS, Bound
from perigee.bitstream.component_profile import ComponentProfile
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.masks import pack_mask
from perigee.bitstream.metadata import Acquisition, write_metadata_packet
from perigee.bitstream.predictive import TOP_MAX
from perigee.bitstream.version2_header import read_component_header
from perigee.onboard.encoder import EncodedScene, Timings, needs_mask, packet_of
from perigee.onboard.measured import ErrorMeter
from perigee.onboard.predicted import Predictor
from perigee.onboard.sensor import ANY_SENSOR, Sensor
from perigee.onboard.source import Block, Source

PERCENT_MAX = 50.0


@dataclass(frozen=True)
class ErrorBounds:
    """What is promised: the largest error in ``counts``, for all bands or for each, or of ``percent`` of the sample."""

    counts: tuple[int, ...] = ()
    percent: float = 0.0

    def __post_init__(self) -> None:
        if bool(self.counts) == bool(self.percent):
            raise ValueError("a bound is either in counts or in percent")
        if any(not 0 <= c <= TOP_MAX for c in self.counts) or not 0 <= self.percent <= PERCENT_MAX:
            raise ValueError(f"accepted are 0 to {TOP_MAX} counts, and more than 0 to {PERCENT_MAX:g} percent")

    def of_bands(self, bands: int) -> list[Bound]:
        """The bound of each band. Raises RasterError for another number of values than bands."""
        if self.percent:
            return [Bound(max(int(self.percent / 100 * (1 << SHARE_BITS)), 1), relative=True)] * bands
        if len(self.counts) not in (1, bands):
            raise RasterError(
                f"{len(self.counts)} bounds for {bands} bands; accepted is one for all or one for each",
                Fault.COUNT,
                field="max-error",
                expected=f"1 or {bands}",
                found=len(self.counts),
            )
        return [Bound(counts) for counts in (self.counts * bands)[:bands]]


class BoundedEncoder:
    """Encodes within bounds. Of the profile only its identity and the side of its patches count."""

    def __init__(self, profile: ComponentProfile, bounds: ErrorBounds, coder: str = "auto") -> None:
        self.profile, self.bounds, self.coder = profile, bounds, coder
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
        bands are always measured, and travel in the stream."""
        timings = Timings()
        source, places = sensor.prepared(source)
        info, metadata = source.info, source.metadata
        side = self.profile.contract.patch_side
        header = v2.ComponentHeader(
            self.profile.contract.digest,
            info.width,
            info.height,
            info.bands,
            info.dtype,
            side,
            places is not None,
            True,
        )
        read_component_header(v2.write_component_header(header))  # raises LimitError for what no reader would accept
        wanted = self.bounds.of_bands(info.bands)
        stream = fmt.StreamWriter(v2.write_component_header(header), out)
        packet = packet_of(metadata, acquisition)
        if packet:
            stream.add(write_metadata_packet(packet))
        if places is not None:
            stream.add(v2.write_places(places), v2.write_places(places))  # a lost one would cost the scene
        meter = ErrorMeter(self.profile.contract, metadata, info.bands, info.dtype)
        predictor = Predictor(metadata, info.dtype, self.coder)
        for patch in range(header.patches):
            with timings.stage("read"):
                window = source.read(*header.patch_region(patch))
            stream.add(*_chunks(patch, window, predictor, wanted, verify, timings, meter))
            if progress:
                progress(patch + 1, header.patches)
        errors = meter.errors
        stream.add(v2.write_errors(errors))
        data = stream.finish()
        return EncodedScene(
            data, stream.size, header, fmt.QUALITY_STEP_MAX, timings, self.upsets, errors, header.patches
        )


def _chunks(
    patch: int,
    window: Block,
    predictor: Predictor,
    bounds: list[Bound],
    verify: bool,
    timings: Timings,
    meter: ErrorMeter,
) -> list[bytes]:
    """The chunks of a patch: its mask where it needs one, and its segment."""
    if not window.valid.any():
        return [v2.write_component_segment(v2.ComponentSegment(patch, fmt.EMPTY))]
    chunks = []
    if needs_mask(window):
        chunks.append(fmt.write_chunk(fmt.MASK, pack_mask(patch, window.valid, window.alpha)))
    segment, decoded = predictor.segment(patch, window, bounds, timings, verify)
    meter.add_decoded(window, decoded)
    return [*chunks, v2.write_component_segment(segment)]
