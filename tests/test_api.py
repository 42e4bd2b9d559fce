"""The Python interface: arrays and files to streams and back, typed errors, and imports only of what each side needs."""

import subprocess
import sys
from datetime import datetime, timezone

import numpy as np
import pytest
import rasterio

import perigee
from perigee.bitstream.errors import OrderError, ProfileError, RasterError, TruncatedError
from perigee.bitstream.metadata import Acquisition, Metadata, pack_metadata, write_metadata_packet


def picture(bands=3, rows=70, cols=90, dtype="uint8"):
    y, x = np.mgrid[0:rows, 0:cols]
    high = {"uint8": 200, "uint16": 9000, "int16": 5000}[dtype]
    wave = np.stack([0.5 + 0.3 * np.sin((x + 7 * b) / 9) + 0.1 * np.cos((y - 5 * b) / 7) for b in range(bands)])
    return np.rint(wave * high).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_an_array_comes_back(dtype):
    data = picture(4, dtype=dtype)
    valid = np.ones(data.shape[1:], bool)
    valid[:, :11] = False
    acquisition = Acquisition(timestamp=datetime(2024, 6, 1, tzinfo=timezone.utc), gsd_m=0.5)
    metadata = Metadata(epsg=32633, band_names=("a", "b", "c", "d"), acquisition=acquisition)
    image = perigee.decode(perigee.encode(data, 90, metadata=metadata, valid=valid))
    assert image.samples.dtype == dtype and image.samples.shape == data.shape and image.alpha is None
    assert (image.valid == valid).all() and image.metadata == metadata
    assert np.abs(image.samples.astype(float) - data)[image.valid].mean() < 0.03 * np.ptp(data)
    assert image.tags["PERIGEE_PROFILE"] == "spectral1" and not image.report.lost


def test_a_file_gives_the_stream_of_its_array_and_the_command(tiles, tmp_path):
    by_path = perigee.encode(tiles[0], 40)
    subprocess.run(
        [sys.executable, "-m", "perigee.onboard", str(tiles[0]), "-q", "40", "-o", str(tmp_path / "x.peri")],
        check=True,
        capture_output=True,
    )
    assert by_path == (tmp_path / "x.peri").read_bytes()
    with rasterio.open(tiles[0]) as source:
        array = source.read()
    assert (perigee.decode(tmp_path / "x.peri").samples == perigee.decode(perigee.encode(array, 40)).samples).all()


def test_windows_bands_and_scales():
    data = picture(5, 300, 280, "uint16")
    stream = perigee.encode(data, 70)
    whole = perigee.decode(stream)
    part = perigee.decode(stream, window=(40, 30, 100, 120), bands=(5, 2))
    assert np.abs(part.samples.astype(int) - whole.samples[[4, 1], 40:140, 30:150]).max() <= 2
    assert perigee.decode(stream, scale="1/4").samples.shape == (5, 75, 70)
    for wrong in ({"window": (0, 0, 301, 1)}, {"bands": (6,)}, {"scale": "1/3"}, {"window": (1, 2)}):
        with pytest.raises(OrderError):
            perigee.decode(stream, **wrong)


def test_a_grey_array_has_one_band():
    image = perigee.decode(perigee.encode(picture(1)[0], 60))
    assert image.samples.shape == (1, 70, 90)


def test_inspect_tells_of_streams_and_lone_packets(tmp_path):
    metadata = Metadata(epsg=32633, acquisition=Acquisition(gsd_m=0.5))
    stream = perigee.encode(picture(), 40, metadata=metadata)
    told = perigee.inspect(stream)
    assert (told["width"], told["height"], told["bands"], told["epsg"], told["quality"]) == (90, 70, 3, 32633, [40, 40])
    (tmp_path / "p").write_bytes(write_metadata_packet(pack_metadata(metadata)))
    lone = perigee.inspect(tmp_path / "p")
    assert lone["epsg"] == 32633 and lone["acquisition"]["gsd_m"] == 0.5 and "width" not in lone


def test_errors_are_typed_and_carry_data():
    for wrong in (
        picture().astype(np.float64),
        np.zeros((0, 4, 4), np.uint8),
        np.zeros((33, 4, 4), np.uint8),
        np.zeros(4),
    ):
        with pytest.raises(RasterError, match="accepted are") as caught:
            perigee.encode(wrong)
        assert caught.value.field == "samples" and caught.value.expected and caught.value.found
    with pytest.raises(RasterError, match="losslessly or within a bound"):
        perigee.encode(picture().astype(np.float32))
    with pytest.raises(RasterError, match="validity"):
        perigee.encode(picture(), valid=np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="quality 101"):
        perigee.encode(picture(), 101)
    with pytest.raises(ProfileError, match="flight3"):
        perigee.encode(picture(), profile="none")
    with pytest.raises(ProfileError, match="decodes streams and encodes nothing"):
        perigee.encode(picture(), profile="lite")
    with pytest.raises(TruncatedError) as short:
        perigee.decode(perigee.encode(picture())[:-3])
    assert short.value.offset_bytes is not None and short.value.data()["error"] == "TruncatedError"


@pytest.mark.parametrize(
    ("call", "absent"),
    [
        ("perigee.encode(numpy.zeros((3, 64, 64), 'uint8'))", {"rasterio", "fastapi", "torch", "perigee.ground"}),
        ("perigee.decode(data)", {"tifffile", "fastapi", "torch", "perigee.onboard"}),
        ("perigee.inspect(data)", {"tifffile", "rasterio", "onnxruntime", "fastapi", "torch"}),
        ("None", {"numpy", "perigee.bitstream"}),
    ],
)
def test_each_call_imports_what_it_needs_alone(call, absent, tmp_path):
    (tmp_path / "s.peri").write_bytes(perigee.encode(picture()))
    code = "import sys, perigee\n"
    if call != "None":
        code += f"import numpy\ndata = open({str(tmp_path / 's.peri')!r}, 'rb').read()\n{call}\n"
    code += f"found = {absent!r} & set(sys.modules)\nassert not found, found"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_array_comes_back_within_what_was_promised(rng):
    samples = rng.integers(100, 900, (2, 40, 50)).astype(np.uint16)
    assert np.array_equal(perigee.decode(perigee.encode(samples, max_error=0)).samples, samples)
    apart = np.abs(perigee.decode(perigee.encode(samples, max_error=(3, 0))).samples.astype(int) - samples)
    assert apart.reshape(2, -1).max(1).tolist() == [3, 0]
    relative = perigee.decode(perigee.encode(samples, max_relative_error=5)).samples.astype(int)
    assert (np.abs(relative - samples) <= 0.05 * samples).all()
    for wrong in ({"max_error": -1}, {"max_relative_error": 0}, {"max_error": 1, "max_relative_error": 1}):
        with pytest.raises(ValueError, match="accepted|either"):
            perigee.encode(samples, **wrong)
