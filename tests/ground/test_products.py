"""Honest output: what a GeoTIFF says beside its pixels comes back, checked with rasterio on real and made files."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import rasterio
import rasterio.warp
import tifffile
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo import cog_validate

import perigee
from perigee.bitstream.component_profile import find_component_profile
from perigee.bitstream.errors import MetadataError, OrderError
from perigee.bitstream.metadata import Acquisition, Metadata, Tag
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.decoder import SceneDecoder
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, Order, make
from perigee.ground.products import write_cog, write_png
from perigee.ground.regions import Region
from perigee.ground.views import view_of
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.raster import Raster
from perigee.support.files import replacing

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
REAL = [
    "aerial_jpeg_ycbcr_mask_ovr", "albers_i16_cog_nodata", "drone_rgba_u8_lzw_p2_alpha", "l7_rgb_u8_deflate_planar", "l8_b7_memphis_u16_cog",
    "naip_rgbn_u8x4", "odd_u8x3_35x37_be_nocrs", "pixel_u8x3_1x1", "rgb_u8_lerc_tiled_planar", "rgba_u8_bigtiff_zstd_alpha", "s1_grd_u16_gcp_cog",
    "s2_boadella_i16x12_be", "s2_eurosat_annualcrop_u16x13", "sat_u16x4_all_nodata", "umbra_sar_u8_rotated", "vhr_u16_rpc_lzw_p2",
]  # fmt: skip


def round_trip(path, out, encoder, ground, quality=40.0, acquisition=None):
    with Raster(path) as raster:
        data = encoder.encode_scene(raster, quality, acquisition).data
    if isinstance(ground, GroundComponents):
        decoder = ComponentDecoder(parse_component_stream(data), ground)
    else:
        decoder = SceneDecoder(parse_stream(data), ground)
    write_cog(out, decoder, view_of(decoder))
    return decoder


def compare(source_path, out_path, floor_db):
    with rasterio.open(source_path) as a, rasterio.open(out_path) as b:
        for name in (
            "crs",
            "transform",
            "width",
            "height",
            "count",
            "dtypes",
            "nodata",
            "descriptions",
            "scales",
            "offsets",
        ):
            assert getattr(a, name) == getattr(b, name) or name == "nodata" and np.isnan(a.nodata), name
        assert a.tags().get("AREA_OR_POINT") == b.tags().get("AREA_OR_POINT")
        assert [(g.row, g.col, g.x, g.y, g.z) for g in a.gcps[0]] == [(g.row, g.col, g.x, g.y, g.z) for g in b.gcps[0]]
        assert a.gcps[1] == b.gcps[1]
        assert (a.rpcs and a.rpcs.to_dict()) == (b.rpcs and b.rpcs.to_dict())
        masks = a.read_masks()
        assert np.array_equal(masks, b.read_masks())
        x, y = a.read().astype(float), b.read().astype(float)
        valid = masks > 0
        if a.nodata is not None:
            assert (y[~valid] == a.nodata).all() and not (y[valid] == a.nodata).any()
        if valid.any():
            peak = 255 if a.dtypes[0] == "uint8" else max(np.ptp(x[valid]), 1)
            mse = ((x - y)[valid] ** 2).mean()
            assert 10 * np.log10(peak**2 / max(mse, 1e-9)) > floor_db
    valid_cog, errors, _ = cog_validate(out_path)
    assert valid_cog, errors


@pytest.mark.parametrize("name", REAL)
def test_real_geotiffs_come_back_with_everything_but_exact_pixels(name, geotiffs, tmp_path, encoder, ground):
    out = tmp_path / "out.tif"
    round_trip(geotiffs / f"{name}.tif", out, encoder, ground)
    # a test card of saturated colours is far from any imagery: it decodes, and badly
    compare(geotiffs / f"{name}.tif", out, 9 if name == "rgba_u8_bigtiff_zstd_alpha" else 17)


@pytest.mark.parametrize("name", REAL)
def test_real_geotiffs_come_back_as_components_too(name, geotiffs, tmp_path):
    profile = find_component_profile("spectral1")
    out = tmp_path / "out.tif"
    round_trip(geotiffs / f"{name}.tif", out, ComponentEncoder(profile), GroundComponents(profile))
    compare(geotiffs / f"{name}.tif", out, 25)


def test_a_real_scene_comes_back(scenes, tmp_path, encoder, ground):
    source = scenes / "desert_naip1m_az.tif"
    round_trip(source, tmp_path / "out.tif", encoder, ground)
    compare(source, tmp_path / "out.tif", 27)


def made(path, data, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=data.shape[2],
            height=data.shape[1],
            count=len(data),
            dtype=data.dtype,
            **more,
        ) as out:
            out.write(data)
    return path


def smooth(rng, bands, rows, cols):
    y, x = np.mgrid[0:rows, 0:cols]
    return np.stack(
        [128 + 60 * np.sin(x / 17 + b) + 40 * np.cos(y / 23) + rng.normal(0, 3, (rows, cols)) for b in range(bands)]
    )


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32633", rasterio.Affine(10.0057, 0, 399960.25, 0, -9.9941, 5700000.125)),
        ("EPSG:4326", rasterio.Affine(1e-5, 2e-6, 10.123456789, 3e-6, -1.1e-5, 50.5)),
        (
            "+proj=laea +lat_0=52 +lon_0=10 +x_0=4321000 +y_0=3210000 +ellps=GRS80 +units=m",
            rasterio.Affine(20, 0, 4e6, 0, 20, 3e6),
        ),
        ("EPSG:32633+5773", rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)),
        (None, rasterio.Affine(2, 0, 7, 0, -2, 9)),
    ],
)
@pytest.mark.parametrize("point", [False, True])
def test_georeferencing_of_all_kinds(tmp_path, rng, encoder, ground, crs, transform, point):
    source = made(tmp_path / "in.tif", smooth(rng, 3, 70, 90).astype(np.uint8), crs=crs, transform=transform)
    if point:
        with rasterio.open(source, "r+") as target:
            target.update_tags(AREA_OR_POINT="Point")
    round_trip(source, tmp_path / "out.tif", encoder, ground)
    compare(source, tmp_path / "out.tif", 25)


@pytest.mark.parametrize("point", [False, True])
def test_ground_control_points(tmp_path, rng, encoder, ground, point):
    source = made(tmp_path / "in.tif", smooth(rng, 1, 64, 64).astype(np.uint8))
    with rasterio.open(source, "r+") as target:
        if point:
            target.update_tags(AREA_OR_POINT="Point")
        points = [
            GroundControlPoint(row=r, col=c, x=10 + c / 9, y=50 - r / 7, z=3) for r, c in ((0, 0), (60.5, 3), (7, 63))
        ]
        target.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    round_trip(source, tmp_path / "out.tif", encoder, ground)
    compare(source, tmp_path / "out.tif", 25)


def test_a_window_and_a_scale_keep_their_place_on_earth(tmp_path, rng, encoder, ground):
    source = made(
        tmp_path / "in.tif",
        smooth(rng, 3, 300, 530).astype(np.uint8),
        crs="EPSG:32633",
        transform=rasterio.Affine(2, 0, 100, 0, -2, 900),
    )
    with Raster(source) as raster:
        data = encoder.encode_scene(raster, 60).data
    decoder = SceneDecoder(parse_stream(data), ground)
    view = view_of(decoder, Region(37, 261, 200, 101), [3, 1], 4)
    write_cog(tmp_path / "out.tif", decoder, view)
    with rasterio.open(source) as a, rasterio.open(tmp_path / "out.tif") as b:
        assert (b.width, b.height, b.count) == (26, 50, 2)
        assert b.transform == rasterio.Affine(8, 0, 100 + 2 * 261, 0, -8, 900 - 2 * 37)
        block = a.read([3, 1])[:, 37:237, 261:361].reshape(2, 50, 4, 25, 4).mean((2, 4))
        assert np.abs(block - b.read()[:, :, :25].astype(float)).mean() < 2
    touched = {unit for unit in decoder._latents}
    assert touched <= {0, 1, 2, 3, 4, 5} and len(decoder.stream.segments) == 6


def test_a_reduced_window_is_placed_where_it_belongs(tmp_path, rng, encoder, ground):
    """The view's own grid counts, not the scene's: every row is written, and valid means do not turn into nodata."""
    source = made(tmp_path / "in.tif", smooth(rng, 1, 1300, 1200).astype(np.uint8), nodata=100)
    with Raster(source) as raster:
        data = encoder.encode_scene(raster, 40).data
    decoder = SceneDecoder(parse_stream(data), ground)
    full = perigee.decode(data).samples.astype(float)
    view = view_of(decoder, Region(5, 5, 1200, 1136), None, 16)
    small = perigee.decode(data, window=view.region, scale="1/16").samples
    assert small.shape == (1, 75, 71)
    assert np.abs(small - full[:, 5:1205, 5:1141].reshape(1, 75, 16, 71, 16).mean((2, 4))).max() < 3
    write_cog(tmp_path / "out.tif", decoder, view)
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(source) as a:
        assert np.array_equal(out.read(), small)
        whole = a.read_masks(1)[5:1205, 5:1141].reshape(75, 16, 71, 16).min((1, 3)) > 0
        assert (out.read_masks(1)[whole] > 0).all()


def test_units_and_datums_that_contradict_the_code_travel_as_keys(tmp_path, rng, encoder, ground):
    keys = (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 26917, 3076, 0, 1, 9003)
    tags = [
        (33550, "d", 3, (2.0, 2.0, 0.0), True),
        (33922, "d", 6, (0.0, 0, 0, 1e6, 2e6, 0), True),
        (34735, "H", len(keys), keys, True),
    ]
    tifffile.imwrite(tmp_path / "in.tif", smooth(rng, 1, 64, 64)[0].astype(np.uint8), extratags=tags)
    decoder = round_trip(tmp_path / "in.tif", tmp_path / "out.tif", encoder, ground)
    assert decoder.metadata.epsg is None and decoder.metadata.geokeys is not None
    with rasterio.open(tmp_path / "in.tif") as a, rasterio.open(tmp_path / "out.tif") as b:
        assert a.crs == b.crs and "foot" in a.crs.linear_units


def test_a_crs_that_nobody_knows_does_not_cost_the_pixels(tmp_path, rng, encoder, ground):
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 30000)
    tifffile.imwrite(
        tmp_path / "in.tif", smooth(rng, 1, 64, 64)[0].astype(np.uint8), extratags=[(34735, "H", len(keys), keys, True)]
    )
    data = perigee.encode(tmp_path / "in.tif")
    make(Order(unknown_crs="drop"), data, Library(threads=2), {IMAGE: tmp_path / "out.tif"})
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.crs is None and "30000" in out.tags()["PERIGEE_CRS_PROBLEM"]
    with pytest.raises(MetadataError, match="30000.*unknown-crs"):
        make(Order(), data, Library(threads=2), {IMAGE: tmp_path / "out.tif"})


def test_extreme_scenes(tmp_path, rng, encoder, ground):
    """Black, white, a checkerboard of single pixels, noise at the highest quality: all decode, sizes from one pixel on."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    cases = [
        np.zeros((64, 64)),
        np.full((64, 64), 255),
        board,
        rng.integers(0, 256, (65, 3)),
        np.full((1, 1), 7),
        rng.integers(0, 256, (1, 300)),
    ]
    for i, band in enumerate(cases):
        source = made(tmp_path / f"{i}.tif", np.stack([band] * 3).astype(np.uint8))
        round_trip(source, tmp_path / "out.tif", encoder, ground, quality=100)
        with rasterio.open(tmp_path / "out.tif") as out:
            error = np.abs(out.read().astype(float) - band).mean()
            # a checkerboard of single pixels lies outside the block transform: it comes back grey, but it comes back
            # a single pixel is all corner, where the synthesis is weakest
            assert error < (130 if np.ptp(band) else 20 if band.size == 1 else 2.5), (i, error)


