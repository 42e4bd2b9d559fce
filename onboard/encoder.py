"""A scene to a stream: window -> normalised patch -> latents -> symbols -> segment, one patch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from perigee.bitstream import format as fmt
from perigee.bitstream.entropy import decode_symbols, encode_symbols
from perigee.bitstream.errors import MetadataError, RasterError, SymbolError, UpsetError
from perigee.bitstream.masks import pack_mask
from perigee.bitstream.metadata import Acquisition, Metadata, pack_metadata, unpack_metadata, write_metadata_packet
from perigee.bitstream.prior import QUALITY_STEPS, Prediction, half
from perigee.bitstream.profile import BLOCK, HYPER_BLOCK, PATCH_MULTIPLE, Profile
from perigee.engines.onnxruntime import FlightEngine
from perigee.onboard.guard import Guard
from perigee.onboard.raster import Raster, Window

FloatArray = npt.NDArray[np.float32]
RANGE_TAIL = 0.0005  # share of the valid samples that may lie outside the coding range on either side
RANGE_MARGIN = 0.02
RANGE_REACH = 32


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
    """A finished stream and what it cost."""

    data: bytes
    header: fmt.Header
    quality_step: int
    timings: Timings
    upsets: int = 0  # found while it was encoded, and mended

    @property
    def bpp(self) -> float:
        """Bits per pixel position, all bands and everything else in the stream together."""
        return 8 * len(self.data) / (self.header.width * self.header.height)


def quality_step_of(quality: float) -> int:
    """Quality 0..100 as the byte Q = 0..250."""
    return round(quality * QUALITY_STEPS / 100)


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


def fill_invalid(image: FloatArray, valid: npt.NDArray[np.bool_]) -> FloatArray:
    """Invalid samples replaced by the mean of the valid ones in their 16x16 block, else of the whole patch.

    They cost few bits so and do not bleed into their neighbours; on the ground they are overwritten.
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


