"""A stream to samples: segments -> symbols -> latents -> image, window by window with bounded memory.

Latents of neighbouring patches are stitched and synthesised with overlap, so that no seams show: each window of patches is
synthesised with a margin of ``MARGIN`` latents from its neighbours, and only its inside is kept. The synthesis of ``flight3``
sees 12 latents, but what lies beyond a margin of 8 moves a few samples in a million by one grey level, which is no more than
rounding does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

import perigee
from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import Array, BoolArray, FloatArray, IntArray, Samples
from perigee.bitstream.cells import cells_of, reach_within
from perigee.bitstream.contract import BLOCK, HYPER_BLOCK
from perigee.bitstream.entropy import DecodedPatch, decode_symbols
from perigee.bitstream.errors import BitstreamError, ChecksumError, Fault, FormatError
from perigee.bitstream.masks import unpack_mask
from perigee.bitstream.metadata import Metadata, unpack_metadata
from perigee.bitstream.samples import DTYPE_RANGE, denormalise, is_value_of, quality_of
from perigee.engines.ground import GroundEngine
from perigee.ground.regions import Region, squares_over
from perigee.ground.source import Decoded, Report, acquisition_tags, has_generated_detail, source_tags

MARGIN = 8  # latents on each side
UNITS_NAMED = 100  # in the tags of a product
WINDOW_PATCHES = 4  # patches on the side of a synthesis window: the margin costs little and memory stays small
ImageOf = Callable[[int, Region], FloatArray]  # group and region to its image [3, rows, cols]


def synthesis_windows(start: int, length: int, patch: int) -> Iterator[tuple[int, int]]:
    """Start and length in pixels of the synthesis windows along an axis.

    A rest of at most one patch joins the last window, since a window of its own would mostly be margin.
    """
    side = WINDOW_PATCHES * patch
    while length > side + patch:
        yield start, side
        start, length = start + side, length - side
    yield start, length


class SceneDecoder:
    """A parsed stream as an image source; it keeps the latents of the last few patches.

    With ``damaged`` patches that cannot be decoded become fill instead of raising, and are listed in ``report``. Beside
    samples it offers what only a stream has: symbols, latents, and the projection of a picture to the cells of its symbols.
    """

    def __init__(self, stream: fmt.Stream, engine: GroundEngine, coder: str = "auto", damaged: bool = False) -> None:
        """Raises FormatError where stream, metadata and contract do not go together."""
        self.stream, self.engine, self.coder, self.damaged = stream, engine, coder, damaged
        self.header = stream.header
        self.width, self.height = self.header.width, self.header.height
        self.bands, self.dtype = self.header.bands, self.header.dtype
        self.report = Report()
        self.metadata: Metadata = self._metadata()
        self._check()
        self._latents: dict[int, FloatArray | None] = {}
        self._received: dict[int, IntArray] = {}  # int16 symbols of whole units that are a rounded linear transform

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

    def _check(self) -> None:
        h, m = self.header, self.metadata
        if m.alpha_band is not None and m.alpha_band > h.bands:
            raise FormatError(
                f"alpha band {m.alpha_band} of {h.bands + 1}",
                field="alpha band",
                expected=f"0 to {h.bands}",
                found=m.alpha_band,
            )
        if m.nodata is not None and not is_value_of(m.nodata, h.dtype):
            raise FormatError(
                f"nodata {m.nodata} is not a value of {h.dtype}", field="nodata", expected=h.dtype, found=m.nodata
            )
        side = self.engine.profile.contract.patch_side
        if h.patch_side != side:
            raise FormatError(
                f"patch side {h.patch_side}, the contract's is {side}",
                Fault.MISFIT,
                field="patch side",
                expected=side,
                found=h.patch_side,
            )
        if self.stream.ranges is None and h.dtype != "uint8":
            raise FormatError(f"a stream of {h.dtype} needs coding ranges", Fault.MISSING, field="coding ranges")

    @property
    def incomplete(self) -> bool:
        """Whether parts of the scene may have no data: a product then needs a mask of its own."""
        return self.damaged or any(s.mode == fmt.DROPPED for s in self.stream.segments.values())

    @property
    def has_gaps(self) -> bool:
        """Whether some samples may be invalid."""
        empty = any(s.mode != fmt.NETWORK for s in self.stream.segments.values())
        return self.incomplete or empty or bool(self.stream.masks)

    @property
    def sample_range(self) -> tuple[int, int]:
        """Smallest and largest value of a sample: those of its type, or of the bits that the source used of it."""
        low, high = DTYPE_RANGE[self.dtype]
        return low, high if self.metadata.nbits is None else min(high, (1 << self.metadata.nbits) - 1)

    @property
    def fill(self) -> int:
        """Value of invalid samples: nodata where declared, else 0."""
        return 0 if self.metadata.nodata is None else int(self.metadata.nodata)

    # --- what only a stream has ------------------------------------------------------------------------------------

    def symbols(self, unit: int) -> DecodedPatch:
        """Symbols of a network segment, checked. Raises a BitstreamError."""
        segment = self.stream.segments[unit]
        contract = self.engine.profile.contract
        _, _, _, rows, cols = self.header.unit_region(unit)
        size = (-(-rows // HYPER_BLOCK), -(-cols // HYPER_BLOCK))
        decoded = decode_symbols(
            contract.widths, contract.tables, self.engine.prior, segment.words, segment.quality_step, size, segment.cut,
            self.coder, segment.latents,
        )  # fmt: skip
        if segment.cut:
            self.report.cut[unit] = decoded.passes
        elif fmt.checksum_of(decoded.q) != segment.checksum:
            raise ChecksumError(
                f"the symbols of segment {unit} have another checksum than the encoder's",
                Fault.SYMBOL_CHECKSUM,
                field=f"segment {unit}",
                expected=segment.checksum,
                found=fmt.checksum_of(decoded.q),
            )
        return decoded

    def latents(self, unit: int) -> FloatArray | None:
        """Dequantised latents and quality plane, float32 [latents + 1, H, W], of a unit; None where it has none."""
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
                if segment.linear and not segment.cut and self.engine.can_project:
                    self._received[unit] = d.q.astype(np.int16)
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.lost[unit] = str(error)
        self._latents[unit] = out
        return out

    def received(self, unit: int) -> IntArray | None:
        """Symbols int16 [latents, H, W] of a whole unit whose analysis was linear, so that they describe cells; else None."""
        self.latents(unit)
        return self._received.get(unit)

    def units_over(self, group: int, region: Region) -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
        """Units of a group that touch ``region`` (in latents): number, and where both meet in the unit and in the region."""
        h = self.header
        for row, col, inner, outer in squares_over(region, h.patch_side // BLOCK):
            yield (row * h.grid[1] + col) * h.groups + group, (slice(None), *inner), (slice(None), *outer)

    def canvas(self, group: int, region: Region) -> FloatArray | None:
        """Stitched latents float32 [latents + 1, rows, cols] of ``region`` (in latents), zero where a unit has none.

        None where no unit has any.
        """
        channels = self.engine.profile.contract.widths.latents + 1
        out = None
        for unit, inner, outer in self.units_over(group, region):
            part = self.latents(unit)
            if part is None:
                continue
            if out is None:
                out = np.zeros((channels, region.rows, region.cols), np.float32)
            out[outer] = part[inner]
        return out

    def project_to_cells(
        self, image: FloatArray, group: int, region: Region, rounding: float | None = None
    ) -> FloatArray:
        """The image [3, 16 rows, 16 cols] of ``region`` (in latents), moved so that coding it again gives the received symbols.

        That is possible where an analysis was linear: the original then lies in a convex set that the symbols describe.
        ``rounding`` is the standard deviation of the rounding that the samples will undergo, in units of the image.
        """
        contract = self.engine.profile.contract
        shape = (contract.widths.latents, region.rows, region.cols)
        low, high = np.full(shape, -np.inf, np.float32), np.full(shape, np.inf, np.float32)
        bounded = False
        for unit, inner, outer in self.units_over(group, region):
            q = self.received(unit)
            if q is not None:
                gains = contract.gains(self.stream.segments[unit].quality_step)
                low[outer], high[outer] = cells_of(q[inner], gains, reach_within(gains, rounding))
                bounded = True
        return self.engine.project_to_cells(image[None], low[None], high[None])[0] if bounded else image

    @property
    def latent_extent(self) -> Region:
        """The whole scene in latents, the padding of its last patches included."""
        side = self.header.patch_side
        sizes = []
        for length in (self.height, self.width):
            last = (length - 1) % side + 1
            sizes.append((length - last + -(-last // HYPER_BLOCK) * HYPER_BLOCK) // BLOCK)
        return Region(0, 0, *sizes)

    def image(self, group: int, region: Region) -> FloatArray:
        """Synthesised image float32 [3, rows, cols] of a pixel region, nominally 0..1."""
        inside = region.blocks(BLOCK)
        around = inside.grown(MARGIN, self.latent_extent)
        canvas = self.canvas(group, around)
        if canvas is None:  # nothing but empty, dropped or lost patches: the fill value will stand there
            return np.zeros((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
        image = self.engine.synthesise(canvas[None])[0]
        image = image[(slice(None), *inside.times(BLOCK).within(around.times(BLOCK)))]
        image = self.project_to_cells(np.ascontiguousarray(image), group, inside)
        return np.asarray(image[(slice(None), *region.within(inside.times(BLOCK)))])

    def forget(self, before_patch_row: int | None = None) -> None:
        """Drop the latents of all patches, or of those above a row of patches."""
        first = None if before_patch_row is None else before_patch_row * self.header.grid[1] * self.header.groups
        kept = {} if first is None else {unit: part for unit, part in self._latents.items() if unit >= first}
        self._latents = kept
        self._received = {unit: q for unit, q in self._received.items() if unit in kept}

    @property
    def units_kept(self) -> int:
        """How many units have their latents in memory."""
        return len(self._latents)

    # --- samples ---------------------------------------------------------------------------------------------------

    def region(self, region: Region, bands: Sequence[int] | None = None, image_of: ImageOf | None = None) -> Decoded:
        """Decode a pixel region; ``bands`` counts from 0 (None: all). Only the patches that it touches are decoded.

        ``image_of`` gives the image of a group instead of :meth:`image`, for sources that enhance it.
        """
        h = self.header
        chosen = list(range(h.bands)) if bands is None else list(bands)
        out = np.empty((len(chosen), region.rows, region.cols), h.dtype)
        for group in sorted({b // fmt.BANDS_PER_GROUP for b in chosen}):
            members = list(h.group_bands(group))
            image = (image_of or self.image)(group, region)
            if len(members) < fmt.BANDS_PER_GROUP:  # the last band stood in for the missing ones
                image = np.concatenate([image[: len(members) - 1], image[len(members) - 1 :].mean(0, keepdims=True)])
            ranges = None if self.stream.ranges is None else self.stream.ranges[members]
            samples = denormalise(image, ranges, h.dtype, self.sample_range)
            for place, band in enumerate(chosen):
                if band in members:
                    out[place] = samples[members.index(band)]
        valid, alpha = self._validity(region, chosen)
        self.settle(out, valid)
        return Decoded(out, valid, alpha)

    def settle(self, samples: Samples, valid: BoolArray) -> None:
        """Invalid samples become the fill value; valid ones must not look like nodata and move by one if they do."""
        fill, high = self.fill, self.sample_range[1]
        if self.metadata.nodata is not None and not self.metadata.masked:
            samples[valid & (samples == fill)] = fill + 1 if fill < high else fill - 1
        samples[~valid] = fill

    def blocks(
        self,
        region: Region | None = None,
        bands: Sequence[int] | None = None,
        image_of: ImageOf | None = None,
    ) -> Iterator[tuple[Region, Decoded]]:
        """The scene or a region in synthesis windows of 4x4 patches, at the far edges up to 5x5, row by row.

        Latents of patches that are done with are dropped.
        """
        side = self.header.patch_side
        whole = region or Region(0, 0, self.height, self.width)
        for top, rows in synthesis_windows(whole.top, whole.rows, side):
            self.forget(before_patch_row=(top - MARGIN * BLOCK) // side)
            for left, cols in synthesis_windows(whole.left, whole.cols, side):
                window = Region(top, left, rows, cols)
                yield window, self.region(window, bands, image_of)

    def provenance(self) -> dict[str, str]:
        """Tags that say where the pixels come from, those of an older generation under changed names."""
        profile = self.engine.profile
        qualities = {s.quality_step for s in self.stream.segments.values() if s.mode == fmt.NETWORK}
        ends = sorted({min(qualities), max(qualities)}) if qualities else []
        return {
            "PERIGEE_SOFTWARE": f"perigee {perigee.__version__}",
            "PERIGEE_PROFILE": profile.name,
            "PERIGEE_CONTRACT": profile.contract.digest.hex(),
            "PERIGEE_ENGINE": self.engine.name,
            "PERIGEE_QUALITY": "-".join(f"{quality_of(q):g}" for q in ends),
            "PERIGEE_LOSSY": "YES",
            "PERIGEE_GENERATED_DETAIL": "YES" if has_generated_detail(self.metadata) else "NO",
        } | (acquisition_tags(self.metadata) | self._damage_tags() | source_tags(self.metadata))

    def _damage_tags(self) -> dict[str, str]:
        """What a cut or damaged stream could not give, as far as it has been read."""
        report, notes = self.report, [*self.stream.damage, *self.report.notes]
        if not (report.cut or report.lost or notes):
            return {}
        tags = {"PERIGEE_DAMAGE": f"{len(report.lost)} units lost, {len(report.cut)} cut short, {len(notes)} notes"}
        for name, units in (("PERIGEE_LOST_UNITS", report.lost), ("PERIGEE_CUT_UNITS", report.cut)):
            if units:
                numbers = sorted(units)
                more = f" and {len(numbers) - UNITS_NAMED} more" if len(numbers) > UNITS_NAMED else ""
                tags[name] = " ".join(map(str, numbers[:UNITS_NAMED])) + more
        return tags

    # --- validity --------------------------------------------------------------------------------------------------

    def _validity(self, region: Region, chosen: Sequence[int]) -> tuple[BoolArray, Array | None]:
        """Validity bool [chosen bands, rows, cols] and alpha [rows, cols], or None, of a pixel region."""
        h = self.header
        valid = np.ones((len(chosen), region.rows, region.cols), bool)
        alpha = None
        if self.metadata.alpha_band is not None:
            alpha = np.zeros((region.rows, region.cols), h.dtype)
        for row, col, inner, outer in squares_over(region, h.patch_side):
            part, part_alpha = self._patch_validity(row * h.grid[1] + col)
            valid[(slice(None), *outer)] = part[list(chosen)][(slice(None), *inner)]
            if alpha is not None and part_alpha is not None:
                alpha[outer] = part_alpha[inner]
        return valid, alpha

    def _patch_validity(self, patch: int) -> tuple[BoolArray, Samples | None]:
        """Validity bool [bands, rows, cols] and alpha [rows, cols], or None, of a whole patch."""
        h = self.header
        _, _, _, rows, cols = h.unit_region(patch * h.groups)
        valid = np.ones((h.bands, rows, cols), bool)
        alpha = None
        if self.metadata.alpha_band is not None:
            alpha = np.full((rows, cols), DTYPE_RANGE[h.dtype][1], h.dtype)
        payload = self.stream.masks.get(patch)
        if payload is not None:
            try:
                stored, stored_alpha = unpack_mask(payload, h.bands, rows, cols, h.dtype)
                if (alpha is None) != (stored_alpha is None):
                    raise FormatError(
                        f"the mask of patch {patch} and the alpha band do not go together", Fault.MISFIT, field="mask"
                    )
                valid, alpha = stored.copy(), stored_alpha
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.notes.append(f"the mask of patch {patch} is unusable: {error}")
                valid[:] = False
        for group in range(h.groups):
            unit = patch * h.groups + group
            segment = self.stream.segments.get(unit)
            if segment is None or segment.mode in (fmt.EMPTY, fmt.DROPPED) or unit in self.report.lost:
                valid[list(h.group_bands(group))] = False
        if alpha is not None:
            alpha = np.where(self._sent(patch), alpha, 0).astype(alpha.dtype)
        return valid, alpha

    def _sent(self, patch: int) -> bool:
        """Whether all units of a patch are there; alpha must not declare valid what was lost."""
        units = range(patch * self.header.groups, (patch + 1) * self.header.groups)
        modes = [self.stream.segments[unit].mode for unit in units if unit in self.stream.segments]
        lost = len(modes) < len(units) or fmt.DROPPED in modes or any(unit in self.report.lost for unit in units)
        return not lost and any(mode != fmt.EMPTY for mode in modes)
