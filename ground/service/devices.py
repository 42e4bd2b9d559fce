"""How busy the GPUs are, where NVIDIA's management library and its bindings (``nvidia-ml-py``) are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Load(NamedTuple):
    """A GPU at this moment: the share of time in which it computed, 0 to 1, and its memory in bytes."""

    device: str
    utilisation: float
    memory_used: int
    memory_total: int


def loads(devices: Iterable[str]) -> Iterator[Load]:
    """The GPUs among ``devices``, each once; none where NVML or its bindings are missing, or do not answer."""
    numbers = sorted({device for device in devices if device.isdigit()}, key=int)
    if not numbers:
        return
    try:
        import pynvml

        pynvml.nvmlInit()
        for number in numbers:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(number))
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            share = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            yield Load(number, share, int(memory.used), int(memory.total))
        pynvml.nvmlShutdown()
    except (
        Exception
    ):  # missing, or an error of the driver, of which the library has a class each: there is nothing to tell
        return
