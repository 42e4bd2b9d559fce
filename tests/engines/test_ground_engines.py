"""Engines of the ground: one choice for all commands, and never another engine than the one that was asked for."""

import os
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio

import perigee
from perigee.bitstream.errors import EngineError
from perigee.engines import cuda, ground_choice
from perigee.engines.backend import CPU_BACKEND, Backend
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.engines.torch import TorchGraph
from perigee.ground import cli
from perigee.ground.service import cli as service_cli

WINDOW = {"latents": (16, 16), "index": (16, 16)}  # latents of a window; everything else that varies has its pixels


def feeds_of(path, rng):
    """Random inputs of a graph for windows of 256 pixels."""
    model = onnx.load(path)
    constants = {c.name for c in model.graph.initializer}
    feeds = {}
    for given in model.graph.input:
        if given.name not in constants:
            sizes = [d.dim_value for d in given.type.tensor_type.shape.dim]
            free = WINDOW.get(given.name, (256, 256))
            if given.name == "quality" and len(sizes) == 4:
                free = (16, 16)
            shape = [1 if not n and i == 0 else n or free[i - 2] for i, n in enumerate(sizes)]
            feeds[given.name] = rng.random(shape, np.float32)
    return feeds


@pytest.mark.parametrize(
    "name",
    ["flight3/synthesis", "spectral1/synthesis", "enhancers/restore/enhancer"]
    + [f"compensators/cosmic/{name}" for name in ("features", "one_step", "remainder", "denoiser", "scale")],
)
def test_torch_runs_what_the_ground_runs(name, profile, rng):
    path = profile.folder.parent / f"{name}.onnx"
    feeds = feeds_of(path, rng)
    for one, two in zip(OnnxRuntimeGraph(path, 2)(feeds), TorchGraph(path, 2)(feeds), strict=True):
        assert one.shape == two.shape and np.abs(one - two).max() <= 1e-4 * max(1, np.abs(one).max())


class Session(onnxruntime.InferenceSession):
    """Runs on the CPU, says that it does not, and keeps what it was made with."""

    seen: list = []
    off = 0.0

    def __init__(self, path, options, providers):
        self.providers = providers
        Session.seen.append((providers, options.get_session_config_entry("session.disable_cpu_ep_fallback")))
        super().__init__(path, providers=["CPUExecutionProvider"])

    def get_providers(self):
        return [name for name, _ in self.providers]

    def run(self, outputs, feeds):
        on_gpu = self.get_providers() != ["CPUExecutionProvider"]
        return [out + np.float32(self.off if on_gpu else 0) for out in super().run(outputs, feeds)]


class CpuSession(onnxruntime.InferenceSession):
    """The real session, for graphs that stay on the CPU."""


@pytest.fixture
def providers(monkeypatch):
    """An ONNX Runtime that seems to have the providers of NVIDIA."""

    def session(path, options, providers):
        if providers[0][0] == "CPUExecutionProvider":
            return CpuSession(path, options, providers=providers)
        return Session(path, options, providers)

    monkeypatch.setattr(Session, "seen", [])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    names = [cuda.TENSORRT_PROVIDER, cuda.PROVIDER, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    return Session


def test_the_gpu_that_was_asked_for_is_used_in_full_precision(providers):
    backend = ground_choice.load("cuda", "3", 1)
    assert (backend.engine_name, backend.device, backend.on_cpu) == ("cuda", "GPU 3", False)
    ((name, options),), fallback = providers.seen[0]
    assert (name, options["device_id"], options["use_tf32"], fallback) == (cuda.PROVIDER, "3", "0", "1")


def test_tensorrt_leaves_nothing_to_the_cpu(providers):
    assert ground_choice.load("tensorrt", None, 1).engine_name == "tensorrt"
    chosen, fallback = providers.seen[0]
    assert [name for name, _ in chosen] == [cuda.TENSORRT_PROVIDER, cuda.PROVIDER] and fallback == "1"
    assert chosen[0][1]["device_id"] == "0" and chosen[0][1]["trt_fp16_enable"] == "0"


def test_an_engine_whose_images_are_off_is_refused(providers, monkeypatch):
    """As with TF32 left on, whose errors are about 1e-3 of full scale."""
    monkeypatch.setattr(Session, "off", 2e-3)
    with pytest.raises(EngineError, match=r"self-test of engine cuda on GPU 0 fails: .* 0\.002 of full scale .*TF32"):
        ground_choice.load("cuda", None, 1)


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("abacus", None, "no engine 'abacus'; there are cuda, torch, torch-half, tensorrt, onnxruntime"),
        ("onnxruntime", "0", "onnxruntime runs on the CPU; for GPU 0 take cuda, tensorrt or torch"),
        ("cuda", "cpu", "engine cuda needs a GPU"),
        ("cuda", None, r"no CUDA provider.*pip install '\.\[ground-cuda\]'"),
        ("tensorrt", "1", "no TensorRT provider"),
        ("torch", None, "PyTorch sees no GPU; --device cpu runs it on the CPU"),
    ],
)
def test_what_was_asked_for_is_taken_or_refused(name, device, message):
    with pytest.raises(EngineError, match=message):
        ground_choice.load(name, device, 1)


