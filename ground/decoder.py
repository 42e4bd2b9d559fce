"""A stream to samples: segments -> symbols -> latents -> image, window by window with bounded memory.

Latents of neighbouring patches are stitched and synthesised with overlap, so that no seams show: each window of patches is
synthesised with a margin of ``MARGIN`` latents from its neighbours and only its inside is kept. The synthesis of ``flight3`` sees
12 latents, but what lies beyond a margin of 8 moves a few samples in a million, by one grey level: no more than rounding does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perigee.bitstream import format as fmt
from perigee.bitstream.entropy import DecodedPatch, decode_symbols
from perigee.bitstream.errors import BitstreamError, ChecksumError, FormatError
from perigee.bitstream.masks import unpack_mask
from perigee.bitstream.metadata import Metadata, unpack_metadata
from perigee.bitstream.profile import BLOCK, HYPER_BLOCK
from perigee.engines.onnxruntime import HALF_STEP, HALF_STEP_MIN, GroundEngine, cells_of

MARGIN = 8  # latents on each side
WINDOW_PATCHES = 4  # patches on the side of a synthesis window: the margin costs little and memory stays small
DTYPE_RANGE = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}


class Region(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    rows: int
    cols: int


Place = tuple[slice, slice]


def windows(start: int, length: int, patch: int) -> Iterator[tuple[int, int]]:
    """Start and length of synthesis windows along an axis, in pixels; a rest of at most one patch joins the last, since a window
    of its own would mostly be margin."""
    side = WINDOW_PATCHES * patch
    while length > side + patch:
        yield start, side
        start, length = start + side, length - side
    yield start, length


def tiles_over(region: Region, side: int) -> Iterator[tuple[int, int, Place, Place]]:
    """Squares of ``side`` from the scene's corner that a region touches: row, column, and where what they have in common lies in
    the square and in the region."""
    for row in range(region.top // side, (region.top + region.rows - 1) // side + 1):
        for col in range(region.left // side, (region.left + region.cols - 1) // side + 1):
            r0, r1 = max(row * side, region.top), min((row + 1) * side, region.top + region.rows)
            c0, c1 = max(col * side, region.left), min((col + 1) * side, region.left + region.cols)
            inner = np.s_[r0 - row * side : r1 - row * side, c0 - col * side : c1 - col * side]
            outer = np.s_[r0 - region.top : r1 - region.top, c0 - region.left : c1 - region.left]
            yield row, col, inner, outer


@dataclass
class Report:
    """What a decoding could not give: segments decoded from a cut, and units lost to damage."""

    cut: dict[int, int] = field(default_factory=dict)  # unit -> passes decoded
    lost: dict[int, str] = field(default_factory=dict)  # unit -> reason
    notes: list[str] = field(default_factory=list)  # what else is uncertain


class Decoded(NamedTuple):
    """Samples [band, row, col] in the scene's type, validity of the same shape, alpha [row, col] or None."""

    samples: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    alpha: npt.NDArray[Any] | None


