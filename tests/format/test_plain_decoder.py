"""Two decoders agree: ours, and ``plain_decoder.py``, which was written from ``docs/format.md`` alone.

They give the same latents, means, scale indices, validity and alpha of the golden streams and of random streams and
contracts, and they refuse the same streams. A random stream is made from its number, so each can be made again alone.
"""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile

import perigee
from perigee.bitstream import entropy, masks
from perigee.bitstream import format as fmt
from perigee.bitstream.coders import RunCoder, new_coder
from perigee.bitstream.contract import KNOTS, Contract, load_contract
from perigee.bitstream.errors import PerigeeError, ProfileError, SymbolError
from perigee.bitstream.metadata import Acquisition, GeoKeys, Metadata, pack_metadata
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.prior import Layer, Prediction, Widths, accumulator_bounds, half, layer_shapes
from perigee.bitstream.profile import find_profile
from perigee.bitstream.samples import DTYPE_RANGE
from perigee.bitstream.tables import Tables
from perigee.engines.flight import FlightEngine
from perigee.ground.decoder import SceneDecoder
from perigee.ground.library import Library
from perigee.ground.regions import Region
from perigee.onboard.encoder import Encoder
from perigee.onboard.source import ArraySource, Block, SourceInfo

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("v1_*.peri"))
PLAIN = Path(__file__).with_name("plain_decoder.py")
RANDOM_STREAMS = 220
RANDOM_CONTRACTS = 40
MUTATED_BASES = 12  # random streams of at most a few pixels
MUTATIONS = 50  # of each


def _load_plain() -> Any:
    spec = importlib.util.spec_from_file_location("plain_decoder", PLAIN)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain = _load_plain()


class Unit(NamedTuple):
    """What a decoder makes of one segment; the arrays as int64."""

    q: Any
    mean: Any
    scale_index: Any
    passes: int | None  # None unless the segment was cut


class Scene(NamedTuple):
    """What a decoder makes of a stream: units of mode 0, validity [band, row, col] and alpha [row, col] or None."""

    units: dict[int, Unit]
    valid: Any
    alpha: Any


@lru_cache(maxsize=1)
def library() -> Library:
    return Library(threads=1)


@lru_cache(maxsize=8)
def plain_contract(digest: bytes) -> Any:
    """The contract of a shipped profile as the plain decoder reads it, None where there is no such profile."""
    profile = library().profiles.get(digest)
    return None if profile is None else plain.load_contract(str(profile.folder / "contract.npz"))


