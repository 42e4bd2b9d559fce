"""A scene to a stream of format version 2: bands -> components -> latents -> one segment for each patch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import IO

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream import version2 as v2
from perigee.bitstream.arrays import FloatArray, IntArray
from perigee.bitstream.coders import memory_of
from perigee.bitstream.component_coding import DecodedComponents, decode_components
from perigee.bitstream.component_prior import magnitude_table
from perigee.bitstream.component_profile import ComponentProfile, load_component_profile
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.errors import Fault, ProfileError, SymbolError, UpsetError
from perigee.bitstream.masks import pack_mask
from perigee.bitstream.metadata import Acquisition, write_metadata_packet
from perigee.bitstream.reconstruction import CELL_BITS, STEP_BITS, centroids_of
from perigee.bitstream.records import write_records
from perigee.bitstream.rounding import BITS_OF_ERROR
from perigee.bitstream.samples import quality_step_of
from perigee.bitstream.spectral import Spectral, identity
from perigee.bitstream.version2_header import read_component_header
from perigee.engines.component_flight import ComponentFlight
from perigee.onboard.encoder import EncodedScene, Timings, fill_invalid, needs_mask, packet_of
from perigee.onboard.fidelity import EVEN, Fidelity
from perigee.onboard.guard import sum_of
from perigee.onboard.measured import ErrorMeter
from perigee.onboard.offsets import PATCHES_MIN, TableOffsets, share_of
from perigee.onboard.pace import Pace
from perigee.onboard.rival import Rival
from perigee.onboard.sensor import ANY_SENSOR, Sensor
from perigee.onboard.source import Block, Source, SourceInfo
from perigee.onboard.statistics import BandStatistics, spectral_of
from perigee.onboard.strips import Strips

OFFSETS_TAKEN = 0.75  # the choice of latents by their cost makes the distributions narrower, and would do so twice
PATCHES_PER_PARAMETERS = 64  # a strip of more patches has its parameters again before each following group
# On how many patches it is found what the spectral transform gains, how far apart they are, and how much of each is valid; the shares of
# bits that a guess leaves in doubt; the side in pixels of what is then coded in both ways, and what of the cost must be saved
GAIN_PATCHES, GAIN_EVERY, VALID_SHARE = 4, 3, 0.5
DOUBTFUL = (0.0, 0.125)
TRIED_SIDE, COST_SAVED = 64, 0.03


def begun(
    profile: ComponentProfile,
    source: Source,
    places: IntArray | None,
    acquisition: Acquisition | None,
    out: IO[bytes] | None,
) -> tuple[v2.ComponentHeader, fmt.StreamWriter]:
    """The header of a scene, and its stream up to the first patch. Raises LimitError for what no reader would accept, and MetadataError."""
    info, contract = source.info, profile.contract
    header = v2.ComponentHeader(
        contract.digest, info.width, info.height, info.bands, info.dtype, contract.patch_side, places is not None, True
    )
    read_component_header(v2.write_component_header(header))
    stream = fmt.StreamWriter(v2.write_component_header(header), out)
    packet = packet_of(source.metadata, acquisition)
    if packet:
        stream.add(write_metadata_packet(packet))
    if places is not None:
        stream.add(v2.write_places(places), v2.write_places(places))  # a lost one would cost the scene
    return header, stream


class ComponentEncoder:
    """Encodes with one component profile."""

    def __init__(self, profile: ComponentProfile, coder: str = "auto") -> None:
        """Raises ProfileError where the profile's files or its self-test are not as they should be."""
        self.coder, self.upsets, self.predicted = coder, 0, 0
        self._load(profile)

    def _load(self, profile: ComponentProfile) -> None:
        magnitude_table.cache_clear()
        self.profile = profile
        self.engine = ComponentFlight(profile, self.coder)
        self.contract = profile.contract
        self._sound = self._tables()

    def _tables(self) -> int:
        """Sum of the tables that no checksum of the prior covers."""
        tables = memory_of(self.contract.tables, self.coder)
        return sum_of([*tables, magnitude_table(self.contract.widths.magnitudes)])

    def encode_scene(
        self,
        source: Source,
        quality: float,
        acquisition: Acquisition | None = None,
        verify: bool = False,
        progress: Callable[[int, int], None] | None = None,
        strip_rows: int | None = None,
        fidelity: Fidelity = EVEN,
        measure_errors: bool = False,
        sensor: Sensor = ANY_SENSOR,
        out: IO[bytes] | None = None,
        pace: Pace | None = None,
    ) -> EncodedScene:
        """The stream of a whole scene; the arguments and errors are those of ``encoder.Encoder.encode_scene``.

        With ``strip_rows`` the scene is read once, from top to bottom, in strips of so many rows of patches. A strip is coded with
        parameters of the strip before, the first with its own. ``fidelity`` says how much each band matters, or the step in counts;
        then ``quality`` does not count. With ``measure_errors`` the scene is reconstructed as the ground will do, and the errors of
        each band are returned and travel in the stream. ``sensor`` has what else is known: dead columns, places of bands, a fixed transform.
        ``pace`` lowers the quality of strips of lines that cannot wait.
        """
        timings = Timings()
        upsets = self.upsets
        source, places = sensor.prepared(source)
        info, side = source.info, self.contract.patch_side
        header, stream = begun(self.profile, source, places, acquisition, out)
        strips = Strips(source, header, strip_rows)
        meter = ErrorMeter(self.contract, source.metadata, info.bands, info.dtype) if measure_errors else None
        rival = Rival(self.contract, source.metadata, info.bands, info.dtype, self.coder)
        self.predicted = 0
        quality_step = quality_step_of(quality)
        seen_info = info if strip_rows is None else replace(info, height=strip_rows * side)  # its end may be unknown
        before: list[Block] | None = None
        for number, strip in enumerate(strips):
            patches = strip.patches
            asked = quality_step_of(quality)
            with timings.stage("read"):
                windows = strips.windows(patches)
                seen = windows if before is None else before
                spectral, quality_step = self.spectral(seen, seen_info, asked, fidelity, sensor.matrix)
                before = list(windows) if strip_rows is not None else None
            if pace:
                quality_step = pace.quality_step(quality_step, strip.first * side)
                rival.rests = not pace.calm
            parameters = v2.Parameters(spectral, np.zeros((info.bands, v2.LATENTS), np.int8))
            if strip_rows is None and len(patches) >= PATCHES_MIN:
                watched = TableOffsets(self.engine.rounding.costs, info.bands, v2.LATENTS)
                share = share_of(len(patches))
                for patch, window in zip(patches[::share], strips.sample(patches[::share]), strict=True):
                    self.encode_patch(patch, window, parameters, quality_step, timings=timings, watched=watched)
                parameters = v2.Parameters(spectral, watched.chosen(share, OFFSETS_TAKEN))
            if number:
                stream.add(v2.write_strip(strip.first, strip.rows, number))
            if records := strips.records(strip):
                stream.add(write_records(records))
            due = False
            for patch, window in zip(patches, windows, strict=True):
                due = due or (patch - patches[0]) % PATCHES_PER_PARAMETERS == 0
                already = self.predicted
                chunks = self.encode_patch(
                    patch, window, parameters, quality_step, verify, timings, meter=meter, rival=rival, exact=strips.is_exact(patch)
                )  # fmt: skip
                if due and window.valid.any() and self.predicted == already:  # other patches need no parameters
                    stream.add(v2.write_parameters(number, parameters))
                    due = False
                stream.add(*chunks)
                if progress:
                    progress(patch + 1, header.patches)
        errors = meter.errors if meter else None
        if errors:
            stream.add(v2.write_errors(errors))
        stream.header = v2.write_component_header(strips.header)
        data = stream.finish()
        return EncodedScene(
            data, stream.size, strips.header, quality_step, timings, self.upsets - upsets, errors, self.predicted, stream.header,
        )  # fmt: skip

    def spectral(
        self,
        windows: Iterable[Block],
        info: SourceInfo,
        quality_step: int,
        fidelity: Fidelity,
        matrix: FloatArray | None = None,
    ) -> tuple[Spectral, int]:
        """The spectral transform of patches, and the quality step: ``matrix`` or the KLT of their valid samples, or none where that
        would gain too little."""
        statistics = BandStatistics(info.bands, info.dtype, info.width * info.height)
        kept: list[FloatArray] = []
        for number, window in enumerate(windows):
            statistics.add(window)
            if window.valid.mean() > VALID_SHARE and len(kept) < GAIN_PATCHES and number % GAIN_EVERY == 0:
                kept.append(fill_invalid(window.samples.astype(np.float32), window.valid))
        mean, width = statistics.means_and_ranges()
        scale, quality_step = fidelity.scales(width, quality_step, self._steps())
        spectral = spectral_of(statistics, mean, scale, matrix)
        plain = replace(spectral, matrix=identity(info.bands))
        if spectral.is_identity or not kept:
            return spectral, quality_step
        return spectral if self._pays(spectral, plain, kept, quality_step) else plain, quality_step

    def _pays(self, spectral: Spectral, plain: Spectral, patches: list[FloatArray], quality_step: int) -> bool:
        """Whether a spectral transform saves something. Where a guess of the bits leaves that in doubt, a corner of each patch is coded in
        both ways: bands that do not lie on each other save less than the guess says, and bands with other gains or dead columns more."""
        bits, bits_plain = (
            sum(self._guess(one.components_of(samples), quality_step) for samples in patches)
            for one in (spectral, plain)
        )
        promised = 1 - bits / max(bits_plain, 1.0)
        if not DOUBTFUL[0] < promised < DOUBTFUL[1]:
            return promised >= DOUBTFUL[1]
        corners = [samples[:, :TRIED_SIDE, :TRIED_SIDE] for samples in patches]
        cost, cost_plain = (
            sum(self._cost(one.components_of(samples), quality_step) for samples in corners)
            for one in (spectral, plain)
        )
        return cost < (1 - COST_SAVED) * cost_plain

    def _guess(self, planes: FloatArray, quality_step: int) -> float:
        """About how many bits components take."""
        y = self.engine.analysis.coefficients(planes) * self.engine.per_step(quality_step)
        return float(np.log(1 + np.square(1.5 * y)).sum() / np.log(4))

    def _cost(self, planes: FloatArray, quality_step: int) -> float:
        """What components take once they are coded: their bits, and their squared error in bits."""
        y = self.engine.analysis.coefficients(planes)
        coded = self.engine.code(y, np.zeros((len(y), v2.LATENTS), np.int8), quality_step)
        latents = coded.latents
        within = centroids_of(self.contract, latents.q, latents.mean, latents.scale_index)
        error = y * self.engine.per_step(quality_step) - within * 2.0**-CELL_BITS
        return 32 * len(coded.words) + BITS_OF_ERROR * float(np.square(error).sum())

    def _steps(self) -> FloatArray:
        """The step at each Q as a share of the range, [251]."""
        return np.asarray(self.contract.steps * 2.0**-STEP_BITS, np.float32)

    def encode_patch(
        self,
        patch: int,
        window: Block,
        parameters: v2.Parameters,
        quality_step: int,
        verify: bool = False,
        timings: Timings | None = None,
        watched: TableOffsets | None = None,
        meter: ErrorMeter | None = None,
        rival: Rival | None = None,
        exact: bool = False,
    ) -> list[bytes]:
        """The chunks of one patch: its mask where it needs one, and its segment. ``watched`` takes in how its latents are
        distributed; the parameters must then have no offsets. ``meter`` takes in the errors. With a ``rival`` the patch is a predicted segment
        where that is better, and where it has to be ``exact``.
        """
        timings = timings or Timings()
        if not window.valid.any():
            return [v2.write_component_segment(v2.ComponentSegment(patch, fmt.EMPTY))]
        chunks = []
        if needs_mask(window):
            chunks.append(fmt.write_chunk(fmt.MASK, pack_mask(patch, window.valid, window.alpha)))
        if exact and rival:
            chunk, decoded = rival.exactly(patch, window, timings, verify)
            self.predicted += 1
            if meter:
                meter.add_decoded(window, decoded)
            return [*chunks, chunk]
        with timings.stage("analysis"):
            samples = fill_invalid(window.samples.astype(np.float32), window.valid)
            coefficients = self.engine.analysis.coefficients(parameters.spectral.components_of(samples))
        if self._tables() != self._sound:
            self._renew()
        try:
            segment, latents = self._segment(patch, coefficients, parameters, quality_step, timings, watched)
            if verify:
                with timings.stage("verify"):
                    self.verify(segment, parameters, window.samples.shape[1:])
        except (UpsetError, SymbolError):  # the coder was given what no prior makes, or a checksum failed
            self._renew()
            segment, latents = self._segment(patch, coefficients, parameters, quality_step, timings)
            with timings.stage("verify"):
                self.verify(segment, parameters, window.samples.shape[1:])
        written = v2.write_component_segment(segment)
        better = (
            rival.instead_of(written, window, parameters.spectral, segment, latents, timings, verify) if rival else None
        )
        if better:
            self.predicted += 1
            if meter:
                meter.add_decoded(window, better[1])
            return [*chunks, better[0]]
        if meter:
            with timings.stage("measure"):
                meter.add(window, parameters.spectral, latents, quality_step)
        return [*chunks, written]

    def _renew(self) -> None:
        """Count an upset and load everything again from the profile's files. Raises ProfileError where they have changed."""
        self.upsets += 1
        profile = load_component_profile(self.profile.folder)
        if profile.contract.digest != self.contract.digest:
            raise ProfileError(
                f"profile {profile.name} is no longer what it was at the start", Fault.UPSET, field="profile"
            )
        self._load(profile)

    def _segment(
        self,
        patch: int,
        coefficients: FloatArray,
        parameters: v2.Parameters,
        quality_step: int,
        timings: Timings,
        watched: TableOffsets | None = None,
    ) -> tuple[v2.ComponentSegment, DecodedComponents]:
        """The segment, and its latents with what the prior predicted of them."""
        with timings.stage("coding"):
            watch = watched.add if watched else None
            coded = self.engine.code(coefficients, parameters.offsets, quality_step, watch)
        checksum = v2.checksum_of_components(coded.latents.q, coded.channels)
        segment = v2.ComponentSegment(patch, fmt.NETWORK, quality_step, checksum, coded.channels, (), coded.words)
        return segment, coded.latents

    def verify(self, segment: v2.ComponentSegment, parameters: v2.Parameters, shape: tuple[int, ...]) -> None:
        """Decode a segment again with the numpy prior. Raises UpsetError where its latents differ."""
        rows, cols = (-(-n // HYPER_BLOCK) for n in shape)
        try:
            decoded = decode_components(
                self.contract, self.contract.reference(np.float64), segment.words, segment.channels,
                segment.quality_steps, parameters.offsets, (rows, cols), kind=self.coder,
            )  # fmt: skip
        except SymbolError as error:
            raise UpsetError(f"segment {segment.patch} does not decode: {error}") from error
        if v2.checksum_of_components(decoded.q, segment.channels) != segment.checksum:
            raise UpsetError(f"segment {segment.patch} does not decode to the latents that were encoded")