def test_values_outside_the_coding_range_survive(tmp_path, rng, encoder, ground):
    data = rng.normal(1000, 30, (1, 256, 256)).astype(np.uint16)
    data[0, 100:104, 50:54] = 6000  # a bright roof: 16 of 65536 pixels
    source = made(tmp_path / "in.tif", data)
    round_trip(source, tmp_path / "out.tif", encoder, ground, quality=90)
    with rasterio.open(tmp_path / "out.tif") as out:
        found = out.read(1)
    assert found[101:103, 51:53].mean() > 3000
    assert np.abs(found[:80].astype(float) - data[0, :80]).mean() < 60


def test_png_of_one_and_three_bands(tmp_path, rng, encoder, ground):
    for bands, dtype in ((1, np.uint8), (3, np.uint8), (3, np.uint16), (5, np.uint8)):
        source = made(tmp_path / "in.tif", smooth(rng, bands, 64, 80).astype(dtype))
        with Raster(source) as raster:
            decoder = SceneDecoder(parse_stream(encoder.encode_scene(raster, 60).data), ground)
        write_png(tmp_path / "out.png", decoder, view_of(decoder))
        with rasterio.open(tmp_path / "out.png") as out:
            assert (out.driver, out.count, out.dtypes[0]) == ("PNG", 1 if bands == 1 else 3, np.dtype(dtype).name)
        assert not (tmp_path / "out.png.aux.xml").exists()


