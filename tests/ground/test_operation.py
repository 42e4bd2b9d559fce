"""The service in operation: it ends when told to, waits for nobody for ever, and shares its folders with nobody."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

import perigee
from perigee.bitstream.errors import OutputError, UnfinishedJobError, UnknownJobError
from perigee.ground.library import Library
from perigee.ground.orders import Order, OrderLimits
from perigee.ground.service.connections import connections_of
from perigee.ground.service.jobs import Jobs
from perigee.ground.service.limits import Settings
from perigee.ground.service.parameters import negotiated
from perigee.ground.service.workers import Here
from perigee.ground.service.workspace import PREFIX

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:1100, 0:1100]
    picture = np.stack([120 + 60 * np.sin(x / 9), 110 + 50 * np.cos(y / 7), 90 + 20 * np.sin((x + y) / 5)])
    return perigee.encode(np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8), 60)


class Service:
    """``ground-serve`` as a process of its own."""

    def __init__(self, folder, *more, descriptors=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "perigee.ground.service", "--port", str(self.port), "--threads", "1", *more]
        settings = os.environ | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        limit = [] if descriptors is None else ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh"]
        self.process = subprocess.Popen([*limit, *command], env=settings, stderr=subprocess.PIPE, text=True)

    def wait(self):
        for _ in range(300):
            try:
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return self
            except httpx.HTTPError:
                assert self.process.poll() is None, self.process.stderr.read()
                time.sleep(0.1)
        raise AssertionError("the service does not answer")

    def left(self):
        return sorted(path.name for path in self.temporary.iterdir())


@pytest.fixture
def service(tmp_path):
    started = []

    def start(*more, folder=tmp_path, **settings):
        started.append(Service(folder, *more, **settings))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def stalled(service, data):
    """A client that asks for a product and reads a little of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", service.port))
    head = f"POST /decode HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    client.settimeout(120)
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    return client


def test_sigterm_ends_the_service_while_a_download_stands_still(service, data, tmp_path):
    running = service("--shutdown-seconds", "2", "--jobs", str(tmp_path / "jobs")).wait()
    with stalled(running, data):
        assert any(name.startswith(PREFIX) for name in running.left())
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(15)
    assert time.monotonic() - start < 12 and running.left() == [] and running.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_service(service, number, data, tmp_path):
    running = service("--devices", "cpu,cpu", "--shutdown-seconds", "2").wait()
    process = running.process.pid

    def workers():
        ids = [one for file in Path(f"/proc/{process}/task").glob("*/children") for one in file.read_text().split()]
        return [one for one in ids if b"service.worker" in Path(f"/proc/{one}/cmdline").read_bytes()]

    octets = {"Content-Type": "application/octet-stream"}
    answer = httpx.post(f"{running.url}/decode", content=data, params={"scale": "1/16"}, headers=octets, timeout=120)
    assert answer.status_code == 200
    started = workers()
    assert len(started) == 2
    running.process.send_signal(number)
    running.process.wait(15)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{one}").exists() for one in started):
        assert time.monotonic() < end, "a worker has outlived its service"
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_a_closed_terminal_ends_the_service_like_sigterm(service, number, tmp_path):
    running = service().wait()
    assert running.left()
    running.process.send_signal(number)
    assert running.process.wait(15) == 0 and running.left() == []


def test_connections_without_a_request_neither_fill_the_service_nor_its_log(service):
    running = service(descriptors=128).wait()
    with contextlib.ExitStack() as clients:
        for _ in range(160):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            client.sendall(b"GET /h")
        for _ in range(5):
            assert httpx.get(f"{running.url}/healthz", timeout=10).status_code == 200
    running.process.terminate()
    assert len(running.process.communicate(timeout=30)[1]) < 5000


