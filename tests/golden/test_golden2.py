"""Streams of format version 2 decode to the same latents and the same samples for ever, on every machine.

``PERIGEE_WRITE_GOLDEN=1 pytest tests/golden`` adds streams that are missing; it never rewrites one that is there.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from perigee.bitstream import format as fmt
from perigee.bitstream.component_profile import find_component_profile
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.manifest import COMPONENTS
from perigee.bitstream.metadata import Acquisition, Metadata
from perigee.bitstream.profile import shipped_profiles
from perigee.bitstream.version2 import write_component_segment, write_component_stream, write_parameters
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.library import Library
from perigee.ground.regions import Region
from perigee.onboard.bounded_encoder import BoundedEncoder, ErrorBounds
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.fidelity import Fidelity
from perigee.onboard.sensor import Sensor
from perigee.onboard.source import ArraySource

FOLDER = Path(__file__).parent
STREAMS = sorted(FOLDER.glob("v2_*.peri"))


def described(data: bytes, coder: str = "auto") -> dict:
    """What must never change: header, metadata, and the CRC-32 of every patch's latents and of all samples."""
    stream = parse_component_stream(data)
    profile = Library(threads=1).component_profiles[stream.header.contract]
    engine = GroundComponents(profile, synthesis=False)
    decoder = ComponentDecoder(stream, engine, coder)
    coded = [patch for patch, segment in sorted(stream.segments.items()) if segment.mode == fmt.NETWORK]
    whole = decoder.region(Region(0, 0, *stream.size))
    header = stream.header
    placed = {} if stream.places is None else {"places": stream.places.tolist()}
    return {
        "header": [header.contract.hex(), header.width, header.height, header.bands, header.dtype, header.patch_side],
        **placed,
        "metadata": stream.metadata.hex() if stream.metadata else "",
        "latents": {str(patch): zlib.crc32(decoder.latents(patch).q.astype("<i4").tobytes()) for patch in coded},
        "cut": {str(patch): passes for patch, passes in decoder.report.cut.items()},
        "valid": int(whole.valid.sum()),
        "samples": zlib.crc32(np.ascontiguousarray(whole.samples.astype(f"<{whole.samples.dtype.str[1:]}")).tobytes()),
    }


def scene(bands: int, rows: int, cols: int) -> np.ndarray:
    """A scene uint16 of common structure, some noise, nodata 0 and an outlier."""
    rng = np.random.default_rng(bands)
    y, x = np.mgrid[0:rows, 0:cols]
    shared = np.sin(x / 9) * np.cos(y / 23) + np.sin((x + 2 * y) / 41) + 0.3 * ((x // 16 + y // 24) % 2)
    samples = (
        1500 + 400 * np.arange(1, bands + 1)[:, None, None] * shared / bands + rng.normal(0, 12, (bands, rows, cols))
    )
    samples = np.clip(samples, 1, 65535).astype(np.uint16)
    samples[:, :30, :50] = 0
    samples[0, 60:63, 60:63] = 60000
    return samples


@pytest.mark.skipif("PERIGEE_WRITE_GOLDEN" not in os.environ, reason="writes golden streams; only on purpose")
def test_write_missing():
    for name in shipped_profiles(COMPONENTS):
        profile = find_component_profile(name)
        encoder = ComponentEncoder(profile)
        facts = Metadata(nodata=0.0, acquisition=Acquisition(gsd_m=10.0, sun_elevation_deg=33.5))
        made = {
            "pan": encoder.encode_scene(ArraySource(scene(1, 200, 150)), 35).data,
            "bands": encoder.encode_scene(ArraySource(scene(5, 130, 300), facts), 25).data,
            "strips": encoder.encode_scene(
                ArraySource(scene(3, 300, 70), facts), 0, strip_rows=1, fidelity=Fidelity((), (6,))
            ).data,
            "places": encoder.encode_scene(
                ArraySource(scene(3, 90, 110), facts), 30, sensor=Sensor(band_offsets=((0, 0), (5, -3), (9, -6)))
            ).data,
        }
        whole = parse_component_stream(made["pan"])
        segments = [
            write_component_segment(s._replace(words=s.words[: len(s.words) // 2], cut=True))
            for s in whole.segments.values()
        ]
        made["cut"] = write_component_stream(whole.header, [write_parameters(0, whole.parameters[0]), *segments])
        for kind, bounds in {
            "lossless": ErrorBounds((0,)),
            "bounded": ErrorBounds((0, 2, 9)),
            "relative": ErrorBounds(percent=2),
        }.items():
            source = ArraySource(scene(3, 70, 90), facts)
            made[kind] = BoundedEncoder(profile, bounds).encode_scene(source).data
        bits = np.random.default_rng(5).integers(0, 2**32, (2, 40, 30)).astype(np.uint32)
        floats = scene(2, 40, 30).astype(np.float32) / 7
        floats[:, 35:] = bits[:, 35:].view(np.float32)  # among them NaNs, infinities and subnormal numbers
        floats[0, 5, :3] = -0.0, np.inf, np.nan
        for kind, bounds in {"floats": ErrorBounds((0,)), "rounded": ErrorBounds((0, 0.5))}.items():
            made[kind] = BoundedEncoder(profile, bounds).encode_scene(ArraySource(floats, facts)).data
        classes = np.random.default_rng(6).integers(0, 9, (1, 40, 50)).astype(np.uint8).repeat(2, 1)
        palette = Metadata(palette=bytes(range(256)) * 3)
        encoder = BoundedEncoder(profile, ErrorBounds((0,)))
        made["classes"] = encoder.encode_scene(ArraySource(classes, palette)).data
        encoder = BoundedEncoder(profile, ErrorBounds((2,)), jpeg_ls=True)
        made["jpegls"] = encoder.encode_scene(ArraySource(scene(3, 70, 90), facts)).data
        for kind, data in made.items():
            path = FOLDER / f"v2_{name}_{profile.contract.digest.hex()}_{kind}.peri"
            if not path.exists():
                path.write_bytes(data)
                path.with_suffix(".json").write_text(json.dumps(described(data), indent=1) + "\n")


def test_there_is_a_golden_stream_of_every_shipped_profile():
    for name in shipped_profiles(COMPONENTS):
        digest = find_component_profile(name).contract.digest.hex()
        assert len([s for s in STREAMS if digest in s.name]) >= 4, name


@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.stem)
@pytest.mark.parametrize("coder", ["auto", "integer"])
def test_golden(path, coder):
    found = json.loads(json.dumps(described(path.read_bytes(), coder)))
    assert found == json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.stem)
def test_a_golden_stream_with_a_flipped_bit_is_refused(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(40):
        place, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
        data[place] ^= bit
        with pytest.raises(PerigeeError):
            parse_component_stream(bytes(data))
        data[place] ^= bit