def test_a_png_is_refused_for_named_bands_that_it_cannot_hold_and_tells_what_it_holds_else(tmp_path, rng):
    for bands, held in ((2, 1), (4, 3)):
        data = perigee.encode(smooth(rng, bands, 64, 64).astype(np.uint8))
        out = tmp_path / f"{bands}.png"
        with pytest.raises(OrderError, match="one band or three"):
            make(Order("png", bands=tuple(range(1, bands + 1))), data, Library(), {IMAGE: out})
        assert not out.exists()
        found = make(Order("png"), data, Library(), {IMAGE: out})
        with rasterio.open(out) as product:
            assert product.count == len(found.view.bands) == held


@pytest.mark.parametrize("nodata", [None, 0, 65535])
def test_valid_pixels_of_a_png_are_opaque_whatever_bits_the_source_used(tmp_path, rng, nodata):
    valid = np.ones((1, 64, 64), bool)
    valid[0, :20] = False
    metadata = Metadata(nbits=12, nodata=nodata, masked=nodata is None)
    data = perigee.encode((smooth(rng, 1, 64, 64) * 10).astype(np.uint16), metadata=metadata, valid=valid)
    make(Order("png"), data, Library(), {IMAGE: tmp_path / "out.png"})
    with rasterio.open(tmp_path / "out.png") as out:
        samples, alpha = out.read()
    assert (alpha[:20] == 0).all() and (alpha[20:] == 65535).all() and samples[20:].max() < 4096


