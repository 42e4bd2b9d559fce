"""Work on archives: an S3 server on loopback and folders, workers and drivers that are killed, objects that are broken.

Needs the extra ``archive`` and moto: ``make more-ready`` installs them.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

import perigee
from perigee.bitstream.errors import OrderError
from perigee.bitstream.metadata import Acquisition, Metadata
from perigee.ground.orders import Order

pytest.importorskip("ray", reason="the extra archive is not installed: make more-ready")
pytest.importorskip("obstore", reason="the extra archive is not installed: make more-ready")

from datetime import datetime, timezone

from perigee.archive.catalogue import collection_of
from perigee.archive.records import Record
from perigee.archive.sources import keys_of
from perigee.archive.stores import Key, read, split_address, store_of, write
from perigee.archive.work import Work, Worker

# In an environment of its own: rasterio would import boto3, which opens sockets.
MOTO = Path(os.environ.get("PERIGEE_MOTO", "build/moto/bin/python"))
WHEN = datetime(2026, 5, 4, 10, 30, tzinfo=timezone.utc)


def scene(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:128, 0:160]
    planes = [120 + 60 * np.sin(x / (7 + number % 5) + k) * np.cos(y / 11) for k in range(3)]
    return (np.stack(planes) + rng.normal(0, 5, (3, 128, 160))).clip(0, 255).astype(np.uint8)


def stream(number: int, quality: float = 40) -> bytes:
    place = Metadata(
        epsg=32633, transform=(2.0, 0.0, 5e5 + 400 * number, 0.0, -2.0, 5e6), acquisition=Acquisition(timestamp=WHEN)
    )
    return perigee.encode(scene(number), quality, metadata=place)


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    for number in range(12):
        (folder / f"orbit{number % 3}").mkdir(exist_ok=True)
        (folder / f"orbit{number % 3}" / f"scene{number}.peri").write_bytes(stream(number))
    return folder


def archive(*arguments, environment=None, ok=0, wait=True):
    """``perigee-archive`` as a process of its own; its output."""
    command = [
        sys.executable,
        "-c",
        "import sys; from perigee.archive.cli import main; sys.exit(main())",
        *map(str, arguments),
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=300)
    assert process.returncode == ok, err[-2000:]
    return out + err


def report(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_streams_become_cogs_with_items_and_a_collection(streams, tmp_path):
    import pystac
    from pystac.validation.stac_validator import JsonSchemaSTACValidator
    from rio_cogeo import cog_validate

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.peri").write_bytes((streams / "orbit0" / "scene0.peri").read_bytes()[:-30])
    told = archive("decode", streams, tmp_path / "out", "--report", tmp_path / "report.jsonl", "--workers", 2)
    assert "12 made, 0 kept, 0 failed" in told
    for number in range(12):
        product = tmp_path / "out" / f"orbit{number % 3}" / f"scene{number}.tif"
        assert cog_validate(product, quiet=True)[0]
        with rasterio.open(product) as found:
            assert np.array_equal(found.read(), perigee.decode(stream(number)).samples)
        item = json.loads(product.with_suffix(".json").read_text())
        assert item["properties"]["datetime"] == "2026-05-04T10:30:00Z" and item["properties"]["perigee:lossy"] == "YES"
        assert item["assets"]["image"]["file:size"] == product.stat().st_size
        plain = pystac.Item.from_dict(item).to_dict(include_self_link=False)
        JsonSchemaSTACValidator().validate_core(plain, pystac.STACObjectType.ITEM, plain["stac_version"])
    collection = pystac.Collection.from_file(str(tmp_path / "out" / "collection.json"))
    assert sorted(item.id for item in collection.get_items()) == sorted(f"orbit{n % 3}--scene{n}" for n in range(12))
    plain = collection.to_dict(include_self_link=False)
    JsonSchemaSTACValidator().validate_core(plain, pystac.STACObjectType.COLLECTION, plain["stac_version"])
    assert collection.extent.temporal.intervals[0][0] == WHEN
    again = archive("decode", streams, tmp_path / "out", "--workers", 1)
    assert "0 made, 12 kept" in again
    assert "12 made" in archive("decode", streams, tmp_path / "out", "--scale", "1/2", "--workers", 1), (
        "another order is another product"
    )
    told = archive(
        "decode", tmp_path / "in", tmp_path / "out", "--report", tmp_path / "bad.jsonl", "--workers", 1, ok=65
    )
    assert "broken.peri: " in told and report(tmp_path / "bad.jsonl")[0]["problem"]["fault"]
    assert len(pystac.Collection.from_file(str(tmp_path / "out" / "collection.json")).get_item_links()) == 12
    (tmp_path / "in" / "broken.peri").write_bytes(stream(1))
    (tmp_path / "in" / "other.peri").write_bytes(stream(2))
    assert "1 made" in archive(
        "decode", tmp_path / "in", tmp_path / "out", "--retry", tmp_path / "bad.jsonl", "--workers", 1
    )


@pytest.fixture(scope="module")
def s3():
    """An S3 server on loopback: its environment, and a function that lists the keys of its bucket."""
    if not MOTO.exists():
        pytest.skip("moto is not installed: make more-ready")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(MOTO), "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip
    for _ in range(200):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/scenes", method="PUT"))
            break
        except OSError:
            time.sleep(0.1)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield address
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.kill()
    server.wait()


def put(key, data):
    write(store_of("s3://scenes"), key, data)


def get(key):
    return read(Key("s3://scenes", key))


def test_object_stores_are_read_and_written(s3, tmp_path):
    for number in range(4):
        put(f"raw/2026/{number}.peri", stream(number))
    assert "4 made" in archive("decode", "s3://scenes/raw", "s3://scenes/products/a", "--workers", 1)
    with rasterio.MemoryFile(get("products/a/raw/2026/3.tif")) as file, file.open() as found:
        assert np.array_equal(found.read(), perigee.decode(stream(3)).samples)
    collection = json.loads(get("products/a/collection.json"))
    assert [link["href"] for link in collection["links"] if link["rel"] == "item"] == [
        f"./raw/2026/{n}.json" for n in range(4)
    ]
    assert "2 made" in archive("decode", "s3://scenes/raw/*/[12].peri", tmp_path / "out", "--workers", 1)
    items = archive("decode", "s3://scenes/products/a/collection.json", tmp_path / "none", ok=64)
    assert "names nothing" in items, "its assets are no streams"
    (tmp_path / "list.txt").write_text("# two\ns3://scenes/raw/2026/0.peri\n\ns3://scenes/raw/2026/9.peri\n")
    assert "1 made, 0 kept, 1 failed" in archive(
        "decode", f"@{tmp_path / 'list.txt'}", tmp_path / "out2", "--workers", 1, ok=65
    )


def test_whatever_is_killed_the_rerun_makes_nothing_twice(tmp_path):
    """Workers, then the driver, by kill -9 at random moments: what was finished stays, and the end is as if nothing had happened."""
    source, out, chance = tmp_path / "in", tmp_path / "out", random.Random(4)
    source.mkdir()
    for number in range(90):
        (source / f"{number}.peri").write_bytes(stream(number, 35))
    made = {}
    for round_ in range(3):
        process = archive("decode", source, out, "--workers", 2, "--report", tmp_path / "report.jsonl", wait=False)
        deadline = time.monotonic() + 60
        while (
            len(list(out.glob("*.json"))) < 15 * (round_ + 1) and time.monotonic() < deadline and process.poll() is None
        ):
            if chance.random() < 0.1:
                workers = subprocess.run(["pgrep", "-f", "ray::_Actor"], capture_output=True, text=True).stdout.split()
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(int(chance.choice(workers)), signal.SIGKILL)
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):  # it was done before
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(1)
        for item in out.glob("*.json"):
            if item.name != "collection.json":
                made.setdefault(item.name, item.stat().st_mtime_ns)
    told = archive("decode", source, out, "--workers", 2, "--report", tmp_path / "report.jsonl")
    assert f"{90 - len(made)} made, {len(made)} kept, 0 failed" in told
    assert all((out / name).stat().st_mtime_ns == then for name, then in made.items())
    fresh = tmp_path / "fresh"
    archive("decode", source, fresh, "--workers", 2)

    def digests(folder):
        return {p.name: json.loads(p.read_text())["properties"]["perigee:digest"] for p in folder.glob("[0-9]*.json")}

    assert digests(out) == digests(fresh) and len(digests(out)) == 90
    assert all((out / f"{n}.tif").read_bytes() == (fresh / f"{n}.tif").read_bytes() for n in range(90))
    assert not [p for p in out.iterdir() if p.suffix not in (".tif", ".json")]


def test_images_are_encoded_and_enhanced(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.tile(scene(1).transpose(1, 2, 0), (2, 2, 1))
    Image.fromarray(pixels).save(folder / "a.jpg", quality=40)
    with rasterio.open(
        folder / "b.tif", "w", driver="GTiff", width=320, height=256, count=3, dtype="uint8", crs="EPSG:32633"
    ) as file:
        file.write(pixels.transpose(2, 0, 1))
    told = archive("encode", folder, tmp_path / "streams", "--max-error", "0", "--workers", 1)
    assert "1 made" in told and np.array_equal(
        perigee.decode(tmp_path / "streams" / "b.peri").samples, pixels.transpose(2, 0, 1)
    )
    told = archive("enhance", folder / "a.jpg", tmp_path / "better", "--workers", 1)
    with rasterio.open(tmp_path / "better" / "a.tif") as found:
        assert found.tags()["PERIGEE_ENHANCED"] == "YES"


def test_what_cannot_work_is_said_before_any_worker_starts(tmp_path, streams):
    for arguments in (
        ("decode", tmp_path / "none", tmp_path / "out"),
        ("decode", "ftp://host/x", tmp_path / "out"),
        ("decode", "https://host/prefix/", tmp_path / "out"),
        ("decode", streams, "https://host/prefix"),
        ("decode", streams, tmp_path / "out", "--strength", "7"),
        ("decode", f"@{tmp_path / 'none.txt'}", tmp_path / "out"),
        ("decode", "", tmp_path / "out"),
        ("decode", streams, tmp_path / "out", "--compensation", "nosuch"),
        ("decode", streams, tmp_path / "out", "--gpus", "1.5"),
        ("encode", streams, tmp_path / "out", "--quality", "-5"),
        ("encode", streams, tmp_path / "out", "--max-error", "nan"),
    ):
        assert "Traceback" not in archive(*arguments, ok=64)
    (tmp_path / "file").write_text("x")
    assert "no folder" in archive("decode", streams, tmp_path / "file", ok=73)
    assert "no profile" in archive("decode", streams, tmp_path / "out", "--profiles", tmp_path / "nowhere", ok=78)
    assert "report" in archive("decode", streams, tmp_path / "out", "--report", tmp_path / "none" / "r.jsonl", ok=73)
    assert "a worker takes" in archive("decode", streams, tmp_path / "out", "--gpus", "1", ok=69)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "collection.json").write_text('{"type": "Collection"}')
    assert "not written by perigee-archive" in archive("decode", streams, tmp_path / "theirs", ok=73)


def test_nobody_s_files_are_replaced(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.peri").write_bytes(stream(1))
    (folder / "a.json").write_text('{"mine": true}')
    told = archive("decode", folder, folder, "--workers", 1, ok=65)
    assert "a.json is there" in told and (folder / "a.json").read_text() == '{"mine": true}'
    Image.fromarray(scene(1).transpose(1, 2, 0)).save(folder / "b.jpg")
    Image.fromarray(scene(1).transpose(1, 2, 0)).save(folder / "b.jpeg")
    assert "would have one product" in archive("enhance", folder, tmp_path / "out", ok=64)
    (folder / "b.jpg").rename(folder / "c.tif")
    (folder / "b.jpeg").unlink()
    before = (folder / "c.tif").read_bytes()
    assert "own place" in archive("enhance", folder, folder, "--workers", 1, ok=65)
    assert (folder / "c.tif").read_bytes() == before


def test_a_run_that_is_ended_leaves_no_temporary_folder(tmp_path, request):
    (tmp_path / "in").mkdir()
    short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # Ray's sockets need a short path
    request.addfinalizer(lambda: shutil.rmtree(short, ignore_errors=True))
    for number in range(40):
        (tmp_path / "in" / f"{number}.peri").write_bytes(stream(number % 3))
    more = {"TMPDIR": str(short)}
    process = archive(
        "decode",
        tmp_path / "in",
        tmp_path / "out",
        "--compensation",
        "cosmic",
        "--workers",
        1,
        environment=more,
        wait=False,
    )
    for _ in range(600):
        if list((tmp_path / "out").glob("*.tif")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in told
    assert not [path for path in short.iterdir() if path.name.startswith("perigee")]


def test_patterns_and_documents_name_keys(tmp_path):
    for name in ("a/b/1.peri", "a/2.peri", "3.peri", "a/b/4.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def found(source):
        return [key.path for key in keys_of(str(source), (".peri",))]

    assert found(tmp_path) == found(f"{tmp_path}/**/*.peri") == ["3.peri", "a/2.peri", "a/b/1.peri"]
    assert found(f"{tmp_path}/a/*.peri") == ["2.peri"]
    assert found(f"{tmp_path}/a/2.peri") == ["2.peri"]
    asset = {"data": {"href": "./a/2.peri"}, "other": {"href": "x.tif"}}
    (tmp_path / "item.json").write_text(json.dumps({"type": "Feature", "assets": asset}))
    (tmp_path / "collection.json").write_text(
        json.dumps({"type": "Collection", "links": [{"rel": "item", "href": "./item.json"}]})
    )
    assert found(tmp_path / "collection.json") == found(tmp_path / "item.json") == ["2.peri"]
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(OrderError, match="no STAC document"):
        found(tmp_path / "bad.json")
    with pytest.raises(OrderError, match="names nothing"):
        found(tmp_path / "a" / "b" / "*.x")
    odd = tmp_path / "odd [1]" / "pass:1"
    odd.mkdir(parents=True)
    for name in ("a b.peri", "ü#1.peri", "50%.peri"):
        (odd / name).write_bytes(b"x")
    (odd / "loop").symlink_to(odd)
    assert found(odd) == ["50%.peri", "a b.peri", "ü#1.peri"]
    for name, text in {
        "self": '{"type": "Collection", "links": [{"rel": "item", "href": "self.json"}]}',
        "links": '{"links": ["x"]}', "none": '{"links": null, "features": 5}', "assets": '{"features": [{"assets": ["x"]}]}',
        "null": '{"assets": {"a": null}}', "deep": "[" * 100_000, "list": "[]",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(OrderError):
            found(tmp_path / f"{name}.json")
    for line in ("ftp://x/a.peri", "s3://bucket", "s3://[bad/a.tif", "notes.txt", "a\0b.peri"):
        (tmp_path / "list.txt").write_text(f"3.peri\n{line}\n")
        with pytest.raises(OrderError, match="line 2"):
            found(f"@{tmp_path / 'list.txt'}")
    (tmp_path / "list.txt").write_text(f"\ufeff{tmp_path}/a/2.peri\n  # two\n{tmp_path}/a/b/1.peri\n", encoding="utf-8")
    assert [key.stem for key in keys_of(f"@{tmp_path / 'list.txt'}", (".peri",))] == ["2", "b/1"]
    assert split_address("s3://b/run#1?x/") == ("s3://b", "run#1?x")


def test_documents_from_elsewhere_name_nothing_on_this_machine(monkeypatch):
    served = {
        "s3://b/c/collection.json": {"links": [{"rel": "item", "href": "/x/item.json"}]},
        "s3://b/x/item.json": None,
    }
    asked = []

    def document(place):
        asked.append(place)
        return served.get(place) or {"assets": {"a": {"href": "file:///etc/a.peri"}}}

    monkeypatch.setattr("perigee.archive.sources._document", document)
    with pytest.raises(OrderError, match="no address elsewhere"):
        keys_of("s3://b/c/collection.json", (".peri",))
    assert asked == ["s3://b/c/collection.json", "s3://b/x/item.json"]


def test_objects_come_by_http_with_their_queries(tmp_path):
    """Addresses that are signed for a while carry their signature in the query."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(stream(1))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/p/a%20b.peri?sig=x%2Fy"
    (key,) = keys_of(address, (".peri",))
    assert key.stem == "127.0.0.1/p/a b" and read(key) == stream(1) and asked == ["/p/a%20b.peri?sig=x%2Fy"]
    server.shutdown()


