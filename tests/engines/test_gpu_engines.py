"""GPU engines where there is no GPU: against stand-ins that enforce the real interfaces, and NVIDIA's own bindings."""

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from perigee.bitstream.errors import EngineError, ProfileError
from perigee.bitstream.profile import load_profile
from perigee.engines import build, choice, cuda, device, precision, tensorrt
from perigee.engines import cli as export_cli
from perigee.engines.flight import FlightEngine
from perigee.engines.onnxruntime import OnnxRuntimeGraph
from perigee.onboard import cli
from perigee.onboard.encoder import Encoder

SPEC = importlib.util.spec_from_file_location("fake_tensorrt", Path(__file__).with_name("fake_tensorrt.py"))
fake = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fake)
VERSIONS = ("10.3.0", "11.4.0.106")
STEPS = (25, 125, 225)


@pytest.fixture(params=VERSIONS)
def gpu(request, monkeypatch, tmp_path):
    """A stand-in GPU with one version of TensorRT; plans go to the folder where engines look for them."""
    machine = fake.Gpu()
    fake.install(monkeypatch, request.param, machine)
    monkeypatch.setenv("PERIGEE_ENGINES", str(tmp_path / "plans"))
    return machine


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any GPU package."""
    for name in ("tensorrt", "cuda", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PERIGEE_ENGINES", str(tmp_path / "plans"))


def images(tiles, count=3):
    """Real patches, float32 [3, 256, 256]."""
    imagecodecs = pytest.importorskip("imagecodecs")
    return [imagecodecs.imread(str(p)).transpose(2, 0, 1) / np.float32(255) for p in tiles[:count]]


# --- TensorRT


def test_streams_are_those_of_the_cpu(gpu, profile, flight, tiles):
    build.export_engine(profile, tensorrt.engines_folder())
    engine = choice.load("tensorrt", profile)
    assert engine.name == "tensorrt" and isinstance(engine._analysis, tensorrt.TensorRTGraph)
    patches = [*images(tiles), images(tiles, 1)[0][:, :70, :50]]
    for image, step in zip(patches, (*STEPS, 125), strict=True):
        ours, theirs = (Encoder(profile, e).encode_image(image, step) for e in (engine, flight))
        assert np.array_equal(ours.words, theirs.words) and ours.checksum == theirs.checksum


def test_a_profile_without_the_priors_graph(gpu, profile, tmp_path, rng):
    folder = tmp_path / profile.name
    shutil.copytree(profile.folder.resolve().parent, tmp_path, dirs_exist_ok=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["prior.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bare = load_profile(folder)
    build.export_engine(bare, tensorrt.engines_folder())
    assert gpu.builds == 1 and tensorrt.missing(bare) is None
    assert (
        choice.load("tensorrt", bare).analyse(rng.random((1, 3, 64, 64), np.float32), 9)[0].shape[1]
        == profile.contract.widths.latents
    )


def test_pycuda_serves_where_it_is_what_there_is(monkeypatch, tmp_path, profile, flight, rng):
    fake.install(monkeypatch, VERSIONS[0], fake.Gpu(), binding="pycuda")
    build.export_engine(profile, tmp_path)
    assert isinstance(device.open_device(), device.PyCuda)
    engine = FlightEngine(profile, graph=tensorrt.Plans(tmp_path))
    image = rng.random((1, 3, 128, 64), np.float32)
    for a, b in zip(engine.analyse(image, 99), flight.analyse(image, 99), strict=True):
        assert np.array_equal(a, b)


def test_a_batch_up_to_what_was_built(gpu, profile, flight, rng):
    build.export_engine(profile, tensorrt.engines_folder(), patches=3)
    engine = choice.load("tensorrt", profile)
    batch = rng.random((3, 3, 64, 128), np.float32)
    q, z = engine.analyse(batch, 150)
    for i in range(3):
        a, b = flight.analyse(batch[i : i + 1], 150)
        assert np.array_equal(q[i], a[0]) and np.array_equal(z[i], b[0])
    for ours, theirs in zip(engine.prior.all_passes(z, q, 150), flight.prior.all_passes(z, q, 150), strict=True):
        assert np.array_equal(ours.table, theirs.table) and np.array_equal(ours.mean, theirs.mean)
    shapes = build.input_shapes(precision.folded(profile.file("prior.onnx")), 256, 3)
    assert shapes["even"] == [[1, 1, 4, 4], [1, 1, 16, 16], [1, 1, 16, 16]] and shapes["z"][2] == [3, 64, 4, 4]
    with pytest.raises(
        EngineError, match=r"image of shape \(4, 3, 64, 64\), it was built for .* to \(3, 3, 256, 256\)"
    ):
        engine.analyse(np.zeros((4, 3, 64, 64), np.float32), 150)
    with pytest.raises(EngineError, match="takes"):
        engine._analysis({"picture": batch})


def test_plans_are_kept_until_something_changes(gpu, profile, tiles, tmp_path, monkeypatch):
    def export(**more):
        built = []
        build.export_engine(profile, tensorrt.engines_folder(), report=built.append, **more)
        return [b.cached for b in built]

    assert export() == [False, False] and gpu.builds == 2
    assert export() == [True, True] and gpu.builds == 2
    assert export(precision="fp16") == [False, True], "the prior stays as it is"
    assert export(precision="fp16", patches=2) == [False, False]
    version = sys.modules["tensorrt"].__version__
    fake.install(monkeypatch, next(v for v in VERSIONS if v != version), gpu)
    assert export(precision="fp16", patches=2) == [False, False]
    gpu.name = "another"
    fake.install(monkeypatch, version, gpu)
    assert export(precision="fp16", patches=2) == [False, False]
    prior = tensorrt.plan_path(tensorrt.engines_folder(), profile.file("prior.onnx"))
    prior.write_bytes(prior.read_bytes() + b" ")
    assert export(precision="fp16", patches=2) == [True, False], "a damaged plan is built again"


def test_plans_that_were_changed_or_made_elsewhere_are_refused(gpu, profile, monkeypatch):
    folder = tensorrt.engines_folder()
    with pytest.raises(EngineError, match="no plan .* run export-engine"):
        choice.load("tensorrt", profile)
    build.export_engine(profile, folder)
    plan = tensorrt.plan_path(folder, profile.analysis()[1])
    record, data = plan.with_suffix(".json"), plan.read_bytes()

    plan.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(EngineError, match="changed after it was built"):
        choice.load("tensorrt", profile)
    plan.write_bytes(data)

    good = record.read_text()
    for broken in ("{", "[]", json.dumps({"key": {}}), good.replace('"flags"', '"banners"')):
        record.write_text(broken)
        with pytest.raises(EngineError, match="record cannot be read"):
            choice.load("tensorrt", profile)
    record.write_text(good)

    prior = tensorrt.plan_path(folder, profile.file("prior.onnx")).with_suffix(".json")
    for before, after in (('"fp32"', '"fp16"'), ("no TF32", "TF32")):
        text = prior.read_text()
        prior.write_text(text.replace(before, after))
        with pytest.raises(EngineError, match="fp32 for the prior"):
            choice.load("tensorrt", profile)
        prior.write_text(text)

    version = sys.modules["tensorrt"].__version__
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.16.2")
    with pytest.raises(EngineError, match=f"built for TensorRT '{version}', here is '10.16.2'"):
        choice.load("tensorrt", profile)
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", version)
    gpu.name = "another"
    fake.install(monkeypatch, version, gpu)
    with pytest.raises(EngineError, match="built for the GPU 'Fake Orin, sm_87, .*', here is 'another"):
        choice.load("tensorrt", profile)


def test_a_plan_whose_prior_is_off_is_refused(gpu, profile, monkeypatch):
    run = tensorrt.TensorRTGraph.__call__

    def biased(self, feeds):
        out = run(self, feeds)
        if "context" in feeds:
            out[3][0, 0, 0, 0] += 1
        return out

    build.export_engine(profile, tensorrt.engines_folder())
    monkeypatch.setattr(tensorrt.TensorRTGraph, "__call__", biased)
    with pytest.raises(ProfileError, match=r"self-test 0 .* pass \[3\]"):
        choice.load("tensorrt", profile)
    with pytest.raises(ProfileError, match="self-test"):
        build.export_engine(profile, tensorrt.engines_folder())
    monkeypatch.setattr(choice, "failing", lambda *_: None)
    chosen = choice.choose(profile)
    assert chosen.engine.name == "onnxruntime" and "self-test 0" in dict(chosen.passed_over)["tensorrt"]


def test_a_plan_whose_analysis_is_another_one_is_refused(gpu, profile, monkeypatch):
    run = tensorrt.TensorRTGraph.__call__
    monkeypatch.setattr(tensorrt.TensorRTGraph, "__call__", lambda self, feeds: [a + (a > 0) for a in run(self, feeds)])
    monkeypatch.setattr(type(profile), "self_test", lambda *_: None)
    with pytest.raises(
        EngineError, match=r"swift by tensorrt differs from ONNX Runtime's in .*% of q .*accepted are 20%"
    ):
        build.export_engine(profile, tensorrt.engines_folder())
    assert "no plan of analysis-swift.onnx" in tensorrt.missing(profile)


def test_what_the_parser_does_not_take_is_said_in_its_words(gpu, profile):
    stored = profile.file("prior.onnx").read_bytes()
    with pytest.raises(EngineError, match=r"prior.onnx: TensorRT cannot parse it; .*Cast of int8"):
        build.build_plan(sys.modules["tensorrt"], stored, {}, "prior.onnx")
    folded = precision.folded(profile.file("prior.onnx")).SerializeToString()
    with pytest.raises(EngineError, match="cannot build it; dynamic inputs without an optimization profile"):
        build.build_plan(sys.modules["tensorrt"], folded, {}, "prior.onnx")


# --- graphs in other precisions


def runnable(model, folder):
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return OnnxRuntimeGraph(path, 2)


def differing(graph, other, patches):
    """Shares of q and z that differ, and the largest difference of q, by quality."""
    out = {}
    for step in STEPS:
        pairs = []
        for image in patches:
            feeds = {"image": image[None], "quality_step": np.full((1, 1), step, np.float32)}
            pairs.append((graph(feeds), other(feeds)))
        q, z = ([np.abs(a[i] - b[i]) for a, b in pairs] for i in (0, 1))
        out[step] = np.mean([d > 0 for d in q]), np.mean([d > 0 for d in z]), max(d.max() for d in q)
    return out


def test_folding_changes_no_symbol(two_analyses, profile, tiles, tmp_path, rng):
    for p, name in ((profile, "swift"), (two_analyses, "light")):
        path = p.analysis(name)[1]
        shares = differing(runnable(precision.folded(path), tmp_path), OnnxRuntimeGraph(path, 2), images(tiles, 2))
        assert all(q == z == 0 for q, z, _ in shares.values())
    prior = precision.folded(profile.file("prior.onnx"))
    assert {node.op_type for node in prior.graph.node}.isdisjoint({"Cast"})
    assert not list(fake.objections(prior, old=True)) and list(
        fake.objections(onnx.load(profile.file("prior.onnx")), True)
    )


@pytest.mark.parametrize("name", ["swift", "lite", "light"])
def test_fp16_and_int8_analyses_stay_close(profile, two_analyses, tiles, tmp_path, name):
    path = (profile if name == "swift" else two_analyses).analysis(name)[1]
    folded, whole = precision.folded(path), OnnxRuntimeGraph(path, 2)
    patches = images(tiles, 6)

    half = precision.halved(folded)
    shares = differing(runnable(half, tmp_path), whole, patches[3:])
    print(name, "fp16", shares)
    assert max(q for q, _, _ in shares.values()) < 1e-3 and max(z for _, z, _ in shares.values()) < 1e-3

    coarse = build.in_precision(folded, "int8", [p[None] for p in patches[:3]])
    shares = differing(runnable(coarse, tmp_path), whole, patches[3:])
    print(name, "int8", shares)
    assert max(q for q, _, _ in shares.values()) < 5e-3 and max(z for _, z, _ in shares.values()) < 2e-3
    assert max(m for _, _, m in shares.values()) <= 1

    for model in (half, coarse):
        assert not list(fake.objections(model, old=True))
        kinds = {c.name: c.data_type for c in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Conv" and any(a.name == "strides" and 16 in a.ints for a in node.attribute):
                assert kinds[node.input[1]] == onnx.TensorProto.FLOAT, "the block transform stays float32"
        assert [(o.name, o.type.tensor_type.elem_type) for o in model.graph.output] == [("q", 6), ("z", 6)]
    if name == "swift":
        assert all(q == z == 0 for q, z, _ in shares.values()), "there is no network to make coarser"


def test_int8_needs_tiles_that_show_something(two_analyses, tmp_path):
    model = precision.folded(two_analyses.analysis("light")[1])
    grey = np.full((1, 3, 64, 64), 0.5, np.float32)
    with pytest.raises(EngineError, match="nothing but zeros"):
        build.in_precision(model, "int8", [grey])
    with pytest.raises(EngineError, match="no folder with tiles"):
        next(build.calibration_patches(tmp_path / "nowhere", 256))
    (tmp_path / "text.txt").write_text("no image")
    with pytest.raises(EngineError, match="cannot be read as an image"):
        next(build.calibration_patches(tmp_path, 256))
    (tmp_path / "text.txt").unlink()
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(np.zeros((64, 64, 3), np.uint16)))
    with pytest.raises(EngineError, match=r"uint16 \[64, 64, 3\]; a calibration takes uint8"):
        next(build.calibration_patches(tmp_path, 256))


def test_a_file_that_is_no_graph(tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(EngineError, match="g.onnx: onnx cannot read it"):
        precision.folded(tmp_path / "g.onnx")


# --- CUDA


def test_cuda_is_asked_for_without_tf32_and_asserted(profile, flight, monkeypatch, rng):
    seen = []

    class Session(onnxruntime.InferenceSession):
        """Runs on the CPU, says that it does not."""

        claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def __init__(self, path, options, providers):
            seen.append((providers, options.get_session_config_entry("session.disable_cpu_ep_fallback")))
            super().__init__(path, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return self.claimed

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: Session.claimed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    engine = choice.load("cuda", profile)
    (name, options), fallback = seen[0][0][0], seen[0][1]
    assert (name, options["use_tf32"], fallback) == ("CUDAExecutionProvider", "0", "1") and len(seen) == 2
    image = rng.random((1, 3, 64, 64), np.float32)
    assert engine.name == "cuda" and np.array_equal(engine.analyse(image, 99)[0], flight.analyse(image, 99)[0])
    monkeypatch.setattr(Session, "claimed", ["CPUExecutionProvider"])
    monkeypatch.setattr(cuda, "missing", lambda: None)
    with pytest.raises(EngineError, match="instead of CUDAExecutionProvider"):
        choice.load("cuda", profile)


# --- the choice


def test_missing_packages_are_named(bare, profile, tmp_path, monkeypatch):
    with pytest.raises(EngineError, match=r"tensorrt is missing: JetPack .* pip install '\.\[tensorrt\]'"):
        choice.load("tensorrt", profile)
    with pytest.raises(EngineError, match=r"no CUDA provider; .*pip install '\.\[cuda\]'"):
        choice.load("cuda", profile)
    with pytest.raises(EngineError, match="cuda-bindings: .*pycuda: .*it needs an NVIDIA driver"):
        device.open_device()
    with pytest.raises(EngineError, match="there are tensorrt, cuda, onnxruntime"):
        choice.load("abacus", profile)
    monkeypatch.setitem(sys.modules, "tensorrt", fake.tensorrt("8.5.2", fake.Gpu()))
    with pytest.raises(EngineError, match="TensorRT 8.5.2 is too old"):
        choice.load("tensorrt", profile)
    monkeypatch.setattr(precision, "_missing", "onnx")
    with pytest.raises(EngineError, match=r"onnx is missing: pip install '\.\[tensorrt\]'"):
        precision.folded(profile.file("prior.onnx"))


def test_auto_says_why_it_flies_on_the_cpu_and_starts_nothing(bare, profile, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    chosen = choice.choose(profile)
    reasons = dict(chosen.passed_over)
    assert chosen.engine.name == "onnxruntime" and list(reasons) == ["tensorrt", "cuda"]
    assert "tensorrt is missing" in reasons["tensorrt"] and "no CUDA provider" in reasons["cuda"]
    assert choice.choose(profile, "onnxruntime").passed_over == []


def test_auto_takes_tensorrt_where_it_was_built(gpu, profile, monkeypatch):
    tried = []
    monkeypatch.setattr(choice, "failing", lambda name, *_: tried.append(name))
    chosen = choice.choose(profile)
    assert "no plan of analysis-swift.onnx" in dict(chosen.passed_over)["tensorrt"] and not tried
    build.export_engine(profile, tensorrt.engines_folder())
    chosen = choice.choose(profile)
    assert (chosen.engine.name, chosen.passed_over, tried) == ("tensorrt", [], ["tensorrt"])


@pytest.mark.parametrize(
    "body, reason",
    [
        ("import os; os.abort()", "it crashed (SIGABRT)"),
        ("import time; time.sleep(60)", "no answer within 4 s"),
        ("raise OSError('libnvinfer.so.10: cannot open')", "libnvinfer.so.10: cannot open"),
        ("__version__ = '10.3.0'", "no GPU can be reached"),
    ],
)
def test_a_broken_package_does_not_take_the_process_along(profile, tmp_path, monkeypatch, body, reason):
    (tmp_path / "tensorrt.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PERIGEE_ENGINES", str(tmp_path))
    monkeypatch.setattr(choice.probing, "PROBE_SECONDS", 4 if "sleep" in body else 60)
    for graph in (profile.analysis()[1], profile.file("prior.onnx")):
        tensorrt.plan_path(tmp_path, graph).write_bytes(b"plan")
    chosen = choice.choose(profile)
    assert chosen.engine.name == "onnxruntime" and reason in dict(chosen.passed_over)["tensorrt"]


# --- command lines


def test_onboard_encode_names_its_engine(bare, tiles, tmp_path, capsys):
    assert cli.main([str(tiles[0]), "-o", str(tmp_path / "a.peri"), "--engine", "tensorrt"]) == os.EX_UNAVAILABLE
    assert "tensorrt is missing" in capsys.readouterr().err and not (tmp_path / "a.peri").exists()
    assert cli.main([str(tiles[0]), "-o", str(tmp_path / "a.peri"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["engine"] == "onnxruntime" and set(report["engines_passed_over"]) == {"tensorrt", "cuda"}


def test_plans_from_the_command_line_fly(gpu, tiles, tmp_path, capsys, monkeypatch, rng):
    calibration = tmp_path / "calibration"
    calibration.mkdir()
    for tile in tiles[:2]:
        shutil.copy(tile, calibration)
    assert export_cli.main(["flight", "--precision", "int8", "--calibration", str(calibration)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    precisions = {line["graph"]: line["precision"] for line in lines}
    assert precisions["analysis-light.onnx"] == "int8" and precisions.get("prior.onnx", "fp32") == "fp32"
    monkeypatch.setattr(choice, "failing", lambda *_: None)
    arguments = [str(tiles[3]), "--json", "--verify", "--profile", "flight", "--analysis", "light"]
    assert cli.main([*arguments, "-o", str(tmp_path / "a.peri")]) == 0
    assert cli.main([*arguments, "-o", str(tmp_path / "b.peri"), "--engine", "onnxruntime"]) == 0
    ours, theirs = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (ours["engine"], theirs["engine"]) == ("tensorrt", "onnxruntime") and "engines_passed_over" not in ours
    assert ours["bytes"] == pytest.approx(theirs["bytes"], rel=0.01)


def test_export_engine_refuses(bare, tmp_path, capsys):
    for arguments in (
        ["flight", "--precision", "int8"],
        ["flight", "--calibration", "."],
        ["flight", "--patches", "0"],
    ):
        with pytest.raises(SystemExit) as stop:
            export_cli.main(arguments)
        assert stop.value.code == os.EX_USAGE
    assert export_cli.main(["flight", "-o", str(tmp_path)]) == os.EX_UNAVAILABLE
    assert export_cli.main(["nowhere", "-o", str(tmp_path)]) == os.EX_CONFIG
    assert "tensorrt is missing" in capsys.readouterr().err


def test_the_doctor_lists_every_engine(gpu, capsys, profile, monkeypatch):
    from perigee.onboard import health

    def found():
        return {f.what: f for f in health._gpu_engines(profile)}

    assert found()["engine tensorrt"].ok is None and "not here: no plan" in found()["engine tensorrt"].details
    assert found()["engine cuda"].ok is None
    build.export_engine(profile, tensorrt.engines_folder())
    monkeypatch.setattr(choice, "failing", lambda *_: None)
    assert found()["engine tensorrt"].ok and "self-test" in found()["engine tensorrt"].details
    monkeypatch.setattr(choice, "failing", lambda *_: "self-test 0 of profile x fails")
    assert found()["engine tensorrt"].ok is False


# --- against NVIDIA's own bindings

STUBS = "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL getPluginRegistry " \
    "createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion " \
    "initLibNvInferPlugins"  # fmt: skip
LOOK = """
import ctypes, json, sys
try:
    import tensorrt_bindings as trt
