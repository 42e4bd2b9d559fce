"""Stand-ins for a GPU: ``tensorrt`` 10.3 or 11, ``cuda.bindings.runtime`` and ``pycuda.driver`` over the CPU's memory.

They run graphs with ONNX Runtime and enforce the rules of the real interfaces: what is queued happens at synchronisation,
every tensor needs a shape and an aligned address, plans are bound to version and GPU, int8 lives between Q and DQ only,
and names that a version does not have are missing. Every public name of a class here must exist in the real class, with
the same arguments: ``test_gpu_engines`` compares them with NVIDIA's bindings where those are installed.
"""

import ctypes
import enum
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from perigee.engines.onnxruntime import OnnxRuntimeGraph

NAME = "Fake Orin"
UNSUPPORTED = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", "BitShift"}


class Gpu:
    """Memory by address and streams as queues; ``builds`` counts what the builder did."""

    def __init__(self, name=NAME):
        self.name, self.builds, self.buffers, self.queues = name, 0, {}, {}

    def allocate(self, size):
        buffer = np.full(size + 256, 0xAB, np.uint8)
        address = -(-buffer.ctypes.data // 256) * 256
        self.buffers[address] = buffer, size
        return address

    def copy(self, target, source, size, stream):
        on_device = [self.buffers[a][1] for a in (target, source) if a in self.buffers]
        assert len(on_device) == 1 and size <= on_device[0], "one side is device memory, and large enough"
        self.queues[stream].append(lambda: ctypes.memmove(target, source, size))

    def view(self, address, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert size <= self.buffers[address][1]
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

    def new_stream(self):
        self.queues[77 + len(self.queues)] = []
        return max(self.queues)

    def synchronise(self, stream):
        while self.queues[stream]:
            self.queues[stream].pop(0)()


def cuda_runtime(gpu):
    """``cuda.bindings.runtime``: functions give a status and then their values."""
    runtime = ModuleType("cuda.bindings.runtime")
    runtime.cudaError_t = enum.Enum("cudaError_t", ["cudaSuccess", "cudaErrorInvalidValue"])
    runtime.cudaMemcpyKind = enum.Enum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])
    ok = runtime.cudaError_t.cudaSuccess
    properties = SimpleNamespace(name=gpu.name.encode(), major=8, minor=7, multiProcessorCount=8)

    def memcpy(dst, src, count, kind, stream):
        to_device = kind is runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        assert (dst in gpu.buffers) == to_device and (src in gpu.buffers) != to_device
        gpu.copy(dst, src, count, stream)
        return (ok,)

    runtime.cudaGetDeviceProperties = lambda device: (ok, properties)
    runtime.cudaDriverGetVersion = lambda: (ok, 12060)
    runtime.cudaStreamCreate = lambda: (ok, gpu.new_stream())
    runtime.cudaStreamSynchronize = lambda stream: (ok, gpu.synchronise(stream))[:1]
    runtime.cudaMalloc = lambda size: (ok, gpu.allocate(size))
    runtime.cudaFree = lambda address: (ok, gpu.buffers.pop(address))[:1]
    runtime.cudaMemcpyAsync = memcpy
    return runtime


def pycuda_driver(gpu):
    """``pycuda.driver``: objects that raise."""
    driver = ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})
    driver.device_attribute = enum.Enum("device_attribute", ["MULTIPROCESSOR_COUNT"])
    active = []

    class Device:
        def __init__(self, number):
            assert number == 0

        name = staticmethod(lambda: gpu.name)
        compute_capability = staticmethod(lambda: (8, 7))
        get_attribute = staticmethod(lambda what: 8)
        retain_primary_context = staticmethod(lambda: SimpleNamespace(push=lambda: active.append(1), pop=active.pop))

    class Stream:
        def __init__(self):
            assert active, "a context must be current"
            self.handle = gpu.new_stream()

        def synchronize(self):
            gpu.synchronise(self.handle)

    driver.init, driver.Device, driver.Stream = lambda: None, Device, Stream
    driver.get_driver_version = lambda: 12060
    driver.mem_alloc = gpu.allocate
    driver.memcpy_htod_async = lambda dest, src, stream: gpu.copy(dest, src.ctypes.data, src.nbytes, stream.handle)
    driver.memcpy_dtoh_async = lambda dest, src, stream: gpu.copy(dest.ctypes.data, src, dest.nbytes, stream.handle)
    return driver


