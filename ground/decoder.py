"""A stream to samples: segments -> symbols -> latents -> image, window by window with bounded memory.

Latents of neighbouring patches are stitched and synthesised with overlap, so that no seams show: each window of patches is
synthesised with a margin of ``MARGIN`` latents from its neighbours, and only its inside is kept. The synthesis of ``flight3``
sees 12 latents, but what lies beyond a margin of 8 moves a few samples in a million by one grey level, which is no more than
rounding does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import FloatArray, IntArray, Samples
from perigee.bitstream.cells import cells_of, reach_within
from perigee.bitstream.contract import BLOCK, HYPER_BLOCK
from perigee.bitstream.entropy import DecodedPatch, decode_symbols
from perigee.bitstream.errors import BitstreamError, ChecksumError, Fault, FormatError
from perigee.bitstream.samples import denormalise
from perigee.engines.ground import GroundEngine
from perigee.engines.quick import QuickLook
from perigee.ground.ahead import Ahead, in_order
from perigee.ground.regions import Place, Region, squares_over
from perigee.ground.scene import StreamSource
from perigee.ground.source import Decoded

MARGIN = 8  # latents on each side
WINDOW_PATCHES = 4  # patches on the side of a synthesis window: the margin costs little and memory stays small
STRIPE = 4  # synthesis windows side by side in a stripe
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


def _stitched(parts: Iterable[tuple[FloatArray | None, Place, Place]], region: Region) -> FloatArray | None:
    """Parts [channel, rows, cols], each with what of it is wanted and where that belongs in ``region``; None where there is none."""
    out = None
    for part, inner, outer in parts:
        if part is not None:
            if out is None:
                out = np.zeros((len(part), region.rows, region.cols), np.float32)
            out[(slice(None), *outer)] = part[(slice(None), *inner)]
    return out


def _quick_image(quick: QuickLook, canvas: FloatArray | None, region: Region, factor: int = 1) -> FloatArray:
    """What a quick look shows of a region, which is reduced as the image is, of the latents of the blocks that it touches."""
    if canvas is None:
        return np.zeros((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
    touched = region.blocks(BLOCK // factor).times(BLOCK // factor)
    return quick.image(canvas, factor)[(slice(None), *region.within(touched))]


class SceneDecoder(StreamSource):
    """A parsed stream as an image source; it keeps the latents of the last few patches.

    With ``damaged`` patches that cannot be decoded become fill instead of raising, and are listed in ``report``. Beside
    samples it offers what only a stream has: symbols, latents, and the projection of a picture to the cells of its symbols.
    """

    def __init__(
        self,
        stream: fmt.Stream,
        engine: GroundEngine,
        coder: str = "auto",
        damaged: bool = False,
        quick: QuickLook | None = None,
    ) -> None:
        """``quick`` makes images without the synthesis, where all of the stream has a linear analysis. Raises FormatError where stream, metadata
        and contract do not go together."""
        super().__init__(stream, engine.profile.contract.patch_side, damaged)
        self.stream, self.engine, self.coder = stream, engine, coder
        self.header = stream.header
        if stream.ranges is None and self.dtype != "uint8":
            raise FormatError(f"a stream of {self.dtype} needs coding ranges", Fault.MISSING, field="coding ranges")
        latents = engine.profile.contract.widths.latents
        if stream.offsets is not None and stream.offsets.shape[1] != latents:
            raise FormatError(
                f"offsets of the tables for {stream.offsets.shape[1]} latent channels; profile {engine.profile.name} has {latents}",
                Fault.MISFIT,
                field="offsets",
                expected=latents,
                found=stream.offsets.shape[1],
            )
        linear = all(s.linear for s in stream.segments.values() if s.mode == fmt.NETWORK)
        self._quick = quick if linear else None
        self._lock = threading.RLock()  # of what is kept: several windows may be synthesised at a time
        self._latents: dict[int, FloatArray | None] = {}
        self._ahead = Ahead(self._reconstructed)
        self._received: dict[int, IntArray] = {}  # int16 symbols of whole units that are a rounded linear transform

    # --- what only a stream has ------------------------------------------------------------------------------------

    def symbols(self, unit: int, passes: int | None = None) -> DecodedPatch:
        """Symbols of a network segment, checked; or those of its first ``passes``, which cannot be. Raises a BitstreamError."""
        segment = self.stream.segments[unit]
        contract = self.engine.profile.contract
        _, _, _, rows, cols = self.header.unit_region(unit)
        size = (-(-rows // HYPER_BLOCK), -(-cols // HYPER_BLOCK))
        decoded = decode_symbols(
            contract.widths, contract.tables, self.engine.prior, segment.words, segment.quality_step, size, segment.cut,
            self.coder, segment.latents, self._offsets_of(unit), passes,
        )  # fmt: skip
        if passes is not None and passes < contract.widths.passes:
            return decoded
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

    def _offsets_of(self, unit: int) -> IntArray | None:
        offsets = self.stream.offsets
        return None if offsets is None else offsets[unit % self.header.groups]

    def latents(self, unit: int) -> FloatArray | None:
        """Dequantised latents and quality plane, float32 [latents + 1, H, W], of a unit; None where it has none."""
        with self._lock:
            if unit not in self._latents:
                self._latents[unit], received = self._ahead.get(unit)
                if received is not None:
                    self._received[unit] = received
            return self._latents[unit]

    def _reconstructed(self, unit: int, reduction: int = 1) -> tuple[FloatArray | None, IntArray | None]:
        """What :meth:`latents` and :meth:`received` give of a unit; for a quick look from as many passes as its reduction needs."""
        segment = self.stream.segments.get(unit)
        if segment is None or segment.mode == fmt.DROPPED:
            self.report.lost[unit] = "dropped on board" if segment else "missing from the stream"
        elif segment.mode == fmt.NETWORK:
            try:
                if self._quick is not None:
                    passes = self._quick.passes(reduction, segment.quality_step) if reduction > 1 else None
                    return self._quick.latents(self.symbols(unit, passes), segment.quality_step), None
                d = self.symbols(unit)
                out = self.engine.reconstruct(d.q[None], d.mean[None], d.scale_index[None], segment.quality_step)[0]
                linear = segment.linear and not segment.cut and self.engine.can_project
                return out, d.q.astype(np.int16) if linear else None
            except BitstreamError as error:
                if not self.damaged:
                    raise
                self.report.lost[unit] = str(error)
        return None, None

    def received(self, unit: int) -> IntArray | None:
        """Symbols int16 [latents, H, W] of a whole unit whose analysis was linear, so that they describe cells; else None."""
        with self._lock:
            self.latents(unit)
            return self._received.get(unit)

    def units_over(self, group: int, region: Region) -> Iterator[tuple[int, Place, Place]]:
        """Units of a group that touch ``region`` (in latents): number, and where both meet in the unit and in the region."""
        h = self.header
        for row, col, inner, outer in squares_over(region, h.patch_side // BLOCK):
            yield (row * h.grid[1] + col) * h.groups + group, inner, outer

    def canvas(self, group: int, region: Region) -> FloatArray | None:
        """Stitched latents float32 [latents + 1, rows, cols] of ``region`` (in latents), zero where a unit has none.

        None where no unit has any.
        """
        parts = [(self.latents(unit), inner, outer) for unit, inner, outer in self.units_over(group, region)]
        return _stitched(parts, region)

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
                place = (slice(None), *outer)
                low[place], high[place] = cells_of(q[(slice(None), *inner)], gains, reach_within(gains, rounding))
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
        """Synthesised image float32 [3, rows, cols] of a pixel region, nominally 0..1; that of a quick look where it was asked for."""
        inside = region.blocks(BLOCK)
        if self._quick is not None:
            return _quick_image(self._quick, self.canvas(group, inside), region)
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
        with self._lock:
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
        chosen = list(range(self.bands)) if bands is None else list(bands)
        made = image_of or self.image
        out = self._samples(chosen, lambda group: made(group, region))
        valid, alpha = self._validity(region, chosen)
        self.settle(out, valid)
        return Decoded(out, valid, alpha)

    def _samples(self, chosen: Sequence[int], image_of: Callable[[int], FloatArray]) -> Samples:
        """Samples [band, row, col] of the chosen bands, of the images of their groups."""
        h = self.header
        found: dict[int, Samples] = {}
        for group in sorted({b // fmt.BANDS_PER_GROUP for b in chosen}):
            members = list(h.group_bands(group))
            image = image_of(group)
            if len(members) < fmt.BANDS_PER_GROUP:  # the last band stood in for the missing ones
                image = np.concatenate([image[: len(members) - 1], image[len(members) - 1 :].mean(0, keepdims=True)])
            ranges = None if self.stream.ranges is None else self.stream.ranges[members]
            samples = denormalise(image, ranges, h.dtype, self.sample_range)
            found |= dict(zip(members, samples, strict=True))
        return np.stack([found[band] for band in chosen])

    @property
    def reduces(self) -> bool:
        """Whether :meth:`reduced` serves: for quick looks at scenes without gaps."""
        return self._quick is not None and not self.has_gaps and self.metadata.alpha_band is None

    def reduced(self, region: Region, bands: Sequence[int], factor: int) -> Decoded:
        """A quick look at a pixel region, reduced by 2, 4, 8 or 16; its top and left are multiples of that. Only as much of each segment is
        decoded as can be seen."""
        assert self._quick is not None
        quick, inside = self._quick, region.blocks(BLOCK)
        place = Region(
            region.top // factor, region.left // factor, -(-region.rows // factor), -(-region.cols // factor)
        )

        def image(group: int) -> FloatArray:
            over = list(self.units_over(group, inside))
            with ThreadPoolExecutor(self.engine.threads, "quick") as pool:
                parts = [latents for latents, _ in pool.map(lambda unit: self._reconstructed(unit[0], factor), over)]
            canvas = _stitched([(part, *where[1:]) for part, where in zip(parts, over, strict=True)], inside)
            return _quick_image(quick, canvas, place, factor)

        samples = self._samples(bands, image)
        valid = np.ones(samples.shape, bool)
        self.settle(samples, valid)
        return Decoded(samples, valid, None)

    def windows(self, whole: Region) -> list[Region]:
        """The synthesis windows of a region, in the order in which :meth:`blocks` gives them."""
        side = self.header.patch_side
        columns = list(synthesis_windows(whole.left, whole.cols, side))
        return [
            Region(top, left, rows, cols)
            for first in range(0, len(columns), STRIPE)
            for top, rows in synthesis_windows(whole.top, whole.rows, side)
            for left, cols in columns[first : first + STRIPE]
        ]

    def blocks(
        self,
        region: Region | None = None,
        bands: Sequence[int] | None = None,
        image_of: ImageOf | None = None,
    ) -> Iterator[tuple[Region, Decoded]]:
        """The scene or a region in synthesis windows of 4x4 patches, at the far edges up to 5x5, stripe by stripe from the left, each row by row.

        Latents of patches that are done with are dropped; those beside the edge of a stripe are decoded twice, so that memory does not grow with
        the width of the scene.
        """
        whole = region or Region(0, 0, self.height, self.width)
        windows = self.windows(whole)
        columns = sorted({window.left for window in windows})
        stripes = columns[::STRIPE]
        chosen = range(self.bands) if bands is None else bands
        groups = sorted({b // fmt.BANDS_PER_GROUP for b in chosen})

        def computed(number: int) -> tuple[Region, Decoded]:
            for needed in windows[number : number + 2]:
                self._begin(needed, groups)
            return windows[number], self.region(windows[number], bands, image_of)

        with self._ahead.threads(self.engine.threads):
            self._forget_above(windows[0])
            for number, found in enumerate(in_order(computed, range(len(windows)), self.engine.backend.batch)):
                yield found
                following = windows[number + 1 : number + 2]
                if following and following[0].top == whole.top and following[0].left in stripes:
                    self.forget()
                elif following:
                    self._forget_above(following[0])

    def _forget_above(self, window: Region) -> None:
        """Drop the latents that neither a window nor any after it needs."""
        self.forget(before_patch_row=(window.top - MARGIN * BLOCK) // self.header.patch_side)

    def _begin(self, window: Region, groups: Sequence[int]) -> None:
        """Have the units of a window decoded by threads."""
        around = window.blocks(BLOCK).grown(MARGIN, self.latent_extent)
        units = (unit for group in groups for unit, _, _ in self.units_over(group, around))
        self._ahead.begin(unit for unit in units if unit not in self._latents)

    def _origin(self) -> dict[str, str]:
        profile = self.engine.profile
        return {
            "PERIGEE_PROFILE": profile.name,
            "PERIGEE_CONTRACT": profile.contract.digest.hex(),
            "PERIGEE_ENGINE": self.engine.name,
            "PERIGEE_DEVICE": self.engine.backend.device,
            "PERIGEE_PRECISION": self.engine.backend.precision,
        } | ({} if self._quick is None else {"PERIGEE_SYNTHESIS": "NO"})

    def _delivered(self, patch: int) -> tuple[bool, list[int]]:
        h = self.header
        gone: list[int] = []
        complete, some = True, False
        for unit in range(patch * h.groups, (patch + 1) * h.groups):
            segment = self.stream.segments.get(unit)
            lost = segment is None or segment.mode == fmt.DROPPED or unit in self.report.lost
            empty = segment is not None and segment.mode == fmt.EMPTY
            complete, some = complete and not lost, some or not (lost or empty)
            if lost or empty:
                gone += h.group_bands(unit % h.groups)
        return complete and some, gone
