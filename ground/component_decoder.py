"""A stream of format version 2 to samples: segments -> latents -> components -> bands, window by window with bounded memory.

The integers of the contract give each component (``bitstream.reconstruction``). Where the profile has a synthesis, its network adds
to the components of neighbouring patches, joined, what it expects of them; then the strip's matrix turns them into bands. Without a
synthesis, or with ``effort`` fast, the samples are those of the integers and equal on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import Array, FloatArray, Samples
from perigee.bitstream.component_coding import DecodedComponents, decode_components
from perigee.bitstream.contract import HYPER_BLOCK
from perigee.bitstream.errors import BitstreamError, ChecksumError, Fault, FormatError
from perigee.bitstream.lapped import BLOCK
from perigee.bitstream.prior import QUALITY_STEPS
from perigee.bitstream.reconstruction import (
    CELL_BITS,
    UNIT_BITS,
    centroids_of,
    coefficients_of,
    plane_of,
    samples_of,
)
from perigee.bitstream.spectral import SCALE_BITS, SPECTRAL_BITS, Spectral
from perigee.bitstream.version2 import ComponentStream, checksum_of_components
from perigee.engines.ground_components import GroundComponents
from perigee.ground.regions import Region, squares_over
from perigee.ground.scene import StreamSource
from perigee.ground.source import Decoded

MARGIN = 4  # latents that the synthesis sees of the neighbours
WINDOW_COLS, WINDOW_ROWS = 4, 4  # patches on the sides of a window; scenes of many bands have windows of one row
FEW_BANDS = 4


class _Patch(NamedTuple):
    """What is kept of a decoded patch, each [components, ...]: centroids and scale indices [256, H, W], planes in 2**-20 of the
    range [16 H, 16 W], and the quality steps."""

    centroids: npt.NDArray[np.float16]
    scales: npt.NDArray[np.uint8]
    planes: npt.NDArray[np.int32]
    quality_steps: tuple[int, ...]


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
        """``fast`` leaves the synthesis out. Raises FormatError where stream, metadata and contract do not go together."""
        super().__init__(stream, engine.profile.contract.patch_side, damaged)
        self.stream, self.engine, self.coder = stream, engine, coder
        self.header = stream.header
        self.synthesises = engine.can_synthesise and not fast
        self._patches: dict[int, _Patch | None] = {}

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
            found = checksum_of_components(decoded.q, segment.channels)
            if found != segment.checksum:
                raise ChecksumError(
                    f"the latents of patch {patch} have another checksum than the encoder's",
                    Fault.SYMBOL_CHECKSUM,
                    field=f"segment {patch}",
                    expected=segment.checksum,
                    found=found,
                )
        return decoded

    def _patch(self, patch: int) -> _Patch | None:
        """A patch decoded to planes; None where it has none."""
        if patch in self._patches:
            return self._patches[patch]
        out = None
        segment = self.stream.segments.get(patch)
        if segment is None or segment.mode == fmt.DROPPED:
            self.report.lost[patch] = "dropped on board" if segment else "missing from the stream"
        elif segment.mode == fmt.NETWORK:
            try:
                out = self._planes(self.latents(patch), segment.quality_steps)
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.lost[patch] = str(error)
        self._patches[patch] = out
        return out

    def _planes(self, decoded: DecodedComponents, quality_steps: tuple[int, ...]) -> _Patch:
        contract = self.engine.profile.contract
        count, _, rows, cols = decoded.q.shape
        planes = np.zeros((count, BLOCK * rows, BLOCK * cols), np.int32)
        centroids = np.zeros(decoded.q.shape, np.float16)
        for c, step in enumerate(quality_steps):
            within = centroids_of(contract, decoded.q[c], decoded.mean[c], decoded.scale_index[c])
            plane = plane_of(contract, coefficients_of(contract, within, step))
            planes[c] = plane
            if self.synthesises:
                centroids[c] = np.clip(within, -(1 << 14), 1 << 14) / np.float32(1 << CELL_BITS)
        return _Patch(centroids, decoded.scale_index.astype(np.uint8), planes, quality_steps)

    def forget(self, before_patch_row: int | None = None) -> None:
        """Drop all patches, or those above a row of patches."""
        first = None if before_patch_row is None else before_patch_row * self.header.grid[1]
        self._patches = {} if first is None else {n: part for n, part in self._patches.items() if n >= first}

    # --- samples ---------------------------------------------------------------------------------------------------

    def region(self, region: Region, bands: Sequence[int] | None = None) -> Decoded:
        """Decode a pixel region; ``bands`` counts from 0 (None: all). Only the patches that it touches are decoded."""
        chosen = list(range(self.bands)) if bands is None else list(bands)
        side = self.header.patch_side
        added = self._synthesised(region) if self.synthesises else None
        out = np.empty((len(chosen), region.rows, region.cols), self.dtype)
        for row, col, inner, outer in squares_over(region, side):
            patch = row * self.header.grid[1] + col
            found, parameters = self._patch(patch), self.stream.parameters_of(patch)
            if found is None or parameters is None:
                out[(slice(None), *outer)] = 0
                continue
            planes = found.planes[(slice(None), *inner)]
            if added is None:
                samples = samples_of(parameters.spectral, planes.astype(np.int64), self.dtype, self.sample_range)
            else:
                samples = self._mixed(parameters.spectral, added[(slice(None), *outer)], planes)
            out[(slice(None), *outer)] = samples[chosen]
        valid, alpha = self._validity(region, chosen)
        self.settle(out, valid)
        return Decoded(out, valid, alpha)

    def _mixed(self, spectral: Spectral, added: FloatArray, planes: Array) -> Samples:
        """Samples of planes in 2**-20 of the range and of what the synthesis added to them, in ranges."""
        low, high = self.sample_range
        mixed = planes.reshape(len(planes), -1).astype(np.float64) * 2.0**-UNIT_BITS + added.reshape(len(planes), -1)
        bands = (spectral.matrix.astype(np.float64) * 2.0**-SPECTRAL_BITS) @ mixed
        counts = bands * (spectral.scale.astype(np.float64) * 2.0**-SCALE_BITS)[:, None] + spectral.mean[:, None]
        return np.asarray(np.clip(np.rint(counts), low, high).astype(self.dtype)).reshape(planes.shape)

    def _synthesised(self, region: Region) -> FloatArray:
        """What the synthesis adds to the components of a pixel region, float32 [components, rows, cols] in ranges."""
        inside = region.blocks(BLOCK)
        around = inside.grown(MARGIN, self._extent)
        count, side = self.bands, self.header.patch_side // BLOCK
        steps = np.zeros((count, around.rows, around.cols), np.float32)
        pieces = list(squares_over(around, side))
        guide: FloatArray | None = None
        out = np.zeros((count, region.rows, region.cols), np.float32)
        rows, cols = region.within(around.times(BLOCK))
        for c in range(count):
            latents = np.zeros((1, BLOCK * BLOCK, around.rows, around.cols), np.float32)
            index = np.zeros_like(latents)
            plane = np.zeros((1, 1, BLOCK * around.rows, BLOCK * around.cols), np.float32)
            quality = np.zeros((1, 1, around.rows, around.cols), np.float32)
            for row, col, inner, outer in pieces:
                found = self._patch(row * self.header.grid[1] + col)
                if found is None:
                    continue
                q = found.quality_steps[c]
                step = self.engine.step(q)
                latents[(0, slice(None), *outer)] = found.centroids[(c, slice(None), *inner)]
                index[(0, slice(None), *outer)] = found.scales[(c, slice(None), *inner)]
                there, here = ([slice(BLOCK * s.start, BLOCK * s.stop) for s in part] for part in (outer, inner))
                plane[0, 0, there[0], there[1]] = found.planes[c, here[0], here[1]] * (2.0**-UNIT_BITS / step)
                quality[(0, 0, *outer)] = q / QUALITY_STEPS
                steps[(c, *outer)] = step
            size = steps[c].repeat(BLOCK, 0).repeat(BLOCK, 1)
            if guide is None:
                seen = np.zeros_like(plane)
                guide = plane[0, 0] * size
            else:
                seen = np.where(size > 0, guide / np.maximum(size, 1e-12), 0).astype(np.float32)[None, None]
            added = self.engine.synthesise(latents, index, plane, seen, quality)[0] * size
            out[c] = added[0, rows, cols]
        return out

    @property
    def _extent(self) -> Region:
        """The whole scene in latents, the padding of its last patches included."""
        side = self.header.patch_side
        sizes = []
        for length in (self.height, self.width):
            last = (length - 1) % side + 1
            sizes.append((length - last + -(-last // HYPER_BLOCK) * HYPER_BLOCK) // BLOCK)
        return Region(0, 0, *sizes)

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """The scene or a region in windows of patches, row by row. Patches that are done with are dropped."""
        side = self.header.patch_side
        whole = region or Region(0, 0, self.height, self.width)
        high = side * (WINDOW_ROWS if self.bands <= FEW_BANDS else 1)
        wide = side * WINDOW_COLS
        for top in range(whole.top, whole.top + whole.rows, high):
            self.forget(before_patch_row=(top - MARGIN * BLOCK) // side)
            rows = min(high, whole.top + whole.rows - top)
            for left in range(whole.left, whole.left + whole.cols, wide):
                window = Region(top, left, rows, min(wide, whole.left + whole.cols - left))
                yield window, self.region(window, bands)

    def _origin(self) -> dict[str, str]:
        profile = self.engine.profile
        return {
            "PERIGEE_PROFILE": profile.name,
            "PERIGEE_CONTRACT": profile.contract.digest.hex(),
            "PERIGEE_ENGINE": self.engine.name if self.synthesises else "integers",
        }

    def _delivered(self, patch: int) -> tuple[bool, list[int]]:
        segment = self.stream.segments.get(patch)
        lost = segment is None or segment.mode == fmt.DROPPED or patch in self.report.lost
        empty = segment is not None and segment.mode == fmt.EMPTY
        return not (lost or empty), list(range(self.bands)) if lost or empty else []
