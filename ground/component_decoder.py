"""A stream of format version 2 to samples: segments -> latents -> components -> bands, window by window with bounded memory.

The integers of the contract give each component (``bitstream.reconstruction``), where the profile has a synthesis it adds what it expects
of them (``component_synthesis``), and the strip's matrix turns components into bands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import IntArray, Samples
from perigee.bitstream.bounded import checksum_of_codes
from perigee.bitstream.component_coding import DecodedComponents, decode_components
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.errors import BitstreamError, ChecksumError, Fault, FormatError
from perigee.bitstream.lapped import BLOCK
from perigee.bitstream.predictive import decode_planes
from perigee.bitstream.reconstruction import Reconstruction
from perigee.bitstream.stored import samples_of_stored
from perigee.bitstream.version2 import STORED, ComponentSegment, ComponentStream, checksum_of_components
from perigee.engines.backend import CPU_DEVICE
from perigee.engines.ground_components import GroundComponents
from perigee.ground.ahead import Ahead
from perigee.ground.component_synthesis import CHANNELS_MIN, MARGIN, ComponentSynthesis, DecodedPlanes
from perigee.ground.jpeg_ls import decode_jpeg_ls
from perigee.ground.regions import Region, squares_over
from perigee.ground.scene import StreamSource
from perigee.ground.source import Decoded

# Patches down and across a window of the scene
WINDOW_ROWS, WINDOW_ROWS_MANY_BANDS, WINDOW_COLUMNS = 4, 2, 8
FEW_BANDS = 4


class ComponentDecoder(StreamSource):
    """A parsed stream of version 2 as an image source; it keeps the last few patches."""

    def __init__(
        self,
        stream: ComponentStream,
        engine: GroundComponents,
        coder: str = "auto",
        damaged: bool = False,
        fast: bool = False,
    ) -> None:
        """``fast`` leaves the synthesis out: the samples are those of the integers.

        Raises FormatError where stream, metadata and contract do not go together.
        """
        super().__init__(stream, engine.profile.contract.patch_side, damaged)
        self.stream, self.engine, self.coder = stream, engine, coder
        self.header = stream.header
        self.height, self.width = stream.size
        if stream.places is not None and self.metadata.alpha_band is not None:
            raise FormatError(
                "bands in places of their own beside an alpha band, which has one place", Fault.MISFIT, field="places"
            )
        self._reconstruction = Reconstruction(engine.profile.contract)
        has_components = any(segment.mode == fmt.NETWORK for segment in stream.segments.values())
        wanted = engine.can_synthesise and not fast and has_components
        self._synthesis = ComponentSynthesis(engine, self.header) if wanted else None
        self._patches: dict[int, DecodedPlanes | Samples | None] = {}
        self._ahead = Ahead(self._decoded)

    # --- patches ---------------------------------------------------------------------------------------------------

    def latents(self, patch: int) -> DecodedComponents:
        """Latents of a network segment, checked. Raises a BitstreamError."""
        segment = self.stream.segments[patch]
        parameters = self.stream.parameters_of(patch)
        if parameters is None:
            raise FormatError(f"the parameters of patch {patch} are missing", Fault.MISSING, field="parameters")
        contract = self.engine.profile.contract
        rows, cols = (-(-n // HYPER_BLOCK) for n in self.header.patch_region(patch)[2:])
        decoded = decode_components(
            contract, self.engine.prior, segment.words, segment.channels, segment.quality_steps, parameters.offsets,
            (rows, cols), segment.cut, self.coder,
        )  # fmt: skip
        if segment.cut:
            self.report.cut[patch] = decoded.passes
        else:
            _check(segment, checksum_of_components(decoded.q, segment.channels))
        return decoded

    def patch(self, patch: int) -> DecodedPlanes | Samples | None:
        """The components of a patch, the samples [band, row, col] of a predicted or stored one, or None where it has none."""
        if patch not in self._patches:
            self._patches[patch] = self._ahead.get(patch)
        return self._patches[patch]

    def planes(self, patch: int) -> DecodedPlanes | None:
        """The components of a patch; None where it has none."""
        found = self.patch(patch)
        return found if isinstance(found, DecodedPlanes) else None

    def _decoded(self, patch: int) -> DecodedPlanes | Samples | None:
        segment = self.stream.segments.get(patch)
        if segment is None or segment.mode == fmt.DROPPED:
            self.report.lost[patch] = "dropped on board" if segment else "missing from the stream"
        elif segment.mode != fmt.EMPTY:
            try:
                return self._decode(patch, segment) if segment.mode == fmt.NETWORK else self._samples(segment)
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.lost[patch] = str(error)
        return None

    def _decode(self, patch: int, segment: ComponentSegment) -> DecodedPlanes:
        decoded = self.latents(patch)
        kept: list[tuple[IntArray, IntArray] | None] = [None] * self.bands
        planes: list[IntArray | None] = [None] * self.bands
        for c, (channels, step) in enumerate(zip(segment.channels, segment.quality_steps, strict=True)):
            if channels:
                parts = decoded.q[c], decoded.mean[c], decoded.scale_index[c]
                planes[c] = self._reconstruction.plane(*parts, step)
                if self._synthesis and channels > CHANNELS_MIN:
                    kept[c] = self._synthesis.inputs_of(*parts, step)
        return DecodedPlanes(planes, kept, segment.quality_steps)

    def _samples(self, segment: ComponentSegment) -> Samples:
        """The samples of a predicted or stored segment, checked. Raises a BitstreamError."""
        _, _, rows, cols = self.header.patch_region(segment.patch)
        if segment.mode == STORED:
            stored = (
                samples_of_stored(band, (rows, cols), self.dtype, self.sample_range, decode_jpeg_ls)
                for band in segment.stored
            )
            return np.stack(list(stored)).astype(self.dtype)
        planes = decode_planes(segment.words, (rows, cols), [code.model for code in segment.codes], self.coder)
        _check(segment, checksum_of_codes(planes))
        limits = (0, 0) if self.header.floats else self.sample_range
        parts = zip(planes, segment.codes, strict=True)
        return np.stack([code.samples_of(plane, limits) for plane, code in parts]).astype(self.dtype)

    def forget(self, before_patch_row: int | None = None) -> None:
        """Drop all patches, or those above a row of patches."""
        first = None if before_patch_row is None else before_patch_row * self.header.grid[1]
        self._patches = {} if first is None else {n: part for n, part in self._patches.items() if n >= first}

    # --- samples ---------------------------------------------------------------------------------------------------

    def region(self, region: Region, bands: Sequence[int] | None = None) -> Decoded:
        """Decode a pixel region; ``bands`` counts from 0 (None: all). Only the patches that it touches are decoded, and with a synthesis
        those close to it."""
        chosen = list(range(self.bands)) if bands is None else list(bands)
        if self.stream.places is None:
            return self._framed(region, chosen)
        frame = self._frame_of(region)
        found = self._framed(frame, chosen)
        shape = (len(chosen), region.rows, region.cols)
        samples, valid = np.empty(shape, self.dtype), np.empty(shape, bool)
        for number, (line, column) in enumerate(self.stream.places[chosen].tolist()):
            own = Region(region.top + line, region.left + column, region.rows, region.cols).within(frame)
            samples[number], valid[number] = found.samples[(number, *own)], found.valid[(number, *own)]
        return Decoded(samples, valid, None)

    def _frame_of(self, region: Region) -> Region:
        """What of the frame holds a region of every band."""
        lines, columns = self.header.height - self.height, self.header.width - self.width
        return Region(region.top, region.left, region.rows + lines, region.cols + columns)

    def _framed(self, region: Region, chosen: Sequence[int]) -> Decoded:
        """Decode a region of the frame that is coded, in which the bands may have places of their own."""
        out = np.zeros((len(chosen), region.rows, region.cols), self.dtype)
        for strip in self._strips(region):
            part = out[(slice(None), *strip.within(region))]
            added = self._synthesis.added(self.planes, strip, self._rows_like(strip)) if self._synthesis else None
            for row, col, inner, outer in squares_over(strip, self.header.patch_side):
                patch = row * self.header.grid[1] + col
                found, parameters = self.patch(patch), self.stream.parameters_of(patch)
                if isinstance(found, np.ndarray):
                    part[(slice(None), *outer)] = found[(list(chosen), *inner)]
                if not isinstance(found, DecodedPlanes) or parameters is None:
                    continue
                shape = (outer[0].stop - outer[0].start, outer[1].stop - outer[1].start)
                planes = np.stack([np.zeros(shape, np.int32) if p is None else p[inner] for p in found.planes])
                if added is not None:
                    planes += added[(slice(None), *outer)]
                samples = self._reconstruction.samples(parameters.spectral, planes, self.dtype, self.sample_range)
                part[(slice(None), *outer)] = samples[list(chosen)]
        valid, alpha = self._validity(region, chosen)
        self.settle(out, valid)
        return Decoded(out, valid, alpha)

    def _strips(self, region: Region) -> Iterator[Region]:
        """The parts of a region whose rows of patches have the same parameters."""
        side, strips = self.header.patch_side, self.stream.strips
        top = region.top
        for row in range(region.top // side, -(-region.bottom // side)):
            last = (row + 1) * side >= region.bottom
            if last or strips.get(row + 1, 0) != strips.get(row, 0):
                bottom = min((row + 1) * side, region.bottom)
                yield Region(top, region.left, bottom - top, region.cols)
                top = bottom

    def _rows_like(self, strip: Region) -> tuple[int, int]:
        """First and last row of patches around a strip that have its parameters and touch it."""
        side, strips = self.header.patch_side, self.stream.strips
        first, last = strip.top // side, (strip.bottom - 1) // side
        number = strips.get(first, 0)
        while first and strips.get(first - 1, 0) == number:
            first -= 1
        while last + 1 < self.header.grid[0] and strips.get(last + 1, 0) == number:
            last += 1
        return first, last

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """The scene or a region in windows at absolute places, stripe by stripe from the left, each from its top. Patches that are done
        with are dropped; those on both sides of a stripe's edge are decoded twice, so that memory does not grow with the scene."""
        whole = region or Region(0, 0, self.height, self.width)
        margin = MARGIN * BLOCK if self._synthesis else 0
        windows = self.windows(whole)
        with self._ahead.threads(self.engine.threads):
            for window, following in zip(windows, [*windows[1:], None], strict=True):
                at_top = window.top == whole.top
                self.forget(None if at_top else max(window.top - margin, 0) // self.header.patch_side)
                for needed in (window, following):
                    if needed:
                        self._begin(needed, margin)
                yield window, self.region(window, bands)

    def windows(self, whole: Region) -> list[Region]:
        """The windows of a region, in the order in which :meth:`blocks` gives them."""
        side = self.header.patch_side
        high, wide = side * (WINDOW_ROWS if self.bands <= FEW_BANDS else WINDOW_ROWS_MANY_BANDS), side * WINDOW_COLUMNS
        return [
            Region(top, left, high, wide).intersection(whole)
            for left in range(whole.left // wide * wide, whole.right, wide)
            for top in range(whole.top // high * high, whole.bottom, high)
        ]

    def _begin(self, window: Region, margin: int) -> None:
        """Have the patches of a window decoded by threads."""
        around = self._frame_of(window).grown(margin, Region(0, 0, self.header.height, self.header.width))
        touched = (row * self.header.grid[1] + col for row, col, _, _ in squares_over(around, self.header.patch_side))
        self._ahead.begin(patch for patch in touched if patch not in self._patches)

    def _origin(self) -> dict[str, str]:
        profile = self.engine.profile
        return {
            "PERIGEE_PROFILE": profile.name,
            "PERIGEE_CONTRACT": profile.contract.digest.hex(),
            "PERIGEE_ENGINE": self.engine.name,
            "PERIGEE_DEVICE": self.engine.backend.device if self._synthesis else CPU_DEVICE,
            "PERIGEE_PRECISION": self.engine.backend.precision if self._synthesis else "integers",
            "PERIGEE_SYNTHESIS": "YES" if self._synthesis else "NO",
        } | (self._measured() | self._promised())

    def _promised(self) -> dict[str, str]:
        """The largest error that any sample of each band may have, where every patch was coded within a bound."""
        segments = self._bounded
        if not segments:
            return {}
        bounds = [[s.bounds[band] for s in segments] for band in range(self.bands)]
        shares = [max((b.share for b in found if b.relative), default=0.0) for found in bounds]
        if any(shares):
            return {"PERIGEE_MAX_RELATIVE_ERROR": " ".join(f"{share:.4g}" for share in shares)}
        absolute = [[b for b in found if not b.relative] for found in bounds]
        largest = [max((b.amount if self.header.floats else b.counts for b in found), default=0) for found in absolute]
        return {"PERIGEE_MAX_ERROR": " ".join(f"{error:.7g}" for error in largest)}

    @property
    def _bounded(self) -> list[ComponentSegment]:
        """All segments that hold anything, where each was coded within a bound."""
        segments = [s for s in self.stream.segments.values() if s.mode != fmt.EMPTY]
        return segments if all(s.bounds for s in segments) else []

    @property
    def lossless(self) -> bool:
        """Whether every sample is what was encoded."""
        bounded = self._bounded
        return bool(bounded) and not any(bound.counts for segment in bounded for bound in segment.bounds)

    def _measured(self) -> dict[str, str]:
        """The errors of the bands that were measured on board, in counts."""
        found = self.stream.errors
        if found is None:
            return {}
        return {
            "PERIGEE_ONBOARD_RMS_ERROR": " ".join(f"{value:.4g}" for value in found.rms.tolist()),
            "PERIGEE_ONBOARD_LARGEST_ERROR": " ".join(map(str, found.largest.tolist())),
            "PERIGEE_ONBOARD_BIAS": " ".join(f"{value:.3g}" for value in found.bias.tolist()),
        }

    def _delivered(self, patch: int) -> tuple[bool, list[int]]:
        segment = self.stream.segments.get(patch)
        lost = segment is None or segment.mode == fmt.DROPPED or patch in self.report.lost
        empty = segment is not None and segment.mode == fmt.EMPTY
        return not (lost or empty), list(range(self.bands)) if lost or empty else []


def _check(segment: ComponentSegment, found: int) -> None:
    """Raise ChecksumError where what was decoded has another checksum than what was encoded."""
    if found != segment.checksum:
        raise ChecksumError(
            f"what was decoded of patch {segment.patch} has another checksum than the encoder's",
            Fault.SYMBOL_CHECKSUM,
            field=f"segment {segment.patch}",
            expected=segment.checksum,
            found=found,
        )
