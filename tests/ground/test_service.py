"""The service as its callers see it: a real server on loopback."""

import json
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from perigee.benchmarks.codec import ArrayCodec
from perigee.benchmarks.hostile import mutate
from perigee.bitstream import format as fmt
from perigee.ground.library import Library
from perigee.ground.service.app import Settings
from perigee.onboard.raster import Raster

OCTETS = {"Content-Type": "application/octet-stream"}
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def library():
    return Library(threads=2)


@pytest.fixture(scope="module")
def url(library, serve):
    server, address = serve(Settings(library=library, upload_bytes=2_000_000, decoded_samples=1_000_000))
    yield address
    server.should_exit = True


@pytest.fixture(scope="module")
def stream(encoder, tiles):
    with Raster(tiles[0]) as raster:
        return encoder.encode_scene(raster, 50).data


def post(url, data, path="/decode", headers=OCTETS, **more):
    return httpx.post(url + path, content=data, headers=headers, timeout=60, **more)


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert body["status"] == status and body["detail"] and body["title"]
    return body


def test_decode_to_a_cog(url, stream, tiles):
    answer = post(url, stream)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/tiff; application=geotiff; profile=cloud-optimized"
    with rasterio.open(tiles[0]) as source, MemoryFile(answer.content) as memory, memory.open() as out:
        assert (out.crs, out.transform, out.shape, out.count) == (
            source.crs,
            source.transform,
            source.shape,
            source.count,
        )
        assert np.abs(out.read().astype(float) - source.read()).mean() < 12


def test_formats_by_parameter_and_by_accept(url, stream):
    assert post(url, stream, "/decode?format=png").content[:8] == b"\x89PNG\r\n\x1a\n"
    assert post(url, stream, headers=OCTETS | {"Accept": "image/png"}).headers["content-type"] == "image/png"
    body = post(url, stream, headers=OCTETS | {"Accept": "text/html;q=0.9, application/json"}).json()
    assert body["width"] == 256 and len(body["statistics"]) == 3 and body["provenance"]["PERIGEE_LOSSY"] == "YES"
    problem(post(url, stream, headers=OCTETS | {"Accept": "text/html"}), 406)
    problem(post(url, stream, "/decode?format=jpg"), 422)


def test_window_bands_and_scale(url, stream):
    answer = post(url, stream, "/decode?window=10,20,100,60&bands=2&scale=1/4")
    with MemoryFile(answer.content) as memory, memory.open() as out:
        assert (out.height, out.width, out.count) == (25, 15, 1)
    for query in (
        "window=0,0,257,1",
        "window=1,2",
        "window=a,b,c,d",
        "window=0,0,0,5",
        "bands=4",
        "bands=1,1",
        "bands=x",
        "scale=1/3",
    ):
        problem(post(url, stream, f"/decode?{query}"), 422)


