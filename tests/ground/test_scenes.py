"""Scenes over HTTP: real servers on loopback, read by GDAL's own programs, and everything that must not work."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio

import perigee
from perigee.bitstream.metadata import Metadata

PLACE = Metadata(epsg=32633, transform=(2.0, 0.0, 5e5, 0.0, -2.0, 5e6))
TOKEN = "a token of enough letters"
GDAL = pytest.mark.skipif(
    shutil.which("gdalinfo") is None, reason="GDAL's programs are not installed (Debian: gdal-bin)"
)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:1300, 0:1500]
    planes = [120 + 70 * np.sin(x / (23 + 3 * k)) * np.cos(y / 31) + 25 * ((x // 60 + y // 80) % 2) for k in range(3)]
    return (np.stack(planes) + rng.normal(0, 4, (3, 1300, 1500))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stream(image):
    return perigee.encode(image, 45, metadata=PLACE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stream):
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "town.peri").write_bytes(stream)
    return folder


@pytest.fixture(scope="module")
def address(folder, ground_serve):
    with ground_serve("--scenes", folder) as address:
        yield address


def ask(address, path, method="GET", data=None, **headers):
    """Status, headers and body of an answer."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        headers.setdefault("Content-Type", "application/octet-stream")
    request = urllib.request.Request(address + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_ranges_are_pieces_of_a_geotiff(address, stream):
    status, headers, _ = ask(address, "/scenes/town.tif", "HEAD")
    size = int(headers["Content-Length"])
    assert status == 200 and headers["Accept-Ranges"] == "bytes" and headers["Content-Type"].startswith("image/tiff")
    status, headers, whole = ask(address, "/scenes/town.tif")
    assert status == 200 and len(whole) == size
    with rasterio.MemoryFile(whole) as file, file.open() as found:
        assert np.array_equal(found.read(), perigee.decode(stream).samples) and found.crs.to_epsg() == 32633
    for header, (start, end) in {
        "bytes=0-3": (0, 4), "bytes=100000-": (100_000, size), "bytes=-7": (size - 7, size), f"bytes=5-{10**25}": (5, size),
    }.items():  # fmt: skip
        status, headers, part = ask(address, "/scenes/town.tif", Range=header)
        assert status == 206 and part == whole[start:end]
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for header in (
        f"bytes={size}-",
        "bytes=9-3",
        "bytes=-0",
        "bytes=x-y",
        "bytes=0-1,5-6",
        "bytes=" + "9" * 4000 + "-",
    ):
        status, headers, _ = ask(address, "/scenes/town.tif", Range=header)
        assert status == 416 and headers["Content-Range"] == f"bytes */{size}", header
    assert ask(address, "/scenes/town.tif", Range="lines=1-2")[0] == 200
    tag = headers["ETag"] or ask(address, "/scenes/town.tif", "HEAD")[1]["ETag"]
    assert ask(address, "/scenes/town.tif", If_None_Match=tag)[0] == 304
    assert ask(address, "/scenes/town.tif", Range="bytes=0-3", If_Range='"another"')[0] == 200


@GDAL
def test_gdal_reads_scenes_without_a_plug_in(address, stream, tmp_path):
    source = f"/vsicurl/{address}/scenes/town.tif"
    environment = os.environ | {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

    def gdal(program, *arguments):
        return subprocess.run([program, *arguments], env=environment, check=True, capture_output=True, text=True).stdout

    found = json.loads(gdal("gdalinfo", "-json", source))
    assert found["size"] == [1500, 1300] and found["metadata"][""]["PERIGEE_PROFILE"] == "flight3"
    assert [o["size"] for o in found["bands"][0]["overviews"]] == [[750, 650], [375, 325]]
    wanted = perigee.decode(stream).samples
    gdal("gdal_translate", "-q", "-srcwin", "600", "500", "300", "200", source, str(tmp_path / "a.tif"))
    with rasterio.open(tmp_path / "a.tif") as part:
        assert np.array_equal(part.read(), wanted[:, 500:700, 600:900])
    corner = ["-te", "500400", "4999000", "500800", "4999300"]
    gdal("gdalwarp", "-q", *corner, source, str(tmp_path / "b.tif"))
    with rasterio.open(tmp_path / "b.tif") as part:
        assert np.array_equal(part.read(), wanted[:, 350:500, 200:400])
    gdal("gdal_translate", "-q", "-outsize", "25%", "25%", source, str(tmp_path / "c.tif"))


def test_scenes_are_put_listed_shown_and_deleted(address, stream, image):
    status, headers, body = ask(address, "/scenes/new-1", "PUT", stream)
    found = json.loads(body)
    assert status == 201 and headers["Location"] == "/scenes/new-1" and found["width"] == 1500
    assert found["levels"][-1] == {"height": 325, "width": 375} and found["bbox"][0] == pytest.approx(15, abs=0.01)
    assert found["compensations"] == ["cosmic", "restore"] and found["provenance"]["PERIGEE_PROFILE"] == "flight3"
    listed = json.loads(ask(address, "/scenes")[2])
    assert {"new-1", "town"} <= {s["id"] for s in listed["scenes"]} and listed["bytes"] >= 2 * len(stream)
    assert json.loads(ask(address, "/scenes?limit=1&offset=1")[2])["scenes"][0]["id"] == "town"
    assert ask(address, "/scenes/new-1.peri")[2] == stream
    status, headers, picture = ask(address, "/scenes/new-1/preview.png?size=400")
    assert status == 200 and headers["Content-Type"] == "image/png"
    with rasterio.MemoryFile(picture) as file, file.open() as found:
        assert found.shape == (325, 375) and found.count == 4
        means = image[:, :, :1500].reshape(3, 325, 4, 375, 4).mean((2, 4))
        assert np.abs(found.read([1, 2, 3]).astype(float) - means).mean() < 6
    status, _, product = ask(address, "/scenes/new-1/decode?window=10,20,100,120&format=tif", "POST", b"")
    with rasterio.MemoryFile(product) as file, file.open() as found:
        assert np.array_equal(found.read(), perigee.decode(stream, window=(10, 20, 100, 120)).samples)
    assert ask(address, "/scenes/new-1", "DELETE")[0] == 204
    assert (
        ask(address, "/scenes/new-1")[0]
        == ask(address, "/scenes/new-1.tif")[0]
        == ask(address, "/scenes/new-1", "DELETE")[0]
        == 404
    )


def test_tiles_are_squares_of_any_bands_and_stretch(address, stream):
    full = perigee.decode(stream).samples
    with (
        rasterio.MemoryFile(ask(address, "/scenes/town/tiles/0/2/2.png?bands=3,1,2&low=50&high=200")[2]) as file,
        file.open() as tile,
    ):
        assert tile.shape == (512, 512)
        shown = tile.read()
        inside = full[[2, 0, 1], 1024:1300, 1024:1500].astype(float)
        wanted = np.rint(np.clip((inside - 50) / 150, 0, 1) * 255)
        assert np.abs(shown[:3, :276, :476] - wanted).max() <= 1
        assert (shown[3, :276, :476] == 255).all() and not shown[3, 276:].any() and not shown[3, :, 476:].any()
    for path in ("tiles/3/0/0.png", "tiles/0/3/0.png", "tiles/0/0/-1.png", "tiles/0/0/0.png?bands=1,2", "tiles/0/0/0.png?bands=4",
                 "tiles/0/0/0.png?low=a", "tiles/0/0/0.png?low=1,2", "tiles/0/0/0.png?high=nan", "tiles/0/0/0.png?compensation=x",
                 "trust/0/0.png?compensation=none", "tiles/0/0/0.png?high=1e300",
                 "preview.png?size=5000"):  # fmt: skip
        assert ask(address, f"/scenes/town/{path}")[0] == 422, path
    status, _, trust = ask(address, "/scenes/town/trust/2/2.png?compensation=cosmic")
    assert status == 200 and trust.startswith(b"\x89PNG")


def pixels_of(png):
    with rasterio.MemoryFile(png) as file, file.open() as found:
        return found.read()


def test_pictures_of_odd_scenes(address, folder):
    """Palettes, a single pixel, NaN, alpha of 16 bits, and a band that is at its upper end half of the time."""
    classes = (np.add.outer(np.arange(60), np.arange(70)) % 3).astype(np.uint8)[None]
    palette = bytes([0, 0, 0, 10, 200, 30, 250, 250, 0]) + bytes(759)
    floats = np.linspace(-0.05, 0, 64 * 64, dtype=np.float32).reshape(1, 64, 64)
    floats[0, 32:] = 0
    holes = floats.copy()
    holes[0, :8] = np.nan
    with rasterio.open(
        folder / "alpha.tif",
        "w",
        driver="GTiff",
        width=64,
        height=64,
        count=4,
        dtype="uint16",
        photometric="RGB",
        ALPHA="YES",
    ) as file:
        samples = np.full((4, 64, 64), 20_000, np.uint16)
        samples[3, 32:] = 65_535
        file.write(samples)
    odd = {
        "palette": perigee.encode(classes, metadata=Metadata(palette=palette), max_error=0),
        "pixel": perigee.encode(np.full((3, 1, 1), 90, np.uint8), 60),
        "floats": perigee.encode(floats, max_error=0),
        "holes": perigee.encode(holes, max_error=0),
        "alpha": perigee.encode(folder / "alpha.tif", 60),
    }
    for name, data in odd.items():
        assert ask(address, f"/scenes/{name}", "PUT", data)[0] == 201, name
        status, _, picture = ask(address, f"/scenes/{name}/preview.png")
        assert status == 200, name
        odd[name] = pixels_of(picture)
    assert odd["palette"][:3, 0, 1].tolist() == [10, 200, 30] and odd["palette"][:3, 0, 2].tolist() == [250, 250, 0]
    assert odd["floats"][0, 40].min() == 255 and odd["floats"][0, 0].max() < 20
    assert (odd["holes"][3, :8] == 0).all() and (odd["holes"][3, 8:] == 255).all()
    assert set(np.unique(odd["alpha"][3, :32])) == {78} and (odd["alpha"][3, 32:] == 255).all()
    for name in odd:
        ask(address, f"/scenes/{name}", "DELETE")
    (folder / "alpha.tif").unlink()


def test_scenes_may_be_replaced_and_deleted_while_they_are_read(address, stream):
    """Whoever reads gets a scene or 404, never a server's error or half a file."""
    other = perigee.encode(np.zeros((3, 70, 90), np.uint8), 60)
    end, seen = time.monotonic() + 8, []

    def change():
        while time.monotonic() < end:
            for data in (stream, other):
                ask(address, "/scenes/moving", "PUT", data)
            ask(address, "/scenes/moving", "DELETE")

    def read(path):
        while time.monotonic() < end:
            status, headers, body = ask(address, path)
            seen.append((path, status))
            assert path != "/scenes/moving.peri" or status == 404 or body in (stream, other)

    paths = ("/scenes", "/scenes/moving", "/scenes/moving.peri", "/scenes/moving/preview.png")
    with ThreadPoolExecutor(5) as pool:
        for work in [pool.submit(change), *(pool.submit(read, path) for path in paths)]:
            work.result()
    assert {status for _, status in seen} <= {200, 404, 503} and {s for p, s in seen if p == "/scenes"} == {200}


def test_jobs_of_scenes_are_jobs(address, stream):
    status, headers, body = ask(address, "/scenes/town/jobs?format=png&scale=1/4", "POST", b"")
    assert status == 202
    for _ in range(200):
        state = json.loads(ask(address, headers["Location"])[2])
        if state["status"] == "done":
            break
        time.sleep(0.1)
    assert ask(address, headers["Location"] + "/result")[2].startswith(b"\x89PNG")


def test_bad_streams_and_names_are_not_kept(address, folder, stream):
    before = sorted(p.name for p in folder.iterdir())
    broken = stream[:-40] + bytes([stream[-40] ^ 1]) + stream[-39:]
    assert ask(address, "/scenes/broken", "PUT", broken)[0] == ask(address, "/scenes/none", "PUT", b"abc")[0] == 422
    for name in ("..%2Fx", "%2Fetc%2Fpasswd", ".hidden", "a%00b", "x.tif", "x.peri", "a" * 200, "a%20b", "%2e%2e"):
        assert ask(address, f"/scenes/{name}", "PUT", stream)[0] in (404, 405, 422), name
        assert ask(address, f"/scenes/{name}")[0] in (404, 422), name
    assert (
        ask(address, "/page/../scenes.py")[0]
        == ask(address, "/page/%2e%2e/app.py")[0]
        == ask(address, "/page/..%2fapp.py")[0]
        == 404
    )
    (folder / "link.peri").symlink_to("/etc/passwd")
    assert ask(address, "/scenes/link.peri")[0] == ask(address, "/scenes/link")[0] == 404
    (folder / "link.peri").unlink()
    assert sorted(p.name for p in folder.iterdir()) == before


def test_damage_is_told_where_it_is_read(address, folder, stream):
    data = bytearray(stream)
    data[len(data) // 2] ^= 1
    (folder / "hurt.peri").write_bytes(data)
    listed = json.loads(ask(address, "/scenes")[2])["scenes"]
    assert next(s for s in listed if s["id"] == "hurt")["width"] == 1500
    described = json.loads(ask(address, "/scenes/hurt")[2])
    assert described["damage"] and "PERIGEE_DAMAGE" in described["provenance"]
    assert ask(address, "/scenes/hurt/preview.png")[0] == ask(address, "/scenes/hurt/tiles/0/1/1.png")[0] == 200
    assert ask(address, "/scenes/again", "PUT", bytes(data))[0] == 422
    assert ask(address, "/scenes/again?damaged=true", "PUT", bytes(data))[0] == 201
    ask(address, "/scenes/again", "DELETE")
    assert ask(address, "/scenes/hurt.tif", Range="bytes=0-9")[0] == 422
    assert ask(address, "/scenes/hurt.tif?damaged=true", Range="bytes=0-9")[0] == 206
    (folder / "hurt.peri").unlink()


def test_other_hosts_and_other_pages_change_nothing(address, folder, stream):
    port = address.rsplit(":", 1)[1]
    assert ask(address, "/scenes", Host="evil.example")[0] == ask(address, "/", Host=f"evil.example:{port}")[0] == 421
    assert (
        ask(address, "/scenes", Host=f"localhost:{port}")[0] == ask(address, "/scenes", Host=f"[::1]:{port}")[0] == 200
    )
    for line in ("Host: [", f"Host: localhost:{port}\r\nOrigin: http://["):
        with socket.create_connection(("127.0.0.1", int(port))) as client:
            client.sendall(f"GET /scenes HTTP/1.1\r\n{line}\r\nConnection: close\r\n\r\n".encode())
            answer = client.recv(100)
            assert answer.startswith(b"HTTP/1.1 421" if "Origin" not in line else b"HTTP/1.1 200"), answer
    assert ask(address, "/scenes", Host=f"LocalHost.:{port}")[0] == 200
    form = b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" + stream + b"\r\n--x--\r\n"
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        assert ask(address, "/jobs", "POST", form, **kind, **headers)[0] == 403
        assert ask(address, "/scenes/town", "DELETE", **headers)[0] == 403
        assert ask(address, "/scenes/x", "PUT", stream, **headers)[0] == 403
    assert (folder / "town.peri").exists() and json.loads(ask(address, "/jobs")[2]) is not None
    headers = ask(address, "/scenes", Origin="https://evil.example")[1]
    assert headers["Access-Control-Allow-Origin"] is None
    assert (
        ask(address, "/inspect", "POST", stream, Origin=f"http://127.0.0.1:{port}", Sec_Fetch_Site="same-origin")[0]
        == 200
    )


def test_the_page_comes_whole_from_the_service_under_a_strict_policy(address):
    status, headers, page = ask(address, "/")
    policy = headers["Content-Security-Policy"]
    assert (
        status == 200
        and "script-src 'self'" in policy
        and "unsafe" not in policy
        and headers["X-Frame-Options"] == "DENY"
    )
    text = page.decode()
    assert "<script>" not in text and " style=" not in text and "onclick" not in text and "http" not in text
    for file in (
        "app.js",
        "api.js",
        "viewer.js",
        "page.css",
        "icon.svg",
        "vendor/ol.js",
        "vendor/ol.css",
        "vendor/land-110m.json",
    ):
        assert ask(address, f"/page/{file}")[0] == 200, file
    assert ask(address, "/page/none.js")[0] == 404


def test_a_token_guards_scenes_and_leaves_the_page_open(folder, stream, ground_serve):
    token = folder.parent / "token"
    token.write_text(TOKEN)
    with ground_serve(
        "--scenes", folder, "--auth-token-file", token, "--cors-origin", "https://maps.example.org"
    ) as address:
        assert ask(address, "/")[0] == ask(address, "/page/app.js")[0] == 200
        for path in ("/scenes", "/scenes/town", "/scenes/town.tif", "/scenes/town/preview.png"):
            assert ask(address, path)[0] == 401
            assert ask(address, path, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(address, "/scenes/town", "DELETE")[0] == 401
        _, headers, _ = ask(address, "/scenes", Authorization=f"Bearer {TOKEN}", Origin="https://maps.example.org")
        assert (
            headers["Access-Control-Allow-Origin"] == "https://maps.example.org"
            and "Content-Range" in headers["Access-Control-Expose-Headers"]
        )


def test_quota_retention_and_read_only(tmp_path, stream, ground_serve):
    (tmp_path / "old.peri").write_bytes(stream)
    os.utime(tmp_path / "old.peri", (1e9, 1e9))
    with ground_serve("--scenes", tmp_path, "--scenes-days", "2", "--scenes-gib", "1") as address:
        assert json.loads(ask(address, "/scenes")[2])["count"] == 0 and not (tmp_path / "old.peri").exists()
        with (tmp_path / "large.peri").open("wb") as file:
            file.truncate(1 << 30)
        status, _, body = ask(address, "/scenes/more", "PUT", stream)
        assert status == 507 and "quota" in json.loads(body)["detail"]
        (tmp_path / "large.peri").unlink()
        assert ask(address, "/scenes/more", "PUT", stream)[0] == 201
    with ground_serve("--scenes", tmp_path, "--scenes-read-only", "--host-name", "Maps.Example.org") as address:
        own = {"Host": "maps.example.org"}
        assert (
            ask(address, "/scenes/more", "DELETE", **own)[0]
            == ask(address, "/scenes/x", "PUT", stream, **own)[0]
            == 403
        )
        assert ask(address, "/scenes/more/preview.png", **own)[0] == 200 and ask(address, "/scenes")[0] == 421
    with ground_serve("--scenes", tmp_path, "--max-megasamples", "1") as address:
        assert ask(address, "/scenes/more/preview.png")[0] == ask(address, "/scenes/more/statistics")[0] == 413
        assert ask(address, "/scenes/more/tiles/0/1/1.png")[0] == 200
