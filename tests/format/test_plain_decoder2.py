"""Two decoders of format version 2 agree: ours, and ``plain_decoder2.py``, which was written from the text alone.

They give the same latents, means, scale indices, samples, validity and alpha, and they refuse the same streams.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perigee.bitstream import format as fmt
from perigee.bitstream.component_contract import load_component_contract
from perigee.bitstream.component_profile import find_component_profile
from perigee.bitstream.errors import PerigeeError, ProfileError, UnsupportedError
from perigee.bitstream.metadata import Metadata, pack_metadata
from perigee.bitstream.records import Records, write_records
from perigee.bitstream.spectral import Spectral
from perigee.bitstream.version2 import (
    PART,
    STORED,
    ComponentHeader,
    ComponentSegment,
    Parameters,
    write_component_header,
    write_component_segment,
    write_component_stream,
    write_parameters,
    write_strip,
)
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.regions import Region
from perigee.onboard.bounded_encoder import BoundedEncoder, ErrorBounds
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.sensor import Sensor
from perigee.onboard.source import ArraySource

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "format2.md"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(FOLDER))
plain = load("plain_decoder2")
PROFILE = find_component_profile("spectral1")


@pytest.fixture(scope="module")
def codec() -> ComponentEncoder:
    return ComponentEncoder(PROFILE)


@pytest.fixture(scope="module")
def engine() -> GroundComponents:
    return GroundComponents(PROFILE, synthesis=False)


@pytest.fixture(scope="module")
def contract():
    return plain.load_contract(str(PROFILE.folder / "contract.npz"))


def scene(seed: int, bands: int, rows: int, cols: int, dtype: str = "uint16", noise: float = 30.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:cols]
    limits = np.iinfo(dtype)
    shared = np.sin(x / rng.uniform(4, 40)) * np.cos(y / rng.uniform(4, 40)) * 0.2 * min(limits.max, 5000)
    values = (
        min(limits.max, 5000) / 2
        + shared * rng.uniform(0.3, 1, (bands, 1, 1))
        + rng.normal(0, noise, (bands, rows, cols))
    )
    return np.clip(values, limits.min, limits.max).astype(dtype)


def same(data: bytes, engine: GroundComponents, contract) -> None:
    """Both decoders give the same of a stream."""
    stream = parse_component_stream(data)
    ours = ComponentDecoder(stream, engine)
    theirs = plain.decode_scene(contract, plain.read_stream(data))
    for patch, found in theirs.latents.items():
        latents = ours.latents(patch)
        for part, other in zip((latents.q, latents.mean, latents.scale_index), found[:3], strict=True):
            assert np.array_equal(part, other)
        assert latents.passes == found[3]
    whole = ours.region(Region(0, 0, ours.height, ours.width))
    assert whole.samples.tobytes() == theirs.samples.astype(whole.samples.dtype).tobytes()
    assert np.array_equal(whole.valid, theirs.valid)
    assert (whole.alpha is None) == (theirs.alpha is None)
    assert whole.alpha is None or np.array_equal(whole.alpha, theirs.alpha)


@pytest.mark.parametrize(
    ("bands", "dtype", "shape", "quality"),
    [
        (1, "uint16", (1, 1), 0), (1, "uint16", (70, 130), 30), (3, "uint8", (64, 64), 60), (5, "int16", (40, 90), 40),
        (2, "uint16", (300, 64), 20), (4, "uint16", (64, 64), 100), (1, "uint8", (100, 64), 100), (13, "uint16", (33, 20), 35),
    ],
)  # fmt: skip
def test_scenes(codec, engine, contract, bands, dtype, shape, quality):
    same(codec.encode_scene(ArraySource(scene(quality, bands, *shape, dtype)), quality).data, engine, contract)


def test_noise_over_the_whole_range(codec, engine, contract):
    samples = np.random.default_rng(1).integers(0, 65536, (2, 64, 64)).astype(np.uint16)
    for quality in (5, 100):
        same(codec.encode_scene(ArraySource(samples), quality).data, engine, contract)


def test_masks_nodata_and_bits(codec, engine, contract):
    samples = scene(3, 3, 300, 70)
    samples[:, 256:] = 4095
    samples[1, 20:30, 5:9] = 4095
    for metadata in (Metadata(nodata=4095.0), Metadata(nodata=4095.0, nbits=12), Metadata(nodata=4095.0, masked=True)):
        same(codec.encode_scene(ArraySource(samples, metadata), 25).data, engine, contract)
    valid = np.random.default_rng(2).random((64, 70)) < 0.7
    same(codec.encode_scene(ArraySource(samples[:, :64], None, valid), 25).data, engine, contract)


def within(codec, samples: np.ndarray, bounds: ErrorBounds, metadata: Metadata | None = None, valid=None) -> bytes:
    """A stream of predicted segments, whose errors are as promised."""
    encoder = BoundedEncoder(codec.profile, bounds)
    return encoder.encode_scene(ArraySource(samples, metadata, valid), verify=True).data


@pytest.mark.parametrize(
    ("bands", "dtype", "shape", "bounds"),
    [
        (1, "uint16", (1, 1), ErrorBounds((0,))), (1, "uint8", (1, 30), ErrorBounds((0,))), (3, "uint8", (30, 40), ErrorBounds((1,))),
        (5, "int16", (20, 30), ErrorBounds((0, 1, 5, 300, 65535))), (4, "uint16", (40, 1), ErrorBounds(percent=1)),
        (2, "int16", (30, 20), ErrorBounds(percent=20)), (1, "uint16", (30, 258), ErrorBounds((16,))),
    ],
)  # fmt: skip
def test_predicted_segments(codec, engine, contract, bands, dtype, shape, bounds):
    samples = scene(bands, bands, *shape, dtype)
    if dtype == "int16":
        samples = samples - samples.max() // 2
    same(within(codec, samples, bounds), engine, contract)


@pytest.mark.parametrize("kind", ["noise", "enlarged", "constant", "checkerboard"])
def test_predicted_segments_of_odd_images(codec, engine, contract, kind):
    rng = np.random.default_rng(4)
    samples = {
        "noise": rng.integers(0, 65536, (2, 20, 21)),
        "enlarged": rng.integers(0, 4096, (3, 7, 9)).repeat(3, 1).repeat(3, 2),
        "constant": np.full((2, 20, 20), 65535),
        "checkerboard": 65535 * (np.indices((1, 20, 20)).sum(0) % 2),
    }[kind].astype(np.uint16)
    for bounds in (ErrorBounds((0,)), ErrorBounds((3,))):
        same(within(codec, samples, bounds), engine, contract)


def test_predicted_segments_with_masks_nodata_and_bits(codec, engine, contract):
    samples = scene(3, 3, 40, 30)
    samples[1, 20:30, 5:9] = 4095
    for metadata in (Metadata(nodata=4095.0), Metadata(nodata=4095.0, nbits=12), Metadata(nodata=4095.0, masked=True)):
        same(within(codec, samples, ErrorBounds((7,)), metadata), engine, contract)
    same(
        within(codec, samples, ErrorBounds((0,)), None, np.random.default_rng(2).random((40, 30)) < 0.7),
        engine,
        contract,
    )


@pytest.mark.parametrize("bounds", [ErrorBounds((0,)), ErrorBounds((0.3,)), ErrorBounds(percent=5)], ids=str)
@pytest.mark.parametrize("nodata", [None, 0.0, float("nan"), -1e30])
def test_float_samples(codec, engine, contract, bounds, nodata):
    rng = np.random.default_rng(7)
    samples = (rng.normal(0, 2, (2, 20, 25)) * 10.0 ** rng.integers(-42, 38, (2, 1, 25))).astype(np.float32)
    samples[:, 3:6, 4:9] = 0.0 if nodata is None else np.float32(nodata)
    samples[0, 0, :4] = np.inf, -np.inf, np.nan, -0.0
    metadata = None if nodata is None else Metadata(nodata=float(np.float32(nodata)))
    same(within(codec, samples, bounds, metadata), engine, contract)


@pytest.mark.parametrize("counts", [0, 3, 200])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_segments_of_jpeg_ls(codec, engine, contract, dtype, counts):
    encoder = BoundedEncoder(codec.profile, ErrorBounds((counts,)), jpeg_ls=True)
    data = encoder.encode_scene(ArraySource(scene(8, 2, 30, 260, dtype), Metadata(nodata=40.0))).data
    assert {s.mode for s in parse_component_stream(data).segments.values()} == {STORED}
    same(data, engine, contract)


def test_records_of_lines(codec, engine, contract):
    rng = np.random.default_rng(11)
    header = ComponentHeader(PROFILE.contract.digest, 20, 600, 1, "uint16", 256)
    empty = [write_component_segment(ComponentSegment(patch, fmt.EMPTY)) for patch in range(3)]
    records = [Records(first, rng.integers(0, 256, (200, 7)).astype(np.uint8)) for first in (0, 200, 400)]
    chunks = [*map(write_records, records), write_records(records[0])]
    data = write_component_stream(header, [*empty, *chunks])
    same(data, engine, contract)
    assert np.array_equal(parse_component_stream(data).records.data, np.concatenate([r.data for r in records]))
    for wrong in (
        write_records(Records(500, records[0].data)),
        write_records(Records(3, records[0].data)),
        write_records(Records(0, records[0].data[:, :6])),
    ):
        data = write_component_stream(header, [*empty, *chunks, wrong])
        with pytest.raises(plain.Refused):
            plain.read_stream(data)
        with pytest.raises(PerigeeError):
            parse_component_stream(data)
    data = write_component_stream(header, [*empty, *chunks * 4])
    with pytest.raises(plain.Refused, match="too often"):
        plain.read_stream(data)
    with pytest.raises(PerigeeError, match="more than 4 times"):
        parse_component_stream(data)


def test_classes(codec, engine, contract):
    classes = np.random.default_rng(9).choice([0, 7, 200], (1, 60, 300)).astype(np.uint8).repeat(2, 2)
    data = within(codec, classes, ErrorBounds((0,)), Metadata(palette=bytes(768)))
    assert {s.mode for s in parse_component_stream(data).segments.values()} == {STORED}
    same(data, engine, contract)


def test_predicted_segments_beside_those_of_components(codec, engine, contract):
    samples = scene(4, 3, 300, 64)
    stream = parse_component_stream(codec.encode_scene(ArraySource(samples), 30).data)
    promised = parse_component_stream(within(codec, samples, ErrorBounds((0,))))
    header = replace(stream.header, predicting=True)
    chunks = [write_component_segment(stream.segments[0]), write_component_segment(promised.segments[1])]
    chunks.append(write_parameters(0, stream.parameters[0]))
    data = write_component_stream(header, chunks)
    same(data, engine, contract)
    with pytest.raises(UnsupportedError, match="mode"):
        parse_component_stream(write_component_stream(replace(header, predicting=False), chunks))


def test_strips_qualities_offsets_and_parts(codec, engine, contract):
    samples = scene(4, 3, 300, 64)
    stream = parse_component_stream(codec.encode_scene(ArraySource(samples), 30, strip_rows=1).data)
    rng = np.random.default_rng(5)
    source = ArraySource(samples)
    offsets = rng.integers(-9, 10, (3, 256)).astype(np.int8)
    second = replace(stream.parameters[1], offsets=offsets)
    chunks = [write_parameters(7, second), write_parameters(7, second), write_strip(1, 1, 7), write_strip(1, 1, 7)]
    chunks += [write_parameters(0, stream.parameters[0])]
    chunks += codec.encode_patch(1, source.read(256, 0, 44, 64), second, 77)
    (whole,) = codec.encode_patch(0, source.read(0, 0, 256, 64), stream.parameters[0], 77)
    segment = parse_component_stream(write_component_stream(stream.header, [*chunks, whole])).segments[0]
    words = segment.words
    cut = len(words) // 3
    payload = bytes([0, 0x40, 2, segment.quality_step]) + segment.checksum.to_bytes(2, "little")
    payload += bytes(c // 8 for c in segment.channels) + words[:cut].astype("<u4").tobytes()
    parts = [
        bytes([0, 1]) + words[cut : 2 * cut].astype("<u4").tobytes(),
        bytes([0, 2]) + words[2 * cut :].astype("<u4").tobytes(),
    ]
    chunks += [fmt.write_chunk(PART, parts[1]), fmt.write_chunk(fmt.SEGMENT, payload), fmt.write_chunk(PART, parts[0])]
    same(write_component_stream(stream.header, chunks), engine, contract)


@pytest.mark.parametrize("offsets", [((0, 0), (3, -2), (300, 40)), ((5, 5), (5, 5), (4, 5))])
def test_bands_in_places_of_their_own(codec, engine, contract, offsets):
    sensor = Sensor(band_offsets=offsets)
    for metadata in (None, Metadata(nodata=7.0)):
        data = codec.encode_scene(ArraySource(scene(8, 3, 70, 90), metadata), 30, sensor=sensor).data
        same(data, engine, contract)


def test_illegal_places_are_refused_alike(codec, engine, contract):
    source = ArraySource(scene(8, 2, 20, 30))
    data = codec.encode_scene(source, 30, sensor=Sensor(band_offsets=((0, 0), (1, 2)))).data
    stream = parse_component_stream(data)
    segments = [write_parameters(0, stream.parameters[0]), write_component_segment(stream.segments[0])]

    def fate_of(*payloads: bytes, placed: bool = True) -> str:
        header = replace(stream.header, placed=placed)
        chunks = [fmt.write_chunk(0x0D, payload) for payload in payloads]
        both = write_component_stream(header, [*chunks, *segments])
        found = fate(both, engine, contract)
        assert found == plain_fate(both, contract)
        return found[0]

    right = bytes([1, 2, 0, 0])
    assert fate_of(right) == fate_of(right, right) == "decoded"
    for payloads in (
        (),
        (right[:3],),
        (right + b"\0",),
        (right, bytes(4)),
        (bytes([21, 0, 0, 0]),),
        (bytes([0, 32, 0, 0]),),
    ):
        assert fate_of(*payloads) == "refused", payloads
    assert fate_of(right, placed=False) == "refused"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99, 1.0])
def test_cut_segments(codec, engine, contract, share):
    stream = parse_component_stream(codec.encode_scene(ArraySource(scene(6, 3, 64, 64)), 40).data)
    segment = stream.segments[0]
    kept = segment._replace(words=segment.words[: int(share * len(segment.words))], cut=True)
    same(
        write_component_stream(
            stream.header, [write_parameters(0, stream.parameters[0]), write_component_segment(kept)]
        ),
        engine,
        contract,
    )


def fate(data: bytes, engine: GroundComponents, contract) -> tuple[str, bytes]:
    """What our decoder makes of bytes: refused, or the samples."""
    try:
        stream = parse_component_stream(data)
        decoder = ComponentDecoder(stream, engine)
        return "decoded", decoder.region(Region(0, 0, decoder.height, decoder.width)).samples.tobytes()
    except PerigeeError:
        return "refused", b""


def plain_fate(data: bytes, contract) -> tuple[str, bytes]:
    try:
        return "decoded", plain.decode_scene(contract, plain.read_stream(data)).samples.tobytes()
    except plain.Refused:
        return "refused", b""


@pytest.mark.parametrize("bounded", [False, True])
def test_the_same_mutated_streams_are_refused(codec, engine, contract, bounded):
    """Bytes of chunks change, and the CRCs are made right again, so that the rules themselves have to find it."""
    rng = np.random.default_rng(8)
    if bounded:
        data = within(codec, scene(7, 3, 9, 11), ErrorBounds((2,)), Metadata(nodata=9.0))
    else:
        data = codec.encode_scene(ArraySource(scene(7, 3, 64, 40), Metadata(nodata=9.0)), 12).data
    header = len(write_component_header(parse_component_stream(data).header))
    chunks, at = [], header
    while at < len(data):
        length, body = fmt.read_varint(data, at + 1)
        chunks.append(bytearray(data[at : body + length]))
        at = body + length + 4
    fates = []
    for _ in range(150):
        changed = [bytearray(chunk) for chunk in chunks]
        victim = changed[int(rng.integers(len(changed)))]
        victim[int(rng.integers(min(len(victim), 60 if bounded else 24)))] ^= 1 << int(rng.integers(8))
        hit = data[:header] + b"".join(bytes(c) + zlib.crc32(c).to_bytes(4, "little") for c in changed)
        ours, theirs = fate(hit, engine, contract), plain_fate(hit, contract)
        assert ours == theirs, hit.hex()
        fates.append(ours[0])
    assert {"decoded", "refused"} == set(fates)


@pytest.mark.parametrize(
    "name", ["steps", "shifts", "order", "lap", "cosine", "centroids", "magnitudes", "component_geometry"]
)
def test_the_same_contracts_are_refused(tmp_path, name):
    good = PROFILE.contract.arrays()
    rng = np.random.default_rng(9)
    fates = []
    for _ in range(4):
        array = good[name].copy()
        flat = array.reshape(-1)
        flat[int(rng.integers(flat.size))] = rng.integers(
            np.iinfo(array.dtype).min, np.iinfo(array.dtype).max, endpoint=True
        )
        np.savez(tmp_path / "contract.npz", **{**good, name: array})
        ours = theirs = "legal"
        try:
            load_component_contract(tmp_path / "contract.npz")
        except ProfileError:
            ours = "refused"
        try:
            plain.load_contract(str(tmp_path / "contract.npz"))
        except plain.Refused:
            theirs = "refused"
        assert ours == theirs
        fates.append(ours)
    assert fates


def example(name: str) -> bytes:
    (found,) = re.findall(rf"```hex {name}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return bytes.fromhex(found.replace("\n", " "))


def test_the_examples_of_the_page():
    header = ComponentHeader(bytes(range(8)), 640, 480, 4, "uint16", 256)
    assert write_component_header(header) == example("header2")
    matrix = np.array([[9830, 13107], [13107, -9830]], np.int16)
    spectral = Spectral(np.array([1200, -5], np.int32), np.array([512000, 128], np.uint32), matrix)
    assert write_parameters(0, Parameters(spectral, np.zeros((2, 256), np.int8))) == example("parameters")
    assert write_strip(3, 2, 1) == example("strip")
    assert pack_metadata(Metadata()) == b""
