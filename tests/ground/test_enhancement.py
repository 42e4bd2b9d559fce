"""Enhanced images: what is added does not depend on the window that is asked for, and other images are left alone."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from scipy.fft import dctn

import perigee
from perigee.bitstream.errors import CompensationError, OrderError
from perigee.engines.enhancer import Enhancer
from perigee.engines.flight import FlightEngine
from perigee.engines.jpeg_cells import cells_of_file
from perigee.export.enhancement import export_enhancer
from perigee.ground.coded_file import CodedFile
from perigee.ground.enhancement import EnhancedSource
from perigee.ground.enhancing import Wish
from perigee.ground.library import Library
from perigee.ground.orders import Order, OrderLimits, open_source
from perigee.ground.products import write_cog
from perigee.ground.regions import Region
from perigee.ground.views import view_of
from perigee.ground.work import Task, perform
from perigee.models.enhancement import prior
from perigee.models.enhancement.network import SMALL

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


STRENGTH = {  # by step
    "jpeg2000": [[0.05, 0.0], [0.1, 1.0]], "jpeg": [[0.1, 1.0]], "unknown": [[0.1, 0.0]],
    "perigee": [[0.1, 1.0]], "jpeg2000, bands": [[0.05, 0.0], [0.1, 1.0]],
}  # fmt: skip
INTERVAL = {"jpeg2000": [[0.1, 2.0, 3.0]], "perigee": [[0.1, 2.0, 3.0]], "jpeg2000, bands": [[0.1, 2.0, 2.0]]}


@pytest.fixture(scope="module", params=["none", "generated"])
def folder(request, tmp_path_factory):
    """A small untrained network whose additions can be seen."""
    torch.manual_seed(5)
    network = prior.Enhancer(SMALL, request.param).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("enhancers") / "small"
    facts = {
        "prior": request.param,
        "preset": asdict(SMALL),
        "strength": STRENGTH,
        "interval": INTERVAL,
        "step": 7,
        "seconds": 60.0,
    }
    export_enhancer(facts | {"mean": network.state_dict()}, path, "small")
    return path


@pytest.fixture(scope="module")
def enhancer(folder):
    return Enhancer(folder, 1)


def coded(tmp_path, bands=3, dtype="uint8", rows=420, cols=900, **options) -> CodedFile:
    y, x = np.mgrid[0:rows, 0:cols]
    samples = np.stack([120 + 90 * np.sin(x / 17 + b) * np.cos(y / 29) for b in range(bands)]).astype(dtype)
    path = tmp_path / f"{bands}{dtype}.jp2"
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", width=cols, height=rows, count=bands, dtype=dtype, QUALITY=20, REVERSIBLE="NO",
        crs="EPSG:32633", transform=rasterio.Affine(2, 0, 5e5, 0, -2, 5e6), **options,
    ) as file:  # fmt: skip
        file.write(samples)
    return CodedFile(path)


def pixels(source, region=None, bands=None) -> np.ndarray:
    whole = region or Region(0, 0, source.height, source.width)
    out = np.zeros((len(bands) if bands else source.bands, whole.rows, whole.cols), source.dtype)
    for place, block in source.blocks(region, bands):
        out[(slice(None), *place.within(whole))] = block.samples
    return out


def test_what_is_added_does_not_depend_on_the_window(tmp_path, enhancer):
    file = coded(tmp_path)
    whole = pixels(EnhancedSource(file, enhancer, file.coding, seed=3))
    assert (whole != pixels(file)).mean() > 0.3
    for region in (Region(0, 0, 40, 40), Region(150, 300, 200, 500), Region(419, 0, 1, 900)):
        part = pixels(EnhancedSource(file, enhancer, file.coding, seed=3), region)
        assert np.array_equal(part, whole[:, region.top : region.bottom, region.left : region.right])
    swapped = pixels(EnhancedSource(file, enhancer, file.coding, seed=3), None, [2, 0])
    assert np.array_equal(swapped, whole[[2, 0]])
    if enhancer.tokens:
        assert not np.array_equal(pixels(EnhancedSource(file, enhancer, file.coding, seed=4)), whole)


def test_no_strength_is_the_input(tmp_path, enhancer):
    file = coded(tmp_path)
    source = EnhancedSource(file, enhancer, file.coding, strength=0)
    assert np.array_equal(pixels(source), pixels(file)) and source.provenance()["PERIGEE_ENHANCED"] == "NO"


def test_nothing_is_added_at_fine_steps_or_to_reversible_or_unknown_files(tmp_path, enhancer):
    file = coded(tmp_path, rows=70, cols=90)
    for change in ({"step": 0.04}, {"reversible": True}, {"codec": None}):
        source = EnhancedSource(file, enhancer, replace(file.coding, **change))
        assert np.array_equal(pixels(source), pixels(file)) and source.left_alone, change
    assert not EnhancedSource(file, enhancer, file.coding).left_alone


@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (2, "uint16")])
def test_fewer_than_three_bands_are_left_alone(tmp_path, enhancer, bands, dtype):
    file = coded(tmp_path, bands, dtype, 100, 120)
    source = EnhancedSource(file, enhancer, file.coding, overview=file.overview)
    assert np.array_equal(pixels(source), pixels(file)) and f"{bands} bands of {dtype}" in source.left_alone


def test_other_bands_are_enhanced_three_at_a_time_whatever_is_asked_for(tmp_path, enhancer):
    file = coded(tmp_path, 5, "uint16", rows=300, cols=500)
    source = EnhancedSource(file, enhancer, file.coding, overview=file.overview)
    assert [group.bands for group in source.groups] == [(0, 1, 2), (2, 3, 4)]
    assert [group.given for group in source.groups] == [(0, 1, 2), (3, 4)]
    whole, plain = pixels(source), pixels(file)
    assert all((whole[band] != plain[band]).any() for band in range(5))
    again = EnhancedSource(file, enhancer, file.coding, overview=file.overview)
    assert np.array_equal(pixels(again, Region(100, 200, 150, 300), [4, 1]), whole[[4, 1], 100:250, 200:500])
    assert source.provenance()["PERIGEE_ENHANCED_BANDS"] == "1 2 3 4 5"
    assert EnhancedSource(file, enhancer, file.coding).left_alone, "without their contrast"
    untrained = EnhancedSource(file, enhancer, replace(file.coding, codec="jpeg"), overview=file.overview)
    assert np.array_equal(pixels(untrained), plain)


def test_the_interval_follows_the_expected_error_and_the_marks_what_was_changed(tmp_path, enhancer):
    file = coded(tmp_path, rows=300, cols=300)
    source = EnhancedSource(file, enhancer, file.coding)
    source.check_interval()
    whole = Region(0, 0, 300, 300)
    width = source.half_width(0, whole)
    assert width.shape == (300, 300) and (width > 0).all() and width.std() > 0
    assert np.array_equal(source.half_width(0, Region(200, 100, 60, 90)), width[200:260, 100:190])
    plain = EnhancedSource(file, enhancer, file.coding, strength=0.5).half_width(0, whole)
    assert np.allclose(plain / width, 2.5 / 3.0)
    assert np.array_equal(source.generated_in(0, whole), (pixels(source) != pixels(file)).any(0))
    with pytest.raises(CompensationError, match="no uncertainty"):
        EnhancedSource(file, enhancer, replace(file.coding, codec="jpeg")).check_interval()
    with pytest.raises(CompensationError, match="not enhanced"):
        EnhancedSource(file, enhancer, file.coding, strength=0).check_interval()


def test_a_stream_is_enhanced_within_its_symbols(tmp_path, folder, rng):
    """By the name of the enhancer as a compensation; coded again, the result gives the received symbols as well as the base image does."""
    y, x = np.mgrid[0:300, 0:420]
    image = np.stack([120 + 60 * np.sin(x / 17 + k) * np.cos(y / 15) for k in range(3)]) + rng.normal(
        0, 9, (3, 300, 420)
    )
    data = perigee.encode(image.clip(0, 255).astype(np.uint8), 40)
    (tmp_path / "a.peri").write_bytes(data)
    library = Library([folder], 1)
    order = Order(compensation="small")
    source = open_source(order, data, library)
    whole = pixels(source)
    base = perigee.decode(data).samples
    assert (whole != base).mean() > 0.1 and source.provenance()["PERIGEE_HELD_TO_RECEIVED"] == "YES"
    part = pixels(open_source(order, data, library), Region(120, 30, 77, 300))
    assert np.array_equal(part, whole[:, 120:197, 30:330])
    engine = FlightEngine(source.source.engine.profile, 1)
    stream = source.source.stream
    received = source.source.received(0)
    again = [
        engine.analyse(x[None, :, :256, :256].astype(np.float32) / 255, stream.segments[0].quality_step)[0][0]
        for x in (whole, base)
    ]
    shares = [float((q == received).mean()) for q in again]
    assert shares[0] > 0.99 * shares[1]
    paths = [tmp_path / name for name in ("one.tif", "two.tif")]
    for path, wish in zip(paths, (None, Wish()), strict=True):
        perform(Task(order, tmp_path / "a.peri", {"image": path}, OrderLimits(), wish), library)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(OrderError, match="says itself"):
        perform(Task(order, tmp_path / "a.peri", {"image": paths[0]}, OrderLimits(), Wish("jpeg")), library)


def test_products_keep_their_place_and_say_what_was_done(tmp_path, enhancer):
    file = coded(tmp_path, rows=70, cols=90)
    source = EnhancedSource(file, enhancer, file.coding)
    write_cog(tmp_path / "out.tif", source, view_of(source))
    with rasterio.open(tmp_path / "out.tif") as found:
        assert found.crs.to_epsg() == 32633 and np.array_equal(found.read(), pixels(source))
        assert found.tags()["PERIGEE_GENERATED_DETAIL"] == found.tags()["PERIGEE_ENHANCED"] == "YES"
        assert found.tags()["PERIGEE_ENHANCER"] == "small" and found.tags()["PERIGEE_SOURCE_CODEC"] == "jpeg2000"


@pytest.mark.parametrize("subsampling", [0, 2])
def test_what_is_added_to_a_jpeg_stays_in_the_cells_of_its_luma(tmp_path, rng, subsampling):
    """The original lies there, so what is moved back comes closer to it."""
    y, x = np.mgrid[0:256, 0:256]
    shape = np.stack([120 + 60 * np.sin(x / 7 + k) * np.cos(y / 5) for k in range(3)], 2)
    original = (shape + rng.normal(0, 6, shape.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(original).save(tmp_path / "a.jpg", quality=60, subsampling=subsampling)
    cells = cells_of_file(tmp_path / "a.jpg")
    decoded = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB")).transpose(2, 0, 1).astype(np.float32) / 255
    added = rng.normal(0, 0.03, decoded.shape).astype(np.float32)
    held = cells.held(decoded, added, 256, 256)
    steps = np.array(Image.open(tmp_path / "a.jpg").quantization[0]).reshape(8, 8)

    def coefficients(image):
        luma = 255 * np.tensordot([0.299, 0.587, 0.114], image, 1) - 128
        blocks = luma.reshape(32, 8, 32, 8).transpose(0, 2, 1, 3)
        return dctn(blocks, axes=(2, 3), norm="ortho") / steps

    received = np.rint(coefficients(decoded))
    assert np.abs(coefficients(decoded + held) - received).max() < 0.502
    assert np.abs(coefficients(decoded + added) - received).max() > 1
    apart = [np.square(decoded + x - original.transpose(2, 0, 1) / 255).mean() for x in (added, held)]
    assert apart[1] < apart[0]
    assert np.array_equal(cells.held(decoded, added, 250, 256)[:, 248:], added[:, 248:])


def test_only_colour_jpegs_have_cells(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "grey.jpg")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    assert [cells_of_file(tmp_path / name) for name in ("grey.jpg", "a.png", "b.jpg")] == [None] * 3
