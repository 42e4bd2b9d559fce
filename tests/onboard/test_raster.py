"""Windows out of GeoTIFFs equal what another reader gives, whatever the layout."""

import numpy as np
import pytest
import rasterio
import tifffile

from perigee.bitstream.errors import RasterError
from perigee.bitstream.samples import normalise
from perigee.onboard.encoder import fill_invalid
from perigee.onboard.ranges import coding_ranges
from perigee.onboard.raster import Raster

LAYOUTS = [
    {"planarconfig": "contig", "rowsperstrip": 7},
    {"planarconfig": "contig", "tile": (32, 48), "compression": "zlib", "predictor": 2},
    {"planarconfig": "separate", "rowsperstrip": 13, "compression": "lzw"},
    {"planarconfig": "separate", "tile": (16, 16), "bigtiff": True, "byteorder": ">"},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_windows_of_every_layout(tmp_path, rng, layout, dtype):
    info = np.iinfo(dtype)
    data = rng.integers(info.min, info.max, (3, 131, 97), dtype=dtype, endpoint=True)
    path = tmp_path / "x.tif"
    stored = data if layout["planarconfig"] == "separate" else data.transpose(1, 2, 0)
    tifffile.imwrite(path, stored, photometric="rgb" if dtype == "uint8" else "minisblack", **layout)
    with Raster(path) as raster:
        assert (raster.info.width, raster.info.height, raster.info.bands, raster.info.dtype) == (97, 131, 3, dtype)
        for top, left, rows, cols in [
            (0, 0, 131, 97),
            (5, 90, 3, 7),
            (60, 10, 64, 64),
            (130, 96, 1, 1),
            (0, 0, 40, 40),
        ]:
            window = raster.read(top, left, rows, cols)
            assert np.array_equal(window.samples, data[:, top : top + rows, left : left + cols])
            assert window.valid.all() and window.alpha is None


def test_real_files_read_as_gdal_reads_them(geotiffs):
    names = ["s2_boadella_i16x12_be", "l7_rgb_u8_deflate_planar", "drone_rgba_u8_lzw_p2_alpha", "albers_i16_cog_nodata", "naip_rgbn_u8x4",
             "rgb_u8_lerc_tiled_planar", "sat_u16x4_all_nodata", "s1_grd_u16_gcp_cog", "rgba_u8_bigtiff_zstd_alpha"]  # fmt: skip
    for name in names:
        with Raster(geotiffs / f"{name}.tif") as raster, rasterio.open(geotiffs / f"{name}.tif") as source:
            window = raster.read(0, 0, raster.info.height, raster.info.width)
            colour = source.read()
            if window.alpha is not None:
                assert np.array_equal(window.alpha, colour[3])
                colour = colour[:3]
            assert np.array_equal(window.samples, colour), name
            assert np.array_equal(window.valid, source.read_masks()[: len(colour)] > 0), name


def test_internal_mask_and_sidecar_mask(tmp_path, rng):
    data = rng.integers(1, 255, (1, 64, 80), np.uint8)
    mask = rng.integers(0, 2, (64, 80)).astype(bool)
    for internal in ("YES", "NO"):
        path = tmp_path / f"mask_{internal}.tif"
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
            rasterio.open(path, "w", driver="GTiff", width=80, height=64, count=1, dtype="uint8") as out,
        ):
            out.write(data)
            out.write_mask(mask)
        with Raster(path) as raster:
            assert raster.metadata.masked
            assert np.array_equal(raster.read(0, 0, 64, 80).valid[0], mask)


def test_coding_ranges_ignore_invalid_and_outlying_samples(tmp_path, rng):
    data = rng.normal(3000, 200, (300, 300)).clip(2000, 4000).astype(np.uint16)
    data[:50] = 0
    data[100, 100] = 65535
    path = tmp_path / "x.tif"
    with rasterio.open(path, "w", driver="GTiff", width=300, height=300, count=1, dtype="uint16", nodata=0) as out:
        out.write(data, 1)
    with Raster(path) as raster:
        ((low, high),) = coding_ranges(raster, 256)
    assert 2000 < low < 2600 and 3400 < high < 4500
    image = normalise(np.array([[[low, high, 65535]]], np.uint16), np.array([[low, high]], np.int32))
    assert image[0, 0, :2].tolist() == [0.0, 1.0] and 10 < image[0, 0, 2] < 40  # beyond 1, not clipped


def test_ranges_of_constant_and_empty_scenes(tmp_path):
    for value, nodata in ((7, None), (0, 0)):
        path = tmp_path / f"{value}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", width=20, height=20, count=1, dtype="int16", nodata=nodata
        ) as out:
            out.write(np.full((20, 20), value, np.int16), 1)
        with Raster(path) as raster:
            ((low, high),) = coding_ranges(raster, 256)
        assert high > low


def test_filling_invalid_samples_leaves_valid_ones_alone(rng):
    image = rng.random((3, 70, 65), np.float32)
    valid = rng.random((3, 70, 65)) < 0.3
    valid[:, :32, :32] = False  # whole blocks without a valid sample
    filled = fill_invalid(image, valid)
    assert np.array_equal(filled[valid], image[valid])
    assert filled.min() >= 0 and filled.max() <= 1
    assert filled[:, :16, :16].std() < 0.2


def test_broken_tags_are_a_raster_error(tmp_path, rng):
    """Random damage to the tags never escapes as another exception."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, rng.integers(0, 255, (64, 64, 3), np.uint8), photometric="rgb", compression="zlib")
    whole = path.read_bytes()
    bad = tmp_path / "bad.tif"
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            data[int(rng.integers(4, 400))] = int(rng.integers(256))
        bad.write_bytes(data)
        try:
            with Raster(bad) as raster:
                raster.read(0, 0, min(raster.info.height, 300), min(raster.info.width, 300))
        except RasterError:
            pass


@pytest.mark.parametrize("kind", ["pages", "thumbnail first", "ycbcr", "four bits", "alpha and nodata"])
def test_what_would_be_lost_silently_is_refused(tmp_path, rng, encoder, kind):
    path = tmp_path / "x.tif"
    data = rng.integers(0, 15, (64, 64, 3), np.uint8)
    if kind == "pages":
        tifffile.imwrite(path, data, photometric="rgb")
        tifffile.imwrite(path, data, photometric="rgb", append=True)
    elif kind == "thumbnail first":
        tifffile.imwrite(path, data, photometric="rgb", subfiletype=1)
    elif kind == "ycbcr":
        tifffile.imwrite(path, data, photometric="ycbcr", compression="zlib")
    elif kind == "four bits":
        with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", nbits=4) as out:
            out.write(data[..., 0], 1)
    else:
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=64,
            height=64,
            count=4,
            dtype="uint8",
            photometric="RGB",
            alpha="YES",
            nodata=0,
        ) as out:
            out.write(np.stack([np.zeros((64, 64), np.uint8)] * 3 + [np.full((64, 64), 255, np.uint8)]))
    with pytest.raises(RasterError), Raster(path) as raster:
        encoder.encode_scene(raster, 50)
