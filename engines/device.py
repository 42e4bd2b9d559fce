"""The little of CUDA that running a TensorRT plan needs, behind one interface, by whichever Python binding is installed.

Tested with stand-ins for both bindings; it has not run on a GPU yet.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any, Protocol, SupportsInt

import numpy.typing as npt

from perigee.bitstream.errors import EngineError

Array = npt.NDArray[Any]


class Device(Protocol):
    """The first GPU with one stream. ``name`` tells apart what a plan must not be carried between."""

    name: str

    @property
    def stream(self) -> int:
        """Handle of the stream on which everything happens."""

    def allocate(self, size_bytes: int) -> SupportsInt:
        """Device memory; its integer is the address, and it is freed with the object."""

    def to_device(self, array: Array, memory: SupportsInt) -> None:
        """Queue a copy of a contiguous array into device memory; keep the array until :meth:`synchronise`."""

    def to_host(self, memory: SupportsInt, array: Array) -> None:
        """Queue a copy of device memory into a contiguous array, which is filled after :meth:`synchronise`."""

    def synchronise(self) -> None:
        """Wait until all that was queued is done. Raises EngineError where it failed."""


def _name(model: str, capability: tuple[int, int], processors: int, cuda: int) -> str:
    return (
        f"{model}, sm_{capability[0]}{capability[1]}, {processors} processors, CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    )


class _Memory:
    """An allocation of the CUDA runtime, freed with the object."""

    def __init__(self, address: int, free: Callable[[int], object]) -> None:
        self._address, self._free = address, free

    def __int__(self) -> int:
        return self._address

    def __del__(self) -> None:
        self._free(self._address)


class CudaBindings:
    """The device through NVIDIA's ``cuda-bindings``."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        properties = self._call("cudaGetDeviceProperties", 0)
        model = properties.name
        self.name = _name(
            model.decode().rstrip("\0") if isinstance(model, bytes) else str(model),
            (properties.major, properties.minor),
            properties.multiProcessorCount,
            self._call("cudaDriverGetVersion"),
        )
        self._stream = self._call("cudaStreamCreate")

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"{function}: {getattr(status, 'name', status)}")
        return values[0] if values else None

    @property
    def stream(self) -> int:
        return int(self._stream)

    def allocate(self, size_bytes: int) -> SupportsInt:
        return _Memory(int(self._call("cudaMalloc", size_bytes)), self._runtime.cudaFree)

    def to_device(self, array: Array, memory: SupportsInt) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", int(memory), array.ctypes.data, array.nbytes, kind, self._stream)

    def to_host(self, memory: SupportsInt, array: Array) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, int(memory), array.nbytes, kind, self._stream)

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)


class PyCuda:
    """The device through ``pycuda``, in the primary context, which TensorRT uses too."""

    def __init__(self) -> None:
        from pycuda import driver

        self._driver = driver
        driver.init()
        gpu = driver.Device(0)
        processors = gpu.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT)
        self.name = _name(gpu.name(), gpu.compute_capability(), processors, driver.get_driver_version())
        context = gpu.retain_primary_context()
        context.push()
        atexit.register(context.pop)
        self._stream = driver.Stream()

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def allocate(self, size_bytes: int) -> SupportsInt:
        memory: SupportsInt = self._driver.mem_alloc(size_bytes)
        return memory

    def to_device(self, array: Array, memory: SupportsInt) -> None:
        self._driver.memcpy_htod_async(int(memory), array, self._stream)

    def to_host(self, memory: SupportsInt, array: Array) -> None:
        self._driver.memcpy_dtoh_async(array, int(memory), self._stream)

    def synchronise(self) -> None:
        try:
            self._stream.synchronize()
        except self._driver.Error as error:
            raise EngineError(f"the GPU failed ({error})") from error


def open_device() -> Device:
    """The first GPU through the first binding that works. Raises EngineError that says what is missing."""
    reasons = []
    for kind, package in ((CudaBindings, "cuda-bindings"), (PyCuda, "pycuda")):
        try:
            return kind()
        except Exception as error:  # a broken package or driver raises anything
            reasons.append(f"{package}: {error}")
    raise EngineError(
        f"no GPU can be reached ({'; '.join(reasons)}): it needs an NVIDIA driver, and cuda-bindings of the driver's "
        "CUDA version or pycuda"
    )