def test_a_request_head_that_does_not_end_is_cut_off():
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        http = connections_of(Settings(head_s=0.5), 8)
        server = uvicorn.Server(uvicorn.Config(answer, http=http, lifespan="off", log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            for first in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                with socket.create_connection(listening.getsockname(), timeout=10) as client:
                    client.sendall(first)
                    assert not first or client.recv(1000).startswith(b"HTTP/1.1 204")
                    with pytest.raises(OSError, match=r"reset|[Bb]roken"):
                        for _ in range(100):
                            client.sendall(b"G")
                            time.sleep(0.05)
        finally:
            server.should_exit = True
            thread.join(10)
        assert not server.server_state.connections and not http.waiting


def test_a_download_that_stands_still_is_cut_off(service, data, tmp_path):
    folders = ["--jobs", str(tmp_path / "jobs"), "--scenes", str(tmp_path / "scenes")]
    running = service("--write-seconds", "1", *folders).wait()
    with stalled(running, data):
        end = time.monotonic() + 30
        while running.left() and time.monotonic() < end:
            time.sleep(0.1)
        assert running.left() == [] and httpx.get(f"{running.url}/healthz").status_code == 200


def test_a_service_clears_what_a_killed_one_left(service, data, tmp_path):
    first = service("--jobs", str(tmp_path / "a")).wait()
    with stalled(first, data):
        first.process.kill()
        first.process.wait()
    abandoned = first.left()
    assert abandoned
    second = service("--jobs", str(tmp_path / "b")).wait()
    with stalled(second, data):  # what belongs to a living process stays
        third = service("--jobs", str(tmp_path / "c")).wait()
        assert not set(abandoned) & set(third.left()) and third.left()


def test_two_services_do_not_share_a_folder_of_jobs(service, tmp_path):
    folder = str(tmp_path / "jobs")
    first = service("--jobs", folder).wait()
    second = service("--jobs", folder)
    assert second.process.wait(60) == os.EX_CANTCREAT
    assert "another service uses it" in second.process.stderr.read()
    first.process.send_signal(signal.SIGTERM)
    first.process.wait(30)
    here = Here(Library(threads=1))
    jobs = Jobs(tmp_path / "jobs", here, OrderLimits(), 8)
    with pytest.raises(OutputError, match="another service"):
        Jobs(tmp_path / "jobs", here, OrderLimits(), 8)
    jobs.stop()
    Jobs(tmp_path / "jobs", here, OrderLimits(), 8).stop()


def test_a_job_with_an_order_that_cannot_be_read_fails_with_a_reason(tmp_path):
    jobs = Jobs(tmp_path, Here(Library(threads=1)), OrderLimits(), 8)
    name = jobs.submit(Order(format="json"), perigee.encode(np.full((1, 64, 64), 9, np.uint8)))["id"]
    (tmp_path / name / "order.json").write_text('{"colour": 1}')
    jobs.start()
    while jobs.described(name)["status"] not in ("done", "failed"):
        time.sleep(0.02)
    jobs.stop()
    problem = jobs.described(name)["problem"]
    assert problem["status"] == 422 and "cannot be read" in problem["detail"]


def finished(jobs, name):
    while jobs.described(name)["status"] not in ("done", "failed"):
        time.sleep(0.02)
    return jobs.described(name)


@pytest.mark.parametrize(
    "record",
    [
        b'{"created": "x"}',
        b'{"status": "queued", "attempts": "x"}',
        b'{"status": "done", "file": "../../secret"}',
        b'{"status": "done"}',
        b'{"created": NaN}',
        b'{"status": "failed", "problem": {"detail": "\\ud800"}}',
        b"[]",
        b"",
        b"\xff",
        b"[" * 100_000,
        bytes(2 << 20),
        None,
    ],
    ids=range(12),
)
def test_a_damaged_record_concerns_its_own_job_alone(record, tmp_path):
    place = tmp_path / ("a" * 32)
    place.mkdir()
    if record is None:
        os.mkfifo(place / "state.json")
    else:
        (place / "state.json").write_bytes(record)
    jobs = Jobs(tmp_path, Here(Library(threads=1)), OrderLimits(), 8)
    jobs.start()
    name = jobs.submit(Order(format="json"), perigee.encode(np.full((1, 64, 64), 9, np.uint8)))["id"]
    assert finished(jobs, name)["status"] == "done"
    damaged = jobs.described(place.name)
    assert damaged["status"] == "failed" and "record" in damaged["problem"]["detail"]
    json.dumps(jobs.all(), allow_nan=False, ensure_ascii=False).encode()
    with pytest.raises(UnfinishedJobError):
        jobs.result(place.name)
    assert jobs.cancel(place.name) == "deleted" and not place.exists()
    jobs.stop()


@pytest.mark.parametrize("order", [b"\xff", b"[" * 100_000, b"{}}", b'{"window": "x"}', b'{"format": "../x"}', None])
def test_a_damaged_order_concerns_its_own_job_alone(order, tmp_path):
    jobs = Jobs(tmp_path, Here(Library(threads=1)), OrderLimits(), 8)
    data = perigee.encode(np.full((1, 64, 64), 9, np.uint8))
    first, second = (jobs.submit(Order(format="json"), data)["id"] for _ in range(2))
    (tmp_path / first / "order.json").unlink()
    if order is not None:
        (tmp_path / first / "order.json").write_bytes(order)
    jobs.start()
    assert finished(jobs, second)["status"] == "done" and finished(jobs, first)["status"] == "failed"
    jobs.stop()


def test_a_result_that_was_emptied_or_leads_elsewhere_is_not_served(tmp_path):
    (tmp_path / "secret").write_text("secret")
    jobs = Jobs(tmp_path / "jobs", Here(Library(threads=1)), OrderLimits(), 8)
    jobs.start()
    data = perigee.encode(np.full((1, 64, 64), 9, np.uint8))
    emptied, leading = (jobs.submit(Order(format="json"), data)["id"] for _ in range(2))
    assert finished(jobs, emptied)["status"] == finished(jobs, leading)["status"] == "done"
    jobs.result(emptied)[0].write_bytes(b"")
    product = jobs.result(leading)[0]
    product.unlink()
    product.symlink_to(tmp_path / "secret")
    with pytest.raises(UnfinishedJobError) as failure:
        jobs.result(emptied)
    assert failure.value.problem["detail"] == "the job's product is empty"
    assert jobs.described(emptied)["status"] == "failed"
    with pytest.raises(UnknownJobError):
        jobs.result(leading)
    jobs.stop()


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("*/*", "tif"),
        ("image/png;q=0.1, image/tiff;q=0.9", "tif"),
        ("application/json;q=0.5, image/tiff", "tif"),
        ("*/*;q=0.1, application/json", "json"),
        ("image/tiff;q=0.000", None),
        ("image/png;q=0.00, */*;q=0.5", "tif"),
        ("image/*, application/json;q=0.2", "tif"),
        ("image/*;q=0.2, application/json", "json"),
        ("image/png, image/tiff", "png"),
        ("text/html, */*;q=0.1", "tif"),
        ("IMAGE/PNG ; Q=0.7 , image/tiff;q=.6", "png"),
        ("text/html", None),
        ("image/tiff;q=0, image/*", "png"),
        ("image/png;q=wrong", "png"),
        ("", None),
    ],
)
def test_accept_is_weighed(accept, wanted):
    assert negotiated(accept) == wanted


@given(st.text(max_size=60))
def test_no_accept_header_is_an_error(text):
    assert negotiated(text) in ("tif", "png", "json", None)


def test_a_full_temporary_folder_is_507(service, data, tmp_path):
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("needs root for a small file system of its own")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "full").mkdir()
    script = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}/full" && exec "$@"'
    serve = [
        sys.executable,
        "-m",
        "perigee.ground.service",
        "--port",
        str(port),
        "--threads",
        "1",
        "--jobs",
        str(tmp_path / "j"),
    ]
    settings = os.environ | {"TMPDIR": str(tmp_path / "full")}
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", *serve], env=settings, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(300):
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/decode", content=data, headers=OCTETS, timeout=120)
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        assert answer.status_code == 507 and answer.headers["content-type"] == "application/problem+json"
        small = perigee.encode(np.full((1, 64, 64), 90, np.uint8))
        assert (
            httpx.post(f"http://127.0.0.1:{port}/decode", content=small, headers=OCTETS, timeout=60).status_code == 200
        )
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in process.stderr.read()
