"""What is promised of every sample is kept, on real scenes and on odd ones, from the command to the product."""

import re
from fractions import Fraction

import av
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perigee.bitstream.bounded import SHARE_BITS
from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.errors import PerigeeError, RasterError
from perigee.bitstream.metadata import Metadata
from perigee.bitstream.version2_parsing import parse_component_stream
from perigee.engines.ground_components import GroundComponents
from perigee.ground import cli as ground_cli
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.inspection import inspect
from perigee.ground.regions import Region
from perigee.onboard import cli
from perigee.onboard.bounded_encoder import BoundedEncoder, ErrorBounds
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.raster import Raster
from perigee.onboard.sensor import Sensor
from perigee.onboard.source import ArraySource

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
BOUNDS = [ErrorBounds((k,)) for k in (0, 1, 2, 4, 16)] + [ErrorBounds(percent=1)]


@pytest.fixture(scope="module")
def engine():
    return GroundComponents(find_component_profile(DEFAULT_COMPONENTS), synthesis=False)


def kept(source, bounds: ErrorBounds, engine) -> int:
    """Encode and decode a source, and check the bound on every valid sample; the stream's bytes."""
    scene = BoundedEncoder(engine.profile, bounds).encode_scene(source)
    decoder = ComponentDecoder(parse_component_stream(scene.data), engine)
    whole = decoder.region(Region(0, 0, decoder.height, decoder.width))
    block = source.read(0, 0, source.info.height, source.info.width)
    assert np.array_equal(whole.valid, block.valid)
    if source.info.dtype == "float32":
        floats_kept(block.samples[block.valid], whole.samples[block.valid], bounds)
        return scene.size
    wanted, found = block.samples.astype(np.int64), whole.samples.astype(np.int64)
    allowed = [b.allowed(band) for b, band in zip(bounds.of_bands(source.info), wanted, strict=True)]
    assert (np.abs(found - wanted) <= allowed)[block.valid].all()
    largest = np.where(block.valid, np.abs(found - wanted), 0).reshape(len(wanted), -1).max(1)
    assert scene.errors.largest.tolist() == largest.tolist()
    return scene.size


