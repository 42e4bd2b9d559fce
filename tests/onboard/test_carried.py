"""What a GeoTIFF has comes back, or the encoder says what was left behind."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from perigee.ground.cli import main as decode

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def tiff(path, bands=4, dtype="uint16", after=None, **options):
    y, x = np.mgrid[0:64, 0:64]
    data = np.stack([1000 + 20 * x + 10 * y + 100 * b for b in range(bands)]).astype(dtype)
    layout = {"driver": "GTiff", "width": 64, "height": 64, "count": bands, "dtype": dtype, "crs": "EPSG:32633",
              "transform": from_origin(5e5, 4.6e6, 10, 10), "photometric": "MINISBLACK"} | options  # fmt: skip
    with rasterio.open(path, "w", **layout) as target:
        target.write(data)
    if after:
        with rasterio.open(path, "r+") as target:
            after(target)
    return path


def encode(path, *more):
    command = [sys.executable, "-m", "perigee.onboard", str(path), "--json", "--overwrite", *more]
    return subprocess.run(command, capture_output=True, text=True)


def round_trip(path):
    """The product of a file, opened; what the encoder said was left behind."""
    result = encode(path)
    assert result.returncode == 0, result.stderr
    out = path.with_name("product.tif")
    assert decode([str(path.with_suffix(".peri")), "-o", str(out), "--overwrite"]) == 0
    return out, json.loads(result.stdout)["left_behind"]


def test_units_tags_names_scales_and_interpretations_come_back(tmp_path):
    def full(target):
        target.scales, target.offsets = (1e-4, 2e-4, 3e-4, 4e-4), (1.0, 2.0, 3.0, 4.0)
        target.units = ("W/m2/sr/um", "", "K", "m")
        target.descriptions = ("blue", None, "red", "Größe")
        target.update_tags(SATELLITE="X-1", NOTE="R & D <one>")
        target.update_tags(2, WAVELENGTH="560")
        target.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]

    path = tiff(tmp_path / "a.tif", after=full)
    out, left_behind = round_trip(path)
    assert left_behind == []
    with rasterio.open(path) as a, rasterio.open(out) as b:
        assert (a.scales, a.offsets, a.units, a.descriptions) == (b.scales, b.offsets, b.units, b.descriptions)
        assert a.colorinterp == b.colorinterp and a.tags(2) == b.tags(2)
        assert {k: b.tags()[k] for k in a.tags()} == a.tags()


def test_the_alpha_band_keeps_its_place_and_its_name(tmp_path):
    def alpha_third(target):
        target.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha, ColorInterp.undefined]
        target.descriptions = ("a", "b", "coverage", "nir")
        target.units = ("", "", "%", "K")
        target.update_tags(4, WAVELENGTH="842")

    path = tiff(tmp_path / "a.tif", after=alpha_third)
    out, left_behind = round_trip(path)
    assert left_behind == []
    with rasterio.open(path) as a, rasterio.open(out) as b:
        assert (a.descriptions, a.units, a.colorinterp) == (b.descriptions, b.units, b.colorinterp)
        assert b.tags(4)["WAVELENGTH"] == "842" and np.array_equal(a.read(3), b.read(3))
    assert decode([str(path.with_suffix(".peri")), "-o", str(tmp_path / "nir.tif"), "--bands", "3"]) == 0
    with rasterio.open(tmp_path / "nir.tif") as nir:
        assert nir.descriptions == ("nir", "coverage") and nir.tags(1)["WAVELENGTH"] == "842"


def test_premultiplied_alpha_stays_premultiplied(tmp_path):
    path = tiff(tmp_path / "a.tif", 4, "uint8", photometric="RGB", ALPHA="PREMULTIPLIED")
    out, _ = round_trip(path)
    with tifffile.TiffFile(out) as product:
        assert [int(kind) for kind in product.pages[0].extrasamples] == [1]


def test_fewer_bits_than_the_type_come_back(tmp_path):
    for nbits in (10, 12):
        path = tiff(tmp_path / f"{nbits}.tif", 2, nbits=nbits)
        out, _ = round_trip(path)
        with rasterio.open(out) as product:
            assert product.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == str(nbits) and product.read().max() < 1 << nbits


def test_a_coordinate_epoch_comes_back(tmp_path):
    """GeoKey 5120, which GDAL writes for a dynamic CRS."""
    path = tmp_path / "a.tif"
    tiff(path, 1, crs=None)
    wkt = rasterio.crs.CRS.from_epsg(32633).to_wkt().replace('"', "&quot;")
    vrt = tmp_path / "a.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="64"><SRS coordinateEpoch="2021.5">{wkt}</SRS>'
        "<GeoTransform>5e5,10,0,4.6e6,0,-10</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    source = tmp_path / "epoch.tif"
    rasterio.shutil.copy(vrt, source, driver="GTiff")
    out, left_behind = round_trip(source)
    assert left_behind == []
    for name in (source, out):
        with tifffile.TiffFile(name) as file:
            page = file.pages[0]
            directory, doubles = page.tags[34735].value, page.tags[34736].value
        keys = {directory[i]: directory[i + 3] for i in range(4, len(directory), 4)}
        assert np.atleast_1d(doubles)[keys[5120]] == 2021.5, name


def test_what_is_not_carried_is_told_and_strict_refuses(tmp_path):
    cases = {
        "tags": tiff(tmp_path / "tags.tif", after=lambda t: t.update_tags(LONG=os.urandom(9000).hex())),
        "world": tiff(tmp_path / "world.tif", transform=None, crs=None),
        "RPB": tiff(tmp_path / "side.tif"),
        "IMAGERY": tiff(tmp_path / "domain.tif", after=lambda t: t.update_tags(ns="IMAGERY", SATELLITEID="X")),
        "GCPList": tiff(tmp_path / "pam.tif"),
    }
    (tmp_path / "world.tfw").write_text("ten\n")
    (tmp_path / "side.RPB").write_text("x")
    (tmp_path / "pam.tif.aux.xml").write_text("<PAMDataset><GCPList/></PAMDataset>")
    for word, path in cases.items():
        result = encode(path)
        assert result.returncode == 0, result.stderr
        told = json.loads(result.stdout)["left_behind"]
        assert any(word in line for line in told) and f"not carried: {told[0]}" in result.stderr, (word, told)
        strict = encode(path, "--strict")
        assert strict.returncode == os.EX_DATAERR and word in strict.stderr
    assert json.loads(encode(cases["tags"], "--tags-max", "30000").stdout)["left_behind"] == []
    assert json.loads(encode(cases["tags"], "--tags-max", "0").stdout)["left_behind"] != []


@pytest.mark.parametrize("code", [5972, 7415, 9518, 9705])
def test_a_compound_code_in_the_place_of_a_projected_one_gives_the_crs_that_gdal_reads(code, tmp_path):
    path = tmp_path / "a.tif"
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, code)
    places = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 5e5, 4.6e6, 0), True)]
    tifffile.imwrite(path, np.full((64, 64), 9, np.uint8), extratags=[*places, (34735, "H", 16, keys, True)])
    out, _ = round_trip(path)
    with rasterio.open(path) as a, rasterio.open(out) as b:
        assert a.crs == b.crs is not None


def test_tags_that_are_not_carried_are_reported(tmp_path):
    path = tmp_path / "a.tif"
    xmp = (700, "B", 8, b"<x:xmp/>", True)
    tifffile.imwrite(path, np.full((64, 64), 9, np.uint8), extratags=[xmp, (280, "H", 1, 3, True)], metadata=None)
    assert round_trip(path)[1] == ["MinSampleValue", "XMP metadata"]
    refused = encode(path, "--strict")
    assert refused.returncode == os.EX_DATAERR and "XMP" in refused.stderr


def test_a_name_as_long_as_the_file_system_allows_is_encoded(tmp_path):
    path = tiff(tmp_path / ("a" * 247 + ".tif"))
    assert encode(path, "-o", str(tmp_path / "out.peri")).returncode == 0


def test_nodata_for_some_bands_or_by_all_bands_together_is_refused(tmp_path):
    path = tiff(tmp_path / "a.tif", bands=2, dtype="uint8")
    aux = path.with_name("a.tif.aux.xml")
    aux.write_text("<PAMDataset><PAMRasterBand band='2'><NoDataValue>9</NoDataValue></PAMRasterBand></PAMDataset>")
    some = encode(path)
    aux.unlink()
    with rasterio.open(path, "r+") as target:
        target.update_tags(NODATA_VALUES="1 2")
    together = encode(path)
    assert some.returncode == together.returncode == os.EX_DATAERR
    assert "9, none" in some.stderr and "NODATA_VALUES" in together.stderr
