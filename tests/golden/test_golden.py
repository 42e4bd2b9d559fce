"""Streams of every released format version and profile decode to the same symbols for ever.

``PERIGEE_WRITE_GOLDEN=1 pytest tests/golden`` adds streams that are missing; it never rewrites one that is there.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile

from perigee.bitstream import format as fmt
from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.metadata import Acquisition
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import DEFAULT_PROFILE, find_profile, shipped_profiles
from perigee.engines.flight import FlightEngine
from perigee.ground.decoder import SceneDecoder
from perigee.ground.library import Library
from perigee.ground.regions import Region
from perigee.onboard.encoder import Encoder
from perigee.onboard.raster import Raster

FOLDER = Path(__file__).parent
STREAMS = sorted(FOLDER.glob("v1_*.peri"))


def described(data, coder="auto"):
    """What must never change: header, metadata, and the CRC-32 of every unit's symbols; and the mean of the pixels."""
    stream = parse_stream(data)
    decoder = SceneDecoder(stream, Library(threads=1).engine(stream.header.contract), coder)
    symbols = {}
    for unit, segment in sorted(stream.segments.items()):
        if segment.mode == fmt.NETWORK:
            symbols[str(unit)] = zlib.crc32(decoder.symbols(unit).q.astype("<i2").tobytes())
    whole = decoder.region(Region(0, 0, stream.header.height, stream.header.width))
    return {
        "header": [stream.header.contract.hex(), *list(vars(stream.header).values())[1:]],
        "metadata": stream.metadata.hex() if stream.metadata else "",
        "symbols": symbols,
        "cut": {str(unit): passes for unit, passes in decoder.report.cut.items()},
        "valid": int(whole.valid.sum()),
        "mean": round(float(whole.samples.astype(np.float64).mean()), 3),
    }


def make_sources(folder, tiles):
    """The scenes behind the golden streams: a plain tile, 16 bits with nodata and five bands, one whose segments are cut, and one
    of so many patches that it gets offsets of the tables."""
    tile = tifffile.imread(tiles[0])
    smooth = np.tile(tile[:96].transpose(2, 0, 1) // 8 + 100, (1, 1, 12))
    with rasterio.open(
        folder / "offsets.tif", "w", driver="GTiff", width=3072, height=96, count=3, dtype="uint8"
    ) as out:
        out.write(smooth)
    with rasterio.open(folder / "plain.tif", "w", driver="GTiff", width=256, height=256, count=3, dtype="uint8") as out:
        out.write(tile.transpose(2, 0, 1))
    data = np.stack([tile[:150, 30:130, b % 3].astype(np.uint16) * (11 + b) + 40 for b in range(5)])
    data[:, :20, :70] = 0
    data[2, 100:110, 50:60] = 0
    transform = rasterio.Affine(0.6, 0, 500000.3, 0, -0.6, 5e6)
    profile = {
        "driver": "GTiff",
        "width": 100,
        "height": 150,
        "count": 5,
        "dtype": "uint16",
        "nodata": 0,
        "crs": "EPSG:32611",
        "transform": transform,
    }
    with rasterio.open(folder / "bands.tif", "w", **profile) as out:
        out.write(data)
    return {
        "plain": (40, None),
        "offsets": (30, None),
        "bands": (70, Acquisition(gsd_m=0.6, sun_elevation_deg=-1.5, longitude_deg=-117.0, latitude_deg=45.0)),
    }


@pytest.mark.skipif("PERIGEE_WRITE_GOLDEN" not in os.environ, reason="writes golden streams; only on purpose")
def test_write_missing(tmp_path, tiles):
    for name in shipped_profiles():
        profile = find_profile(name)
        if name != DEFAULT_PROFILE and any(profile.contract.digest.hex() in stream.name for stream in STREAMS):
            continue  # superseded profiles may have no encoder any more
        encoder = Encoder(profile, FlightEngine(profile, 1))
        made = {}
        for kind, (quality, acquisition) in make_sources(tmp_path, tiles).items():
            with Raster(tmp_path / f"{kind}.tif") as raster:
                made[kind] = encoder.encode_scene(raster, quality, acquisition).data
        whole = parse_stream(made["plain"])
        cut = [fmt.write_segment(fmt.cut_segment(s, len(s.words) // 2)) for s in whole.segments.values()]
        made["cut"] = fmt.write_header(whole.header) + b"".join(cut) + fmt.write_end(len(cut))
        for kind, data in made.items():
            path = FOLDER / f"v{fmt.VERSION}_{name}_{profile.contract.digest.hex()}_{kind}.peri"
            if not path.exists():
                path.write_bytes(data)
                path.with_suffix(".json").write_text(json.dumps(described(data), indent=1) + "\n")


def test_there_is_a_golden_stream_of_every_shipped_profile():
    for name in shipped_profiles():
        digest = find_profile(name).contract.digest.hex()
        assert len([s for s in STREAMS if digest in s.name]) >= 3, name


@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.stem)
@pytest.mark.parametrize("coder", ["auto", "integer"])
def test_golden(path, coder):
    wanted = json.loads(path.with_suffix(".json").read_text())
    found = json.loads(json.dumps(described(path.read_bytes(), coder)))
    mean = wanted.pop("mean")
    assert found.pop("mean") == pytest.approx(mean, rel=1e-3)
    assert found == wanted


@pytest.mark.parametrize("path", STREAMS, ids=lambda p: p.stem)
def test_a_golden_stream_with_a_flipped_bit_is_refused(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(40):
        place, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
        data[place] ^= bit
        with pytest.raises(PerigeeError):
            parse_stream(bytes(data))
        data[place] ^= bit
