"""``ground-enhance`` and ``POST /enhance``: files of other codecs in, products out, bad input refused."""

import json
import time
from dataclasses import asdict

import httpx
import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image
from rasterio.io import MemoryFile

import perigee
from perigee.export.compensation_cli import main as export
from perigee.ground import cli as ground_decode
from perigee.ground.enhance_cli import main
from perigee.ground.library import Library
from perigee.ground.service.app import Settings
from perigee.models.enhancement.network import SMALL
from perigee.models.enhancement.prior import Enhancer

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
STRENGTH = {"jpeg2000": [[0.05, 0.0], [0.1, 1.0]], "jpeg": [[0.1, 1.0]], "unknown": [[0.1, 0.0]]}  # by step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An enhancer as export-compensator writes it, of a small untrained network whose additions can be seen."""
    torch.manual_seed(5)
    network = Enhancer(SMALL, "none").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    base = tmp_path_factory.mktemp("enhancers")
    state = {"prior": "none", "preset": asdict(SMALL), "strength": STRENGTH, "step": 7, "seconds": 60.0}
    torch.save(state | {"mean": network.state_dict()}, base / "checkpoint.pt")
    assert export([str(base / "checkpoint.pt"), "-o", str(base / "small")]) == 0
    return base / "small"


@pytest.fixture(scope="module")
def scene():
    y, x = np.mgrid[0:300, 0:400]
    return np.stack([120 + 90 * np.sin(x / 17 + b) * np.cos(y / 29) for b in range(3)]).astype(np.uint8)


def written(path, samples, driver, **options):
    bands, rows, cols = samples.shape
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 5e5, 0, -2, 5e6)}
    with rasterio.open(
        path, "w", driver=driver, width=cols, height=rows, count=bands, dtype=samples.dtype, **place, **options
    ) as file:
        file.write(samples)
    return path


def lossy(folder, scene):
    return written(folder / "in.jp2", scene, "JP2OpenJPEG", QUALITY=20, REVERSIBLE="NO")


def enhanced(source, out, folder, *more):
    return main([str(source), "-o", str(out), "--method", "small", "--profiles", str(folder), *more])


def test_a_jp2_becomes_a_cog_with_its_place_and_a_stac_item(tmp_path, folder, scene, capsys):
    source = lossy(tmp_path, scene)
    assert enhanced(source, tmp_path / "out.tif", folder, "--stac", str(tmp_path / "out.json")) == 0
    assert "400x300 pixels, 3 bands" in capsys.readouterr().out
    with rasterio.open(source) as before, rasterio.open(tmp_path / "out.tif") as found:
        assert found.crs == before.crs and found.transform == before.transform
        assert (found.read() != before.read()).mean() > 0.3
        assert found.tags()["PERIGEE_ENHANCED"] == "YES" and found.tags()["PERIGEE_SOURCE_CODEC"] == "jpeg2000"
    assert json.loads((tmp_path / "out.json").read_text())["assets"]
    part = tmp_path / "part.png"
    assert enhanced(source, part, folder, "--window", "30,40,64,80", "--bands", "3,2,1") == 0
    with rasterio.open(tmp_path / "out.tif") as whole:
        assert np.array_equal(np.asarray(Image.open(part)).transpose(2, 0, 1), whole.read()[::-1, 30:94, 40:120])
    assert enhanced(source, tmp_path / "out.tif", folder) == 73


def test_jpegs_and_tiffs_that_hold_them(tmp_path, folder, scene, capsys):
    Image.fromarray(scene.transpose(1, 2, 0)).save(tmp_path / "in.jpg", quality=40)
    assert enhanced(tmp_path / "in.jpg", tmp_path / "1.tif", folder) == 0
    held = written(tmp_path / "in.tif", scene, "GTiff", compress="jpeg", photometric="ycbcr", jpeg_quality=40)
    assert enhanced(held, tmp_path / "2.tif", folder) == 0
    plain = written(tmp_path / "plain.tif", scene, "GTiff")
    assert "not enhanced" not in capsys.readouterr().err
    assert enhanced(plain, tmp_path / "3.tif", folder) == 0
    assert "not enhanced" in capsys.readouterr().err
    assert enhanced(plain, tmp_path / "4.tif", folder, "--codec", "jpeg2000", "--bpp", "0.5") == 0
    tags = []
    for number in "1234":
        with rasterio.open(tmp_path / f"{number}.tif") as found:
            tags.append((found.tags()["PERIGEE_ENHANCED"], found.tags().get("PERIGEE_SOURCE_CODEC")))
    assert tags == [("YES", "jpeg"), ("YES", "jpeg"), ("NO", None), ("YES", None)]


def test_bad_input_is_told(tmp_path, folder, scene, capsys):
    source = lossy(tmp_path, scene)
    data = source.read_bytes()
    out = tmp_path / "out.tif"

    def code(content, name="x.jp2", *more):
        (tmp_path / name).write_bytes(content)
        return enhanced(tmp_path / name, out, folder, *more)

    assert code(data[:300]) == 65 and code(b"") == 65 and code(b"no image at all") == 65
    assert code(b"<VRTDataset rasterXSize='1' rasterYSize='1'/>", "x.vrt") == 65
    Image.fromarray(scene[0]).convert("P").save(tmp_path / "palette.tif")
    assert enhanced(tmp_path / "palette.tif", out, folder) == 65
    Image.fromarray(scene[0]).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert enhanced(tmp_path / "cmyk.jpg", out, folder) == 65
    assert enhanced(tmp_path / "none.jp2", out, folder) == 66
    assert enhanced(source, out, folder, "--bpp", "-1") == 64
    assert enhanced(source, out, folder, "--window", "0,0,1,9999") == 64
    assert main([str(source), "-o", str(out), "--method", "other"]) == 64
    assert "known are" in capsys.readouterr().err and not out.exists()