class SceneDecoder:
    """Decodes regions of one parsed stream; keeps the latents of the last few patches.

    ``damaged`` replaces patches that cannot be decoded by fill instead of raising, and lists them in ``report``.
    """

    def __init__(self, stream: fmt.Stream, engine: GroundEngine, coder: str = "auto", damaged: bool = False) -> None:
        self.stream, self.engine, self.coder, self.damaged = stream, engine, coder, damaged
        self.header = stream.header
        self.report = Report()
        self.metadata: Metadata = self._metadata()
        alpha = self.metadata.alpha_band
        if alpha is not None and alpha > self.header.bands:
            raise FormatError(f"alpha band {alpha} of {self.header.bands + 1}")
        nodata = self.metadata.nodata
        low, high = DTYPE_RANGE[self.header.dtype]
        if nodata is not None and not (low <= nodata <= high and nodata == int(nodata)):
            raise FormatError(f"nodata {nodata} is not a value of {self.header.dtype}")
        if self.header.patch_side != engine.profile.contract.patch_side:
            raise FormatError(
                f"patch side {self.header.patch_side}, the contract's is {engine.profile.contract.patch_side}"
            )
        if stream.ranges is None and self.header.dtype != "uint8":
            raise FormatError(f"a stream of {self.header.dtype} needs coding ranges")
        self._latents: dict[int, npt.NDArray[np.float32] | None] = {}
        self._linear: dict[
            int, npt.NDArray[np.int16]
        ] = {}  # symbols of whole units that are a rounded linear transform

    def _metadata(self) -> Metadata:
        if self.damaged and self.stream.damage:
            self.report.notes.append("what was lost may have been a mask or the metadata: validity is not certain")
        if self.stream.metadata is None:
            return Metadata()
        try:
            return unpack_metadata(self.stream.metadata)
        except BitstreamError as error:
            if not self.damaged:
                raise
            self.report.notes.append(f"the metadata are unusable: {error}")
            return Metadata()

    @property
    def incomplete(self) -> bool:
        """Whether parts of the scene may have no data: a product then needs a mask of its own."""
        return self.damaged or any(s.mode == fmt.DROPPED for s in self.stream.segments.values())

    @property
    def fill(self) -> int:
        """Value of invalid samples: nodata where declared, else 0."""
        return 0 if self.metadata.nodata is None else int(self.metadata.nodata)

    def symbols(self, unit: int) -> DecodedPatch:
        """Symbols of a network segment, checked. Raises a BitstreamError."""
        segment = self.stream.segments[unit]
        contract = self.engine.profile.contract
        _, _, _, rows, cols = self.header.unit_window(unit)
        size = (-(-rows // HYPER_BLOCK), -(-cols // HYPER_BLOCK))
        decoded = decode_symbols(
            contract.widths,
            contract.tables,
            self.engine.prior,
            segment.words,
            segment.quality_step,
            size,
            segment.cut,
            self.coder,
            segment.latents,
        )
        if segment.cut:
            self.report.cut[unit] = decoded.passes
        elif fmt.checksum_of(decoded.q) != segment.checksum:
            raise ChecksumError(f"the symbols of segment {unit} have another checksum than the encoder's")
        return decoded

    def latents(self, unit: int) -> npt.NDArray[np.float32] | None:
        """Dequantised latents and quality plane [latents + 1, H, W] of a unit; None where it has none."""
        if unit in self._latents:
            return self._latents[unit]
        out = None
        segment = self.stream.segments.get(unit)
        if segment is None or segment.mode == fmt.DROPPED:
            self.report.lost[unit] = "dropped on board" if segment else "missing from the stream"
        elif segment.mode == fmt.NETWORK:
            try:
                d = self.symbols(unit)
                out = self.engine.reconstruct(d.q[None], d.mean[None], d.scale_index[None], segment.quality_step)[0]
                if segment.linear and not segment.cut and self.engine.can_hold:
                    self._linear[unit] = d.q.astype(np.int16)
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.lost[unit] = str(error)
        self._latents[unit] = out
        return out

    def generated(self) -> dict[str, str]:
        """Tags that describe generated detail in the images; none here."""
        return {}

    def _patches(self, group: int, region: Region) -> Iterator[tuple[int, Any, Any]]:
        """Units that touch ``region`` (in latents): number, and where their common rectangle lies in unit and region."""
        h = self.header
        for row, col, inner, outer in tiles_over(region, h.patch_side // BLOCK):
            yield (row * h.grid[1] + col) * h.groups + group, (slice(None), *inner), (slice(None), *outer)

    def _canvas(self, group: int, region: Region) -> npt.NDArray[np.float32] | None:
        """Stitched latents of the rectangle ``region`` (in latents), zero where there are none; None if all are."""
        channels = self.engine.profile.contract.widths.latents + 1
        out = None
        for unit, inner, outer in self._patches(group, region):
            part = self.latents(unit)
            if part is None:
                continue
            if out is None:
                out = np.zeros((channels, region.rows, region.cols), np.float32)
            out[outer] = part[inner]
        return out

    def _held_to_symbols(
        self, image: npt.NDArray[np.float32], group: int, region: Region, rounding: float | None = None
    ) -> npt.NDArray[np.float32]:
        """The image [3, 16 rows, 16 cols] of ``region`` (in latents), such that coding it again gives the received symbols.

        That is possible where an analysis was linear: the original then lies in a convex set that the symbols describe.
        ``rounding``: deviation of samples that will be rounded; three of it are kept from the borders of that set.
        """
        contract = self.engine.profile.contract
        shape = (contract.widths.latents, region.rows, region.cols)
        low, high = np.full(shape, -np.inf, np.float32), np.full(shape, np.inf, np.float32)
        bounded = False
        for unit, inner, outer in self._patches(group, region):
            q = self._linear.get(unit)
            if q is not None:
                gains = contract.gains(self.stream.segments[unit].quality_step)
                reach: float | npt.NDArray[np.float32] = HALF_STEP
                if rounding is not None:
                    reach = np.maximum(0.5 - 3 * rounding * gains, HALF_STEP_MIN)[:, None, None]
                low[outer], high[outer] = cells_of(q[inner], gains, reach)
                bounded = True
        return self.engine.consistent(image[None], low[None], high[None])[0] if bounded else image

    def _latent_extent(self) -> tuple[int, int]:
        """Rows and columns of latents of the whole scene, the padding of its last patches included."""
        h = self.header
        sizes = []
        for length in (h.height, h.width):
            last = (length - 1) % h.patch_side + 1
            padded = length - last + -(-last // HYPER_BLOCK) * HYPER_BLOCK
            sizes.append(padded // BLOCK)
        return sizes[0], sizes[1]

    def image(self, group: int, region: Region) -> npt.NDArray[np.float32]:
        """Synthesised image float32 [3, rows, cols] of a pixel region, nominally 0..1."""
        rows, cols = self._latent_extent()
        top, left = region.top // BLOCK, region.left // BLOCK
        bottom, right = -(-(region.top + region.rows) // BLOCK), -(-(region.left + region.cols) // BLOCK)
        outer = (max(top - MARGIN, 0), max(left - MARGIN, 0), min(bottom + MARGIN, rows), min(right + MARGIN, cols))
        canvas = self._canvas(group, Region(outer[0], outer[1], outer[2] - outer[0], outer[3] - outer[1]))
        if canvas is None:  # nothing but empty, dropped or lost patches: the fill value will stand there
            return np.zeros((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
        image = self.engine.synthesise(canvas[None])[0]
        y, x = (top - outer[0]) * BLOCK, (left - outer[1]) * BLOCK
        blocks = Region(top, left, bottom - top, right - left)
        image = image[:, y : y + blocks.rows * BLOCK, x : x + blocks.cols * BLOCK]
        image = self._held_to_symbols(np.ascontiguousarray(image), group, blocks)
        y, x = region.top - top * BLOCK, region.left - left * BLOCK
        return np.asarray(image[:, y : y + region.rows, x : x + region.cols])

    def _validity(self, patch: int) -> Decoded:
        """Validity and alpha of a whole patch, without samples."""
        h = self.header
        _, _, _, rows, cols = h.unit_window(patch * h.groups)
        valid = np.ones((h.bands, rows, cols), bool)
        alpha = None
        if self.metadata.alpha_band is not None:
            alpha = np.full((rows, cols), DTYPE_RANGE[h.dtype][1], h.dtype)
        payload = self.stream.masks.get(patch)
        if payload is not None:
            try:
                stored, stored_alpha = unpack_mask(payload, h.bands, rows, cols, h.dtype)
                if (alpha is None) != (stored_alpha is None):
                    raise FormatError(f"the mask of patch {patch} and the alpha band do not go together")
                valid, alpha = stored.copy(), stored_alpha
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.notes.append(f"the mask of patch {patch} is unusable: {error}")
                valid[:] = False
        for group in range(h.groups):
            segment = self.stream.segments.get(patch * h.groups + group)
            if (
                segment is None
                or segment.mode in (fmt.EMPTY, fmt.DROPPED)
                or patch * h.groups + group in self.report.lost
            ):
                valid[list(h.group_bands(group))] = False
        if alpha is not None and not valid.any():
            alpha[:] = 0
        return Decoded(valid, valid, alpha)

    def region(self, region: Region, bands: list[int] | None = None) -> Decoded:
        """Decode a pixel region; ``bands`` counts from 0 (all by default). Only the patches it touches are decoded."""
        h = self.header
        chosen = list(range(h.bands)) if bands is None else bands
        low, high = DTYPE_RANGE[h.dtype]
        out = np.empty((len(chosen), region.rows, region.cols), h.dtype)
        for group in sorted({b // fmt.BANDS_PER_GROUP for b in chosen}):
            members = list(h.group_bands(group))
            image = self.image(group, region)
            if len(members) < fmt.BANDS_PER_GROUP:  # the last band stood in for the missing ones
                image = np.concatenate([image[: len(members) - 1], image[len(members) - 1 :].mean(0, keepdims=True)])
            if self.stream.ranges is None:
                values = image * 255
            else:
                ranges = self.stream.ranges[members].astype(np.float32)
                values = image * (ranges[:, 1] - ranges[:, 0])[:, None, None] + ranges[:, 0][:, None, None]
            samples = np.clip(np.rint(np.nan_to_num(values)), low, high).astype(h.dtype)
            for place, band in enumerate(chosen):
                if band in members:
                    out[place] = samples[members.index(band)]
        valid, alpha = self._stitch_validity(region, chosen)
        self.settle(out, valid)
        return Decoded(out, valid, alpha)

    def settle(self, samples: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
        """Invalid samples become the fill value; valid ones must not look like nodata and move by one if they do."""
        fill, high = self.fill, DTYPE_RANGE[self.header.dtype][1]
        if self.metadata.nodata is not None and not self.metadata.masked:
            samples[valid & (samples == fill)] = fill + 1 if fill < high else fill - 1
        samples[~valid] = fill

    def _stitch_validity(
        self, region: Region, chosen: list[int]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any] | None]:
        h = self.header
        valid = np.ones((len(chosen), region.rows, region.cols), bool)
        alpha = None
        if self.metadata.alpha_band is not None:
            alpha = np.zeros((region.rows, region.cols), h.dtype)
        for row, col, inner, outer in tiles_over(region, h.patch_side):
            part = self._validity(row * h.grid[1] + col)
            valid[(slice(None), *outer)] = part.valid[chosen][(slice(None), *inner)]
            if alpha is not None and part.alpha is not None:
                alpha[outer] = part.alpha[inner]
        return valid, alpha

    def blocks(self, region: Region | None = None, bands: list[int] | None = None) -> Iterator[tuple[Region, Decoded]]:
        """The scene (or a region) in windows of 4x4 patches from its corner, at the far edges up to 5x5, row by row; latents done
        with are dropped."""
        h = self.header
        whole = region or Region(0, 0, h.height, h.width)
        for top, rows in windows(whole.top, whole.rows, h.patch_side):
            self._forget_before((top - MARGIN * BLOCK) // h.patch_side)
            for left, cols in windows(whole.left, whole.cols, h.patch_side):
                window = Region(top, left, rows, cols)
                yield window, self.region(window, bands)

    def _forget_before(self, patch_row: int) -> None:
        first = patch_row * self.header.grid[1] * self.header.groups
        self._latents = {unit: value for unit, value in self._latents.items() if unit >= first}
        self._linear = {unit: value for unit, value in self._linear.items() if unit >= first}
