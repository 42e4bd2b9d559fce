"""Compensated images: the base at strength 0, the same whatever is asked for, honest about what was generated."""

import json
import shutil
import threading
import time

import httpx
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.common import read_rgb
from perigee.bitstream import format as fmt
from perigee.bitstream.errors import CompensationError
from perigee.bitstream.metadata import Acquisition, Metadata, pack_metadata
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import find_profile
from perigee.ground.cli import main
from perigee.ground.compensation.compensator import DIFFUSION, ONE_STEP, Compensator, find_compensator, shipped_folders
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.decoder import SceneDecoder
from perigee.ground.regions import Region
from perigee.ground.windows import STRIDE, Grid, noise_at

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def compensator(profile):
    return find_compensator("cosmic", profile.contract.digest, threads=2)


@pytest.fixture(scope="module")
def scene(tiles):
    """A mosaic of real tiles, 400 x 620."""
    parts = [read_rgb(path) for path in tiles[:6]]
    rows = [np.concatenate(parts[:3], 1), np.concatenate(parts[3:], 1)]
    return np.concatenate(rows, 0)[:400, :620]


@pytest.fixture(scope="module")
def data(scene):
    return ArrayCodec("flight3", 2).encode(scene, 30)


def decoded(decoder, region=None):
    region = region or Region(0, 0, decoder.height, decoder.width)
    out = np.empty((decoder.bands, region.rows, region.cols), decoder.dtype)
    for part, block in decoder.blocks(region):
        top, left = part.top - region.top, part.left - region.left
        out[:, top : top + part.rows, left : left + part.cols] = block.samples
    return out


def with_compensation(data, ground, compensator, **wanted):
    return CompensatedSource(SceneDecoder(parse_stream(data), ground), compensator, Compensation(**wanted))


def test_strength_0_is_the_base_image(data, ground, compensator):
    base = decoded(SceneDecoder(parse_stream(data), ground))
    assert (decoded(with_compensation(data, ground, compensator, strength=0.0)) == base).all()


@pytest.mark.parametrize("wanted", [{"method": ONE_STEP}, {"method": DIFFUSION, "steps": 2, "seed": 7}])
def test_a_pixel_does_not_depend_on_the_request(data, ground, compensator, wanted):
    whole = decoded(with_compensation(data, ground, compensator, **wanted))
    base = decoded(SceneDecoder(parse_stream(data), ground))
    assert (whole != base).mean() > 0.05
    for region in (Region(130, 300, 90, 200), Region(399, 619, 1, 1)):
        part = decoded(with_compensation(data, ground, compensator, **wanted), region)
        window = whole[:, region.top : region.top + region.rows, region.left : region.left + region.cols]
        assert (part == window).all()
    late = with_compensation(data, ground, compensator, **wanted)  # another order of requests on one decoder
    decoded(late, Region(300, 400, 100, 220))
    assert (decoded(late, Region(0, 0, 200, 200)) == whole[:, :200, :200]).all()


@pytest.mark.parametrize("wanted", [{"method": ONE_STEP}, {"method": DIFFUSION, "steps": 1}])
def test_seeds(data, ground, compensator, wanted):
    decoders = [with_compensation(data, ground, compensator, **wanted, seed=s) for s in (1, 1, 2)]
    first, again, other = (decoded(decoder, Region(0, 0, 64, 64)) for decoder in decoders)
    assert (first == again).all() and (first != other).any()
    assert [d.provenance()["PERIGEE_COMPENSATION_SEED"] for d in decoders] == ["1", "1", "2"]


def test_symbols_are_met_as_well_as_by_the_base(data, ground, compensator):
    decoder = with_compensation(data, ground, compensator)
    decoded(decoder)
    assert sorted(decoder.agreement) == sorted(decoder.source.stream.segments)
    for agreement in decoder.agreement.values():
        # but for what rounding to 8 bits tips either way
        assert agreement.costly >= agreement.base_costly - 1e-3 or not agreement.kept
        assert agreement.base_all > 0.9
    assert "YES" in decoder.provenance()["PERIGEE_GENERATED_DETAIL"]


def test_metadata_unknown_to_the_training_count_as_absent(data, ground, compensator):
    stream = parse_stream(data)
    stream.metadata = pack_metadata(
        Metadata(acquisition=Acquisition(gsd_m=0.5, cloud_cover_percent=10, off_nadir_deg=5))
    )
    decoder = CompensatedSource(SceneDecoder(stream, ground), compensator)
    assert decoder.provenance()["PERIGEE_COMPENSATION_FIELDS_IGNORED"] == "cloud_cover"


def test_other_bands_are_left_alone(encoder, geotiffs, ground, compensator):
    from perigee.onboard.raster import Raster

    with Raster(geotiffs / "naip_rgbn_u8x4.tif") as raster:
        stream = encoder.encode_scene(raster, 30).data
    base = decoded(SceneDecoder(parse_stream(stream), ground))
    decoder = CompensatedSource(SceneDecoder(parse_stream(stream), ground), compensator)
    found = decoded(decoder)
    assert (found[3] == base[3]).all() and (found[:3] != base[:3]).any()
    assert "bands from 4 on" in decoder.provenance()["PERIGEE_COMPENSATION_LEFT_ALONE"] and not decoder.report.notes