def test_a_damaged_enhancer_is_refused(tmp_path, folder, scene):
    other = tmp_path / "small"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "enhancer.onnx").write_bytes(b"?")
    assert enhanced(lossy(tmp_path, scene), tmp_path / "out.tif", other) == 64
    (other / "manifest.json").write_text(
        json.dumps(json.loads((folder / "manifest.json").read_text()) | {"strength": {}})
    )
    assert enhanced(tmp_path / "in.jp2", tmp_path / "out.tif", other) == 64


def test_the_service_gives_what_the_command_gives(tmp_path, folder, scene, serve):
    source = lossy(tmp_path, scene)
    assert enhanced(source, tmp_path / "out.tif", folder) == 0
    server, url = serve(Settings(library=Library([folder], 1), decoded_samples=400_000))

    def post(data, path="/enhance", **query):
        octets = {"Content-Type": "application/octet-stream"}
        return httpx.post(url + path, content=data, params={"method": "small"} | query, headers=octets, timeout=60)

    answer = post(source.read_bytes())
    assert answer.status_code == 200 and "cloud-optimized" in answer.headers["content-type"]
    with MemoryFile(answer.content) as memory, memory.open() as found, rasterio.open(tmp_path / "out.tif") as wanted:
        assert np.array_equal(found.read(), wanted.read()) and found.crs == wanted.crs
    job = post(source.read_bytes(), "/jobs/enhance")
    assert job.status_code == 202
    while (state := httpx.get(url + job.headers["Location"]).json())["status"] in ("queued", "running"):
        time.sleep(0.05)
    result = httpx.get(f"{url}{job.headers['Location']}/result")
    assert state["status"] == "done" and result.content == answer.content
    assert post(source.read_bytes(), window="0,0,50,60", format="png").headers["content-type"] == "image/png"
    assert post(source.read_bytes(), product="trust").status_code == 422, "this enhancer has no intervals"
    for query, field in (({"codec": "vp9"}, "codec"), ({"bpp": "0"}, "bpp"), ({"format": "json"}, "format")):
        refused = post(source.read_bytes(), **query)
        assert refused.status_code == 422 and refused.json()["field"] == field
    assert post(source.read_bytes(), method="other").status_code == 422
    assert post(b"no image").status_code == 422
    big = written(tmp_path / "big.jp2", np.tile(scene, (1, 2, 1)), "JP2OpenJPEG", QUALITY=5, REVERSIBLE="NO")
    assert post(big.read_bytes()).status_code == 413
    server.should_exit = True


def test_the_shipped_enhancer_brings_images_closer_to_their_originals(tmp_path, tiles):
    original = tifffile.imread(tiles[0])
    Image.fromarray(original).save(tmp_path / "a.jpg", quality=40)
    Image.fromarray(original).save(
        tmp_path / "b.j2k", "JPEG2000", quality_mode="rates", quality_layers=[40], irreversible=True, mct=1, no_jp2=True
    )
    for source in (tmp_path / "a.jpg", tmp_path / "b.j2k"):
        out = source.with_suffix(".tif")
        assert main([str(source), "-o", str(out)]) == 0
        with rasterio.open(source) as before, rasterio.open(out) as after:
            errors = [np.square(x.read().astype(float) - original.transpose(2, 0, 1)).mean() for x in (before, after)]
            assert errors[1] < 0.95 * errors[0]
            assert after.tags()["PERIGEE_ENHANCER"] == "restore"


def test_trust_says_how_far_off_the_enhanced_image_may_be(tmp_path, tiles, scene, capsys):
    original = tifffile.imread(tiles[0])
    Image.fromarray(original).save(tmp_path / "a.jpg", quality=40)
    out, trust, item = (tmp_path / name for name in ("out.tif", "trust.tif", "item.json"))
    assert main([str(tmp_path / "a.jpg"), "-o", str(out), "--trust", str(trust), "--stac", str(item)]) == 0
    with rasterio.open(out) as image, rasterio.open(trust) as told, rasterio.open(tmp_path / "a.jpg") as before:
        width, changed = told.read()
        found = image.read().astype(float)
        within = np.abs(found - original.transpose(2, 0, 1)) <= width
        assert 0.8 < within.mean() < 0.98 and told.descriptions[0].startswith("half width")
        assert np.array_equal(changed > 0, (found != before.read()).any(0))
    assert json.loads(item.read_text())["assets"]["trust"]["href"] == "trust.tif"
    lossless = written(tmp_path / "b.jp2", scene, "JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    assert main([str(lossless), "-o", str(tmp_path / "c.tif"), "--trust", str(tmp_path / "d.tif")]) == 64
    assert "not enhanced" in capsys.readouterr().err and not (tmp_path / "c.tif").exists()


def test_a_stream_is_enhanced_as_it_is_decoded_with_the_enhancer(tmp_path, folder, scene):
    (tmp_path / "a.peri").write_bytes(perigee.encode(scene, 30))
    common = ["--profiles", str(folder)]
    assert main([str(tmp_path / "a.peri"), "-o", str(tmp_path / "one.tif"), "--method", "small", *common]) == 0
    assert (
        ground_decode.main(
            [str(tmp_path / "a.peri"), "-o", str(tmp_path / "two.tif"), "--compensation", "small", *common]
        )
        == 0
    )
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
    assert main([str(tmp_path / "a.peri"), "-o", str(tmp_path / "three.tif"), "--codec", "jpeg", *common]) == 64
