"""TensorRT on an NVIDIA GPU: runs plans that ``export-engine`` built on this very machine.

A plan is machine code for one graph, one GPU and one version of TensorRT. Beside it lies a record of what it was made
from and for, and of its SHA-256; both are checked before TensorRT sees the plan. The hash finds damage and mix-ups: who
can write the folder can still run code here, so it must be as well kept as the software itself.

Written from the interface of TensorRT 10.3 to 11.4 and tested with a stand-in that enforces its rules; it has not run on
a GPU yet.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perigee.bitstream.arrays import Array
from perigee.bitstream.errors import EngineError
from perigee.bitstream.profile import Profile
from perigee.engines.device import Device, open_device
from perigee.engines.graph import WHOLE_PRIOR

OLDEST = 10  # the first major version whose networks are typed by their graph and whose tensors have names only
INSTALL = "JetPack brings it as python3-libnvinfer; elsewhere pip install '.[tensorrt]' in Perigee's checkout"
FLAGS = ("STRONGLY_TYPED", "no TF32")


@dataclass(frozen=True)
class Key:
    """What a plan was made from and for."""

    onnx: str  # SHA-256 of the profile's file
    graph: str  # SHA-256 of the graph in its precision, as TensorRT parsed it
    tensorrt: str
    device: str
    precision: str
    flags: list[str]
    shapes: dict[str, list[list[int]]]  # of every input: smallest, usual, largest


@dataclass(frozen=True)
class Record:
    """What lies beside a plan: its key, the names of its outputs in the graph's order, its SHA-256."""

    key: Key
    outputs: list[str]
    sha256: str

    def pack(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


class Plan(NamedTuple):
    """A plan's bytes, checked against its record."""

    name: str
    record: Record
    data: bytes


def engines_folder() -> Path:
    """Where plans lie: ``PERIGEE_ENGINES``, else ``~/.cache/perigee/engines``."""
    return Path(os.environ.get("PERIGEE_ENGINES") or os.path.expanduser("~/.cache/perigee/engines"))


def plan_path(folder: Path, graph: Path) -> Path:
    """The plan of an ONNX file, named by the file's contents; its record has the suffix ``.json`` instead."""
    return folder / f"{graph.stem}-{digest_of(graph)[:16]}.plan"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_plan(path: Path) -> Plan:
    """A plan whose bytes have the SHA-256 of its record. Raises EngineError otherwise."""
    try:
        fields = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        record = Record(Key(**fields["key"]), list(fields["outputs"]), str(fields["sha256"]))
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise EngineError(f"no plan {error.filename}: run export-engine on this machine") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(f"{path.name}: its record cannot be read ({error}): run export-engine again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise EngineError(
            f"{path.name} has SHA-256 {found[:16]}..., its record says {record.sha256[:16]}...: it was changed after "
            "it was built and is not used; run export-engine again"
        )
    return Plan(path.name, record, data)


def checked_plan(folder: Path, graph: Path, version: str, device: str) -> Plan:
    """The plan of an ONNX file, if it was made for this TensorRT and this GPU. Raises EngineError that says what differs."""
    plan = read_plan(plan_path(folder, graph))
    key = plan.record.key
    for what, made, here in (
        ("the graph", key.onnx, digest_of(graph)),
        ("TensorRT", key.tensorrt, version),
        ("the GPU", key.device, device),
    ):
        if made != here:
            raise EngineError(
                f"{plan.name} was built for {what} {made!r}, here is {here!r}: run export-engine on this machine"
            )
    if tuple(key.flags) != FLAGS or (graph.name == WHOLE_PRIOR and key.precision != "fp32"):
        raise EngineError(
            f"{plan.name} was built in {key.precision} with {', '.join(key.flags)}: accepted is {', '.join(FLAGS)}, "
            "and fp32 for the prior"
        )
    return plan


def prior_graph(profile: Profile) -> list[Path]:
    """The graph of the prior, as a list: superseded profiles come without, and the CPU computes their prior."""
    return [profile.file(WHOLE_PRIOR)] if profile.manifest.has(WHOLE_PRIOR) else []


def load_tensorrt() -> Any:
    """The module ``tensorrt``. Raises EngineError that says what to install."""
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        raise EngineError(f"{error.name} is missing: {INSTALL}") from error
    except Exception as error:  # a broken package raises anything
        raise EngineError(f"tensorrt cannot be imported ({error}): {INSTALL}") from error
    if int(trt.__version__.split(".")[0]) < OLDEST:
        raise EngineError(f"TensorRT {trt.__version__} is too old, accepted are 10.3 and later")
    return trt


def missing(profile: Profile, analysis: str | None = None) -> str | None:
    """What is missing for this engine, as far as can be told without loading a GPU library, or None."""
    if find_spec("tensorrt") is None:
        return f"tensorrt is missing: {INSTALL}"
    for graph in [profile.analysis(analysis)[1], *prior_graph(profile)]:
        if not plan_path(engines_folder(), graph).is_file():
            return f"no plan of {graph.name} of profile {profile.name} in {engines_folder()}: run export-engine"
    return None


def messages(trt: Any) -> Any:
    """A logger for TensorRT that keeps errors (``errors``) and prints nothing: standard output carries reports."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Messages()


class TensorRTGraph:
    """One plan, ready to run: a dict of arrays to a list of arrays. Memory is taken once, for the largest shapes."""

    def __init__(self, plan: Plan, device: Device) -> None:
        trt = load_tensorrt()
        self._name, self._device, self._outputs = plan.name, device, plan.record.outputs
        self._messages = messages(trt)
        try:
            self._runtime = trt.Runtime(self._messages)
        except Exception as error:  # TensorRT refuses to be constructed where there is no GPU
            raise EngineError(f"TensorRT cannot start ({error})") from error
        self._engine = self._made(self._runtime.deserialize_cuda_engine(plan.data), "load")
        self._context = self._made(self._engine.create_execution_context(), "make room for")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if set(names) - set(self._inputs) != set(self._outputs):
            raise self._error(f"tensors {names} are not those of its record")
        self._dtypes = {n: np.dtype(trt.nptype(self._engine.get_tensor_dtype(n))) for n in names}
        for n in self._inputs:
            self._set_shape(n, tuple(self._engine.get_tensor_profile_shape(n, 0)[-1]))
        self._memory = {n: device.allocate(int(np.prod(self._shape(n))) * self._dtypes[n].itemsize) for n in names}
        for n, memory in self._memory.items():
            if not self._context.set_tensor_address(n, int(memory)):
                raise self._error(f"TensorRT does not take an address for {n}")

    def __call__(self, feeds: dict[str, Array]) -> list[Array]:
        if set(feeds) != set(self._inputs):
            raise EngineError(f"{self._name} takes {sorted(self._inputs)}, given were {sorted(feeds)}")
        given = {n: np.ascontiguousarray(array, self._dtypes[n]) for n, array in feeds.items()}
        for n, array in given.items():
            self._set_shape(n, array.shape)
            self._device.to_device(array, self._memory[n])
        if not self._context.execute_async_v3(self._device.stream):
            raise self._error("TensorRT cannot run it")
        results = [np.empty(self._shape(n), self._dtypes[n]) for n in self._outputs]
        for n, array in zip(self._outputs, results, strict=True):
            self._device.to_host(self._memory[n], array)
        self._device.synchronise()
        return results

    def _made(self, value: Any, what: str) -> Any:
        if value is None:
            raise self._error(f"TensorRT cannot {what} it")
        return value

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(name, shape):
            smallest, _, largest = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, 0))
            raise self._error(f"{name} of shape {shape}, it was built for {smallest} to {largest}")

    def _error(self, what: str) -> EngineError:
        return EngineError("; ".join([f"{self._name}: {what}", *self._messages.errors]))


class Plans:
    """A folder of plans on one device: called with a profile's ONNX file, it gives that file's graph."""

    engine_name = "tensorrt"

    def __init__(self, folder: Path | None = None) -> None:
        """``folder`` None is :func:`engines_folder`. Raises EngineError where TensorRT or the GPU is missing."""
        self._version: str = load_tensorrt().__version__
        self._folder, self._device = folder or engines_folder(), open_device()

    def __call__(self, path: Path, threads: int | None = None) -> TensorRTGraph:
        """The graph of an ONNX file; there are no threads to choose. Raises EngineError where no plan of it fits."""
        return TensorRTGraph(checked_plan(self._folder, path, self._version, self._device.name), self._device)
