"""A stream as a GeoTIFF that exists nowhere: the samples of ``ground-decode``, decoded only where they are read, by every library."""

import contextlib
import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

import perigee
from perigee.bitstream.errors import ChecksumError, UnknownProfileError
from perigee.bitstream.metadata import Metadata
from perigee.ground.dataset import virtual_tiff
from perigee.ground.library import Library
from perigee.ground.orders import Order
from perigee.ground.tiff import LONG, Directory, first_directory, header_of, number
from perigee.ground.tiler import PerigeeReader
from perigee.ground.tiles import Cache
from perigee.ground.virtual import VirtualFile

SHARED = Path(os.environ.get("PERIGEE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
GEOTIFFS = sorted((SHARED / "data" / "geotiff").glob("*.tif"))
NOT_CODED = ("embedding_i8x64", "s1_complex_cint16_gcp", "aerial_jpeg_corrupt")
PLACE = Metadata(epsg=32633, transform=(2.0, 0.0, 5e5, 0.0, -2.0, 5e6))


@pytest.fixture(scope="module")
def library():
    return Library([], 2)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:1500, 0:2300]
    planes = [120 + 70 * np.sin(x / (23 + 3 * k)) * np.cos(y / 31) + 25 * ((x // 60 + y // 80) % 2) for k in range(3)]
    return (np.stack(planes) + rng.normal(0, 4, (3, 1500, 2300))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stream(image):
    return perigee.encode(image, 50, metadata=PLACE)


@pytest.fixture(scope="module")
def path(stream, tmp_path_factory):
    path = tmp_path_factory.mktemp("streams") / "scene.peri"
    path.write_bytes(stream)
    return path


@pytest.fixture(scope="module")
def decoded(stream):
    return perigee.decode(stream).samples


def test_only_what_is_touched_is_decoded(stream, library, decoded):
    tiff = virtual_tiff(stream, library)
    units = []
    symbols = tiff.tiles.source.symbols
    tiff.tiles.source.symbols = lambda unit, passes=None: units.append(unit) or symbols(unit, passes)
    header = tiff.read(0, 65_536)
    assert header[:4] == b"II*\0" and not units and tiff.tiles.windows_decoded == 0
    block = tiff.tiles.tile(0, 2, 4)
    assert np.array_equal(block.samples, decoded[:, 1024:1500, 2048:2300])
    assert tiff.tiles.windows_decoded == 1
    around = [9 * row + col for row in (3, 4, 5) for col in (3, 4, 5, 6, 7, 8)]
    assert sorted(set(units)) == around, "the last window, 476 x 1276 pixels, with a margin of 128"


def test_a_dataset_has_the_samples_of_the_decoder_and_overviews_like_them(path, decoded):
    with perigee.open(path) as dataset:
        assert (
            dataset.crs.to_epsg() == 32633
            and dataset.transform.a == 2
            and dataset.tags()["PERIGEE_PROFILE"] == "flight3"
        )
        assert dataset.overviews(1) == [2, 4, 8] and dataset.block_shapes == [(512, 512)] * 3
        part = dataset.read(window=Window(900, 800, 700, 333))
        assert np.array_equal(part, decoded[:, 800:1133, 900:1600])
        small = dataset.read(out_shape=(3, 188, 288))
        means = decoded[:, :1496, :2296].reshape(3, 187, 8, 287, 8).mean((2, 4))
        assert np.abs(small[:, :187, :287].astype(float) - means).mean() < 2.5
        assert np.array_equal(dataset.read(), decoded)


@pytest.mark.skipif(not GEOTIFFS, reason="the shared GeoTIFFs are not there")
@pytest.mark.parametrize("source", GEOTIFFS, ids=lambda p: p.stem)
def test_every_kind_of_geotiff_is_the_product_of_ground_decode(source, tmp_path, library):
    """Bands, masks, nodata, alpha, palettes, GCPs and CRS: sample by sample and tag by tag."""
    from perigee.bitstream.errors import RasterError
    from perigee.ground.orders import OrderLimits
    from perigee.ground.work import Task, perform

    data = b""
    for wanted in ({"quality": 60}, {"max_error": 1}, {"max_error": 0}):
        with contextlib.suppress(RasterError):
            data = data or perigee.encode(source, **wanted)
    if not data:
        assert source.stem in NOT_CODED
        return
    order = Order(unknown_crs="keep")
    (tmp_path / "a.peri").write_bytes(data)
    perform(Task(order, tmp_path / "a.peri", {"image": tmp_path / "a.tif"}, OrderLimits()), library)
    tiff = virtual_tiff(data, library, order)
    (tmp_path / "b.tif").write_bytes(tiff.read(0, tiff.size))
    with rasterio.open(tmp_path / "a.tif") as wanted, rasterio.open(tmp_path / "b.tif") as found:
        assert np.array_equal(found.read(), wanted.read(), equal_nan=True)
        assert np.array_equal(found.dataset_mask(), wanted.dataset_mask())
        for name in (
            "crs",
            "transform",
            "nodata",
            "colorinterp",
            "descriptions",
            "scales",
            "units",
            "gcps",
            "rpcs",
            "count",
            "dtypes",
        ):
            assert str(getattr(found, name)) == str(getattr(wanted, name)), name
        assert found.tags() == wanted.tags()


@pytest.mark.parametrize("bands", [2, 5])
def test_wide_scenes_of_components_are_the_decoder_s_as_well(bands):
    """What the synthesis adds depends on its windows, which are wider than those of colour."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:600, :1350]
    planes = np.stack([np.sin(y / 9 + k) + np.cos(x / 13 + k) + 2 for k in range(bands)]) / 4 * 3000
    data = perigee.encode((planes + rng.normal(0, 90, planes.shape)).clip(0, 9999).astype(np.uint16), 35)
    with perigee.open(data) as dataset:
        assert np.array_equal(dataset.read(), perigee.decode(data).samples)


def test_a_masked_scene_has_masks_at_all_sizes(library, image):
    valid = np.ones((1500, 2300), bool)
    valid[:, 1200:] = False
    data = perigee.encode(image, 40, metadata=Metadata(masked=True), valid=valid)
    with perigee.open(data) as dataset:
        assert np.array_equal(dataset.dataset_mask() > 0, valid)
        small = dataset.dataset_mask(out_shape=(375, 575))
        assert (small[:, :299] > 0).all() and not (small[:, 301:] > 0).any()


def test_a_large_scene_is_a_bigtiff_whose_offsets_name_its_tiles():
    tags = {258: number(3, 8), 259: number(3, 1), 262: number(3, 1), 277: number(3, 1), 284: number(3, 1)}
    directory = Directory(70_000, 70_000, 512, 512 * 512, tags)
    header, starts, size = header_of(
        [directory, Directory(35_000, 35_000, 512, 512 * 512, tags | {254: number(LONG, 1)})]
    )
    assert header[:4] == b"II+\0" and starts[0] % 65_536 == 0 and len(header) == starts[0]
    assert starts[1] - starts[0] == 137 * 137 * 512 * 512 and size == starts[1] + 69 * 69 * 512 * 512


def test_directories_that_take_the_file_beyond_four_gigabytes_make_it_a_bigtiff():
    rows = [Directory(512 * 14563, 512, 512, size, {}) for size in (262_144, 32_768)]
    assert header_of(rows)[0][:4] == b"II+\0" and header_of(rows[:1])[0][:4] == b"II*\0"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**17), st.integers(0, 2**17))
def test_ranges_are_pieces_of_the_whole(offset, length):
    tiff = test_ranges_are_pieces_of_the_whole.tiff
    whole = test_ranges_are_pieces_of_the_whole.whole
    assert tiff.read(offset, length) == whole[offset : offset + length]


@pytest.fixture(scope="module", autouse=True)
def small(library, image):
    tiff = virtual_tiff(perigee.encode(image[:, :300, :400], 40), library)
    test_ranges_are_pieces_of_the_whole.tiff = tiff
    test_ranges_are_pieces_of_the_whole.whole = tiff.read(0, tiff.size)


def test_the_cache_keeps_to_its_bound(stream, library):
    cache = Cache(9 << 20)
    tiff = virtual_tiff(stream, library, cache=cache, owner="a")
    for row in range(3):
        for col in range(5):
            tiff.tiles.tile(0, row, col)
            assert cache.bytes <= 9 << 20
    tiff.tiles.tile(2, 0, 0)
    cache.forget("a")
    assert cache.bytes == 0


def test_compensated_streams_open_as_well(path):
    wanted = perigee.decode(path, window=(0, 0, 256, 256), compensation="cosmic").samples
    with perigee.open(path, compensation="cosmic") as dataset:
        assert dataset.tags()["PERIGEE_GENERATED_DETAIL"] == "YES"
        assert np.array_equal(dataset.read(window=Window(0, 0, 256, 256)), wanted)


def test_damage_is_an_error_where_it_is_read_and_nowhere_else(stream, decoded):
    data = bytearray(stream)
    data[len(data) // 2] ^= 1
    with pytest.raises(ChecksumError):
        perigee.open(bytes(data))
    with perigee.open(bytes(data), damaged=True) as dataset:
        mask = dataset.dataset_mask()
        assert 0 < (mask == 0).sum() <= 2 * 256 * 256
        assert np.array_equal(dataset.read(1)[mask > 0][:1000], decoded[0][mask > 0][:1000])
    foreign = stream.replace(bytes.fromhex(perigee.inspect(stream)["contract"]), bytes(8), 1)
    with pytest.raises((UnknownProfileError, ChecksumError)):
        perigee.open(foreign)


def test_xarray_opens_streams_lazily(path, decoded):
    with xarray.open_dataset(path) as scene:
        assert scene.band_data.dims == ("band", "y", "x") and scene.band_data.dtype == np.uint8
        assert float(scene.x[0]) == 5e5 + 1 and float(scene.y[1]) == 5e6 - 3
        part = scene.band_data.sel(band=[3, 1]).isel(y=slice(100, 160, 7), x=[5, 1, 900])
        assert np.array_equal(part.values, decoded[[2, 0], 100:160:7][:, :, [5, 1, 900]])
        assert int(scene.band_data[1, 700, 800]) == decoded[1, 700, 800]
        assert "32633" in scene.spatial_ref.attrs["crs_wkt"] or "UTM zone 33N" in scene.spatial_ref.attrs["crs_wkt"]


def test_xarray_is_read_by_many_threads_and_by_other_processes(path, decoded):
    with xarray.open_dataset(path) as scene:
        places = [(y, x) for y in range(0, 1500, 250) for x in range(0, 2300, 460)]

        def equal(place):
            y, x = place
            part = scene.band_data[:, y : y + 250, x : x + 460].values
            return np.array_equal(part, decoded[:, y : y + 250, x : x + 460])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(equal, places * 3))
        again = pickle.loads(pickle.dumps(scene))
        assert np.array_equal(again.band_data[0, :9, :9].values, decoded[0, :9, :9])
        again.close()


def test_a_virtual_file_is_a_file(stream, library):
    tiff = virtual_tiff(stream, library)
    with io.BufferedReader(VirtualFile(tiff)) as file:
        assert file.read(4) == b"II*\0" and file.seek(-3, 2) == tiff.size - 3 and len(file.read()) == 3


def test_rio_tiler_and_titiler_make_tiles(path, decoded):
    with PerigeeReader(str(path)) as reader:
        part = reader.part(reader.dataset.bounds, max_size=256, bounds_crs=reader.dataset.crs)
        assert part.data.shape == (3, 167, 256)
        preview = reader.preview(max_size=128)
        assert preview.mask.all()
    from fastapi import FastAPI
    from titiler.core.factory import TilerFactory

    app = FastAPI()
    app.include_router(TilerFactory(reader=PerigeeReader).router)
    with TestClient(app) as client:
        info = client.get("/info", params={"url": str(path)})
        assert info.status_code == 200 and info.json()["count"] == 3
        with PerigeeReader(str(path)) as reader:
            tms = reader.tms
            lon, lat = reader.get_geographic_bounds(tms.rasterio_geographic_crs)[:2]
            tile = tms.tile(lon + 0.01, lat + 0.01, 14)
        answer = client.get(f"/tiles/WebMercatorQuad/{tile.z}/{tile.x}/{tile.y}.png", params={"url": str(path)})
        assert answer.status_code == 200 and answer.content.startswith(b"\x89PNG")


def test_first_directory_reads_what_gdal_writes(tmp_path):
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=40, height=30, count=2, dtype="int16", nodata=-7
    ) as file:
        file.update_tags(NAME="x" * 100)
    tags = first_directory(tmp_path / "a.tif")
    assert tags[42113][2] == b"-7\0" and b"x" * 100 in tags[42112][2] and 273 not in tags
    (tmp_path / "b.tif").write_bytes(b"MM\0*" + bytes(20))
    with pytest.raises(ValueError, match="little-endian"):
        first_directory(tmp_path / "b.tif")
