"""Worker processes behind the service: killed, failing and slow, and never a wrong answer."""

import os
import pickle
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from prometheus_client import generate_latest

import perigee
from perigee.bitstream.errors import BusyError, ChecksumError, UnknownProfileError
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, Order, OrderLimits
from perigee.ground.service import cli, workers
from perigee.ground.service.devices import Load, loads
from perigee.ground.service.limits import Settings
from perigee.ground.service.messages import Setting
from perigee.ground.service.metrics import Metrics
from perigee.ground.service.workers import Here, Processes
from perigee.ground.work import Task

OCTETS = {"Content-Type": "application/octet-stream"}
ENOUGH_S = 90


@pytest.fixture(scope="module")
def stream(tiles):
    import tifffile

    return perigee.encode(tifffile.imread(tiles[0])[:64, :64].transpose(2, 0, 1), 40)


def until(condition, seconds=ENOUGH_S):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.1)


def is_ready(url):
    return httpx.get(f"{url}/readyz", timeout=30).status_code == 200


def post(url, data, path="/decode", **query):
    return httpx.post(url + path, content=data, params=query, headers=OCTETS, timeout=120)


def processes(pool):
    return [w.process for w in pool._workers if w.process is not None and w.process.poll() is None]


def test_errors_travel_with_all_that_they_carry():
    for error in (
        ChecksumError("the CRC differs", field="crc", expected=1, found=2, offset_bytes=24),
        UnknownProfileError("ab", {"flight3": "cd"}),
        BusyError("full", 7),
    ):
        found = pickle.loads(pickle.dumps(error))
        assert type(found) is type(error) and str(found) == str(error) and found.data() == error.data()
    assert pickle.loads(pickle.dumps(BusyError("full", 7))).retry_after_s == 7


def test_requests_survive_workers_that_are_killed(stream, serve):
    """200 requests over four workers, which are killed at random: each answer is right, or says when to come again."""
    server, url = serve(Settings(devices=("cpu",) * 4, threads=1, waiting=16))
    pool = server.config.app.state.workers
    until(lambda: len([s for s in pool.statuses() if s.state == "up"]) == 4)
    wanted = post(url, stream).content
    rng, ended = random.Random(1), threading.Event()

    def kill():
        while not ended.wait(3):
            alive = processes(pool)
            if len(alive) > 1:
                rng.choice(alive).send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with ThreadPoolExecutor(6) as clients:
            answers = list(clients.map(lambda _: post(url, stream), range(200)))
    finally:
        ended.set()
        killer.join()
    right = [a for a in answers if a.status_code == 200]
    assert all(a.content == wanted for a in right) and len(right) > 100
    rest = [a for a in answers if a.status_code != 200]
    assert all(a.status_code == 503 and int(a.headers["Retry-After"]) > 0 for a in rest)
    until(lambda: len([s for s in pool.statuses() if s.state == "up"]) == 4)
    assert sum(s.restarts for s in pool.statuses()) > 0 and post(url, stream).content == wanted
    metrics = httpx.get(f"{url}/metrics").text
    assert metrics.count('perigee_worker_up{device="cpu",worker=') == 4 and "perigee_worker_restarts_total" in metrics
    server.should_exit = True
    until(lambda: not processes(pool), 30)


def test_a_device_that_is_not_there_is_said_and_others_serve(stream, serve):
    server, url = serve(Settings(devices=("0", "cpu"), threads=1))
    until(lambda: is_ready(url))
    assert post(url, stream).status_code == 200
    pool = server.config.app.state.workers
    until(lambda: pool.statuses()[0].state == "down")
    gpu, cpu = httpx.get(f"{url}/readyz").json()["workers"]
    assert (gpu["state"], cpu["state"], cpu["engine"]) == ("down", "up", "onnxruntime")
    assert "no engine runs on GPU 0" in gpu["reason"]
    server.should_exit = True


def test_without_a_worker_there_is_no_silent_cpu(stream, serve):
    server, url = serve(Settings(devices=("0",), engine="torch", threads=1))
    until(lambda: server.config.app.state.workers.statuses()[0].state == "down")
    ready, answer = httpx.get(f"{url}/readyz", timeout=30), post(url, stream)
    assert ready.status_code == 503 and "PyTorch sees no GPU" in ready.json()["detail"]
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
    server.should_exit = True


def test_errors_of_a_task_are_those_of_this_process(stream, serve):
    server, url = serve(Settings(devices=("cpu",), threads=1))
    until(lambda: is_ready(url))
    broken = stream[:200] + bytes([stream[200] ^ 1]) + stream[201:]
    plain, url_here = serve(Settings(library=Library(threads=1)))
    for data, query in (
        (broken, {}),
        (b"no stream", {}),
        (stream, {"window": "0,0,999,999"}),
        (stream, {"bands": "9"}),
    ):
        one, two = post(url, data, **query), post(url_here, data, **query)
        assert one.status_code == two.status_code == 422 and one.json() == two.json()
    assert post(url, stream).content == post(url_here, stream).content
    server.should_exit = plain.should_exit = True