def tensorrt(version, gpu):
    """The module ``tensorrt`` of one version."""
    trt = ModuleType("tensorrt")
    trt.__version__ = version
    old = int(version.split(".")[0]) < 11
    flags = ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if old else ["STRONGLY_TYPED"]
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags, start=0 if old else 1)
    trt.BuilderFlag = enum.IntEnum("BuilderFlag", ["FP16", "INT8", "TF32"] if old else ["TF32"])
    trt.TensorIOMode = enum.IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    trt.DataType = enum.IntEnum("DataType", ["FLOAT", "INT32"])
    trt.nptype = lambda trt_type: {trt.DataType.FLOAT: np.float32, trt.DataType.INT32: np.int32}[trt_type]

    class ILogger:
        Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])

        def __init__(self):
            self._constructed = True

        def log(self, severity, msg):
            raise NotImplementedError

    def complain(logger, text):
        logger.log(ILogger.Severity.WARNING, "a warning is no error")
        logger.log(ILogger.Severity.ERROR, text)

    class INetworkDefinition:
        pass

    class IOptimizationProfile:
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            self._shapes[input] = [list(min), list(opt), list(max)]

    class IBuilderConfig:
        def __init__(self):
            self._flags, self._profiles = {trt.BuilderFlag.TF32}, []

        def clear_flag(self, flag):
            self._flags.discard(flag)

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1

    class Builder:
        def __init__(self, logger):
            assert logger._constructed
            self._logger = logger

        def create_network(self, flags=0):
            network = INetworkDefinition()
            typed = bool(flags >> int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1)
            assert typed, "fp16 and int8 of a graph would be ignored"
            return network

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            gpu.builds += 1
            inputs = [i.name for i in network._model.graph.input]
            if not config._profiles or set(config._profiles[0]._shapes) != set(inputs):
                complain(self._logger, "dynamic inputs without an optimization profile")
                return None
            header = {
                "version": version,
                "device": gpu.name,
                "shapes": config._profiles[0]._shapes,
                "flags": [flag.name for flag in config._flags],
            }
            return memoryview(json.dumps(header).encode() + b"\n" + network._model.SerializeToString())

    class OnnxParser:
        def __init__(self, network, logger):
            self._network, self._errors = network, []

        def parse(self, model, path=None):
            self._network._model = onnx.load_from_string(model)
            self._errors = list(objections(self._network._model, old))
            return not self._errors

        @property
        def num_errors(self):
            return len(self._errors)

        def get_error(self, index):
            error = ParserError()
            error._text = self._errors[index]
            return error

    class ParserError:
        def desc(self):
            return self._text

    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self._shapes, self._addresses, self._sizes = engine, {}, {}, {}

        def set_input_shape(self, name, shape):
            low, _, high = self._engine._header["shapes"][name]
            fits = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
            if not fits:
                complain(self._engine._logger, f"{name} {list(shape)} is outside the profile")
            else:
                self._shapes[name] = tuple(shape)
            return fits

        def get_tensor_shape(self, name):
            if name in self._engine._inputs:
                return self._shapes.get(name, (-1, -1))
            if set(self._shapes) != set(self._engine._inputs):
                return (-1, -1)
            key = tuple(sorted(self._shapes.items()))
            if key not in self._sizes:
                out = self._engine._graph({n: np.zeros(s, np.float32) for n, s in self._shapes.items()})
                self._sizes[key] = {n: a.shape for n, a in zip(self._engine._outputs, out, strict=True)}
            return self._sizes[key][name]

        def set_tensor_address(self, name, memory):
            self._addresses[name] = memory
            return name in self._engine._dtypes and memory % 256 == 0

        def execute_async_v3(self, stream_handle):
            engine, shapes, addresses = self._engine, dict(self._shapes), dict(self._addresses)
            if set(shapes) != set(engine._inputs) or set(addresses) != set(engine._dtypes):
                complain(engine._logger, "a tensor has no shape or no address")
                return False

            def run():
                feeds = {n: gpu.view(addresses[n], s, np.float32).copy() for n, s in shapes.items()}
                for n, array in zip(engine._outputs, engine._graph(feeds), strict=True):
                    gpu.view(addresses[n], array.shape, array.dtype)[...] = array

            gpu.queues[stream_handle].append(run)
            return True

    class ICudaEngine:
        @property
        def num_io_tensors(self):
            return len(self._dtypes)

        def get_tensor_name(self, index):
            return sorted(self._dtypes, reverse=True)[index]  # not the order of the graph

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return {1: trt.DataType.FLOAT, 6: trt.DataType.INT32}[self._dtypes[name]]

        def get_tensor_profile_shape(self, name, profile_index):
            assert name in self._inputs and profile_index == 0
            return self._header["shapes"][name]

        def create_execution_context(self):
            return IExecutionContext(self)

    class Runtime:
        def __init__(self, logger):
            assert logger._constructed
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            head, model = bytes(serialized_engine).split(b"\n", 1)
            engine = ICudaEngine()
            engine._logger, engine._header = self._logger, json.loads(head)
            if (engine._header["version"], engine._header["device"]) != (version, gpu.name):
                complain(self._logger, "the plan was made elsewhere")
                return None
            assert "TF32" not in engine._header["flags"]
            graph = onnx.load_from_string(model).graph
            engine._inputs, engine._outputs = [i.name for i in graph.input], [o.name for o in graph.output]
            engine._dtypes = {t.name: t.type.tensor_type.elem_type for t in [*graph.input, *graph.output]}
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "graph.onnx").write_bytes(model)
                engine._graph = OnnxRuntimeGraph(Path(folder) / "graph.onnx", 2)
            return engine

    for part in (
        ILogger, INetworkDefinition, IOptimizationProfile, IBuilderConfig, Builder, OnnxParser, ParserError, Runtime,
        ICudaEngine, IExecutionContext,
    ):  # fmt: skip
        setattr(trt, part.__name__, part)
    return trt