def floats_kept(wanted, found, bounds: ErrorBounds) -> None:
    """Check bounds of float32 samples with numbers that cannot be rounded. All bands have the same bound."""
    finite = np.isfinite(wanted)
    assert np.array_equal(np.isnan(wanted), np.isnan(found))
    exact = wanted[~np.isnan(wanted) & ~finite], found[~np.isnan(wanted) & ~finite]
    assert exact[0].tobytes() == exact[1].tobytes() and np.isfinite(found[finite]).all()
    if bounds.lossless:
        assert wanted[finite].tobytes() == found[finite].tobytes()
    moved = np.flatnonzero(finite & (wanted != found))
    for x, y in zip(wanted[moved[:5000]].tolist(), found[moved[:5000]].tolist(), strict=True):
        off, share = abs(Fraction(x) - Fraction(y)), Fraction(bounds.percent) / 100
        assert off <= (share * abs(Fraction(x)) if share else Fraction(bounds.counts[0]))


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_the_bound_holds_on_every_real_tile(bounds, multiband, engine):
    for path in sorted((multiband / "eval" / "tiles").rglob("*.tif")):
        with Raster(path) as raster:
            kept(raster, bounds, engine)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_the_bound_holds_on_every_geotiff_that_is_accepted(bounds, geotiffs, engine):
    accepted = 0
    for path in sorted(geotiffs.glob("*.tif")):
        try:
            with Raster(path) as raster:
                kept(raster, bounds, engine)
        except PerigeeError:
            continue
        accepted += 1
    assert accepted >= 10


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_bound_holds_on_odd_images(engine, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16"]))
    limits = np.iinfo(dtype)
    shape = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    kind = data.draw(st.sampled_from(["noise", "steps", "saturated", "constant", "checkerboard"]))
    samples = {
        "noise": lambda: rng.integers(limits.min, limits.max + 1, shape),
        "steps": lambda: np.cumsum(rng.integers(-9, 10, shape), 2),
        "saturated": lambda: rng.choice([limits.min, limits.max, 7], shape),
        "constant": lambda: np.full(shape, rng.integers(limits.min, limits.max + 1)),
        "checkerboard": lambda: np.where(np.indices(shape).sum(0) % 2, limits.max, limits.min),
    }[kind]()
    samples = np.clip(samples, limits.min, limits.max).astype(dtype)
    valid = rng.random(shape[1:]) < 0.7 if data.draw(st.booleans()) else None
    bounds = data.draw(st.sampled_from([*BOUNDS, ErrorBounds((300,)), ErrorBounds(percent=50)]))
    kept(ArraySource(samples, None, valid), bounds, engine)


@pytest.mark.parametrize("nodata", [0, 100, 102, 65535])
def test_a_valid_sample_is_never_moved_out_of_its_bound_by_what_means_no_data(nodata, engine, rng):
    samples = rng.integers(95, 110, (2, 40, 50)).astype(np.uint16)
    samples[:, :, :3] = nodata
    for bounds in BOUNDS:
        kept(ArraySource(samples, Metadata(nodata=float(nodata))), bounds, engine)


def test_bands_may_have_bounds_of_their_own_and_places(engine, rng):
    samples = (1000 + 50 * np.sin(np.mgrid[0:90, 0:80].sum(0) / 9) + rng.normal(0, 5, (3, 90, 80))).astype(np.uint16)
    assert kept(ArraySource(samples), ErrorBounds((0, 9, 40)), engine) < kept(
        ArraySource(samples), ErrorBounds((0,)), engine
    )
    scene = BoundedEncoder(engine.profile, ErrorBounds((0,))).encode_scene(
        ArraySource(samples), sensor=Sensor(band_offsets=((0, 0), (3, -2), (5, 7)))
    )
    decoder = ComponentDecoder(parse_component_stream(scene.data), engine)
    assert np.array_equal(decoder.region(Region(0, 0, 90, 80)).samples, samples)
    with pytest.raises(RasterError, match="2 bounds for 3 bands"):
        kept(ArraySource(samples), ErrorBounds((0, 1)), engine)


def test_enlarged_bands_cost_next_to_nothing_more(engine, rng):
    small = rng.integers(0, 4000, (1, 60, 60)).astype(np.uint16)
    whole = kept(ArraySource(small.repeat(3, 1).repeat(3, 2)), ErrorBounds((0,)), engine)
    assert whole < 1.35 * kept(ArraySource(small), ErrorBounds((0,)), engine)


@pytest.fixture
def tile(tmp_path, rng):
    samples = (1000 + 50 * np.sin(np.mgrid[0:300, 0:280].sum(0) / 9) + rng.normal(0, 5, (3, 300, 280))).astype(
        np.uint16
    )
    path = tmp_path / "scene.tif"
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(path, "w", driver="GTiff", width=280, height=300, count=3, dtype="uint16", **place) as file:
        file.write(samples)
    return path


@pytest.mark.parametrize(
    ("options", "tags"),
    [
        (["--lossless"], {"PERIGEE_MAX_ERROR": "0 0 0", "PERIGEE_ONBOARD_LARGEST_ERROR": "0 0 0"}),
        (["--max-error", "4"], {"PERIGEE_MAX_ERROR": "4 4 4", "PERIGEE_ONBOARD_LARGEST_ERROR": "4 4 4"}),
        (["--max-error", "0,1,2", "--verify"], {"PERIGEE_MAX_ERROR": "0 1 2"}),
        (["--max-relative-error", "1"], {"PERIGEE_MAX_RELATIVE_ERROR": "0.009995 0.009995 0.009995"}),
    ],
)
def test_the_product_says_what_was_promised(tile, options, tags):
    stream, out = tile.with_suffix(".peri"), tile.with_name("out.tif")
    assert cli.main([str(tile), *options]) == 0
    assert ground_cli.main([str(stream), "-o", str(out)]) == 0
    with rasterio.open(tile) as original, rasterio.open(out) as product:
        apart = np.abs(product.read().astype(int) - original.read())
        assert tags.items() <= product.tags().items() and product.transform == original.transform
        assert product.tags()["PERIGEE_LOSSY"] == ("NO" if "--lossless" in options else "YES")
        assert product.tags()["PERIGEE_SYNTHESIS"] == "NO" and product.tags()["PERIGEE_PRECISION"] == "integers"
    if "--max-relative-error" not in options:
        bounds = [int(k) for k in tags["PERIGEE_MAX_ERROR"].split()]
        assert apart.reshape(3, -1).max(1).tolist() == bounds
    else:
        with rasterio.open(tile) as original:
            assert (apart <= original.read().astype(int) * int(0.01 * (1 << SHARE_BITS)) >> SHARE_BITS).all()


def test_a_lost_patch_is_reported_and_the_others_stay_exact(tile):
    assert cli.main([str(tile), "--lossless"]) == 0
    data = bytearray(tile.with_suffix(".peri").read_bytes())
    data[len(data) // 2] ^= 1
    tile.with_suffix(".peri").write_bytes(bytes(data))
    out = tile.with_name("out.tif")
    assert ground_cli.main([str(tile.with_suffix(".peri")), "-o", str(out)]) == 65
    assert ground_cli.main([str(tile.with_suffix(".peri")), "-o", str(out), "--damaged"]) == 0
    with rasterio.open(tile) as original, rasterio.open(out) as product:
        same = (product.read() == original.read()).all(0)
    patches = [same[r : r + 256, c : c + 256].all() for r in (0, 256) for c in (0, 256)]
    assert sum(patches) == 3


@pytest.mark.parametrize(
    "options",
    [
        ["--lossless", "-q", "40"], ["--lossless", "--max-error", "2"], ["--max-error", "-1"], ["--max-error", "nan"],
        ["--max-relative-error", "0"], ["--max-relative-error", "51"], ["--lossless", "--format", "1"], ["--lossless", "--strip-rows", "1"],
        ["--jpeg-ls"], ["--max-relative-error", "1", "--jpeg-ls"],
    ],
)  # fmt: skip
def test_contradictions_are_usage_errors(tile, options):
    with pytest.raises(SystemExit) as error:
        cli.main([str(tile), *options])
    assert error.value.code == 64


@pytest.mark.parametrize(
    "options", [["--max-error", "1.5"], ["--max-error", "70000"], ["--max-error", "300", "--jpeg-ls"]]
)
def test_bounds_that_the_samples_cannot_have_are_told(tile, options, capsys):
    assert cli.main([str(tile), *options]) == 65
    assert re.search("accepted are|keeps bounds", capsys.readouterr().err)
    assert not tile.with_suffix(".peri").exists()


def test_a_profile_of_colours_has_no_bounds(tile, capsys):
    assert cli.main([str(tile), "--lossless", "--profile", "flight3"]) == 78
    assert "spectral1" in capsys.readouterr().err


def test_lossy_modes_predict_where_that_is_cheaper_and_no_worse(multiband, engine):
    """Fine qualities bring real tiles back exactly; bytes never fall and errors never rise on the way, also where samples repeat."""
    codec = ComponentEncoder(engine.profile)
    for name in ("s2l1c_chinco_13b_0", "l8l1_224077_0"):
        (path,) = (multiband / "eval" / "tiles").rglob(f"{name}.tif")
        sizes, errors, predicted = [], [], []
        with Raster(path) as raster:
            for quality in (30, 40, 44, 52, 56, 60, 80, 100):
                scene = codec.encode_scene(raster, quality, measure_errors=True, verify=quality == 60)
                sizes.append(scene.size)
                errors.append(float(np.square(scene.errors.rms.astype(float)).mean()))
                predicted.append(scene.predicted)
                assert inspect(parse_component_stream(scene.data), scene.size)["segments"] == {
                    "predicted" if scene.predicted else "network": 1
                }
        assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
        assert predicted[0] == 0 and predicted[-1] == 1 and errors[-1] == 0


FLOAT_BOUNDS = [
    ErrorBounds((0,)),
    ErrorBounds((1e-3,)),
    ErrorBounds((5e20,)),
    ErrorBounds((1e-44,)),
    ErrorBounds(percent=1),
    ErrorBounds(percent=1e-4),
    ErrorBounds(percent=50),
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bounds_of_float_samples_hold_on_odd_images(engine, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    kind = data.draw(st.sampled_from(["bits", "noise", "decades", "whole", "constant", "special"]))
    samples = {
        "bits": lambda: rng.integers(0, 2**32, shape).astype(np.uint32).view(np.float32),
        "noise": lambda: rng.normal(0, 1, shape),
        "decades": lambda: rng.normal(0, 1, shape) * 10.0 ** rng.integers(-44, 38, shape),
        "whole": lambda: rng.integers(-5, 6, shape) * 1e-4,
        "constant": lambda: np.full(shape, rng.normal()),
        "special": lambda: rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4028235e38], shape),
    }[kind]()
    with np.errstate(all="ignore"):
        samples = samples.astype(np.float32)
    nodata = data.draw(st.sampled_from([None, 0.0, float("nan"), float(np.float32(1e-4))]))
    valid = rng.random(shape[1:]) < 0.7 if data.draw(st.booleans()) else None
    bounds = data.draw(st.sampled_from(FLOAT_BOUNDS))
    kept(ArraySource(samples, None if nodata is None else Metadata(nodata=nodata), valid), bounds, engine)


def float_file(path, samples, **options):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=samples.shape[2],
        height=samples.shape[1],
        count=len(samples),
        dtype="float32",
        **options,
    ) as file:
        file.write(samples)
    return path


@pytest.mark.parametrize("nodata", [None, float("nan"), -9999.0, -3.4028234663852886e38])
@pytest.mark.parametrize("predictor", [1, 3])
def test_a_float_file_comes_back_bit_by_bit(tmp_path, rng, nodata, predictor):
    samples = rng.normal(0, 1, (2, 300, 90)).astype(np.float32)
    samples[0, 4:9, 5:20] = np.nan if nodata is None else nodata
    samples[1, 0, :3] = np.inf, -0.0, 1e-45
    path = float_file(tmp_path / "a.tif", samples, nodata=nodata, compress="deflate", predictor=predictor)
    assert cli.main([str(path), "--lossless", "--verify"]) == 0
    assert ground_cli.main([str(tmp_path / "a.peri"), "-o", str(tmp_path / "b.tif")]) == 0
    with rasterio.open(path) as original, rasterio.open(tmp_path / "b.tif") as product:
        assert product.dtypes == ("float32",) * 2 and product.profile["nodata"] == pytest.approx(nodata, nan_ok=True)
        whole, found = original.read(), product.read()
        assert np.array_equal(whole, found, equal_nan=True)
        assert np.array_equal(np.signbit(whole)[~np.isnan(whole)], np.signbit(found)[~np.isnan(found)])
        assert np.array_equal(original.read_masks(), product.read_masks())


def test_float_samples_without_a_bound_are_refused_with_what_is_accepted(tmp_path, capsys):
    path = float_file(tmp_path / "a.tif", np.ones((1, 9, 9), np.float32))
    assert cli.main([str(path)]) == 65
    assert "--lossless, --max-error or --max-relative-error" in capsys.readouterr().err
    assert cli.main([str(path), "--lossless", "--jpeg-ls"]) == 65


def test_classes_and_their_palette_come_back_and_only_losslessly(geotiffs, tmp_path, capsys):
    path = geotiffs / "world_u8_palette.tif"
    stream, out = tmp_path / "a.peri", tmp_path / "a.tif"
    for options in ([], ["--max-error", "1"], ["--max-relative-error", "1"]):
        assert cli.main([str(path), "-o", str(stream), *options]) == 65
        assert "--lossless" in capsys.readouterr().err
    assert cli.main([str(path), "-o", str(stream), "--lossless"]) == 0
    assert stream.stat().st_size < 1.02 * path.stat().st_size
    assert ground_cli.main([str(stream), "-o", str(out)]) == 0
    with rasterio.open(path) as original, rasterio.open(out) as product:
        assert np.array_equal(original.read(), product.read())
        assert original.colormap(1) == product.colormap(1) and product.colorinterp == original.colorinterp
        seen = set(np.unique(original.read()).tolist())
    assert ground_cli.main([str(stream), "-o", str(out), "--overwrite", "--scale", "1/4"]) == 0
    with rasterio.open(out) as product:
        assert product.shape == (50, 100) and set(np.unique(product.read()).tolist()) <= seen
        assert product.colormap(1)


@pytest.mark.parametrize("counts", [0, 2])
def test_jpeg_ls_segments_hold_the_bound_and_others_decode_them(tile, counts, engine):
    options = ["--lossless"] if not counts else ["--max-error", str(counts)]
    assert cli.main([str(tile), *options, "--jpeg-ls"]) == 0
    data = tile.with_suffix(".peri").read_bytes()
    stream = parse_component_stream(data)
    decoder = ComponentDecoder(stream, engine)
    with rasterio.open(tile) as file:
        samples = file.read().astype(int)
    assert np.abs(decoder.region(Region(0, 0, 300, 280)).samples - samples).max() == counts
    assert inspect(stream, len(data))["segments"] == {"stored": 4}
    for patch, segment in stream.segments.items():
        top, left, rows, cols = stream.header.patch_region(patch)
        for band, stored in enumerate(segment.stored):
            (frame,) = av.CodecContext.create("jpegls", "r").decode(av.Packet(stored.data))  # FFmpeg's own decoder
            found = frame.to_ndarray().astype(int) + stored.low
            assert np.abs(found - samples[band, top : top + rows, left : left + cols]).max() <= counts