def test_an_alpha_band_of_fewer_bits_is_opaque_in_a_png(tmp_path, rng):
    picture = (smooth(rng, 4, 64, 64) * 10).astype(np.uint16)
    picture[3] = np.repeat([0, 2047, 4095, 4095], 16)
    source = made(tmp_path / "in.tif", picture, nbits=12, photometric="RGB", alpha="YES")
    make(Order("png"), perigee.encode(source), Library(), {IMAGE: tmp_path / "out.png"})
    with rasterio.open(tmp_path / "out.png") as out:
        alpha = out.read(4)
    assert sorted(set(alpha.flat)) == [0, round(2047 * 65535 / 4095), 65535]


def test_a_nodata_value_beyond_the_bits_of_the_samples_survives(tmp_path, rng):
    valid = np.ones((1, 64, 64), bool)
    valid[0, :20] = False
    for nodata, bits in ((65535, None), (4095, "12")):
        metadata = Metadata(nbits=12, nodata=nodata)
        data = perigee.encode((smooth(rng, 1, 64, 64) * 10).astype(np.uint16), metadata=metadata, valid=valid)
        make(Order(), data, Library(), {IMAGE: tmp_path / "out.tif"})
        with rasterio.open(tmp_path / "out.tif") as out:
            assert out.nodata == nodata and (out.read(1)[:20] == nodata).all()
            assert np.array_equal(out.dataset_mask() > 0, valid[0])
            assert out.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == bits