def test_auto_is_the_cpu_where_there_is_no_driver(monkeypatch):
    monkeypatch.setattr(ground_choice, "DRIVER", "libnothing.so.1")
    monkeypatch.setattr(ground_choice.probing, "failing", lambda *_: pytest.fail("nothing should be started"))
    chosen = ground_choice.choose()
    assert chosen.backend is CPU_BACKEND and all("no NVIDIA driver" in reason for _, reason in chosen.passed_over)
    assert ground_choice.choose(device="cpu").passed_over == []
    with pytest.raises(EngineError, match="no engine runs on GPU 0"):
        ground_choice.choose(device="0")


def test_auto_tries_a_gpu_in_a_process_of_its_own(monkeypatch, providers):
    monkeypatch.setattr(ground_choice, "driver_missing", lambda: None)
    reasons = {"cuda": "it crashed (SIGSEGV)", "torch": None}
    monkeypatch.setattr(ground_choice, "failing", lambda name, _: reasons[name])
    chosen = ground_choice.choose(threads=1)  # the probe of torch passed, but it sees no GPU in this process
    assert chosen.backend is CPU_BACKEND
    assert dict(chosen.passed_over)["cuda"] == "it crashed (SIGSEGV)" and "no GPU" in dict(chosen.passed_over)["torch"]
    reasons["cuda"] = None
    assert ground_choice.choose(threads=1).backend.engine_name == "cuda"


def test_the_probe_says_why(monkeypatch):
    assert "PyTorch sees no GPU" in ground_choice.failing("torch", "0")


@pytest.fixture(scope="module")
def stream(tiles):
    return perigee.encode(tiles[0], 40)


def test_a_product_names_engine_and_device(stream, tmp_path, capsys):
    (tmp_path / "scene.peri").write_bytes(stream)
    images = {}
    for engine in ("onnxruntime", "torch"):
        out = tmp_path / f"{engine}.tif"
        arguments = ["--engine", engine, "--device", "cpu", "--threads", "2"]
        assert cli.main([str(tmp_path / "scene.peri"), "-o", str(out), *arguments]) == os.EX_OK
        with rasterio.open(out) as file:
            images[engine] = file.read().astype(int)
            named = [file.tags()[f"PERIGEE_{what}"] for what in ("ENGINE", "DEVICE", "PRECISION")]
            assert named == [engine, "cpu", "float32"]
    one, two = images.values()
    assert np.abs(one - two).max() <= 1 and (one == two).mean() >= 0.999


def test_commands_refuse_an_engine_that_is_not_here(stream, tmp_path, capsys):
    (tmp_path / "scene.peri").write_bytes(stream)
    out = tmp_path / "out.tif"
    assert cli.main([str(tmp_path / "scene.peri"), "-o", str(out), "--engine", "cuda"]) == os.EX_UNAVAILABLE
    assert service_cli.main(["--engine", "torch", "--device", "7"]) == os.EX_UNAVAILABLE
    said = capsys.readouterr().err
    assert "no CUDA provider" in said and "PyTorch sees no GPU" in said and not out.exists()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(tmp_path / "scene.peri"), "--device", "first"])
    assert ended.value.code == os.EX_USAGE


def test_a_backend_loads_graphs(profile, rng):
    backend = Backend("torch", "cpu", partial(TorchGraph, device="cpu"))
    path = profile.file("synthesis.onnx")
    feeds = feeds_of(path, rng)
    assert np.abs(backend(path, 1)(feeds)[0] - CPU_BACKEND(path, 1)(feeds)[0]).max() < 1e-4


def test_half_precision_is_taken_by_name_and_stays_within_a_grey_level(tmp_path, tiles):
    backend = ground_choice.load("torch-half", "cpu", 1)
    assert (backend.engine_name, backend.precision) == ("torch-half", "bfloat16")
    stream, out = tmp_path / "a.peri", [tmp_path / "full.tif", tmp_path / "half.tif"]
    stream.write_bytes(perigee.encode(tiles[0], 40))
    assert cli.main([str(stream), "-o", str(out[0])]) == 0
    assert cli.main([str(stream), "-o", str(out[1]), "--engine", "torch-half", "--device", "cpu"]) == 0
    with rasterio.open(out[0]) as full, rasterio.open(out[1]) as half:
        apart = np.abs(full.read().astype(int) - half.read())
        assert half.tags()["PERIGEE_PRECISION"] == "bfloat16" and half.tags()["PERIGEE_ENGINE"] == "torch-half"
    assert apart.any() and (apart > 1).mean() <= 1e-3


def test_an_engine_that_is_too_coarse_for_half_precision_is_refused(monkeypatch):
    coarse = partial(Coarse, half=True)
    with pytest.raises(EngineError, match=r"self-test of engine torch-half"):
        ground_choice.check(Backend("torch-half", "cpu", coarse, 1, "bfloat16"), 1)


class Coarse(TorchGraph):
    """Computes with six bits of mantissa."""

    def __call__(self, feeds):
        return [np.float32(2.0**-6) * np.rint(out * 2**6) for out in super().__call__(feeds)]