def coded_latents(q: npt.NDArray[Any]) -> int | None:
    """How many leading channels of ``q`` int [latents, H, W] are to be coded, a multiple of 8, or None for all.

    Those behind are zero. The channels lie in the order of their power: at usual rates most patches need not half of them.
    """
    used = np.flatnonzero(q.reshape(len(q), -1).any(axis=1))
    whole = (int(used[-1]) // fmt.CHANNEL_STEP + 1 if len(used) else 1) * fmt.CHANNEL_STEP
    return whole if whole < len(q) else None


def coding_ranges(raster: Raster, side: int) -> npt.NDArray[np.int32]:
    """Per band the samples that are coded as 0 and 1, int32 [bands, 2]: a robust range of the valid samples.

    A first pass over the scene counts every value; values outside the range are coded too, beyond 0 and 1.
    """
    info = raster.info
    bins = 65536
    shift = 32768 if info.dtype == "int16" else 0
    counts = np.zeros((info.bands, bins), np.int64)
    for top in range(0, info.height, side):
        for left in range(0, info.width, side):
            window = raster.read(top, left, min(side, info.height - top), min(side, info.width - left))
            for band in range(info.bands):
                values = window.samples[band][window.valid[band]].astype(np.int64) + shift
                counts[band] += np.bincount(values, minlength=bins)
    out = np.zeros((info.bands, 2), np.int32)
    for band, count in enumerate(counts):
        total = count.sum()
        if not total:
            out[band] = (0, 1)
            continue
        cumulated = np.cumsum(count)
        low = int(np.searchsorted(cumulated, total * RANGE_TAIL, side="right")) - shift
        high = int(np.searchsorted(cumulated, total * (1 - RANGE_TAIL), side="left")) - shift
        values = np.flatnonzero(count) - shift
        widest = int(values[-1] - values[0]) // RANGE_REACH  # no sample lies farther out than the latents can carry
        margin = int(np.ceil(RANGE_MARGIN * (high - low)))
        out[band] = (low - margin, max(high + margin, low - margin + widest, low - margin + 1))
    return out


class Encoder:
    """Encodes with one profile and engine; ``coder`` chooses the entropy coder (the bytes are the same)."""

    def __init__(self, profile: Profile, engine: FlightEngine, coder: str = "auto") -> None:
        self.profile, self.coder = profile, coder
        self.guard = Guard(engine, coder)

    @property
    def engine(self) -> FlightEngine:
        """The engine in use: another than the first after an upset."""
        return self.guard.engine

    def encode_image(
        self, image: FloatArray, quality_step: int, unit: int = 0, timings: Timings | None = None
    ) -> fmt.Segment:
        """Segment of one patch: float32 [3, H, W], nominally 0..1, any size up to the patch side.

        After an upset the patch is computed again. Raises UpsetError or SymbolError where that does not help.
        """
        timings = timings or Timings()
        self.guard.patch_begins()
        try:
            return self._encode_image(image, quality_step, unit, timings)
        except (UpsetError, SymbolError):  # the coder was given what no analysis and no prior makes
            self.guard.renew()
            return self._encode_image(image, quality_step, unit, timings)

    def _encode_image(self, image: FloatArray, quality_step: int, unit: int, timings: Timings) -> fmt.Segment:
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
                values = halves[k % 2][start : start + p.mean.shape[1]]
                passes.append((values, Prediction(p.table[0], p.mean[0])))
            words = encode_symbols(widths, contract.tables, z[0], passes, quality_step, self.coder)
        linear = self.engine.linear
        return fmt.Segment(unit, fmt.NETWORK, quality_step, checksum, words, linear=linear, latents=latents)

    def verify(self, segment: fmt.Segment, shape: tuple[int, int]) -> None:
        """Decode a segment again with the numpy prior. Raises UpsetError where its symbols differ."""
        contract = self.engine.profile.contract
        size = tuple(-(-n // HYPER_BLOCK) for n in shape)
        try:
            decoded = decode_symbols(
                contract.widths, contract.tables, contract.reference(np.float64), segment.words, segment.quality_step,
                (size[0], size[1]), kind=self.coder, latents=segment.latents,
            )  # fmt: skip
        except SymbolError as error:
            raise UpsetError(f"segment {segment.unit} does not decode: {error}") from error
        if fmt.checksum_of(decoded.q) != segment.checksum:
            raise UpsetError(f"segment {segment.unit} does not decode to the symbols that were encoded")

    def encode_scene(
        self,
        raster: Raster,
        quality: float,
        acquisition: Acquisition | None = None,
        verify: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> EncodedScene:
        """The stream of a whole scene. Raises RasterError for broken pixel data, EngineError for an upset that stays."""
        timings = Timings()
        upsets = self.guard.upsets
        info = raster.info
        step = quality_step_of(quality)
        side = self.profile.contract.patch_side
        header = fmt.Header(self.profile.contract.digest, info.width, info.height, info.bands, info.dtype, side)
        fmt.read_header(fmt.write_header(header))  # raises LimitError for what no reader would accept
        chunks = []
        metadata: Metadata = raster.metadata
        if acquisition is not None:
            metadata = replace(metadata, acquisition=merged(acquisition, metadata.acquisition))
        packet = pack_metadata(metadata)
        if packet:
            if len(packet) > fmt.DEFAULT_LIMITS.metadata_bytes:
                raise MetadataError(
                    f"{len(packet)} bytes of metadata; accepted are {fmt.DEFAULT_LIMITS.metadata_bytes}"
                )
            unpack_metadata(packet)
            chunks.append(write_metadata_packet(packet))
        ranges = None
        if info.dtype != "uint8":
            with timings.stage("read"):
                ranges = coding_ranges(raster, side)
            chunks.append(fmt.write_ranges(ranges))
        patches = header.units // header.groups
        for patch in range(patches):
            with timings.stage("read"):
                _, top, left, rows, cols = header.unit_window(patch * header.groups)
                window = raster.read(top, left, rows, cols)
            chunks += self._encode_patch(header, patch, window, ranges, step, verify, timings)
            if progress:
                progress(patch + 1, patches)
        data = fmt.write_header(header) + b"".join(chunks) + fmt.write_end(len(chunks))
        return EncodedScene(data, header, step, timings, self.guard.upsets - upsets)

    def _encode_patch(
        self,
        header: fmt.Header,
        patch: int,
        window: Window,
        ranges: npt.NDArray[np.int32] | None,
        step: int,
        verify: bool,
        timings: Timings,
    ) -> list[bytes]:
        chunks = []
        soft = False
        if window.alpha is not None:
            if not (window.valid == (window.alpha != 0)[None]).all():
                raise RasterError("an alpha band together with nodata samples or a mask; accepted is one of them")
            soft = bool(((window.alpha != 0) & (window.alpha != np.iinfo(window.alpha.dtype).max)).any())
        if soft or (not window.valid.all() and window.valid.any()):
            chunks.append(fmt.write_chunk(fmt.MASK, pack_mask(patch, window.valid, window.alpha)))
        for group in range(header.groups):
            unit = patch * header.groups + group
            bands = list(header.group_bands(group))
            valid = window.valid[bands]
            if not valid.any():
                chunks.append(fmt.write_segment(fmt.Segment(unit, fmt.EMPTY)))
                continue
            with timings.stage("normalise"):
                image = normalise(window.samples[bands], None if ranges is None else ranges[bands])
                image = fill_invalid(image, valid)
                image = image[[min(i, len(bands) - 1) for i in range(fmt.BANDS_PER_GROUP)]]
            segment = self.encode_image(image, step, unit, timings)
            if verify:
                try:
                    with timings.stage("verify"):
                        self.verify(segment, image.shape[1:])
                except UpsetError:
                    self.guard.renew()
                    segment = self.encode_image(image, step, unit, timings)
                    with timings.stage("verify"):
                        self.verify(segment, image.shape[1:])
            chunks.append(fmt.write_segment(segment))
        return chunks


def normalise(samples: npt.NDArray[Any], ranges: npt.NDArray[np.int32] | None) -> FloatArray:
    """Samples [band, row, col] to float32, 0..1 over the coding range (0..255 for uint8)."""
    if ranges is None:
        return samples.astype(np.float32) * np.float32(1 / 255)
    low = ranges[:, 0].astype(np.float32)[:, None, None]
    span = (ranges[:, 1].astype(np.int64) - ranges[:, 0]).astype(np.float32)[:, None, None]
    return np.asarray((samples.astype(np.float32) - low) / span, np.float32)
