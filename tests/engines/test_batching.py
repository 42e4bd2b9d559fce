"""Batches: the same images whatever else is running, errors for those whom they concern, and less at a time where memory is short."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import perigee
from perigee.bitstream.errors import DeviceMemoryError, EngineError
from perigee.engines.backend import CPU_BACKEND, Backend
from perigee.engines.batching import Batched
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, Order, OrderLimits
from perigee.ground.work import Task, perform


class Device:
    """A real graph on a device that counts its batches, and has memory for ``room`` images."""

    def __init__(self, graph=None, room=99):
        self.graph, self.room, self.sizes = graph, room, []

    def __call__(self, feeds):
        size = len(next(iter(feeds.values())))
        self.sizes.append(size)
        if size > self.room:
            raise DeviceMemoryError("CUDA out of memory")
        return self.graph(feeds) if self.graph else [2 * feeds["x"]]


def ask(batched, values, shape=(1, 3)):
    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(lambda v: batched({"x": np.full(shape, v, np.float32)})[0], values))


def test_runs_of_several_threads_share_a_batch_of_one_size():
    device = Device()
    found = ask(Batched(device, 4, 0.2), range(1, 11))
    assert [float(out[0, 0]) for out in found] == [2.0 * v for v in range(1, 11)]
    assert all(out.shape == (1, 3) for out in found)
    assert set(device.sizes) == {4} and len(device.sizes) < 10


def test_a_lone_run_does_not_wait_for_long():
    start = time.perf_counter()
    assert ask(Batched(Device(), 8), [3])[0].tolist() == [[6, 6, 6]]
    assert time.perf_counter() - start < 1


def test_shapes_are_not_mixed():
    device = Device()
    batched = Batched(device, 3, 0.1)
    with ThreadPoolExecutor(8) as pool:
        wide = [pool.submit(batched, {"x": np.full((1, n), n, np.float32)}) for n in (2, 5, 2, 5, 2, 7)]
        assert [f.result()[0].tolist() for f in wide] == [[[2 * n] * n] for n in (2, 5, 2, 5, 2, 7)]


def test_a_device_out_of_memory_halves_its_batch_and_says_so(caplog):
    device = Device(room=2)
    batched = Batched(device, 8, 0.2)
    with caplog.at_level(logging.WARNING):
        found = ask(batched, range(8))
    assert [float(out[0, 0]) for out in found] == [2.0 * v for v in range(8)] and batched.size == 2
    assert "batches have 4 images" in caplog.text and "batches have 2 images" in caplog.text
    with pytest.raises(DeviceMemoryError):
        ask(Batched(Device(room=0), 4), [1])


def test_an_error_concerns_those_who_asked():
    class Broken(Device):
        def __call__(self, feeds):
            if (feeds["x"] == 13).any():
                raise EngineError("the device is lost")
            return super().__call__(feeds)

    batched = Batched(Broken(), 1)
    with pytest.raises(EngineError, match="the device is lost"):
        ask(batched, [13])
    assert ask(batched, [1])[0].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("bands", [3, 4])
def test_products_do_not_depend_on_batch_or_on_what_else_runs(bands, tmp_path, tiles):
    """50 tasks in a random mixture, eight at a time, on a device that takes four images at a time."""
    import tifffile

    tile = tifffile.imread(tiles[0]).transpose(2, 0, 1)
    tile = np.concatenate([tile, tile[:1]])[:bands]
    orders = [Order(), Order(window=(0, 900, 60, 300)), Order(scale="1/4"), Order(window=(0, 0, 64, 64))]
    for number, image in enumerate((np.tile(tile[:, :64], (1, 1, 6)), tile[:, :64, :128])):
        (tmp_path / f"{number}.peri").write_bytes(perigee.encode(np.ascontiguousarray(image), 20))
    device: list[Device] = []

    def make(path, threads):
        device.append(Device(OnnxRuntimeGraph(path, threads)))
        return device[-1]

    def bytes_of(library, name, number, order):
        out = tmp_path / f"{name}.tif"
        window = order.window if number == 0 or order.window == (0, 0, 64, 64) else None
        order = Order(window=window, scale=order.scale)
        perform(Task(order, tmp_path / f"{number}.peri", {IMAGE: out}, OrderLimits()), library)
        return out.read_bytes()

    alone = Library(threads=1, backend=CPU_BACKEND)
    together = Library(threads=1, backend=Backend("onnxruntime", "cpu", make, 4))
    wanted = {(n, i): bytes_of(alone, f"w{n}{i}", n, o) for n in (0, 1) for i, o in enumerate(orders)}
    rng = np.random.default_rng(bands)
    mixture = [(int(rng.integers(2)), int(rng.integers(len(orders))), k) for k in range(50)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda m: bytes_of(together, f"f{m[2]}", m[0], orders[m[1]]), mixture))
    assert all(got == wanted[n, i] for got, (n, i, _) in zip(found, mixture, strict=True))
    assert any(4 in d.sizes for d in device)
    assert threading.active_count() < 100
