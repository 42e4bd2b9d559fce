"""Energy where a sensor exists: a Jetson's INA3221, the processor's RAPL counters, a graphics card's NVML counter.

A counter gives joules; watts are integrated over their samples. A thread reads all sensors ten times a second, so that a
counter that starts again is seen to do so. Whatever else the machine does is in every figure; what it uses while this
process sleeps is measured apart. A sensor cannot see one tile: figures want half a minute of them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from perigee.benchmarks.machine import ROOT, read_text

INTERVAL_S = 0.1
ENOUGH_S = 30
# Rails that make up a module: Orin NX and Nano and Xavier NX have their total on one, which holds the others; AGX Orin has none.
MODULES = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


@dataclass(frozen=True)
class Sensor:
    """``read`` gives watts, or the joules of a counter that starts again from 0 at ``wraps_at_j``. It raises OSError."""

    name: str
    covers: str
    read: Callable[[], float]
    counter: bool = False
    wraps_at_j: float = math.inf


def _rail_watts(chip: Path, channel: int) -> float:
    millivolts, milliamperes = (int((chip / f"{kind}{channel}_input").read_text()) for kind in ("in", "curr"))
    return millivolts * milliamperes / 1e6


def _total_watts(rails: list[Callable[[], float]]) -> float:
    return sum(read() for read in rails)


def _ina3221(root: Path) -> Iterator[Sensor]:
    rails: dict[str, Callable[[], float]] = {}
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if read_text(chip / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):  # the inputs behind them are shunt voltages
            label = read_text(chip / f"in{channel}_label")
            if label not in ("", "NC"):
                rails[label] = partial(_rail_watts, chip, channel)
    for parts in MODULES:
        if all(part in rails for part in parts):
            name = "INA3221 " + " + ".join(parts)
            total = partial(_total_watts, [rails[part] for part in parts])
            yield Sensor(name, "the module without its carrier board", total)
            return
    for label, read in rails.items():
        yield Sensor(f"INA3221 {label}", "one rail of a module whose total is not known here", read)


def _microjoules(path: Path) -> float:
    return int(path.read_text()) / 1e6


def _rapl(root: Path) -> Iterator[Sensor]:
    for zone in sorted(root.glob("sys/class/powercap/*-rapl:*")):
        name = read_text(zone / "name")
        whole = zone.name.count(":") == 1  # those below are parts of a package, except memory
        if whole or name == "dram":
            covers = {"dram": "memory", "psys": "the platform, packages included"}.get(name, "processor without memory")
            top = read_text(zone / "max_energy_range_uj")
            wraps_at = int(top) / 1e6 if top.isdecimal() else math.inf
            place = f"RAPL {zone.name.partition(':')[2]} {name}"
            yield Sensor(place, covers, partial(_microjoules, zone / "energy_uj"), counter=True, wraps_at_j=wraps_at)


def _nvml() -> Iterator[Sensor]:
    try:
        import pynvml
    except ModuleNotFoundError:
        return

    def joules(handle: Any) -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except pynvml.NVMLError as error:  # a Jetson has NVML, but not this counter
            raise OSError(0, str(error)) from error

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return
    for index, handle in enumerate(handles):
        yield Sensor(f"NVML {index}", "the graphics card", partial(joules, handle), counter=True)


def usable(sensors: Iterable[Sensor]) -> tuple[list[Sensor], list[str]]:
    """Those that can be read, and a line about each of the others."""
    good, remarks = [], []
    for sensor in sensors:
        try:
            sensor.read()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"no number: {error}"
            remarks.append(f"{sensor.name} is there but cannot be read ({reason})")
        else:
            good.append(sensor)
    return good, remarks


def system_sensors(root: Path = ROOT) -> Iterator[Sensor]:
    """INA3221 and RAPL below ``root``, readable or not."""
    yield from _ina3221(root)
    yield from _rapl(root)


def all_sensors() -> Iterator[Sensor]:
    """Everything of this machine, readable or not."""
    yield from system_sensors()
    yield from _nvml()


def joules_between(sensor: Sensor, before: tuple[float, float], after: tuple[float, float]) -> float:
    """Joules from one sample (seconds, value) to the next; a counter may have started again once."""
    if not sensor.counter:
        return (before[1] + after[1]) / 2 * (after[0] - before[0])
    step = after[1] - before[1]
    return step if step >= 0 else step + sensor.wraps_at_j


@dataclass
class Meter:
    """Seconds of a ``with`` block, and by sensor its joules and the seconds between its first sample and its last.

    A sample that fails is left out, and the next one spans the gap.
    """

    sensors: list[Sensor]
    interval_s: float = INTERVAL_S
    joules: dict[str, float] = field(default_factory=dict)
    spans_s: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0

    def __enter__(self) -> Meter:
        self._last: dict[str, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._sample()
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._sample()

    def _sample(self) -> None:
        for sensor in self.sensors:
            try:
                now = (time.perf_counter(), sensor.read())
            except (OSError, ValueError):
                continue
            if sensor.name in self._last:
                last = self._last[sensor.name]
                self.joules[sensor.name] = self.joules.get(sensor.name, 0.0) + joules_between(sensor, last, now)
                self.spans_s[sensor.name] = self.spans_s.get(sensor.name, 0.0) + now[0] - last[0]
            self._last[sensor.name] = now
        self.samples += 1

    def watts(self, sensor: Sensor) -> float | None:
        """Mean power; None where no two samples could be read."""
        span = self.spans_s.get(sensor.name)
        return self.joules[sensor.name] / span if span else None


def per_mpx(meter: Meter, idle: Meter, mpx: float) -> list[dict[str, Any]]:
    """A row per sensor of ``meter``: J per megapixel position, gross, and net of what the machine uses when idle."""
    rows = []
    for sensor in meter.sensors:
        watts, idle_watts = meter.watts(sensor), idle.watts(sensor)
        if watts is None or idle_watts is None:
            continue
        rows.append(
            {
                "sensor": sensor.name,
                "covers": sensor.covers,
                "W": round(watts, 3),
                "idle W": round(idle_watts, 3),
                "J/Mpx gross": round(watts * meter.seconds / mpx, 5),
                "J/Mpx net": round((watts - idle_watts) * meter.seconds / mpx, 5),
                "samples": meter.samples,
                "seconds": round(meter.seconds, 1),
            }
        )
    return rows


def link_j_per_mpx(transmitter_j_per_bit: float, bpp: float) -> float:
    """Joules of a transmitter for a megapixel position of ``bpp`` bits each."""
    return round(transmitter_j_per_bit * bpp * 1e6, 5)