def test_what_cannot_be_done_is_said(data, ground, compensator, profile, tmp_path):
    for wanted in ({"steps": 0}, {"steps": 101}, {"strength": 1.5}, {"seed": -1}):
        with pytest.raises(CompensationError, match="accepted are"):
            Compensation(**wanted)
    with pytest.raises(CompensationError, match="none, cosmic"):
        find_compensator("magic", profile.contract.digest)
    with pytest.raises(CompensationError, match="one-step"):
        with_compensation(data, ground, compensator, method="magic")
    with pytest.raises(CompensationError, match="is for the contracts"):
        find_compensator("cosmic", find_profile("flight").contract.digest)
    copy = tmp_path / "cosmic"
    shutil.copytree(shipped_folders()["cosmic"], copy)
    with (copy / "features.onnx").open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"\xff\x00\xff")
    with pytest.raises(CompensationError, match="the manifest says"):
        Compensator(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(CompensationError, match="no readable compensator manifest"):
        Compensator(copy)


def test_the_command_and_its_trust(data, tmp_path, capsys):
    stream, out, trust = tmp_path / "s.peri", tmp_path / "o.tif", tmp_path / "t.tif"
    stream.write_bytes(data)
    command = [
        str(stream),
        "-o",
        str(out),
        "--compensation",
        "cosmic",
        "--trust",
        str(trust),
        "--window",
        "0,0,128,128",
    ]
    assert main(command) == 0
    with rasterio.open(out) as product:
        tags = product.tags()
        assert tags["PERIGEE_GENERATED_DETAIL"] == "YES" and tags["PERIGEE_COMPENSATOR"] == "cosmic"
        assert len(tags["PERIGEE_COMPENSATION_AGREEMENT"].split()) == 4
    with rasterio.open(trust) as product:
        width, generated = product.read()
        assert product.descriptions == ("half width of the 90 % interval", "generated detail")
        assert width.min() >= 1 and width.max() < 128 and set(np.unique(generated)) <= {0, 1} and generated.any()
    base = tmp_path / "b.tif"
    assert main([*command[:2], str(base), *command[3:5], "--strength", "0", "--trust", str(trust), "--overwrite"]) == 0
    with rasterio.open(trust) as product:
        assert not product.read(2).any() and product.read(1).min() >= 1
    other = str(tmp_path / "u.tif")
    for wrong in (["--compensation", "magic"], ["--compensation", "cosmic", "--steps", "0"], ["--trust", other]):
        assert main([str(stream), "-o", str(tmp_path / "x.tif"), *wrong]) == 64
        assert "accepted are" in capsys.readouterr().err or "--trust" in wrong
    for taken in (stream, tmp_path / "x.tif", trust):  # neither stream, nor product, nor an old file is overwritten
        asked = ["-o", str(tmp_path / "x.tif"), "--compensation", "cosmic", "--trust", str(taken)]
        assert main([str(stream), *asked]) == 73
    assert stream.read_bytes() == data and not (tmp_path / "x.tif").exists()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1500), st.integers(1, 1500), st.data())
def test_the_weights_of_all_windows_add_up_to_one(rows, cols, draw):
    grid = Grid(rows, cols, 256)
    height, width = (STRIDE * (n - 1) + 256 for n in grid.shape)
    assert height >= rows and width >= cols
    total = np.zeros((height, width), np.float32)
    for window in grid.over(0, 0, rows, cols):
        y, x = window.row * STRIDE, window.col * STRIDE
        total[y : y + 256, x : x + 256] += grid.weights(window)
    assert np.abs(total[:rows, :cols] - 1).max() < 1e-6
    top, left = draw.draw(st.integers(0, rows - 1)), draw.draw(st.integers(0, cols - 1))
    touching = {
        w for w in grid.over(0, 0, rows, cols)
        if w.row * STRIDE <= top < w.row * STRIDE + 256 and w.col * STRIDE <= left < w.col * STRIDE + 256
    }  # fmt: skip
    assert set(grid.over(top, left, 1, 1)) == touching


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_noise_belongs_to_places(top, left, rows, cols, seed):
    whole = noise_at(seed, 0, 0, 0, (4, top + rows, left + cols))
    assert (noise_at(seed, 0, top, left, (4, rows, cols)) == whole[:, top:, left:]).all()


# --- over HTTP


@pytest.fixture(scope="module")
def served(tmp_path_factory, serve):
    from perigee.ground.service.app import Settings

    folder = tmp_path_factory.mktemp("jobs")
    server, address = serve(Settings(threads=2, jobs=folder, jobs_kept=3))
    yield address, folder
    server.should_exit = True


def waited(url, name, until=("done", "failed", "cancelled")):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        state = httpx.get(f"{url}/jobs/{name}").json()
        if state["status"] in until:
            return state
        time.sleep(0.05)
    raise AssertionError(state)