except ImportError:
    for library in sys.argv[1:]:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    import tensorrt_bindings as trt
from perigee.engines import build, tensorrt
log = tensorrt.messages(trt)
log.log(trt.ILogger.Severity.WARNING, "quiet")
log.log(trt.ILogger.Severity.ERROR, "said")
assert log.errors == ["said"] and trt.nptype(trt.DataType.FLOAT).__name__ == "float32"
assert trt.BuilderFlag.TF32 and 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
try:
    build.build_plan(trt, b"", {}, "nothing")
except tensorrt.EngineError as error:
    print(trt.__version__, error, file=sys.stderr)
classes = {name: getattr(trt, name) for name in dir(trt) if isinstance(getattr(trt, name), type)}
print(json.dumps({n: {a: getattr(c, a).__doc__ or "" for a in dir(c)} for n, c in classes.items()}))
"""


def test_the_stand_in_has_only_what_the_real_bindings_have(tmp_path):
    """NVIDIA's bindings import without their libraries, given empty ones: enough to compare names and arguments."""
    if find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings (or cu12) is not installed; the stand-in is not compared with it")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make empty libraries with")
    source = tmp_path / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in STUBS.split()))
    libraries = []
    for name in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        for major in (10, 11):
            path = tmp_path / f"{name}.so.{major}"
            soname = f"-Wl,-soname,{path.name}"
            subprocess.run([compiler, "-shared", "-fPIC", soname, "-o", path, source], check=True)
            libraries.append(str(path))
    looked = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK, *libraries], capture_output=True, text=True, timeout=120
    )
    assert looked.returncode == 0, looked.stderr
    print(looked.stderr.strip())
    real = json.loads(looked.stdout)
    stand_in = fake.tensorrt(VERSIONS[1], fake.Gpu())
    compared = 0
    for name, part in inspect.getmembers(stand_in, inspect.isclass):
        if issubclass(part, int):
            continue
        for attribute, value in vars(part).items():
            if attribute.startswith("_") and attribute != "__init__" or inspect.isclass(value):
                continue
            if attribute == "__init__" and name not in ("Builder", "Runtime", "OnnxParser", "ILogger"):
                continue  # made by others of their kind
            assert attribute in real[name], f"{name}.{attribute}"
            compared += 1
            if inspect.isfunction(value):
                ours = list(inspect.signature(value).parameters)[1:]
                given = re.search(rf"{attribute}\(self: [\w.]+(?:, (.*?))?\) ->", real[name][attribute])
                theirs = re.findall(r"(\w+): ", re.sub(r"<.*?>", "", given.group(1) or ""))
                assert ours == theirs[: len(ours)], f"{name}.{attribute}{theirs}"
                assert len(ours) == len(theirs) or "=" in given.group(1)
    assert compared > 25


def test_cuda_bindings_without_a_gpu_say_so():
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed", exc_type=ImportError)
    from cuda.bindings import runtime

    stand_in = fake.cuda_runtime(fake.Gpu())
    assert [n for n in vars(stand_in) if n.startswith("cuda") and not hasattr(runtime, n)] == []
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match="cudaGetDeviceProperties: cudaError"):
        device.CudaBindings()