def test_the_digest_names_profiles_of_one_s_own(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"kind": "profile", "name": name}))
    texts = {
        Work("decode", "file:///x", "", profiles=folders).text
        for folders in ((), (str(tmp_path / "a"),), (str(tmp_path / "b"),))
    }
    assert len(texts) == 3


def test_a_collection_spans_its_items_and_the_runs_before():
    records = [Record("a", "made", "p/a.tif", bbox=[1, 2, 3, 4], time="2026-01-02T00:00:00Z"), Record("b", "failed")]
    first = collection_of(records, "p", "x", {})
    assert first["extent"]["spatial"]["bbox"] == [[1, 2, 3, 4]] and len(first["links"]) == 2
    more = [Record("c", "kept", "p/x/c.tif", bbox=[-1, 3, 2, 5], time="2025-01-02T00:00:00Z")]
    both = collection_of(more, "p", "x", first)
    assert both["extent"]["spatial"]["bbox"] == [[-1, 2, 3, 5]] and both["links"][-1]["href"] == "./x/c.json"
    crossing = collection_of(
        [Record("d", "made", "p/d.tif", bbox=[170, -10, -170, 10], time="2026-01-02T00:00:00.500Z")], "p", "x", both
    )
    assert crossing["extent"]["spatial"]["bbox"] == [[-180.0, -90.0, 180.0, 90.0]]
    assert collection_of([], "p", "x", crossing)["extent"] == crossing["extent"]
    assert crossing["extent"]["temporal"]["interval"][0][1] == "2026-01-02T00:00:00.500Z"
    assert both["extent"]["temporal"]["interval"] == [["2025-01-02T00:00:00Z", "2026-01-02T00:00:00Z"]]


