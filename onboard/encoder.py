"""A scene to a stream: window -> normalised patch -> latents -> symbols -> segment, one patch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import IO

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import Array, BoolArray, FloatArray, IntArray
from perigee.bitstream.contract import BLOCK, HYPER_BLOCK, PATCH_MULTIPLE
from perigee.bitstream.costs import TableCosts
from perigee.bitstream.entropy import decode_symbols, encode_symbols
from perigee.bitstream.errors import Fault, MetadataError, RasterError, SymbolError, UpsetError
from perigee.bitstream.masks import pack_mask
from perigee.bitstream.metadata import Acquisition, Metadata, pack_metadata, unpack_metadata, write_metadata_packet
from perigee.bitstream.prior import Prediction, half
from perigee.bitstream.profile import Profile
from perigee.bitstream.samples import normalise, quality_step_of
from perigee.bitstream.version2 import BandErrors, ComponentHeader
from perigee.engines.flight import FlightEngine
from perigee.onboard.guard import Guard
from perigee.onboard.offsets import PATCHES_MIN, TableOffsets, share_of
from perigee.onboard.ranges import coding_ranges
from perigee.onboard.source import Block, Source

Watch = Callable[[int, IntArray, Prediction], None]  # first channel, latents in half steps and their prediction
PATCHES_PER_OFFSETS, OFFSETS_MOST = 64, 512  # before so many patches the offsets come again, but not more often in all


@dataclass
class Timings:
    """Milliseconds by stage."""

    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        yield
        self.ms[name] = self.ms.get(name, 0.0) + 1000 * (time.perf_counter() - start)


@dataclass(frozen=True)
class EncodedScene:
    """A finished stream and what it cost. ``data`` is empty where all of it but the ``head`` was written to a file; ``size`` counts its bytes."""

    data: bytes
    size: int
    header: fmt.Header | ComponentHeader
    quality_step: int
    timings: Timings
    upsets: int = 0  # found while it was encoded, and mended
    errors: BandErrors | None = None  # as measured on board
    predicted: int = 0  # patches that are predicted instead of transformed
    head: bytes = b""  # the header

    @property
    def bpp(self) -> float:
        """Bits per pixel position, all bands and everything else in the stream together."""
        return 8 * self.size / (self.header.width * self.header.height)


def merged(first: Acquisition, second: Acquisition | None) -> Acquisition:
    """Fields of ``first``, and of ``second`` where the first does not know them."""
    if second is None:
        return first
    known = {f.name: getattr(first, f.name) for f in fields(Acquisition) if getattr(first, f.name) is not None}
    return replace(second, **known)


def pad_to_multiple(image: FloatArray, multiple: int = PATCH_MULTIPLE) -> FloatArray:
    """[C, H, W] padded at the bottom and right by replication."""
    rows, cols = (-n % multiple for n in image.shape[1:])
    return np.pad(image, ((0, 0), (0, rows), (0, cols)), mode="edge") if rows or cols else image


def fill_invalid(image: FloatArray, valid: BoolArray) -> FloatArray:
    """Invalid samples replaced by the mean of the valid ones in their 16x16 block, else of the whole patch.

    This keeps them cheap and stops them from bleeding into neighbouring blocks; on the ground they are overwritten.
    """
    if valid.all():
        return image
    bands, height, width = image.shape
    rows, cols = -(-height // BLOCK), -(-width // BLOCK)
    extent = ((0, 0), (0, rows * BLOCK - height), (0, cols * BLOCK - width))
    weight = np.pad(valid.astype(np.float32), extent)
    value = np.pad(np.where(valid, image, 0), extent)
    shape = (bands, rows, BLOCK, cols, BLOCK)
    count = weight.reshape(shape).sum((2, 4))
    total = value.reshape(shape).sum((2, 4))
    everywhere = total.sum((1, 2)) / np.maximum(count.sum((1, 2)), 1)
    mean = np.where(count > 0, total / np.maximum(count, 1), everywhere[:, None, None])
    blocks = mean.repeat(BLOCK, 1).repeat(BLOCK, 2)[:, :height, :width]
    return np.where(valid, image, blocks).astype(np.float32)


def coded_latents(q: Array) -> int | None:
    """How many leading channels of ``q`` int [latents, H, W] are to be coded, a multiple of 8, or None for all.

    All channels behind them are zero. The channels stand in the order of their power, and at usual rates most patches need
    less than half of them.
    """
    used = np.flatnonzero(q.reshape(len(q), -1).any(axis=1))
    whole = (int(used[-1]) // fmt.CHANNEL_STEP + 1 if len(used) else 1) * fmt.CHANNEL_STEP
    return whole if whole < len(q) else None


class Encoder:
    """Encodes with one profile and engine; ``coder`` chooses the entropy coder (the bytes are the same)."""

    def __init__(self, profile: Profile, engine: FlightEngine, coder: str = "auto", table_offsets: bool = True) -> None:
        """``table_offsets``: whether scenes of many patches get offsets of the tables, which readers before 0.7 refuse."""
        self.profile, self.coder, self.table_offsets = profile, coder, table_offsets
        self.guard = Guard(engine, coder)

    @property
    def engine(self) -> FlightEngine:
        """The engine in use: another than the first after an upset."""
        return self.guard.engine

    def encode_image(
        self,
        image: FloatArray,
        quality_step: int,
        unit: int = 0,
        timings: Timings | None = None,
        offsets: IntArray | None = None,
        watch: Watch | None = None,
    ) -> fmt.Segment:
        """Segment of one patch: float32 [3, H, W], nominally 0..1, any size up to the patch side.

        ``offsets`` int8 [latents] are those of the tables; ``watch`` is called with each pass, its latents in half steps. After an
        upset the patch is computed again. Raises UpsetError or SymbolError where that does not help.
        """
        timings = timings or Timings()
        self.guard.patch_begins()
        try:
            return self._encode_image(image, quality_step, unit, timings, offsets, watch)
        except (UpsetError, SymbolError):  # the coder was given what no analysis and no prior makes
            self.guard.renew()
            return self._encode_image(image, quality_step, unit, timings, offsets)

    def _encode_image(
        self,
        image: FloatArray,
        quality_step: int,
        unit: int,
        timings: Timings,
        offsets: IntArray | None,
        watch: Watch | None = None,
    ) -> fmt.Segment:
        with timings.stage("analysis"):
            q, z = self.engine.analyse(pad_to_multiple(image)[None], quality_step)
            checksum = fmt.checksum_of(q[0])
            latents = coded_latents(q[0])
        with timings.stage("prior"):
            predictions = self.engine.prior.all_passes(z, q, quality_step, latents)
        contract = self.engine.profile.contract
        widths = contract.widths
        with timings.stage("entropy"):
            halves = [half(q[:, :latents], parity)[0] for parity in (0, 1)]
            passes = []
            for k, p in enumerate(predictions):
                start, _ = widths.slice_of(k)
                stop = start + p.mean.shape[1]
                values = halves[k % 2][start:stop]
                if watch:
                    watch(start, 2 * values, Prediction(p.table[0], p.mean[0]))
                p = p if offsets is None else p.shifted(offsets[start:stop])
                passes.append((values, Prediction(p.table[0], p.mean[0])))
            words = encode_symbols(widths, contract.tables, z[0], passes, quality_step, self.coder)
        linear = self.engine.linear
        return fmt.Segment(unit, fmt.NETWORK, quality_step, checksum, words, linear=linear, latents=latents)

    def verify(self, segment: fmt.Segment, shape: tuple[int, int], offsets: IntArray | None = None) -> None:
        """Decode a segment again with the numpy prior. Raises UpsetError where its symbols differ."""
        contract = self.engine.profile.contract
        size = tuple(-(-n // HYPER_BLOCK) for n in shape)
        try:
            decoded = decode_symbols(
                contract.widths, contract.tables, contract.reference(np.float64), segment.words, segment.quality_step,
                (size[0], size[1]), kind=self.coder, latents=segment.latents, offsets=offsets,
            )  # fmt: skip
        except SymbolError as error:
            raise UpsetError(f"segment {segment.unit} does not decode: {error}") from error
        if fmt.checksum_of(decoded.q) != segment.checksum:
            raise UpsetError(f"segment {segment.unit} does not decode to the symbols that were encoded")

    def encode_scene(
        self,
        source: Source,
        quality: float,
        acquisition: Acquisition | None = None,
        verify: bool = False,
        progress: Callable[[int, int], None] | None = None,
        out: IO[bytes] | None = None,
    ) -> EncodedScene:
        """The stream of a whole scene.

        ``quality`` is 0 to 100; ``acquisition`` adds fields to those of the source and overrides them; ``verify`` decodes every
        patch again before it is written; ``progress`` is told how many patches of how many are done; ``out`` is a file that the stream is
        written to but for its header, so that memory does not grow with it. Raises OutputError where that fails, RasterError for
        broken pixel data, MetadataError and LimitError for what no stream can carry, EngineError for an upset that stays.
        """
        timings = Timings()
        upsets = self.guard.upsets
        info = source.info
        quality_step = quality_step_of(quality)
        side = self.profile.contract.patch_side
        header = fmt.Header(self.profile.contract.digest, info.width, info.height, info.bands, info.dtype, side)
        fmt.read_header(fmt.write_header(header))  # raises LimitError for what no reader would accept
        stream = fmt.StreamWriter(fmt.write_header(header), out)
        packet = packet_of(source.metadata, acquisition)
        if packet:
            stream.add(write_metadata_packet(packet))
        ranges = None
        if info.dtype != "uint8":
            with timings.stage("read"):
                ranges = coding_ranges(source, side)
            stream.add(fmt.write_ranges(ranges))
        scene = _Scene(source, header, ranges, quality_step, verify, timings)
        patches = header.patches
        offsets = self._offsets(scene) if self.table_offsets else None
        again = max(PATCHES_PER_OFFSETS, patches // OFFSETS_MOST)
        for patch in range(patches):
            if offsets is not None and patch % again == 0:
                stream.add(fmt.write_offsets(offsets))
            stream.add(*self._encode_patch(scene, patch, offsets))
            if progress:
                progress(patch + 1, patches)
        data = stream.finish()
        return EncodedScene(
            data, stream.size, header, quality_step, timings, self.guard.upsets - upsets, head=stream.header
        )

    def _offsets(self, scene: _Scene) -> IntArray | None:
        """The offsets of the tables int8 [groups, latents] of a scene, None where it is small or none saves what it costs."""
        if scene.header.patches < PATCHES_MIN:
            return None
        contract = self.profile.contract
        watched = TableOffsets(TableCosts(contract.tables), scene.header.groups, contract.widths.latents)
        share = share_of(scene.header.patches)
        for patch in range(0, scene.header.patches, share):
            for group, image in scene.images(scene.window(patch)):
                if image is not None:
                    watch = partial(watched.add, group)
                    self.encode_image(image, scene.quality_step, timings=scene.timings, watch=watch)
        offsets = watched.chosen(share)
        return offsets if offsets.any() else None

    def _encode_patch(self, scene: _Scene, patch: int, offsets: IntArray | None) -> list[bytes]:
        """The chunks of one patch: its mask where it needs one, and a segment for each group of bands."""
        window = scene.window(patch)
        chunks = []
        if needs_mask(window):
            chunks.append(fmt.write_chunk(fmt.MASK, pack_mask(patch, window.valid, window.alpha)))
        for group, image in scene.images(window):
            unit = patch * scene.header.groups + group
            if image is None:
                chunks.append(fmt.write_segment(fmt.Segment(unit, fmt.EMPTY)))
            else:
                own = None if offsets is None else offsets[group]
                chunks.append(fmt.write_segment(self._encode_unit(scene, unit, image, own)))
        return chunks

    def _encode_unit(self, scene: _Scene, unit: int, image: FloatArray, offsets: IntArray | None) -> fmt.Segment:
        """Segment of one unit; where the scene wants it, it was decoded again, and encoded once more where that failed."""
        timings = scene.timings
        segment = self.encode_image(image, scene.quality_step, unit, timings, offsets)
        if not scene.verify:
            return segment
        try:
            with timings.stage("verify"):
                self.verify(segment, image.shape[1:], offsets)
        except UpsetError:
            self.guard.renew()
            segment = self.encode_image(image, scene.quality_step, unit, timings, offsets)
            with timings.stage("verify"):
                self.verify(segment, image.shape[1:], offsets)
        return segment


@dataclass(frozen=True)
class _Scene:
    """A scene while it is encoded."""

    source: Source
    header: fmt.Header
    ranges: IntArray | None
    quality_step: int
    verify: bool
    timings: Timings

    def window(self, patch: int) -> Block:
        """The samples of a patch."""
        with self.timings.stage("read"):
            return self.source.read(*self.header.patch_region(patch))

    def images(self, window: Block) -> Iterator[tuple[int, FloatArray | None]]:
        """Each group of bands of a patch and its normalised image float32 [3, H, W], None where no sample is valid."""
        for group in range(self.header.groups):
            bands = list(self.header.group_bands(group))
            valid = window.valid[bands]
            if not valid.any():
                yield group, None
                continue
            with self.timings.stage("normalise"):
                image = normalise(window.samples[bands], None if self.ranges is None else self.ranges[bands])
                image = fill_invalid(image, valid)
                image = image[[min(i, len(bands) - 1) for i in range(fmt.BANDS_PER_GROUP)]]
            yield group, image


def packet_of(metadata: Metadata, acquisition: Acquisition | None) -> bytes:
    """The metadata packet of a scene, checked as a reader will check it. Raises MetadataError."""
    if acquisition is not None:
        metadata = replace(metadata, acquisition=merged(acquisition, metadata.acquisition))
    packet = pack_metadata(metadata)
    most = fmt.DEFAULT_LIMITS.metadata_bytes
    if len(packet) > most:
        raise MetadataError(
            f"{len(packet)} bytes of metadata; accepted are {most}",
            Fault.LIMIT,
            field="metadata",
            expected=f"at most {most} bytes",
            found=len(packet),
        )
    unpack_metadata(packet)
    return packet


def needs_mask(window: Block) -> bool:
    """Whether a patch has validity or alpha that its segments do not tell. Raises RasterError where they contradict."""
    if window.alpha is None:
        return bool(not window.valid.all() and window.valid.any())
    if not (window.valid == (window.alpha != 0)[None]).all():
        raise RasterError(
            "an alpha band together with nodata samples or a mask; accepted is one of them",
            Fault.AMBIGUOUS,
            field="alpha",
        )
    partial = (window.alpha != 0) & (window.alpha != np.iinfo(window.alpha.dtype).max)
    return bool(partial.any() or (not window.valid.all() and window.valid.any()))