def test_multipart(url, stream):
    answer = httpx.post(url + "/decode?format=json", files={"file": ("a.peri", stream)}, timeout=60)
    assert answer.status_code == 200 and answer.json()["bytes"] == len(stream)
    problem(
        httpx.post(
            url + "/decode", data={"no": "file"}, files={}, headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
        422,
    )


def test_errors_are_problems(url, stream):
    assert problem(post(url, b"nothing of ours, but long enough"), 422)["error"] == "FormatError"
    broken = bytearray(stream)
    broken[60] ^= 1
    assert problem(post(url, bytes(broken)), 422)["error"] == "ChecksumError"
    assert "offset_bytes" in problem(post(url, stream[:-3]), 422)
    problem(post(url, stream, headers={"Content-Type": "image/tiff"}), 415)
    problem(post(url, b""), 422)
    problem(httpx.get(url + "/nothing"), 404)
    problem(httpx.get(url + "/decode"), 405)
    problem(post(url, bytes(2_000_001)), 413)

    def chunks():  # no Content-Length: counted while it arrives
        for _ in range(30):
            yield bytes(100_000)

    problem(httpx.post(url + "/decode", content=chunks(), headers=OCTETS, timeout=60), 413)


def test_unknown_profile_names_wanted_and_known(url, stream, profile):
    header, offset = fmt.read_header(stream)
    other = fmt.write_header(fmt.Header(b"\1\2\3\4\5\6\7\x08", *list(vars(header).values())[1:])) + stream[offset:]
    body = problem(post(url, other), 422)
    assert body["wanted"] == "0102030405060708" and body["known"]["flight3"] == profile.contract.digest.hex()
    assert post(url, other, "/inspect").json()["profile_known"] is False


def test_a_scene_beyond_the_limit_is_refused_but_a_window_of_it_decodes(url, profile):
    codec = ArrayCodec(profile)
    data = codec.encode(np.full((700, 700, 3), 90, np.uint8), 5)
    assert "window" in problem(post(url, data), 413)["detail"]
    assert post(url, data, "/decode?window=0,0,64,64&format=json").status_code == 200


def test_damage_is_reported_in_a_header(url, encoder, profile):
    codec = ArrayCodec(profile)
    rng = np.random.default_rng(3)
    data = bytearray(codec.encode(rng.integers(0, 255, (64, 600, 3), np.uint8), 20))
    data[60] ^= 4
    problem(post(url, bytes(data)), 422)
    answer = post(url, bytes(data), "/decode?damaged=true")
    assert answer.status_code == 200 and json.loads(answer.headers["Perigee-Damage"])["lost"] == 1


def test_inspect_profiles_health_metrics_openapi(url, stream):
    described = post(url, stream, "/inspect").json()
    assert described["epsg"] and described["profile_known"] and described["segments"] == {"network": 1}
    assert [p["name"] for p in httpx.get(url + "/profiles").json()] == [
        "cosmic",
        "flight",
        "flight2",
        "flight3",
        "lite",
        "spectral1",
    ]
    assert httpx.get(url + "/healthz").json() == {"status": "alive"}
    assert httpx.get(url + "/readyz", timeout=60).json()["status"] == "ready"
    text = httpx.get(url + "/metrics").text
    assert 'perigee_requests_total{route="/decode",status="200"}' in text and "perigee_decode_seconds_bucket" in text
    schema = httpx.get(url + "/openapi.json").json()
    assert {"/decode", "/inspect", "/profiles", "/healthz", "/readyz", "/metrics"} <= set(schema["paths"])
    assert PROBLEM in schema["paths"]["/decode"]["post"]["responses"]["422"]["content"]


def test_hostile_bytes_are_client_errors(url, stream, rng):
    for _ in range(60):
        answer = post(url, mutate(stream, rng), "/decode?format=json&scale=1/16")
        assert answer.status_code < 500, answer.text


def test_a_full_queue_answers_503(library, profile, serve):
    server, address = serve(Settings(library=library, running=1, waiting=0, retry_after_s=7))
    data = ArrayCodec(profile).encode(np.random.default_rng(1).integers(0, 255, (1500, 1500, 3), np.uint8), 30)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(address, data, "/decode?format=json"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.should_exit = True
    codes = sorted(a.status_code for a in answers)
    assert codes[0] == 200 and codes[-1] == 503, codes
    busy = next(a for a in answers if a.status_code == 503)
    assert busy.headers["Retry-After"] == "7" and problem(busy, 503)


def test_a_token_is_asked_for(library, stream, serve):
    server, address = serve(Settings(library=library, token="a-secret-of-enough-length"))
    assert problem(post(address, stream), 401)
    assert httpx.get(address + "/healthz").status_code == 200
    good = OCTETS | {"Authorization": "Bearer a-secret-of-enough-length"}
    assert post(address, stream, "/inspect", good).status_code == 200
    server.should_exit = True


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--host", "0.0.0.0"], 64),
        (["--auth-token-file", "short"], 78),
        (["--auth-token-file", "absent"], 66),
        (["--port", "x"], 64),
    ],
)
def test_the_command_refuses_to_open_up_by_accident(tmp_path, args, code):
    (tmp_path / "short").write_text("secret")
    result = subprocess.run(
        [sys.executable, "-m", "perigee.ground.service", *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert result.returncode == code, result.stderr