def test_a_worker_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "a.peri").write_bytes(stream(1))
    worker = Worker(Work("decode", (tmp_path / "out").as_uri(), ""), 1)
    assert worker.do(Key(tmp_path.as_uri(), "a.peri")).status == "made"
    assert worker.do(Key(tmp_path.as_uri(), "none.peri")).status == "failed"
    assert not list((tmp_path / "tmp").iterdir())


def test_a_map_guides_what_it_touches(tmp_path, profile):
    torch = pytest.importorskip("torch")
    from perigee.export.map_guide import export_map_guide
    from perigee.models.compensation.map_guide import MapGuide

    folder = tmp_path / "profiles"
    shutil.copytree(profile.folder.parent / "compensators" / "cosmic", folder / "cosmic")
    torch.manual_seed(2)
    state = {"kind": "map guide", "mean": MapGuide().state_dict(), "step": 1, "seconds": 1.0}
    export_map_guide(state, folder / "cosmic", folder / "guided", "guided")
    ring = [[5e5 + x, 5e6 - y] for x, y in ((40, 40), (140, 40), (140, 120), (40, 120), (40, 40))]
    town = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "EPSG:32633"}},
        "features": [
            {
                "type": "Feature",
                "properties": {"building": "yes"},
                "geometry": {"type": "Polygon", "coordinates": [ring]},
            }
        ],
    }
    guide = tmp_path / "town.geojson"
    guide.write_text(json.dumps(town))
    for number in (0, 9):
        (tmp_path / f"{number}.peri").write_bytes(stream(number, 10))
    order = Order(compensation="guided")
    work = Work("decode", (tmp_path / "out").as_uri(), "", order, profiles=(str(folder),), guide=str(guide))
    found = {key.stem: Worker(work, 1).do(key) for key in keys_of(str(tmp_path), (".peri",))}
    assert found["0"].status == "made" and found["9"].status == "failed" and "lies elsewhere" in found["9"].error
    item = json.loads((tmp_path / "out" / "0.json").read_text())
    assert item["properties"]["perigee:map_objects"] == "1"
    before = work.text
    guide.write_text(json.dumps(town | {"date": "2026-01-01"}))
    assert work.text != before, "another map makes another product"
    guide.write_text("{}")
    said = archive("decode", tmp_path, tmp_path / "other", "--map", guide, ok=65)
    assert "FeatureCollection" in said