def test_a_job_goes_on_where_its_worker_is_killed(tiles, serve):
    import tifffile

    scene = np.tile(tifffile.imread(tiles[0]).transpose(2, 0, 1), (1, 4, 4))
    server, url = serve(Settings(devices=("cpu",), threads=1))
    pool = server.config.app.state.workers
    until(lambda: is_ready(url))
    job = post(url, perigee.encode(scene, 20), "/jobs").json()["id"]
    until(lambda: pool.statuses()[0].busy)
    for process in processes(pool):
        process.send_signal(signal.SIGKILL)
    until(lambda: httpx.get(f"{url}/jobs/{job}").json()["status"] == "done")
    assert httpx.get(f"{url}/jobs/{job}/result", timeout=60).status_code == 200
    second = post(url, perigee.encode(scene, 20), "/jobs").json()["id"]
    until(lambda: pool.statuses()[0].busy)
    assert httpx.delete(f"{url}/jobs/{second}").json()["was"] == "cancelled"
    until(lambda: not pool.statuses()[0].busy)
    assert pool.statuses()[0].restarts == 1, "a job that is cancelled does not cost its worker"
    server.should_exit = True


STAND_IN = """
import sys
from multiprocessing.connection import Connection
from perigee.bitstream.errors import EngineError
from perigee.ground.service import worker
from perigee.ground.service.messages import Message

class Again(Connection):
    def recv(self):
        return self.__dict__.pop("first", None) or super().recv()

connection = Again(int(sys.argv[1]))
setting = connection.recv()
if setting.device == "cpu":
    connection.first = setting
    try:
        worker.serve(connection)
    except EOFError:
        sys.exit(0)
(seen,) = setting.profiles
if seen.exists():
    connection.send(Message("failed", "the device is lost"))
    sys.exit(1)
connection.send(Message("ready", ("cuda", "GPU 0")))
connection.recv()
seen.touch()
if setting.engine == "slow":
    connection.recv()
connection.send(Message("failed", EngineError("CUDA error: an illegal memory access")))
connection.recv()
"""


@pytest.mark.parametrize("engine", ["cuda", "slow"])
def test_a_lost_device_is_taken_out_and_its_task_done_by_another(engine, stream, tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(STAND_IN)
    monkeypatch.setattr(workers, "SILENT_S", 20 if engine == "slow" else 600)
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, str(tmp_path / "worker.py")))
    pool = Processes([Setting((tmp_path / "seen",), 1, engine, "0"), Setting((), 1, "onnxruntime", "cpu")])
    pool.start()
    until(lambda: all(status.state == "up" for status in pool.statuses()))
    (tmp_path / "s.peri").write_bytes(stream)
    task = Task(Order(), tmp_path / "s.peri", {IMAGE: tmp_path / "out.tif"}, OrderLimits())
    assert pool.perform(task).pixels == 64 * 64
    assert (tmp_path / "seen").exists(), "the failing device was tried first"
    until(lambda: pool.statuses()[0].reason == "the device is lost")
    here = Task(task.order, task.given, {IMAGE: tmp_path / "here.tif"}, task.limits)
    Here(Library(threads=1)).perform(here)
    assert (tmp_path / "here.tif").read_bytes() == (tmp_path / "out.tif").read_bytes()
    pool.stop()
    assert not processes(pool)


def test_gpus_are_measured_where_nvml_is(monkeypatch):
    """Against a stand-in with the functions of nvidia-ml-py; without it there is nothing to tell."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list(loads(["0", "cpu"])) == []
    asked = []
    stand_in = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: asked.append(index) or index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3 << 30, total=80 << 30, free=77 << 30),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=40 + handle, memory=9),
    )
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    assert list(loads(["10", "2", "cpu", "2"])) == [
        Load("2", 0.42, 3 << 30, 80 << 30),
        Load("10", 0.5, 3 << 30, 80 << 30),
    ]
    assert asked == [2, 10] and list(loads(["cpu"])) == []
    pool = Processes([Setting((), 1, "cuda", "2")])
    text = generate_latest(Metrics(pool).registry).decode()
    assert 'perigee_gpu_utilisation{device="2"} 0.42' in text and "perigee_gpu_memory_used_bytes" in text


def test_devices_are_named_once(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--devices", "0,0"])
    assert ended.value.code == os.EX_USAGE and "names a GPU twice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--devices", "0,cpu", "--device", "1"])
    assert "exclude each other" in capsys.readouterr().err
