"""A scene to a stream of format version 2: bands -> components -> latents -> one segment for each patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream import version2 as v2
from perigee.bitstream.arrays import FloatArray, IntArray, Samples
from perigee.bitstream.component_coding import CodedComponents, decode_components, encode_components
from perigee.bitstream.component_profile import ComponentProfile
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.errors import SymbolError, UpsetError
from perigee.bitstream.masks import pack_mask
from perigee.bitstream.metadata import Acquisition, write_metadata_packet
from perigee.bitstream.prior import PASSES_PER_SLICE, Prediction, half
from perigee.bitstream.reconstruction import STEP_BITS
from perigee.bitstream.rounding import Rounding
from perigee.bitstream.samples import quality_step_of
from perigee.bitstream.spectral import GAIN_MIN, Spectral, identity
from perigee.engines.components import ComponentEngine
from perigee.onboard.component_analysis import ComponentAnalysis
from perigee.onboard.encoder import EncodedScene, Timings, fill_invalid, needs_mask, packet_of
from perigee.onboard.source import Block, Source
from perigee.onboard.statistics import BandStatistics, spectral_of

GAIN_PATCHES = 4  # on which it is estimated what the spectral transform gains


class ComponentEncoder:
    """Encodes with one component profile."""

    def __init__(self, profile: ComponentProfile, coder: str = "auto") -> None:
        """Raises ProfileError where the profile's files or its self-test are not as they should be."""
        self.profile, self.coder = profile, coder
        self.engine = ComponentEngine(profile)
        self.contract = profile.contract
        self.analysis = ComponentAnalysis(self.contract, profile.analysis())
        self.rounding = Rounding(self.contract)

    def encode_scene(
        self,
        source: Source,
        quality: float,
        acquisition: Acquisition | None = None,
        verify: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> EncodedScene:
        """The stream of a whole scene; the arguments and errors are those of ``encoder.Encoder.encode_scene``."""
        timings = Timings()
        info = source.info
        quality_step = quality_step_of(quality)
        side = self.contract.patch_side
        header = v2.ComponentHeader(self.contract.digest, info.width, info.height, info.bands, info.dtype, side)
        v2.read_component_header(v2.write_component_header(header))  # raises LimitError for what no reader would accept
        packet = packet_of(source.metadata, acquisition)
        chunks = [write_metadata_packet(packet)] if packet else []
        with timings.stage("read"):
            spectral = self.spectral(source, quality_step)
        parameters = v2.Parameters(spectral, np.zeros((info.bands, v2.LATENTS), np.int8))
        chunks.append(v2.write_parameters(0, parameters))
        for patch in range(header.patches):
            with timings.stage("read"):
                window = source.read(*header.patch_region(patch))
            chunks += self.encode_patch(patch, window, parameters, quality_step, verify, timings)
            if progress:
                progress(patch + 1, header.patches)
        return EncodedScene(v2.write_component_stream(header, chunks), header, quality_step, timings)

    def spectral(self, source: Source, quality_step: int) -> Spectral:
        """The spectral transform of a scene: the KLT of its valid samples, or none where that would gain too little."""
        info, side = source.info, self.contract.patch_side
        statistics = BandStatistics(info.bands, info.dtype, info.width * info.height)
        grid = [(top, left) for top in range(0, info.height, side) for left in range(0, info.width, side)]
        tried = set(range(0, len(grid), max(1, len(grid) // GAIN_PATCHES)))
        kept: list[Samples] = []
        for number, (top, left) in enumerate(grid):
            window = source.read(top, left, min(side, info.height - top), min(side, info.width - left))
            statistics.add(window)
            if number in tried and window.valid.all():
                kept.append(window.samples)
        spectral = spectral_of(statistics)
        plain = replace(spectral, matrix=identity(info.bands))
        if spectral.is_identity or not kept:
            return spectral
        bits, bits_plain = (
            sum(self._guess(one.components_of(s), quality_step) for s in kept) for one in (spectral, plain)
        )
        return spectral if bits < (1 - GAIN_MIN) * bits_plain else plain

    def _guess(self, planes: FloatArray, quality_step: int) -> float:
        """About how many bits components take."""
        y = self.analysis.coefficients(planes) * self._per_step(quality_step)
        return float(np.log2(1 + np.square(1.5 * y)).sum()) / 2

    def _per_step(self, quality_step: int) -> np.float32:
        """How many steps the range is at Q."""
        return np.float32(2.0**STEP_BITS / int(self.contract.steps[quality_step]))

    def encode_patch(
        self,
        patch: int,
        window: Block,
        parameters: v2.Parameters,
        quality_step: int,
        verify: bool = False,
        timings: Timings | None = None,
    ) -> list[bytes]:
        """The chunks of one patch: its mask where it needs one, and its segment."""
        timings = timings or Timings()
        if not window.valid.any():
            return [v2.write_component_segment(v2.ComponentSegment(patch, fmt.EMPTY))]
        chunks = []
        if needs_mask(window):
            chunks.append(fmt.write_chunk(fmt.MASK, pack_mask(patch, window.valid, window.alpha)))
        with timings.stage("analysis"):
            samples = fill_invalid(window.samples.astype(np.float32), window.valid)
            coefficients = self.analysis.coefficients(parameters.spectral.components_of(samples))
        segment = self._segment(patch, coefficients, parameters, quality_step, timings)
        if verify:
            with timings.stage("verify"):
                self.verify(segment, parameters, window.samples.shape[1:])
        return [*chunks, v2.write_component_segment(segment)]

    def _segment(
        self, patch: int, coefficients: FloatArray, parameters: v2.Parameters, quality_step: int, timings: Timings
    ) -> v2.ComponentSegment:
        with timings.stage("analysis"):
            scale = self._per_step(quality_step)
            values = np.clip(coefficients * scale, *self.contract.tables.latent_range)
            found = [self.analysis.latents(y) for y in values]
            q, z = (np.stack(part) for part in zip(*found, strict=True))
            channels = tuple(coded_channels(latents) for latents in q)
        halves: dict[tuple[int, int], FloatArray] = {}

        def choose(component: int, k: int, prediction: Prediction) -> IntArray:
            key = (component, k % PASSES_PER_SLICE)
            if key not in halves:
                halves[key] = half(values[component][None], key[1])[0]
            start, _ = self.contract.widths.slice_of(k)
            return self.rounding.choose(halves[key][start : start + len(prediction.mean)], prediction)

        with timings.stage("coding"):
            steps = (quality_step,) * len(q)
            coded = CodedComponents(q, z, channels, steps, parameters.offsets)
            words = encode_components(self.contract, self.engine.prior, coded, self.coder, choose)
        checksum = v2.checksum_of_components(q, channels)
        return v2.ComponentSegment(patch, fmt.NETWORK, quality_step, checksum, channels, (), words)

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


def coded_channels(q: IntArray) -> int:
    """How many leading channels of latents [channels, H, W] are to be coded: a multiple of 8, 0 where all are 0."""
    used = np.flatnonzero(q.reshape(len(q), -1).any(axis=1))
    return (int(used[-1]) // fmt.CHANNEL_STEP + 1) * fmt.CHANNEL_STEP if len(used) else 0
