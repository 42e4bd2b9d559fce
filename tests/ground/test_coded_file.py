"""Files of other codecs as image sources: pixels and georeferencing as GDAL has them, and clear errors for what is none."""

import numpy as np
import pytest
import rasterio
from PIL import Image

from perigee.bitstream.errors import RasterError
from perigee.ground.coded_file import BLOCK_PX, CodedFile
from perigee.ground.products import write_cog
from perigee.ground.regions import Region
from perigee.ground.views import view_of
from perigee.support.files import NotAFileError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def pixels(rows: int, cols: int, bands: int = 3) -> np.ndarray:
    y, x = np.mgrid[0:rows, 0:cols]
    return np.stack([(x + 2 * y + 40 * b) % 251 for b in range(bands)]).astype(np.uint8)


def whole(source: CodedFile) -> np.ndarray:
    out = np.zeros((source.bands, source.height, source.width), source.dtype)
    for place, block in source.blocks():
        out[:, place.top : place.bottom, place.left : place.right] = block.samples
    return out


@pytest.fixture
def jp2(tmp_path):
    """A georeferenced JPEG 2000 file, wider than what is read at once."""
    path = tmp_path / "a.jp2"
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", width=BLOCK_PX + 200, height=90, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), QUALITY=30, REVERSIBLE="NO",
    ) as file:  # fmt: skip
        file.write(pixels(90, BLOCK_PX + 200))
    return path


def test_jpeg2000_comes_with_its_place_and_its_coding(jp2, tmp_path):
    source = CodedFile(jp2)
    with rasterio.open(jp2) as file:
        assert np.array_equal(whole(source), file.read())
        place = file.transform
    assert source.metadata.epsg == 32633 and source.metadata.transform == tuple(place)[:6]
    assert source.coding.codec == "jpeg2000" and not source.coding.reversible
    assert source.provenance()["PERIGEE_SOURCE_CODEC"] == "jpeg2000"
    (found,) = [block for _, block in source.blocks(Region(10, 1000, 40, 20), [2, 0])]
    assert np.array_equal(found.samples, whole(source)[[2, 0], 10:50, 1000:1020]) and found.valid.all()
    write_cog(tmp_path / "out.tif", source, view_of(source))
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs.to_epsg() == 32633 and file.transform == place
        assert np.array_equal(file.read(), whole(source))


def test_jpeg_and_geotiffs_that_hold_it(tmp_path):
    Image.fromarray(pixels(64, 80).transpose(1, 2, 0)).save(tmp_path / "a.jpg", quality=80)
    source = CodedFile(tmp_path / "a.jpg")
    assert source.coding.codec == "jpeg" and source.metadata.transform is None and source.bands == 3
    with rasterio.open(
        tmp_path / "b.tif", "w", driver="GTiff", width=80, height=64, count=3, dtype="uint8", compress="JPEG", nodata=0
    ) as file:
        file.write(pixels(64, 80))
    source = CodedFile(tmp_path / "b.tif")
    (found,) = [block for _, block in source.blocks()]
    assert source.has_gaps and np.array_equal(found.valid, found.samples != 0)


def test_alpha_is_no_band(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=70, height=60, count=4, dtype="uint8", photometric="RGB",
                       alpha="YES") as file:  # fmt: skip
        file.write(pixels(60, 70, 4))
    source = CodedFile(tmp_path / "a.tif")
    (found,) = [block for _, block in source.blocks()]
    assert source.bands == 3 and source.metadata.alpha_band == 3 and np.array_equal(found.alpha, pixels(60, 70, 4)[3])


@pytest.mark.parametrize("kind", ["palette", "cmyk", "float", "nothing", "text", "cut"])
def test_what_is_no_such_image_is_refused(tmp_path, jp2, kind):
    path = tmp_path / "x"
    if kind == "palette":
        Image.fromarray(pixels(20, 20)[0]).convert("P").save(path, "PNG")
    elif kind == "cmyk":
        Image.fromarray(pixels(20, 20).transpose(1, 2, 0)).convert("CMYK").save(path, "JPEG")
    elif kind == "float":
        with rasterio.open(path, "w", driver="GTiff", width=9, height=9, count=1, dtype="float32") as file:
            file.write(np.ones((1, 9, 9), np.float32))
    elif kind == "cut":
        path.write_bytes(jp2.read_bytes()[:150])
    else:
        path.write_bytes(b"" if kind == "nothing" else b"no image at all")
    with pytest.raises(RasterError) as caught:
        CodedFile(path)
    assert str(path) in str(caught.value) or "header" in str(caught.value)


def test_folders_are_refused(tmp_path):
    with pytest.raises(NotAFileError):
        CodedFile(tmp_path)