def decoded_by_us(data: bytes) -> Scene:
    stream = parse_stream(data)
    header = stream.header
    decoder = SceneDecoder(stream, library().engine(header.contract))
    units = {}
    for unit, segment in stream.segments.items():
        if segment.mode == fmt.NETWORK:
            d = decoder.symbols(unit)
            parts = (np.asarray(part, np.int64) for part in (d.q, d.mean, d.scale_index))
            units[unit] = Unit(*parts, decoder.report.cut.get(unit))
    blank = decoder.region(
        Region(0, 0, header.height, header.width),
        image_of=lambda group, region: np.zeros((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32),
    )
    return Scene(units, blank.valid, blank.alpha)


def decoded_plainly(data: bytes) -> Scene:
    stream = plain.read_stream(data)
    header, contract = stream.header, plain_contract(stream.header.contract)
    plain.require(contract is not None and contract.side == header.side, "the stream needs another contract")
    fitting = stream.offsets is None or stream.offsets.shape[1] == contract.widths[0]
    plain.require(fitting, "the offsets do not fit the contract")
    units = {}
    for unit, segment in stream.segments.items():
        if segment.mode == plain.NETWORK:
            size = plain.patch_size(header, unit // header.groups)
            offsets = None if stream.offsets is None else stream.offsets[unit % header.groups]
            *parts, passes = plain.decode_latents(contract, segment, *size, offsets)
            units[unit] = Unit(*parts, passes if segment.flags & plain.CUT else None)
    valid = np.empty((header.bands, header.height, header.width), bool)
    alpha = np.empty(valid.shape[1:], header.sample_type) if "ALPHA" in stream.fields else None
    across = -(-header.width // header.side)
    for patch in range(header.patches):
        top, left = (header.side * place for place in divmod(patch, across))
        rows, cols = plain.patch_size(header, patch)
        part, part_alpha = plain.validity(stream, patch)
        valid[:, top : top + rows, left : left + cols] = part
        assert (part_alpha is None) == (alpha is None)
        if alpha is not None:
            alpha[top : top + rows, left : left + cols] = part_alpha
    return Scene(units, valid, alpha)


def assert_same(ours: Scene, other: Scene) -> None:
    assert ours.units.keys() == other.units.keys()
    for unit, found in ours.units.items():
        for name, part, wanted in zip(Unit._fields, found, other.units[unit], strict=True):
            assert np.array_equal(part, wanted) if name != "passes" else part == wanted, (unit, name)
    assert np.array_equal(ours.valid, other.valid)
    assert (ours.alpha is None) == (other.alpha is None)
    assert ours.alpha is None or np.array_equal(ours.alpha, other.alpha)


class TestGoldenStreams:
    @pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
    def test_same_latents(self, path: Path) -> None:
        """The plain decoder gives what the JSON file says and what our decoder gives."""
        data, wanted = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
        found = decoded_plainly(data)
        crcs = {str(unit): zlib.crc32(part.q.astype("<i2").tobytes()) for unit, part in found.units.items()}
        assert crcs == wanted["symbols"]
        assert {str(u): part.passes for u, part in found.units.items() if part.passes is not None} == wanted["cut"]
        assert int(found.valid.sum()) == wanted["valid"]
        stream = plain.read_stream(data)
        h = stream.header
        assert [h.contract.hex(), h.width, h.height, h.bands, h.sample_type.name, h.side] == wanted["header"]
        assert (stream.metadata or b"").hex() == wanted["metadata"]
        assert_same(decoded_by_us(data), found)

    def test_how_the_words_are_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The document's table of the golden stream that was cut: words read and remaining after each step."""
        text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
        body = text.split("| Step | Entries |")[1].split("\n\n")[0].splitlines()[2:]
        wanted = [tuple(int(cell) for cell in row.strip("|").split("|")[2:4]) for row in body]
        stream = plain.read_stream((ROOT / "tests" / "golden" / "v1_lite_7d7f716860b24c10_cut.peri").read_bytes())
        segment, found = stream.segments[0], []
        decode_pass = plain.decode_pass

        def note(coder: Any) -> None:
            state = (len(segment.words) - len(coder.left), coder.remaining())
            if state not in found:
                found.append(state)

        def watched(contract: Any, coder: Any, mean: Any, index: Any) -> Any:
            note(coder)
            latents = decode_pass(contract, coder, mean, index)
            note(coder)
            return latents

        coder = plain.Coder(segment.words)
        note(coder)
        assert coder.state == 0x9B4A87A39 and "S = 0x9b4a87a39" in text
        monkeypatch.setattr(plain, "decode_pass", watched)
        *_, passes = plain.decode_latents(plain_contract(stream.header.contract), segment, 256, 256, None)
        assert found == wanted and passes == 1


# --- random streams --------------------------------------------------------------------------------------------------


class AlphaSource:
    """An array in memory with an alpha band; a sample is valid where alpha is not 0."""

    def __init__(self, samples: Any, alpha: Any, metadata: Metadata) -> None:
        self.samples, self.alpha, self.metadata = samples, alpha, metadata
        bands, height, width = samples.shape
        self.info = SourceInfo(width, height, bands, samples.dtype.name)

    def read(self, top: int, left: int, rows: int, cols: int) -> Block:
        place = np.s_[..., top : top + rows, left : left + cols]
        samples, alpha = self.samples[place], self.alpha[place]
        return Block(samples, np.broadcast_to(alpha != 0, samples.shape), alpha)


@lru_cache(maxsize=2)
def encoder(name: str) -> Encoder:
    profile = find_profile(name)
    return Encoder(profile, FlightEngine(profile, 1))


class AnyOffsets(Encoder):
    """An encoder that codes with any offsets of the tables."""

    offsets: Any = None

    def _offsets(self, scene: Any) -> Any:
        return self.offsets


@lru_cache(maxsize=2)
def encoder_with_offsets(name: str) -> AnyOffsets:
    profile = find_profile(name)
    return AnyOffsets(profile, FlightEngine(profile, 1))


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns: mostly within 64 pixels, some of several patches, a few large."""
    kind = rng.random()
    if kind < 0.8:
        return int(rng.integers(1, 65)), int(rng.integers(1, 65))
    if kind < 0.94:
        long, short = int(rng.integers(1, 301)), int(rng.integers(1, 25))
        return (long, short) if rng.random() < 0.5 else (short, long)
    return int(rng.integers(65, 301)), int(rng.integers(1, 120))


def random_samples(rng: np.random.Generator, bands: int, rows: int, cols: int, dtype: str) -> Any:
    low, high = DTYPE_RANGE[dtype]
    slopes = rng.normal(0, 1, (bands, 2))
    ramp = slopes[:, :1, None] * np.arange(rows)[:, None] + slopes[:, 1:, None] * np.arange(cols)
    noise = rng.normal(0, 10.0 ** rng.uniform(-1, 2), (bands, rows, cols))
    span = 1 if dtype == "uint8" else rng.integers(1, 100)
    return np.clip((ramp + noise + 100) * span, low, high).astype(dtype)


def random_mask(rng: np.random.Generator, *shape: int) -> Any:
    """Validity: noise, a rectangle or a half of the scene that may leave whole patches and groups without a sample."""
    valid = np.ones(shape, bool)
    kind = rng.integers(3)
    if kind == 0:
        return rng.random(shape) < rng.random()
    first, last = sorted(rng.integers(0, shape[-1] + 1, 2))
    valid[..., first:last] = False
    if kind == 1 and len(shape) == 3:
        valid[: rng.integers(0, shape[0] + 1)] = False
    return valid


def random_metadata(rng: np.random.Generator, **more: Any) -> Metadata:
    def sometimes(value: Any) -> Any:
        return value if rng.random() < 0.5 else None

    acquisition = Acquisition(
        gsd_m=sometimes(float(rng.uniform(0.1, 100))), sun_elevation_deg=sometimes(float(rng.uniform(-90, 90)))
    )
    return Metadata(
        epsg=sometimes(int(rng.integers(1, 70000))),
        geokeys=sometimes(GeoKeys((1, 1, 0, 0), (0.5,), b"x|\0")),
        transform=sometimes((0.5, float(rng.integers(2)), 1.0, 0.0, -0.5, 9.0)),
        scales=((0.1, float(rng.normal())),) * int(rng.integers(3)),
        band_names=("red", "")[: rng.integers(3)],
        acquisition=sometimes(acquisition),
        ancillary=bytes(rng.integers(0, 256, rng.integers(5), np.uint8)),
        **more,
    )


@lru_cache(maxsize=RANDOM_STREAMS)
def random_stream(number: int, tiny: bool = False) -> tuple[bytes, frozenset[str]]:
    """The stream of this number, and what is special in it."""
    rng = np.random.default_rng([2, number])
    profile = str(rng.choice(["flight3", "flight2"]))
    dtype = str(rng.choice(["uint8", "uint16", "int16"]))
    bands = int(rng.integers(1, 8))
    rows, cols = (int(rng.integers(1, 9)), int(rng.integers(1, 9))) if tiny else random_size(rng)
    samples = random_samples(rng, bands, rows, cols, dtype)
    quality = float(rng.uniform(0, 100))
    notes = {profile, dtype, f"{bands} bands"}
    kind = str(rng.choice(["plain", "nodata", "shared mask", "mask a band", "alpha"]))
    notes.add(kind)
    if kind == "alpha":
        alpha = np.where(random_mask(rng, rows, cols), DTYPE_RANGE[dtype][1], 0).astype(dtype)
        if rng.random() < 0.5:
            alpha[rng.random(alpha.shape) < 0.2] = rng.integers(1, DTYPE_RANGE[dtype][1])
        metadata = random_metadata(rng, alpha_band=int(rng.integers(bands + 1)))
        data = encoder(profile).encode_scene(AlphaSource(samples, alpha, metadata), quality).data
    else:
        nodata = float(samples.flat[rng.integers(samples.size)]) if kind == "nodata" else None
        metadata = random_metadata(rng, nodata=nodata, masked=bool(rng.random() < 0.1))
        shape = {"shared mask": (rows, cols), "mask a band": (bands, rows, cols)}.get(kind)
        valid = None if shape is None else random_mask(rng, *shape)
        way = rng.random()
        if way < 0.3:
            data = perigee.encode(samples, quality, profile, metadata, valid=valid, threads=1)
        elif way < 0.6:
            other = encoder_with_offsets(profile)
            shape = (-(-bands // 3), other.profile.contract.widths.latents)
            other.offsets = np.rint(rng.normal(0, 10.0 ** rng.uniform(0, 1.5), shape)).clip(-128, 127).astype(np.int8)
            data = other.encode_scene(ArraySource(samples, metadata, valid), quality).data
            notes.add("offsets")
        else:
            data = encoder(profile).encode_scene(ArraySource(samples, metadata, valid), quality).data
    return changed_on_the_way(rng, data, notes), frozenset(notes)


def changed_on_the_way(rng: np.random.Generator, data: bytes, notes: set[str]) -> bytes:
    """The stream as it may arrive: segments cut or dropped, chunks in another order, optional chunks among them."""
    stream = parse_stream(data)
    chunks = [] if stream.metadata is None else [fmt.write_chunk(fmt.METADATA, stream.metadata)]
    if stream.ranges is not None:
        chunks.append(fmt.write_ranges(stream.ranges))
    if stream.offsets is not None:
        chunks += [fmt.write_offsets(stream.offsets)] * int(rng.integers(1, 4))
    chunks += [fmt.write_chunk(fmt.MASK, fmt.write_varint(patch) + mask) for patch, mask in stream.masks.items()]
    notes |= {f"mask of kind {mask[0]}" for mask in stream.masks.values()}
    notes |= {"several patches"} if stream.header.units > stream.header.groups else set()
    change = rng.random()
    for segment in stream.segments.values():
        sent = segment
        if change < 0.5 and rng.random() < 0.7:
            sent = fmt.cut_segment(segment, int(rng.integers(0, len(segment.words) + 1)))
        elif change > 0.8 and rng.random() < 0.4:
            sent = fmt.Segment(segment.unit, fmt.DROPPED)
        notes |= {f"mode {sent.mode}"}
        notes |= {name for name in ("cut", "linear") if getattr(sent, name)}
        notes |= set() if sent.latents is None else {"first"}
        chunks.append(fmt.write_segment(sent))
    if rng.random() < 0.3:
        notes.add("shuffled")
        chunks = [chunks[i] for i in rng.permutation(len(chunks))]
        chunks.insert(int(rng.integers(len(chunks) + 1)), fmt.write_chunk(0x80 | int(rng.integers(128)), b"optional"))
    return fmt.write_stream(stream.header, chunks)


class TestRandomStreams:
    @pytest.mark.parametrize("number", range(RANDOM_STREAMS))
    def test_same_latents(self, number: int) -> None:
        data, _ = random_stream(number)
        assert_same(decoded_by_us(data), decoded_plainly(data))

    def test_they_are_of_all_kinds(self) -> None:
        found = Counter(note for number in range(RANDOM_STREAMS) for note in random_stream(number)[1])
        wanted = {"flight3", "flight2", *fmt.DTYPE_CODES, *(f"{bands} bands" for bands in range(1, 8))}
        wanted |= {"plain", "nodata", "shared mask", "mask a band", "alpha", "several patches", "shuffled"}
        wanted |= {"mask of kind 0", "mask of kind 1", "mask of kind 2", "mode 0", "mode 2", "mode 3"}
        wanted |= {"cut", "linear", "first"}
        assert min(found[note] for note in wanted) >= 5, found

    @pytest.mark.parametrize("size", [(256, 256), (300, 270)])
    def test_whole_patches(self, size: tuple[int, int]) -> None:
        samples = random_samples(np.random.default_rng(7), 1, *size, "uint16")
        data = perigee.encode(samples, 30.0, "flight3", threads=1)
        assert_same(decoded_by_us(data), decoded_plainly(data))

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_a_geotiff_with_alpha(self, dtype: str, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        samples = random_samples(rng, 4, 40, 50, dtype)
        samples[3] = np.where(rng.random((40, 50)) < 0.7, np.iinfo(dtype).max, 0)
        samples[3, :5, :5] = 7
        path = tmp_path / "alpha.tif"
        tifffile.imwrite(path, samples.transpose(1, 2, 0), photometric="rgb", extrasamples=[2])
        data = perigee.encode(path, 60.0, "flight3", threads=1)
        found = decoded_plainly(data)
        assert np.array_equal(found.alpha, samples[3]) and np.array_equal(found.valid[1], samples[3] != 0)
        assert_same(decoded_by_us(data), found)


# --- random contracts: the prior and the entropy coder where no shipped profile goes ------------------------------------


def random_contract(rng: np.random.Generator) -> Contract:
    """A small contract of random widths, weights and tables that keeps to section 9 of the document."""
    slices = tuple(int(n) for n in rng.integers(1, 12, rng.integers(1, 4)))
    hyper_latents, hyper, context, head = (int(n) for n in rng.integers(1, 7, 4))
    magnitudes = (0, *(int(n) for n in rng.integers(0, 128, 127))) if rng.random() < 0.5 else ()
    widths = Widths(sum(slices), hyper_latents, hyper, context, head, slices, magnitudes)
    layers = {}
    for name, shape in layer_shapes(widths).items():
        weight = rng.integers(-127, 128, shape.weight_shape).astype(np.int8)
        bias = rng.integers(-30000, 30000, shape.outputs).astype(np.int32)
        layers[name] = Layer(weight, bias, rng.integers(0, 14, shape.outputs).astype(np.uint8))
        assert accumulator_bounds(shape, layers[name]).max() < 1 << 24
    radius = rng.integers(0, 40, 64).astype(np.uint16)

    def frequencies(entries: int) -> Any:
        shares = rng.random(entries) ** 4
        part = 1 + np.floor(shares / shares.sum() * (65536 - entries)).astype(np.int64)
        part[rng.integers(entries)] += 65536 - part.sum()
        return part.astype(np.uint16)

    latent_tables = np.concatenate([frequencies(2 * int(r) + 3) for r in radius for _ in range(16)])
    z_tables = np.stack([frequencies(129) for _ in range(int(rng.integers(1, 17)) * hyper_latents)])
    knots = rng.normal(size=(KNOTS, widths.latents)).astype(np.float32)
    return Contract(widths, layers, Tables(radius, latent_tables, z_tables), knots, int(rng.choice([64, 128])))


class TestRandomContracts:
    @pytest.mark.parametrize("number", range(RANDOM_CONTRACTS))
    def test_same_latents(self, number: int, tmp_path: Path) -> None:
        """Latents of all sizes up to the limits, whole and cut at every kind of place, of all and of the first channels."""
        rng = np.random.default_rng([3, number])
        contract = random_contract(rng)
        path = tmp_path / "contract.npz"
        np.savez(path, **contract.arrays())
        other = plain.load_contract(str(path))
        assert other.digest == contract.digest == load_contract(path).digest
        widths, reference = contract.widths, contract.reference()
        rows, cols = (int(n) for n in rng.integers(1, contract.patch_side + 1, 2))
        h, w = -(-rows // 64), -(-cols // 64)
        step = int(rng.integers(251))
        coded = int(rng.integers(1, widths.latents // 8 + 1)) if widths.latents >= 8 and rng.random() < 0.6 else None
        z = rng.integers(-64, 65, (widths.hyper_latents, h, w)).astype(np.int32)
        q = np.rint(rng.normal(0, 10.0 ** rng.uniform(-1, 3), (widths.latents, 4 * h, 4 * w))).astype(np.int32)
        q[rng.random(q.shape) < 0.02] = rng.choice([-32768, 32767])
        q = np.clip(q, -32768, 32767)
        latents = None if coded is None else 8 * coded
        q[latents if latents else widths.latents :] = 0
        offsets = rng.integers(-128, 128, widths.latents).astype(np.int8) if rng.random() < 0.5 else None
        passes = []
        for k, p in enumerate(reference.all_passes(z[None], q[None], step, latents)):
            start, _ = widths.slice_of(k)
            p = p if offsets is None else p.shifted(offsets[start : start + p.mean.shape[1]])
            values = half(q[None, start : start + p.mean.shape[1]], k % 2)[0]
            passes.append((values, Prediction(p.table[0], p.mean[0])))
        words = entropy.encode_symbols(widths, contract.tables, z, passes, step)
        whole = fmt.Segment(0, fmt.NETWORK, step, fmt.checksum_of(q), words, latents=latents)
        kept = [None, 0, 1, len(words), *(int(n) for n in rng.integers(0, len(words) + 1, 3))]
        for count in kept:
            sent = whole if count is None else whole._replace(words=words[:count], cut=True)
            ours = entropy.decode_symbols(
                widths, contract.tables, reference, sent.words, step, (h, w), sent.cut, latents=latents, offsets=offsets
            )
            segment = plain.read_segment(plain.read_chunk(plain.Cursor(fmt.write_segment(sent)))[1])
            found, mean, index, decoded = plain.decode_latents(other, segment, rows, cols, offsets)
            assert np.array_equal(found, ours.q) and np.array_equal(mean, ours.mean), count
            assert np.array_equal(index, ours.scale_index) and decoded == ours.passes, count
            assert count is not None or np.array_equal(found, q)

    @pytest.mark.parametrize(
        ("latent", "legal"), [(32767, True), (32768, False), (-32768, True), (-32769, False), (1 << 17, False)]
    )
    def test_latents_beyond_the_limits(self, latent: int, legal: bool, tmp_path: Path) -> None:
        """They are refused in a whole segment and end the decoding of a cut one, as does an escape that is too long."""
        widths = Widths(1, 1, 1, 1, 1, (1,))
        layers = {
            name: Layer(np.zeros(s.weight_shape, np.int8), np.zeros(s.outputs, np.int32), np.zeros(s.outputs, np.uint8))
            for name, s in layer_shapes(widths).items()
        }
        latent_table, z_table = [8192, 32768, 16384, 8000, 192], [65408 if z == 0 else 1 for z in range(-64, 65)]
        tables = Tables(*(np.array(a, np.uint16) for a in ([1] * 64, latent_table * 1024, [z_table])))
        contract = Contract(widths, layers, tables, np.zeros((KNOTS, 1), np.float32), 64)
        path = tmp_path / "contract.npz"
        np.savez(path, **contract.arrays())
        other, reference = plain.load_contract(str(path)), contract.reference()
        digits = [int(digit) for digit in bin(abs(latent) - (1 if latent < 0 else 2))[2:]]  # of excess + 1
        q = np.zeros((1, 4, 4), np.int32)
        q[0, 2, 0] = latent  # the third latent of pass 0
        for cut in (False, True):
            coder = new_coder(tables, kind="integer")
            assert isinstance(coder, RunCoder)
            coder.push_bits([1] * 100 * cut)  # what is behind the cut
            coder.push_run(np.full(8, 1, np.int32), 320)
            coder.push_bits([int(latent < 0), *[0] * (len(digits) - 1), *digits])
            coder.push_run(np.array([1, 1, 4, 1, 1, 1, 1, 1], np.int32), 320)
            coder.push(np.full((1, 1), 64, np.int32), 1024)
            sent = fmt.Segment(0, fmt.NETWORK, 0, fmt.checksum_of(q), coder.to_words(), cut)
            segment = plain.read_segment(plain.read_chunk(plain.Cursor(fmt.write_segment(sent)))[1])
            if not legal and not cut:
                with pytest.raises(plain.Refused):
                    plain.decode_latents(other, segment, 64, 64, None)
                with pytest.raises(SymbolError):
                    entropy.decode_symbols(contract.widths, tables, reference, sent.words, 0, (1, 1))
                continue
            found, _, _, passes = plain.decode_latents(other, segment, 64, 64, None)
            ours = entropy.decode_symbols(contract.widths, tables, reference, sent.words, 0, (1, 1), cut)
            assert np.array_equal(found, ours.q) and passes == ours.passes == (2 if legal else 0)
            assert np.array_equal(found, q if legal else 0 * q)

    def test_words_that_go_on_behind_the_last_latent(self) -> None:
        """With the flag "cut" the last pass counts too if words remain; without it the segment is refused."""
        profile = find_profile("flight3")
        contract, theirs = profile.contract, plain_contract(profile.contract.digest)
        words = np.random.default_rng(1).integers(1, 1 << 32, 5000).astype(np.uint32)
        segment = plain.Segment(0, plain.NETWORK, plain.CUT, 100, 0, 1, tuple(words.tolist()))
        q, _, _, passes = plain.decode_latents(theirs, segment, 64, 64, None)
        given = (contract.widths, contract.tables, contract.reference(np.float64), words, 100, (1, 1))
        ours = entropy.decode_symbols(*given, cut=True, latents=8)
        assert (
            np.array_equal(q, ours.q) and passes == ours.passes == 4
        )  # the first two slices of flight3 have 8 channels
        with pytest.raises(plain.Refused):
            plain.decode_latents(theirs, segment._replace(flags=0, checksum=fmt.checksum_of(q)), 64, 64, None)
        with pytest.raises(SymbolError):
            entropy.decode_symbols(*given, latents=8)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("gain_knots", lambda a: a[:6]),
            ("gain_knots", lambda a: None),
            ("gain_knots", lambda a: a * np.float32("nan")),
            ("geometry", lambda a: np.concatenate([a[:5], [65], a[6:]]).astype(np.int32)),
            ("geometry", lambda a: np.concatenate([a, [1]]).astype(np.int32)),
            ("geometry", lambda a: a[:6]),
            ("geometry", lambda a: a[:3]),
            ("geometry", lambda a: -a),
            ("geometry", lambda a: None),
            ("magnitudes", lambda a: np.zeros(128, np.uint8)),
            ("magnitudes", lambda a: np.full(128, 1, np.uint8)),
            ("magnitudes", lambda a: np.arange(0, 256, 2, np.uint8)),
            ("tables.radius", lambda a: a.astype(np.int32)),
            ("tables.radius", lambda a: a[:63]),
            ("tables.radius", lambda a: a.astype(">u2")),
            ("tables.frequencies", lambda a: a[:-1]),
            ("tables.frequencies", lambda a: a + np.uint16(1)),
            ("tables.frequencies", lambda a: np.concatenate([[0], [a[0] + a[1]], a[2:]]).astype(np.uint16)),
            ("tables.z_frequencies", lambda a: np.tile(a, (17, 1))),
            ("tables.z_frequencies", lambda a: np.tile(a, (16, 1)) if len(a) == 1 else a[:0]),
            ("tables.z_frequencies", lambda a: a.reshape(-1)),
            ("hyper.up1.weight", lambda a: np.full_like(a, -128)),
            ("hyper.up1.weight", np.asfortranarray),
            ("hyper.up1.weight", lambda a: None),
            ("hyper.up1.bias", lambda a: a.astype(">i4")),
            ("hyper.up1.bias", lambda a: np.full_like(a, -(1 << 31))),
            ("hyper.up1.bias", lambda a: a.astype(np.int64)),
            ("hyper.up1.shift", lambda a: np.full_like(a, 24)),
            ("hyper.up1.shift", lambda a: None),
            ("pass0.context.weight", lambda a: np.zeros((1, 1, 1, 1), np.int8)),
            ("other", lambda a: np.zeros(3)),
            ("other.bias", lambda a: np.zeros(3)),
            ("other.weight", lambda a: np.zeros(3)),
            ("other", lambda a: np.zeros((16 << 20) + 1, np.uint8)),
        ],
    )
    def test_same_contracts_are_refused(self, name: str, change: Any, tmp_path: Path) -> None:
        arrays: dict[str, Any] = random_contract(np.random.default_rng(5)).arrays()
        arrays[name] = change(arrays.get(name))
        path = tmp_path / "contract.npz"
        np.savez(path, **{n: a for n, a in arrays.items() if a is not None})
        digests: list[bytes | None] = []
        for load, error in ((load_contract, ProfileError), (lambda p: plain.load_contract(str(p)), plain.Refused)):
            try:
                digests.append(load(path).digest)
            except error:
                digests.append(None)
        assert digests[0] == digests[1]


# --- streams that are not quite right ----------------------------------------------------------------------------------


def outcome_by_us(data: bytes) -> Scene | None:
    """What we decode, None where we refuse. Any other error is a fault of ours and fails the test."""
    try:
        return decoded_by_us(data)
    except PerigeeError:
        return None


def outcome_plainly(data: bytes) -> Scene | None:
    try:
        return decoded_plainly(data)
    except plain.Refused:
        return None


def agreed(data: bytes) -> bool:
    """Asserts that both decoders refuse, or that both decode the same; returns whether they decode."""
    ours, other = outcome_by_us(data), outcome_plainly(data)
    assert (ours is None) == (other is None), f"we {'refuse' if ours is None else 'decode'} {data.hex(' ')}"
    if ours is not None and other is not None:
        assert_same(ours, other)
    return ours is not None


def with_crc(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


class Parts(NamedTuple):
    """A stream taken apart, so that it can be put together wrongly: header without CRC, and (type, payload) of chunks."""

    header: bytes
    chunks: list[tuple[int, bytes]]

    def join(self, count: bytes | None = None) -> bytes:
        """The stream with all CRCs right. ``count`` is the payload of ``END``, by default the right one."""
        body = b"".join(fmt.write_chunk(kind, payload) for kind, payload in self.chunks)
        count = fmt.write_varint(len(self.chunks)) if count is None else count
        return with_crc(self.header) + body + fmt.write_chunk(fmt.END, count)


def parts_of(data: bytes) -> Parts:
    cursor = plain.Cursor(data)
    plain.read_header(cursor)
    header, chunks = data[: cursor.at - 4], []
    while cursor.at < len(data):
        chunks.append(plain.read_chunk(cursor))
    return Parts(header, chunks[:-1])


def flipped(rng: np.random.Generator, data: bytes) -> bytes:
    """One to three bytes changed, one inserted, or one removed."""
    out = bytearray(data)
    kind = rng.integers(6)
    if kind == 4:
        out.insert(int(rng.integers(len(out) + 1)), int(rng.integers(256)))
    elif kind == 5 and out:
        del out[int(rng.integers(len(out)))]
    else:
        for _ in range(rng.integers(1, 4) if out else 0):
            out[int(rng.integers(min(len(out), 12) if rng.random() < 0.5 else len(out)))] = int(rng.integers(256))
    return bytes(out)


def random_field(rng: np.random.Generator) -> bytes:
    """A metadata field with a random tag and a value that often has a size and content that may be legal."""
    tag = int(rng.choice([*range(18), 127, 128, 200]))
    size = int(rng.choice([0, 1, 2, 5, 8, 12, 14, 16, 32, 40, 41, 48, 80, 736, int(rng.integers(60))]))
    value = bytes(rng.integers(0, 256, size, np.uint8))
    if rng.random() < 0.5:
        doubles = [0.0, 1.0, -1.0, 255.0, 0.5, 65535.0, -32768.0, 70000.0, float("nan"), float("inf")]
        value = struct.pack("<d", float(rng.choice(doubles))) * max(1, size // 8)
    if tag == 9 and rng.random() < 0.8:
        bits = int(rng.integers(256))
        value = bytes([bits])
        value += struct.pack("<ii", *(int(rng.choice([-1800001800, -1800001801, 0, 900000000, 900000001])),) * 2) * (
            bits & 1
        )
        times = [-62135596800000, -62135596800001, 253402300799999, 253402300800000, 1 << 62, 0]
        value += struct.pack("<q", int(rng.choice(times))) * (bits >> 1 & 1)
        numbers = [0.0001, 0.00009, 0.0, -0.0, 90.0, -90.0, -90.0001, -90.00008, 100.0, 360.0, 360.1, 1e6, float("nan")]
        for bit in range(2, 8):
            value += struct.pack("<f", float(rng.choice(numbers[: 6 if rng.random() < 0.8 else None]))) * (
                bits >> bit & 1
            )
    if tag == 2 and rng.random() < 0.7:
        keys, doubles = int(rng.integers(3, 6)), int(rng.integers(3))
        value = struct.pack("<HH", keys, doubles) + bytes(2 * keys + 8 * doubles + int(rng.integers(-1, 4)))
    if tag in (13, 15) and rng.random() < 0.7:
        value = bytes([int(rng.integers(4))])
    if tag == 11 and rng.random() < 0.5:
        value = rng.choice([b"red\0\0blue", b"\xc3\xa9", b"\xff", b"\xed\xa0\x80", b""])
    if tag == 10 and rng.random() < 0.5:
        value = bytes(65536 + int(rng.integers(2)))
    return bytes([tag]) + fmt.write_varint(len(value)) + value


def random_mask_payload(rng: np.random.Generator, header: Any) -> bytes:
    """A mask of patch 0 with content of the right size, or almost."""
    rows, cols = plain.patch_size(header, 0)
    kind = int(rng.integers(4))
    planes = header.bands if kind == masks.PER_BAND else 1
    width = cols * header.sample_type.itemsize if kind == masks.ALPHA else -(-cols // 8)
    size = planes * rows * width + int(rng.choice([0, 0, 0, 0, -1, 1, width]))
    packed = zlib.compress(bytes(rng.integers(0, 256, size, np.uint8)), int(rng.integers(10)))
    if rng.random() < 0.3:
        packed = flipped(rng, packed)
    return fmt.write_varint(int(rng.choice([0, 0, 0, 0, 1]))) + bytes([kind]) + packed


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """The stream with one thing wrong, or changed so that it may still be right; CRCs are repaired but in a few cases."""
    parts = parts_of(data)
    header, chunks = parts.header, list(parts.chunks)
    place = int(rng.integers(len(chunks)))
    kind = int(rng.integers(14))
    if kind == 0:
        return Parts(flipped(rng, header), chunks).join()
    if kind == 1:  # a field of the header just outside its range, or a neighbour
        at = int(rng.choice([4, 5, 14, 15, 16, 17]))
        changed = bytearray(header)
        changed[at] = (changed[at] + int(rng.choice([-1, 1, 16, 64]))) % 256
        return Parts(bytes(changed), chunks).join()
    if kind in (2, 3):
        chunks[place] = (chunks[place][0], flipped(rng, chunks[place][1]))
    elif kind == 4:
        chunks.append(chunks[place])
    elif kind == 5:
        del chunks[place]
    elif kind == 6:
        chunks[place] = (int(rng.integers(256)) if rng.random() < 0.5 else int(rng.integers(9)), chunks[place][1])
    elif kind == 7:
        wrong = [b"", b"\x00", fmt.write_varint(len(chunks) + 1), fmt.write_varint(len(chunks)) + b"\0", b"\x81\x00"]
        return Parts(header, chunks).join(wrong[int(rng.integers(len(wrong)))])
    elif kind == 8:
        whole = Parts(header, chunks).join()
        ends = [whole[: int(rng.integers(len(whole)))], whole + b"\0", whole + fmt.write_chunk(0x80, b""), whole * 2]
        return ends[int(rng.integers(len(ends)))]
    elif kind == 9:
        return flipped(rng, Parts(header, chunks).join())
    elif kind in (10, 11):
        chunks = [chunk for chunk in chunks if chunk[0] != fmt.METADATA]
        packet = b"".join(random_field(rng) for _ in range(rng.integers(1, 3)))
        chunks.append((fmt.METADATA, flipped(rng, packet) if rng.random() < 0.1 else packet))
    elif kind == 12:
        chunks = [chunk for chunk in chunks if chunk[0] != fmt.MASK]
        chunks.append((fmt.MASK, random_mask_payload(rng, plain.read_header(plain.Cursor(with_crc(header))))))
    else:
        mode = int(rng.choice([0, 0x10, 0x20, 0x40, 0x50, 0x80, 2, 3, 0x12, 1, 7, int(rng.integers(256))]))
        body = flipped(rng, bytes(rng.integers(0, 256, int(rng.choice([0, 3, 4, 7, 8, 12, 40])), np.uint8)))
        segments = [i for i, chunk in enumerate(chunks) if chunk[0] == fmt.SEGMENT]
        at = int(rng.choice(segments))
        (unit,) = struct.unpack("B", chunks[at][1][:1])
        chunks[at] = (fmt.SEGMENT, bytes([unit, mode]) + (b"" if mode in (2, 3) and rng.random() < 0.8 else body))
    return Parts(header, chunks).join()


def field(tag: int, form: str = "", *values: Any, rest: bytes = b"") -> bytes:
    value = struct.pack("<" + form, *values) + rest
    return bytes([tag]) + fmt.write_varint(len(value)) + value


@lru_cache(maxsize=1)
def edges() -> dict[str, tuple[bytes, bool]]:
    """Streams of one to nine pixels of ``flight2`` by what is at an edge in them, and whether they are accepted."""
    digest = find_profile("flight2").contract.digest
    nan = float("nan")
    empty = (fmt.SEGMENT, b"\0\x03")
    out: dict[str, tuple[bytes, bool]] = {}

    def add(name: str, accepted: bool, *chunks: tuple[int, bytes], dtype: str = "uint8", size: int = 1) -> None:
        header = fmt.write_header(fmt.Header(digest, size, 1, 1, dtype, 256))[:-4]
        out[name] = (Parts(header, list(chunks)).join(), accepted)

    def segment(name: str, accepted: bool, payload: bytes) -> None:
        add(name, accepted, (fmt.SEGMENT, payload))

    coded = encoder("flight2").encode_image(np.full((3, 1, 1), 0.5, np.float32), 100)
    assert coded.latents
    words, checksum = coded.words.astype("<u4").tobytes(), struct.pack("<H", coded.checksum)
    first = bytes([coded.latents // 8])
    segment("a whole segment", True, b"\0\x40\x64" + checksum + first + words)
    segment("linear or not, it decodes alike", True, b"\0\x60\x64" + checksum + first + words)
    segment("a wrong checksum", False, b"\0\x40\x64" + bytes([checksum[0] ^ 1, checksum[1]]) + first + words)
    segment("a wrong checksum of a cut segment", True, b"\0\x50\x64\0\0" + first + words)
    segment("a word too many", False, b"\0\x40\x64" + checksum + first + words + bytes(4))
    segment("a word too few", False, b"\0\x40\x64" + checksum + first + words[:-4])
    segment("a byte too many", False, b"\0\x50\x64" + checksum + first + words + b"\0")
    segment("the first word is 0", False, b"\0\x50\x64" + checksum + first + bytes(4) + words)
    segment("the second word is 0", True, b"\0\x50\x64" + checksum + first + words[:4] + bytes(4) + words)
    segment("no word", True, b"\0\x50\x64\0\0" + first)
    segment("no coded channel", False, b"\0\x50\x64\0\0\0")
    segment("all channels coded", True, b"\0\x50\x64\0\0\x38" + words)
    segment("more channels than there are", False, b"\0\x50\x64\0\0\x39" + words)
    segment("the largest quality step", True, b"\0\x10\xfa\0\0" + words)
    segment("a larger quality step", False, b"\0\x10\xfb\0\0" + words)
    segment("the flag 0x80", False, b"\0\x90\x64\0\0" + words)
    segment("a unit that is not there", False, b"\x01\x10\x64\0\0" + words)
    segment("dropped", True, b"\0\x02")
    for payload in (
        b"",
        b"\0",
        b"\0\x12",
        b"\0\x13",
        b"\0\x02\0",
        b"\0\0",
        b"\0\0\0\0",
        b"\x80\0\x03",
        b"\0\x01",
        b"\0\x07",
    ):
        segment(f"the segment {payload.hex()}", False, payload)

    for low, high, accepted in ((0, 1, True), (0, 0, False), (1, 0, False), (-(1 << 31), (1 << 31) - 1, True)):
        add(f"range {low} to {high}", accepted, empty, (fmt.RANGE, struct.pack("<ii", low, high)), dtype="int16")
    add("no range", False, empty, dtype="int16")
    for payload in (b"", bytes(7), struct.pack("<iii", 0, 1, 2), struct.pack("<iiii", 0, 1, 0, 1)):
        add(f"a range of {len(payload)} bytes", False, empty, (fmt.RANGE, payload))

    def offsets(name: str, accepted: bool, *payloads: bytes) -> None:
        add(f"offsets: {name}", accepted, empty, *((fmt.OFFSETS, payload) for payload in payloads))

    latents = find_profile("flight2").contract.widths.latents
    zeros, ones = zlib.compress(bytes(latents)), zlib.compress(b"\1" * latents)
    offsets("of the right size", True, zeros)
    offsets("twice the same", True, zlib.compress(bytes(latents), 9), zlib.compress(bytes(latents), 0))
    offsets("two that differ", False, zeros, ones)
    offsets("one latent less", False, zlib.compress(bytes(latents - 1)))
    offsets("one latent more", False, zlib.compress(bytes(latents + 1)))
    offsets("none", False, zlib.compress(b""))
    offsets("of more than any group has", False, zlib.compress(bytes(2049)))
    offsets("a byte behind the zlib stream", False, zeros + b"\0")
    offsets("a zlib stream that ends early", False, zeros[:-1])
    offsets("a bomb", False, zlib.compress(bytes(1 << 24)))
    offsets("no zlib stream", False, b"?")

    packed = zlib.compress(b"\xaa\0")
    dictionary = zlib.compressobj(zdict=b"\xaa\0\xaa\0")
    wrong = {
        "a byte behind the zlib stream": packed + b"\0",
        "a zlib stream that ends early": packed[:-1],
        "a wrong Adler-32": packed[:-1] + bytes([packed[-1] ^ 1]),
        "a preset dictionary": dictionary.compress(b"\xaa\0") + dictionary.flush(),
        "a byte too few": zlib.compress(b"\xaa"),
        "a byte too many": zlib.compress(b"\xaa\0\0"),
        "no zlib stream": b"",
    }
    for name, data in wrong.items():
        add(f"a mask: {name}", False, empty, (fmt.MASK, b"\0\0" + data), size=9)
    add("a mask that is not needed", True, empty, (fmt.MASK, b"\0\0" + packed), size=9)
    add("a mask a band of one band", True, (fmt.SEGMENT, b"\0\x10\0\0\0"), (fmt.MASK, b"\0\x01" + packed), size=9)
    add("bits behind the last column", True, (fmt.SEGMENT, b"\0\x10\0\0\0"), (fmt.MASK, b"\0\0" + packed), size=10)
    alpha = (fmt.MASK, b"\0\x02" + zlib.compress(bytes(9)))
    add("alpha without its tag", False, empty, alpha, size=9)
    add("alpha with its tag behind it", True, empty, alpha, (fmt.METADATA, field(13, "B", 1)), size=9)
    add(
        "no alpha in a scene that has it",
        False,
        empty,
        (fmt.METADATA, field(13, "B", 0)),
        (fmt.MASK, b"\0\0" + packed),
        size=9,
    )
    add("a mask of kind 3", False, empty, (fmt.MASK, b"\0\x03" + packed), size=9)
    add("a mask of patch 1", False, empty, (fmt.MASK, b"\x01\0" + packed), size=9)

    def packet(name: str, accepted: bool, data: bytes, dtype: str = "uint8") -> None:
        ranges = [(fmt.RANGE, struct.pack("<ii", 0, 1))]
        add(name, accepted, empty, (fmt.METADATA, data), *ranges, dtype=dtype)

    for value, dtype, accepted in (
        *((255.0, "uint8", True), (256.0, "uint8", False), (-1.0, "uint8", False), (0.5, "uint8", False)),
        *((-0.0, "uint8", True), (nan, "uint8", False), (float("inf"), "uint8", False)),
        *((65535.0, "uint16", True), (65536.0, "uint16", False), (-32768.0, "int16", True), (32768.0, "int16", False)),
    ):
        packet(f"nodata {value} of {dtype}", accepted, field(7, "d", value), dtype)
    packet("a tag twice", False, field(1, "B", 1) * 2)
    packet("an unknown tag twice", False, field(200) * 2)
    packet("two unknown tags", True, field(200) + field(201, rest=b"?"))
    packet("the unknown tag 127", False, field(127))
    packet("the tag 0", False, field(0))
    packet("a field beyond the end", False, field(200, rest=b"?")[:-1])
    packet("a tag without a length", False, b"\xc8")
    packet("an empty EPSG", False, field(1))
    packet("an EPSG code and a byte", False, field(1, "BB", 1, 1))
    packet("an affine transform of a wrong size", False, field(4, "5d", *range(5)))
    packet(
        "an affine transform of a wrong size beside north up",
        True,
        field(4, "5d", *range(5)) + field(3, "4d", *range(4)),
    )
    packet("doubles that are not finite", True, field(3, "4d", nan, nan, nan, nan) + field(8, "2d", nan, nan))
    packet("no control point", True, field(5))
    packet("half a control point", False, field(5, "4d", *range(4)))
    packet("more scales than bands", True, field(8, "4d", *range(4)))
    packet("more names than bands", True, field(11, rest=b"a\0b\0c"))
    packet("a name that is not UTF-8", False, field(11, rest=b"\xff"))
    packet("three keys", False, field(2, "HH3H", 3, 0, 1, 1, 0))
    packet("four keys", True, field(2, "HH4H", 4, 0, 1, 1, 0, 0))
    packet("keys beyond the field", False, field(2, "HH4H", 5, 0, 1, 1, 0, 0))
    packet("doubles beyond the field", False, field(2, "HH4H", 4, 1, 1, 1, 0, 0))
    packet("alpha at the end", True, field(13, "B", 1))
    packet("alpha beyond the end", False, field(13, "B", 2))
    packet("colour 1", True, field(15, "B", 1))
    packet("colour 2", False, field(15, "B", 2))
    packet("the longest ancillary part", True, field(10, rest=bytes(65536)))
    packet("a longer ancillary part", False, field(10, rest=bytes(65537)))
    for tag, size in ((6, 728), (7, 4), (12, 1), (13, 0), (14, 1), (15, 0), (9, 0)):
        packet(f"tag {tag} of {size} bytes", False, field(tag, rest=bytes(size)))
    for bit, form, values, accepted in (
        *((0, "ii", (-1800000000, -900000000), True), (0, "ii", (1800000000, 900000000), True)),
        *((0, "ii", (-1800001799, -900000899), True), (0, "ii", (-1800001801, 0), False)),
        *((0, "ii", (0, -900000901), False), (0, "ii", (1800000001, 0), False), (0, "ii", (0, 900000001), False)),
        *((1, "q", (-62135596800000,), True), (1, "q", (-62135596800001,), False)),
        *((1, "q", (253402300799999,), True), (1, "q", (253402300800000,), False), (1, "q", (-(1 << 63),), False)),
        *(
            (2, "f", (0.0001,), True),
            (2, "f", (0.00009999,), False),
            (2, "f", (1e6,), True),
            (2, "f", (1000001,), False),
        ),
        *((3, "f", (0,), True), (3, "f", (-1e-30,), False), (3, "f", (100,), True), (3, "f", (100.00001,), False)),
        *((4, "f", (90,), True), (5, "f", (360,), True), (6, "f", (360.0001,), False), (7, "f", (nan,), False)),
        *(
            (7, "f", (-90,), True),
            (7, "f", (-90.00008,), True),
            (7, "f", (-90.0001,), False),
            (7, "f", (90.00001,), False),
        ),
        *((7, "d", (0,), False), (0, "i", (0,), False)),
    ):
        packet(f"acquisition bit {bit} {form} {values}", accepted, field(9, "B" + form, 1 << bit, *values))
    return out


class TestMutatedStreams:
    @pytest.mark.parametrize("base", range(MUTATED_BASES))
    def test_both_refuse_or_both_decode_the_same(self, base: int) -> None:
        data, _ = random_stream(base, tiny=True)
        assert agreed(data)
        rng = np.random.default_rng([4, base])
        decoded = sum(agreed(mutated(rng, data)) for _ in range(MUTATIONS))
        assert 0 < decoded < MUTATIONS, "mutations that are all refused, or none, show little"

    def test_edges_of_the_metadata(self) -> None:
        """Single fields, refused and accepted alike, beside a segment that is empty."""
        contract = find_profile("flight2").contract.digest
        header = fmt.write_header(fmt.Header(contract, 1, 1, 1, "uint8", 256))
        empty = fmt.write_segment(fmt.Segment(0, fmt.EMPTY))
        rng = np.random.default_rng(5)
        packets = [random_field(rng) for _ in range(400)]
        north_up, affine = bytes([3, 32]) + bytes(32), bytes([4, 8]) + bytes(8)
        packets += [b"", north_up, affine, north_up + affine, affine + north_up, pack_metadata(Metadata(nodata=255.0))]
        decoded = 0
        for packet in packets:
            decoded += agreed(header + empty + fmt.write_chunk(fmt.METADATA, packet) + fmt.write_end(2))
        assert 70 < decoded < 300

    @pytest.mark.parametrize(("stream", "accepted"), edges().values(), ids=edges().keys())
    def test_edges(self, stream: bytes, accepted: bool) -> None:
        """What lies just inside and just outside of the rules."""
        assert agreed(stream) == accepted

    @pytest.mark.parametrize("spare", [1024, 1025])
    def test_the_limit_on_chunks(self, spare: int) -> None:
        contract = find_profile("flight2").contract.digest
        chunks = [fmt.write_segment(fmt.Segment(0, fmt.EMPTY))] + [fmt.write_chunk(0x80, b"")] * spare
        stream = fmt.write_stream(fmt.Header(contract, 1, 1, 1, "uint8", 256), chunks)
        assert agreed(stream) == (spare == 1024)

    @pytest.mark.parametrize("modes", [(0, 2), (2, 2), (2, 3), (3, 0)])
    def test_alpha_beside_units_that_are_not_there(self, modes: tuple[int, int]) -> None:
        """Alpha is 0 where a patch has no valid sample or lost one, whatever its mask says, and is what the mask says elsewhere."""
        profile = find_profile("flight2")
        header = fmt.Header(profile.contract.digest, 2, 1, 4, "uint8", 256)
        mask = fmt.write_chunk(fmt.MASK, masks.pack_mask(0, np.ones((4, 1, 2), bool), np.array([[9, 0]], np.uint8)))
        coded = encoder("flight2").encode_image(np.full((3, 1, 2), 0.5, np.float32), 100)
        segments = [coded._replace(unit=u) if m == 0 else fmt.Segment(u, m) for u, m in enumerate(modes)]
        for chunks in ([mask], []):
            packet = fmt.write_chunk(fmt.METADATA, pack_metadata(Metadata(alpha_band=4)))
            data = fmt.write_stream(header, [packet, *chunks, *map(fmt.write_segment, segments)])
            assert agreed(data)
            found = decoded_plainly(data).alpha.tolist()
            gone = 0 not in modes or fmt.DROPPED in modes
            assert found == ([[0, 0]] if gone else [[9, 0]] if chunks else [[255, 255]])


def test_the_plain_decoder_imports_numpy_alone() -> None:
    """It shares no code with Perigee, so that what both give is not the same mistake."""
    code = (
        "import runpy, sys; before = set(sys.modules); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "foreign = new - set(sys.stdlib_module_names) - {'numpy'}; "
        "assert not foreign and 'perigee' not in sys.modules, foreign"
    )
    stream = ROOT / "tests" / "golden" / "v1_lite_7d7f716860b24c10_cut.peri"
    contract = find_profile("lite").folder / "contract.npz"
    command = [sys.executable, "-c", code, str(PLAIN), str(stream), str(contract)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["latents"] == {"0": 2027569820}
    assert not re.search(r"^\s*(?:import|from) perigee", PLAIN.read_text(encoding="utf-8"), re.MULTILINE)