def objections(model, old):
    """What the parser or a strongly typed network would not take."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        yield f"types: {error}"
    if model.opset_import[0].version > (20 if old else 25):
        yield f"opset {model.opset_import[0].version}"
    constants = {c.name: c for c in model.graph.initializer}
    scaled = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    for node in model.graph.node:
        int8 = [i for i in node.input if i in constants and constants[i].data_type == TensorProto.INT8]
        if node.op_type in UNSUPPORTED:
            yield f"{node.op_type} is not supported"
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if numpy_helper.to_array(constants[node.input[2]]).any():
                yield "a zero point that is not 0"
        elif int8:
            yield f"{node.op_type} of int8 {int8}"
        if node.op_type == "Conv" and not {node.input[1]} <= set(constants) | scaled:
            yield f"weights of a Conv that are computed: {node.input[1]}"
        if node.op_type == "Clip" and any(constants[i].dims for i in node.input[1:]):
            yield "bounds of a Clip that are no scalars"


def install(monkeypatch, version, gpu, binding="cuda"):
    """Put the stand-ins in the place of the packages."""
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    if binding == "cuda":
        cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
        cuda.bindings, bindings.runtime = bindings, cuda_runtime(gpu)
        names = {"cuda": cuda, "cuda.bindings": bindings, "cuda.bindings.runtime": bindings.runtime}
    else:
        pycuda = ModuleType("pycuda")
        pycuda.driver = pycuda_driver(gpu)
        names = {"pycuda": pycuda, "pycuda.driver": pycuda.driver}
    trt = tensorrt(version, gpu)
    trt.__spec__ = SimpleNamespace(name="tensorrt")
    for name, module in (names | {"tensorrt": trt}).items():
        monkeypatch.setitem(sys.modules, name, module)
