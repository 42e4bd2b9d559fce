"""A profile's graphs as TensorRT plans, built on the machine on which they are to run; ``export-engine`` is the command.

An analysis is built in the precision asked for, the integer prior always in fp32 without TF32. A plan that was built from
the same graph for the same machine is kept. At the end the plans are tried.

Written from the interface of TensorRT 10.3 to 11.4 and tested with a stand-in that enforces its rules; it has not run on
a GPU yet.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perigee.bitstream.arrays import Array
from perigee.bitstream.contract import BLOCK, HYPER_BLOCK, PATCH_MULTIPLE
from perigee.bitstream.errors import EngineError
from perigee.bitstream.profile import Profile
from perigee.engines import precision as graphs
from perigee.engines.device import Device, open_device
from perigee.engines.flight import FlightEngine
from perigee.engines.tensorrt import (
    FLAGS,
    Key,
    Plans,
    Record,
    digest_of,
    load_tensorrt,
    messages,
    plan_path,
    prior_graph,
    read_plan,
)
from perigee.support.files import write_atomically

PRECISIONS = ("fp32", "fp16", "int8")
PIXELS_PER_ELEMENT = {"image": 1, "z": HYPER_BLOCK}  # on a side, by input; BLOCK for the others
CALIBRATION_STEPS = (25, 125, 225)  # qualities at which a tile calibrates
DIFFERING_MAX = 0.2  # share of an analysis's symbols that are not 0
Shapes = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Target:
    """Where plans are to run and to lie, and for how many patches of which side."""

    trt: Any
    device: Device
    folder: Path
    side: int
    patches: int


class Built(NamedTuple):
    """One plan of an export."""

    graph: str
    plan: Path
    precision: str
    cached: bool
    seconds: float


def input_shapes(model: Any, side: int, patches: int) -> Shapes:
    """Of every input the smallest shape, the usual and the largest: one patch of 64x64 to ``patches`` of ``side``."""

    def shape(tensor: Any, batch: int, pixels: int) -> list[int]:
        sizes = [dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        sizes[0] = 1 if tensor.name == "even" else batch
        return sizes[:2] + [pixels // PIXELS_PER_ELEMENT.get(tensor.name, BLOCK)] * (len(sizes) - 2)

    extents = ((1, PATCH_MULTIPLE), (patches, side), (patches, side))
    return {tensor.name: [shape(tensor, *extent) for extent in extents] for tensor in model.graph.input}


def calibration_patches(folder: Path, side: int) -> Iterator[Array]:
    """The upper left of every image in a folder, float32 [1, 3, H, W] in 0..1, sides multiples of 64 up to ``side``."""
    try:
        import imagecodecs
    except ModuleNotFoundError as error:
        raise EngineError("imagecodecs is missing: pip install '.[tensorrt]' in Perigee's checkout") from error
    paths = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    if not paths:
        raise EngineError(f"{folder} is no folder with tiles to calibrate on")
    for path in paths:
        try:
            image = np.asarray(imagecodecs.imread(str(path)))
        except Exception as error:  # every codec has exceptions of its own
            raise EngineError(f"{path}: cannot be read as an image ({error})") from error
        rows, cols = (min(n, side) // PATCH_MULTIPLE * PATCH_MULTIPLE for n in image.shape[:2])
        if image.ndim != 3 or image.shape[2] < 3 or image.dtype != np.uint8 or not rows or not cols:
            raise EngineError(
                f"{path}: {image.dtype} {list(image.shape)}; a calibration takes uint8 images [row, col, band] of 3 "
                f"bands and at least {PATCH_MULTIPLE}x{PATCH_MULTIPLE}"
            )
        yield image[:rows, :cols, :3].transpose(2, 0, 1)[None] / np.float32(255)


def in_precision(model: Any, precision: str, tiles: Iterable[Array]) -> Any:
    """A folded analysis in ``precision``, one of ``PRECISIONS``; int8 is calibrated on ``tiles``."""
    if precision == "fp16":
        return graphs.halved(model)
    if precision == "int8":
        steps = [np.full((1, 1), step, np.float32) for step in CALIBRATION_STEPS]
        feeds = ({"image": tile, "quality_step": step} for tile in tiles for step in steps)
        return graphs.quantised(model, graphs.activation_ranges(model, feeds))
    return model


def build_plan(trt: Any, model: bytes, shapes: Shapes, name: str) -> bytes:
    """TensorRT's plan of a serialised graph that carries its own precision. Raises EngineError with TensorRT's words."""
    log = messages(trt)

    def checked(value: Any, what: str) -> Any:
        if value is None or value is False:
            raise EngineError("; ".join([f"{name}: TensorRT cannot {what} it", *log.errors]))
        return value

    try:
        builder = trt.Builder(log)
    except Exception as error:  # TensorRT refuses to be constructed where there is no GPU
        raise EngineError(f"TensorRT cannot start ({error})") from error
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # where it is gone there is nothing else
    network = checked(builder.create_network(0 if typed is None else 1 << int(typed)), "define")
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        log.errors += [parser.get_error(i).desc() for i in range(parser.num_errors)]
        checked(None, "parse")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for tensor, extents in shapes.items():
        profile.set_shape(tensor, *(tuple(extent) for extent in extents))
    config.add_optimization_profile(profile)
    return bytes(checked(builder.build_serialized_network(network, config), "build"))


def export_plan(target: Target, graph: Path, precision: str = "fp32", tiles: Iterable[Array] = ()) -> Built:
    """Build the plan of one ONNX file, or keep the one in the folder whose key is the same. Raises EngineError, OSError."""
    start = time.perf_counter()
    model = in_precision(graphs.folded(graph), precision, tiles)
    serialised = model.SerializeToString(deterministic=True)
    shapes = input_shapes(model, target.side, target.patches)
    parsed = hashlib.sha256(serialised).hexdigest()
    version = target.trt.__version__
    key = Key(digest_of(graph), parsed, version, target.device.name, precision, list(FLAGS), shapes)
    path = plan_path(target.folder, graph)
    try:
        cached = read_plan(path).record.key == key
    except EngineError:
        cached = False
    if not cached:
        data = build_plan(target.trt, serialised, shapes, graph.name)
        record = Record(key, [out.name for out in model.graph.output], hashlib.sha256(data).hexdigest())
        write_atomically(path, data)
        write_atomically(path.with_suffix(".json"), record.pack())
    return Built(graph.name, path, precision, cached, time.perf_counter() - start)


def check_analysis(engine: FlightEngine) -> None:
    """Compare an engine's analysis with ONNX Runtime's on one patch. Raises EngineError where it is another one.

    Some symbols may differ, most of them in int8; a stream of wrong ones would decode, to a wrong picture.
    """
    rng = np.random.default_rng(1)
    side = engine.profile.contract.patch_side
    blocks = rng.normal(0.5, 0.15, (1, 3, side // BLOCK, side // BLOCK)).repeat(BLOCK, 2).repeat(BLOCK, 3)
    image = (blocks + rng.normal(0, 0.02, blocks.shape)).astype(np.float32)
    known = FlightEngine(engine.profile, check=False, analysis=engine.analysis)
    for what, found, wanted in zip("qz", engine.analyse(image, 125), known.analyse(image, 125), strict=True):
        share = float((found != wanted).sum() / max(((found != 0) | (wanted != 0)).sum(), 1))
        if share > DIFFERING_MAX:
            raise EngineError(
                f"the analysis {engine.analysis} by {engine.name} differs from ONNX Runtime's in {share:.1%} of {what} "
                f"where it is not 0, accepted are {DIFFERING_MAX:.0%}: the plan is wrong, or its calibration"
            )


def export_engine(
    profile: Profile, folder: Path, precision: str = "fp32", calibration: Path | None = None, patches: int = 1,
    report: Callable[[Built], None] = lambda built: None,
) -> None:  # fmt: skip
    """Plans of every analysis of a profile and of its prior in ``folder``, for up to ``patches`` patches at once.

    The plans are loaded at the end: the prior must pass the self-test, the analyses resemble those of the CPU. Raises
    EngineError, ProfileError, OSError.
    """
    target = Target(load_tensorrt(), open_device(), folder, profile.contract.patch_side, patches)
    folder.mkdir(parents=True, exist_ok=True)
    for name in profile.analyses:
        tiles = calibration_patches(calibration, target.side) if calibration else ()
        report(export_plan(target, profile.analysis(name)[1], precision, tiles))
    for graph in prior_graph(profile):
        report(export_plan(target, graph))
    for name in profile.analyses:
        engine = FlightEngine(profile, graph=Plans(folder), analysis=name)
        try:
            check_analysis(engine)
        except EngineError:
            plan_path(folder, profile.analysis(name)[1]).unlink()  # so that it never flies
            raise
