"""For every TIFF that both can open, the samples, validity and metadata of our reader are GDAL's, or it refuses with a reason."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio

from perigee.bitstream.errors import MetadataError, RasterError
from perigee.ground.georeference import crs_of
from perigee.onboard.raster import Raster

warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
SPEC = importlib.util.spec_from_file_location("tiff_cases", Path(__file__).with_name("tiff_cases.py"))
tiff_cases = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiff_cases)
CASES = tiff_cases.cases()
MUST_BE_READ = (
    "layout-",
    "sparse-",
    "hole--9",
    "mask-",
    "alpha-",
    "described",
    "world-t",
    "pam",
    "xml-",
    "crs-",
    "overviews",
    "cog-",
)


def ours(path):
    """What our reader makes of a file, or the error with which it refuses."""
    try:
        with Raster(path) as raster:
            info = raster.info
            window = raster.read(0, 0, info.height, info.width)
            return raster.metadata, window, raster.left_behind
    except (RasterError, MetadataError) as error:
        return error


def theirs(path):
    """What GDAL makes of a file, or None where it cannot read it."""
    try:
        with rasterio.open(path) as source:
            data, masks = source.read(), source.read_masks()
            names = [c.name for c in source.colorinterp]
            return {
                "data": data, "masks": masks != 0, "alpha": names.index("alpha") if names.count("alpha") == 1 else None,
                "nodata": source.nodata, "crs": source.crs, "transform": source.transform, "names": names,
                "descriptions": source.descriptions, "scales": source.scales, "offsets": source.offsets, "units": source.units,
                "tags": {k: v for k, v in source.tags().items()}, "band_tags": [source.tags(b) for b in source.indexes],
                "nbits": source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"), "gcps": source.gcps, "rpcs": source.rpcs,
                "photometric": source.profile.get("photometric"),
            }  # fmt: skip
    except (rasterio.errors.RasterioError, rasterio.errors.RasterioIOError):
        return None


def compared(metadata, window, left_behind, want):
    """Names of what differs."""
    alpha = want["alpha"]
    count = len(want["data"])
    order = [b for b in range(count) if b != alpha]
    wrong = []
    if not np.array_equal(window.samples, want["data"][order]) and not (
        # JPEG libraries differ in how they enlarge subsampled colour, GDAL's from libjpeg-turbo by a few grey levels
        want["photometric"] == "ycbcr" and np.abs(window.samples.astype(int) - want["data"][order]).mean() < 1
    ):
        wrong.append("samples")
    valid = want["masks"][order]
    if alpha is not None:  # GDAL's masks know alpha only where it is the last of two or four bands
        valid = valid & (want["data"][alpha] != 0)
        if window.alpha is None or not np.array_equal(window.alpha, want["data"][alpha]):
            wrong.append("alpha")
    elif window.alpha is not None:
        wrong.append("alpha")
    if not np.array_equal(window.valid, valid) and not any("mask declares valid" in line for line in left_behind):
        wrong.append("validity")
    if metadata.nodata != want["nodata"] and not any("nodata" in line for line in left_behind):
        wrong.append(f"nodata {metadata.nodata} for {want['nodata']}")
    transform = rasterio.Affine.identity() if metadata.transform is None else rasterio.Affine(*metadata.transform)
    if not transform.almost_equals(want["transform"], 1e-9):
        wrong.append("transform")
    if not want["gcps"][0] and crs_of(metadata) != want["crs"]:
        wrong.append("crs")
    everything = [*order, *([] if alpha is None else [alpha])]
    for i, band in enumerate(everything):
        got = metadata.band_names[i] if i < len(metadata.band_names) else ""
        if got != (want["descriptions"][band] or ""):
            wrong.append(f"description of band {band + 1}")
        scale = metadata.scales[i] if i < len(metadata.scales) else (1.0, 0.0)
        if scale != (want["scales"][band], want["offsets"][band]):
            wrong.append(f"scale of band {band + 1}")
        if (metadata.units[i] if i < len(metadata.units) else "") != (want["units"][band] or ""):
            wrong.append(f"unit of band {band + 1}")
    if metadata.interpretations and [n.lower() for n in metadata.interpretations] != [
        want["names"][b] for b in everything
    ]:
        wrong.append("interpretations")
    if str(metadata.nbits or "") != (want["nbits"] or ""):
        wrong.append("nbits")
    if not any("tags" in line for line in left_behind):
        tags = {t.name: t.value for t in metadata.tags if t.band == 0 and not t.domain}
        file_tags = ("AREA_OR_POINT", "TIFFTAG_SOFTWARE", "TIFFTAG_XRES", "TIFFTAG_YRES", "TIFFTAG_RESOL", "OVR_")
        # of a text with a stray ampersand GDAL keeps what stands before it, we keep all
        if tags.get("N") != "R & D" and tags != {k: v for k, v in want["tags"].items() if not k.startswith(file_tags)}:
            wrong.append("tags")
    return wrong


@pytest.mark.parametrize(("name", "write"), CASES, ids=[name for name, _ in CASES])
def test_a_file_is_read_as_gdal_reads_it_or_refused(name, write, tmp_path):
    path = tmp_path / "case.tif"
    try:
        write(path)
    except (rasterio.errors.RasterioError, rasterio.errors.RasterioIOError) as error:
        pytest.skip(f"this GDAL cannot write it ({error})")
    want, got = theirs(path), ours(path)
    if isinstance(got, Exception):
        assert str(got) and not name.startswith(MUST_BE_READ), got
        return
    assert want is not None, "we read what GDAL refuses"
    assert not compared(*got, want)


def test_the_list_covers_the_options():
    assert len(CASES) >= 300
