"""Every output tells which samples mean something: PNG, COG, JSON, STAC, also of damaged streams and behind alpha bands."""

import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

import perigee
from perigee.bitstream import format as fmt
from perigee.bitstream.parsing import parse_stream
from perigee.ground.cli import main
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, Order, make

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def library():
    return Library(threads=2)


def scene(bands, rows=64, cols=64, dtype="uint8", low=40, high=200):
    y, x = np.mgrid[0:rows, 0:cols]
    wave = np.stack([0.5 + 0.3 * np.sin((x + 7 * b) / 9) + 0.2 * np.cos((y - 5 * b) / 7) for b in range(bands)])
    return np.rint(low + (high - low) * np.clip(wave, 0, 1)).astype(dtype)


def tiff(path, data, mask=None, after=None, **options):
    layout = {"driver": "GTiff", "width": data.shape[2], "height": data.shape[1], "count": len(data), "dtype": data.dtype.name,
              "crs": "EPSG:32633", "transform": from_origin(5e5, 4.6e6, 10, 10)} | options  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "w", **layout) as target:
        target.write(data)
        if mask is not None:
            target.write_mask(mask)
        if after:
            after(target)
    return path


MASK = np.full((64, 64), 255, np.uint8)
MASK[:, :20] = 0


def sources(folder):
    """Scenes whose first 20 columns are invalid, each for another reason; the last has an alpha band."""
    nodata = scene(3, dtype="uint16", low=300, high=9000)
    nodata[:, :, :20] = 0
    yield "nodata", tiff(folder / "nodata.tif", nodata, nodata=0, photometric="RGB")
    yield "mask", tiff(folder / "mask.tif", scene(3), MASK, photometric="RGB")
    grey = scene(1, dtype="uint16", low=300, high=9000)
    yield "grey", tiff(folder / "grey.tif", grey, MASK)
    alpha = np.concatenate([scene(3), MASK[None]])
    yield "alpha", tiff(folder / "alpha.tif", alpha, photometric="RGB", ALPHA="YES")


def test_a_png_is_transparent_where_the_scene_is_invalid(tmp_path, library):
    for name, path in sources(tmp_path):
        out = tmp_path / f"{name}.png"
        make(Order("png"), perigee.encode(path), library, {IMAGE: out})
        with rasterio.open(out) as png:
            assert png.count in (2, 4), name
            valid = png.dataset_mask() > 0
            assert not valid[:, :20].any() and valid[:, 20:].all(), name


def test_a_png_of_a_whole_scene_has_no_alpha_band(tmp_path, library):
    make(Order("png"), perigee.encode(scene(3)), library, {IMAGE: tmp_path / "o.png"})
    with rasterio.open(tmp_path / "o.png") as png:
        assert png.count == 3


def test_statistics_are_of_valid_samples(tmp_path, library):
    for name, path in sources(tmp_path):
        made = make(Order("json"), perigee.encode(path, 80), library, {})
        for band in made.value["statistics"]:
            assert band["valid"] == 64 * 44, name
            assert band["min"] >= (250 if name in ("nodata", "grey") else 30), (name, band)
    nothing = np.zeros((1, 64, 64), np.uint8)
    data = perigee.encode(tiff(tmp_path / "empty.tif", nothing, nodata=0))
    assert make(Order("json"), data, library, {}).value["statistics"] == [
        {"band": 1, "valid": 0, "min": None, "max": None, "mean": None}
    ]


def damaged(data, chunk_number):
    """The stream with a bit flipped inside its segment of this number."""
    out, at = bytearray(data), fmt.read_header(data)[1]
    seen = 0
    while at < len(data):
        length, body = fmt.read_varint(data, at + 1)
        if data[at] == fmt.SEGMENT:
            if seen == chunk_number:
                out[body + length // 2] ^= 0xFF
                return bytes(out)
            seen += 1
        at = body + length + 4
    raise AssertionError("no such segment")


def test_a_product_tells_of_damage(tmp_path):
    stream, out, item = tmp_path / "s.peri", tmp_path / "o.tif", tmp_path / "i.json"
    stream.write_bytes(damaged(perigee.encode(tiff(tmp_path / "a.tif", scene(3, 300, 300))), 1))
    assert main([str(stream), "-o", str(out), "--damaged", "--stac", str(item)]) == 0
    with rasterio.open(out) as product:
        tags = product.tags()
        assert tags["PERIGEE_DAMAGE"].startswith("1 units lost") and tags["PERIGEE_LOST_UNITS"] == "1"
        assert not product.dataset_mask()[:256, 256:].any() and product.dataset_mask()[:256, :256].all()
    assert json.loads(item.read_text())["properties"]["perigee:lost_units"] == "1"
    assert main([str(stream), "-o", str(tmp_path / "o.png"), "--damaged"]) == 0
    with rasterio.open(tmp_path / "o.png") as png:
        assert not png.dataset_mask()[:256, 256:].any()
    sound = tmp_path / "sound.peri"
    sound.write_bytes(perigee.encode(tmp_path / "a.tif"))
    assert main([str(sound), "-o", str(tmp_path / "sound.tif")]) == 0
    with rasterio.open(tmp_path / "sound.tif") as product:
        assert "PERIGEE_DAMAGE" not in product.tags()


def test_a_lost_group_behind_an_alpha_band_is_transparent(tmp_path):
    """Four bands and alpha: two groups. Where one of them is lost, alpha must not declare the pixel valid."""
    data = np.concatenate([scene(4)[:3], MASK[None], scene(4)[3:]])
    stream = perigee.encode(tiff(tmp_path / "a.tif", data, photometric="RGB", ALPHA="YES"), profile="flight3")
    whole = perigee.decode(stream)
    assert (whole.alpha == MASK).all()
    for lost in (0, 1):
        found = perigee.decode(damaged(stream, lost), damaged=True)
        assert not found.alpha.any(), lost


def test_nodata_that_a_mask_declares_valid_does_not_stretch_the_range(tmp_path):
    data = scene(1, dtype="int16", low=100, high=900)
    data[0, :10, 20:40] = -32000
    path = tiff(tmp_path / "a.tif", data, MASK, nodata=-32000)
    with pytest.warns(UserWarning, match="mask declares valid"):
        stream = perigee.encode(path, 90, "flight3")
    found = perigee.decode(stream)
    assert not found.valid[0, :10, 20:40].any() and not found.valid[0, :, :20].any()
    low, high = parse_stream(stream).ranges[0]
    assert low > 0 and high < 1100
    assert np.abs(found.samples.astype(int) - data)[found.valid].max() < 60