def test_tags_that_have_the_names_of_parameters_come_back(tmp_path, rng):
    tags = [Tag(name, f"<{name}> & {band}", band) for band in (0, 2) for name in ("ns", "bidx", "self")]
    metadata = Metadata(tags=tuple(tags), epsg=32633, transform=(1.0, 0.0, 5e5, 0.0, -1.0, 5e6))
    data = perigee.encode(smooth(rng, 3, 64, 64).astype(np.uint8), metadata=metadata)
    make(Order(bands=(1, 2)), data, Library(), {IMAGE: tmp_path / "out.tif"})
    with rasterio.open(tmp_path / "out.tif") as out:
        for tag in tags:
            assert out.tags(tag.band)[tag.name] == tag.value
        assert out.crs.to_epsg() == 32633 and out.tag_namespaces() == ["IMAGE_STRUCTURE", "DERIVED_SUBDATASETS"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


def test_the_provenance_of_a_product_that_is_encoded_again_is_told_apart(tmp_path, rng):
    source = made(tmp_path / "in.tif", smooth(rng, 3, 64, 64).astype(np.uint8))
    with rasterio.open(source, "r+") as target:
        target.update_tags(PERIGEE_GENERATED_DETAIL="YES", PERIGEE_LOST_UNITS="1 2", PERIGEE_QUALITY="7")
    for path in (tmp_path / "second.tif", tmp_path / "third.tif"):
        make(Order(), perigee.encode(source, 40), Library(), {IMAGE: path})
        source = path
    with rasterio.open(tmp_path / "second.tif") as out:
        tags = out.tags()
    assert (tags["PERIGEE_QUALITY"], tags["PERIGEE_SOURCE_QUALITY"]) == ("40", "7")
    assert "PERIGEE_LOST_UNITS" not in tags and tags["PERIGEE_SOURCE_LOST_UNITS"] == "1 2"
    with rasterio.open(tmp_path / "third.tif") as out:
        tags = out.tags()
    assert tags["PERIGEE_GENERATED_DETAIL"] == "YES", "its pixels still carry it"
    assert (tags["PERIGEE_SOURCE_QUALITY"], tags["PERIGEE_SOURCE_SOURCE_QUALITY"]) == ("40", "7")


def test_provenance_is_in_the_product(tmp_path, rng, encoder, ground, profile):
    source = made(tmp_path / "in.tif", smooth(rng, 3, 64, 64).astype(np.uint8))
    decoder = round_trip(
        source, tmp_path / "out.tif", encoder, ground, 40, Acquisition(gsd_m=0.5, sun_elevation_deg=33.5)
    )
    with rasterio.open(tmp_path / "out.tif") as out:
        tags = out.tags()
    assert tags["PERIGEE_CONTRACT"] == profile.contract.digest.hex()
    assert (tags["PERIGEE_LOSSY"], tags["PERIGEE_GENERATED_DETAIL"], tags["PERIGEE_QUALITY"]) == ("YES", "NO", "40")
    assert (tags["PERIGEE_GSD_M"], tags["PERIGEE_SUN_ELEVATION_DEG"]) == ("0.5", "33.5")
    assert decoder.provenance().items() <= tags.items()


def test_output_is_atomic(tmp_path):
    target = tmp_path / "x.tif"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_command_line(tmp_path, rng, encoder):
    source = made(tmp_path / "in.tif", smooth(rng, 3, 80, 64).astype(np.uint8))
    stream = tmp_path / "in.peri"
    with Raster(source) as raster:
        stream.write_bytes(encoder.encode_scene(raster, 50).data)

    def run(*args):
        command = [sys.executable, "-m", "perigee.ground", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    result = run(stream, "-o", tmp_path / "out.tif")
    assert result.returncode == 0 and "64x80 pixels" in result.stdout, result.stderr
    assert run(stream, "-o", tmp_path / "out.tif").returncode == 73
    assert '"width": 64' in run(stream, "--info").stdout
    assert run(tmp_path / "absent.peri").returncode == 66
    assert run(stream, "-o", tmp_path / "x.jpg").returncode == 64
    (tmp_path / "bad.peri").write_bytes(stream.read_bytes()[:-30])
    result = run(tmp_path / "bad.peri", "-o", tmp_path / "bad.tif")
    assert result.returncode == 65 and len(result.stderr.splitlines()) == 1 and not (tmp_path / "bad.tif").exists()
    data = bytearray(stream.read_bytes())
    data[6:14] = b"\0" * 8
    import zlib

    data[18:22] = zlib.crc32(data[:18]).to_bytes(4, "little")
    (tmp_path / "other.peri").write_bytes(data)
    result = run(tmp_path / "other.peri", "-o", tmp_path / "other.tif")
    assert result.returncode == 78 and "0000000000000000" in result.stderr and "flight" in result.stderr


def test_a_stac_item_says_where_when_and_whence(encoder, tiles, tmp_path):
    from perigee.ground.cli import main as decode

    with Raster(tiles[0]) as raster:
        (tmp_path / "s.peri").write_bytes(encoder.encode_scene(raster, 30).data)
    out, item = tmp_path / "o.tif", tmp_path / "o.json"
    assert decode([str(tmp_path / "s.peri"), "-o", str(out), "--stac", str(item), "--window", "0,64,128,128"]) == 0
    found = json.loads(item.read_text())
    assert found["properties"]["perigee:generated_detail"] == "NO" and found["properties"]["proj:shape"] == [128, 128]
    assert found["assets"]["image"]["href"] == "o.tif"
    with rasterio.open(out) as product:
        wanted = rasterio.warp.transform_bounds(product.crs, "EPSG:4326", *product.bounds)
        assert list(product.transform)[:6] == pytest.approx(found["properties"]["proj:transform"])
    assert found["bbox"] == pytest.approx(wanted, abs=1e-6)
    assert found["properties"]["datetime"] or found["properties"]["start_datetime"]