def test_decode_with_compensation(served, data):
    url, _ = served
    query = "format=json&compensation=cosmic&window=0,0,64,64"
    answer = httpx.post(f"{url}/decode?{query}", content=data, headers=OCTETS, timeout=60)
    assert answer.json()["provenance"]["PERIGEE_COMPENSATOR"] == "cosmic"
    for query in ("compensation=magic", "compensation=cosmic&steps=0", "compensation=cosmic&steps=x", "product=trust",
                  "compensation=cosmic&strength=2", "compensation=cosmic:magic", "compensation=cosmic&seed=-1"):  # fmt: skip
        answer = httpx.post(f"{url}/decode?{query}", content=data, headers=OCTETS, timeout=60)
        assert answer.status_code == 422 and answer.json()["detail"], query


def test_a_small_window_of_a_huge_scene_is_no_way_to_endless_work(served, profile):
    url, _ = served
    header = fmt.Header(profile.contract.digest, 26_000, 26_000, 3, "uint8", 256)
    query = "compensation=cosmic:diffusion&steps=100&window=13000,13000,1,1&damaged=true&format=json"
    answer = httpx.post(f"{url}/decode?{query}", content=fmt.write_header(header), headers=OCTETS, timeout=60)
    assert answer.status_code == 422 and "fewer steps or a smaller window" in answer.json()["detail"]


def test_a_stream_of_another_profile(served, scene):
    url, _ = served
    other = ArrayCodec("flight", 2, analysis="lite").encode(scene[:64, :64], 30)
    answer = httpx.post(f"{url}/decode?compensation=cosmic", content=other, headers=OCTETS, timeout=60)
    assert answer.status_code == 422 and "contracts" in answer.json()["detail"]


def test_a_job_gives_what_decode_gives(served, data):
    url, _ = served
    query = "compensation=cosmic:diffusion&steps=2&window=0,0,96,96&format=png"
    answer = httpx.post(f"{url}/jobs?{query}", content=data, headers=OCTETS, timeout=60)
    assert answer.status_code == 202
    name = answer.json()["id"]
    assert answer.headers["location"] == f"/jobs/{name}"
    state = waited(url, name)
    assert state["status"] == "done" and state["progress"] == 1
    result = httpx.get(f"{url}/jobs/{name}/result")
    at_once = httpx.post(f"{url}/decode?{query}", content=data, headers=OCTETS, timeout=60)
    assert result.content == at_once.content and result.headers["content-type"] == "image/png"
    assert name in [job["id"] for job in httpx.get(f"{url}/jobs").json()]
    assert httpx.delete(f"{url}/jobs/{name}").json()["was"] == "deleted"
    assert httpx.get(f"{url}/jobs/{name}").status_code == 404


def test_jobs_fail_wait_and_end(served, data):
    url, _ = served
    bad = httpx.post(f"{url}/jobs", content=b"PERI" + data[4:60], headers=OCTETS).json()["id"]
    state = waited(url, bad)
    assert state["status"] == "failed" and state["problem"]["status"] == 422
    assert httpx.get(f"{url}/jobs/{bad}/result").status_code == 409
    long = httpx.post(f"{url}/jobs?compensation=cosmic:diffusion&steps=100", content=data, headers=OCTETS).json()["id"]
    waited(url, long, ("running",))
    assert httpx.get(f"{url}/jobs/{long}/result").status_code == 409
    assert httpx.delete(f"{url}/jobs/{long}").json()["was"] == "cancelled"
    assert waited(url, long)["status"] == "cancelled"
    after = httpx.post(f"{url}/jobs?format=json&window=0,0,8,8", content=data, headers=OCTETS).json()["id"]
    assert waited(url, after)["status"] == "done"  # the thread lives on
    assert httpx.get(f"{url}/jobs/{'0' * 32}").status_code == 404
    assert httpx.get(f"{url}/jobs/..%2Fx").status_code == 404
    for _ in range(4):  # the oldest finished one makes room
        assert httpx.post(f"{url}/jobs?window=0,0,8,8", content=data, headers=OCTETS).status_code == 202


def test_jobs_survive_a_restart(data, tmp_path):
    from perigee.ground.library import Library
    from perigee.ground.orders import Order, OrderLimits
    from perigee.ground.service.jobs import Jobs
    from perigee.ground.service.workers import Here

    library = Library(threads=2)
    first = Jobs(tmp_path, Here(library), OrderLimits(10**9), 8)
    first.start()
    long = first.submit(Order(compensation="cosmic:diffusion", steps=100), data)["id"]
    short = first.submit(Order(format="json", window=(0, 0, 16, 16)), data)["id"]
    while first.described(long)["status"] != "running":
        time.sleep(0.02)
    stopping = threading.Thread(target=first.stop)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    state = json.loads((tmp_path / long / "state.json").read_text())
    assert state["status"] == "running"
    second = Jobs(tmp_path, Here(library), OrderLimits(10**9), 8)
    assert second.described(long)["status"] == "queued" and second.described(short)["status"] == "queued"
    second.cancel(long)
    second.start()
    while second.described(short)["status"] != "done":
        time.sleep(0.02)
    path, state = second.result(short)
    assert json.loads(path.read_text())["width"] == 620 and state.damage is None
    second.stop()
