"""What bounds the service: its settings, and the places for uploads and decodings under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Gauge

from perigee.bitstream.errors import BusyError
from perigee.engines.backend import CPU_BACKEND, Backend
from perigee.ground.library import Library
from perigee.ground.orders import OrderLimits
from perigee.ground.service.scenes import SceneLimits

RUNS_AT_ONCE = 3000  # of the denoiser for one answer: a few minutes; jobs may take more


@dataclass(frozen=True)
class Settings:
    """How the service runs. Sizes are in bytes, times in seconds.

    ``uploads`` are bodies that may arrive at a time, ``running`` decodings that run, ``waiting`` those that wait for them, ``readings`` those
    of scenes that run or wait. ``head_s`` bounds how long a connection may take to send the whole head of a request, ``write_s`` how long a part
    of an answer may wait for its reader, ``shutdown_s`` how long requests may go on after SIGTERM.

    ``hosts`` are the names under which the service answers (none: any), ``cors_origins`` the origins whose pages may use it. ``scenes`` is the
    folder of scenes and ``jobs`` one that keeps jobs over a restart; None is a temporary one. ``backend`` runs the networks in this process;
    where ``devices`` are named, a worker process runs ``engine`` on each instead, and as many decodings run. ``library`` replaces the one made
    of ``profiles``, ``threads`` and ``backend``.
    """

    profiles: tuple[Path, ...] = ()
    threads: int | None = None
    backend: Backend = CPU_BACKEND
    devices: tuple[str, ...] = ()
    engine: str = "auto"
    upload_bytes: int = 256 << 20
    decoded_samples: int = 400_000_000
    upload_s: float = 120.0
    head_s: float = 20.0
    write_s: float = 60.0
    shutdown_s: int = 10
    uploads: int = 32
    readings: int = 256
    running: int = 1
    waiting: int = 8
    retry_after_s: int = 5
    token: str | None = None
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    scenes: Path | None = None
    scene_limits: SceneLimits = SceneLimits()
    jobs: Path | None = None
    jobs_kept: int = 64
    library: Library | None = field(default=None, compare=False)

    @property
    def answers(self) -> OrderLimits:
        """What an order may take that is answered at once."""
        return OrderLimits(self.decoded_samples, RUNS_AT_ONCE)

    @property
    def long_work(self) -> OrderLimits:
        """What a job may take."""
        return OrderLimits(self.decoded_samples)


class Places:
    """Admits so many requests at a time; further ones are refused."""

    def __init__(self, count: int, retry_after_s: int, gauge: Gauge) -> None:
        self._count, self._retry_after_s, self._gauge = count, retry_after_s, gauge
        self._lock, self._taken = threading.Lock(), 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places. Raises BusyError when all are taken."""
        with self._lock:
            if self._taken >= self._count:
                raise BusyError(f"{self._taken} requests are under way or waiting", self._retry_after_s)
            self._taken += 1
            self._gauge.set(self._taken)
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1
                self._gauge.set(self._taken)
