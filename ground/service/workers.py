"""Where the service's work is done: in its own process, or by worker processes, one for each device.

A worker that dies, or whose device fails, is taken out; its task is done by another, and a keeper starts it again and tests its engine. Tasks can
be repeated, since products are written whole or not at all.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from perigee.bitstream.errors import BusyError, EngineError
from perigee.engines.backend import CPU_DEVICE
from perigee.ground.library import Library
from perigee.ground.service.messages import DONE, FAILED, PROGRESS, READY, STOP, Message, Setting
from perigee.ground.source import Progress
from perigee.ground.work import Result, Task, perform
from perigee.support.cores import usable_cores

ATTEMPTS = 3
START_S = 180.0  # for an engine to load and pass its self-test
WAIT_S = 30.0  # for a worker that is being started again
SILENT_S = 600.0  # that a worker may say nothing of its task; a window takes seconds
STOP_S = 5.0
PAUSES_S = (
    0.1,
    2.0,
    5.0,
    15.0,
    60.0,
)  # before a worker is started again, by how often in a row it could not be started
RETRY_S = 5
COMMAND = (sys.executable, "-m", "perigee.ground.service.worker")
log = logging.getLogger("perigee.workers")


@dataclass
class Status:
    """A worker for people and metrics. ``state`` is starting, up, or down where it could not be started; ``reason`` says why it is not up."""

    device: str
    state: str = "starting"
    engine: str = ""
    reason: str = ""
    busy: bool = False
    tasks: int = 0
    restarts: int = 0


class Workers(Protocol):
    """Does tasks."""

    count: int  # how many tasks can be done at a time

    def perform(self, task: Task, progress: Progress | None = None) -> Result:
        """Do a task. Raises what ``work.perform`` raises, and BusyError where no worker can do it."""

    def statuses(self) -> list[Status]:
        """How the workers are."""

    def start(self) -> None:
        """Begin to work."""

    def stop(self) -> None:
        """End the workers."""


class Here:
    """This process, as the only worker."""

    count = 1

    def __init__(self, library: Library) -> None:
        self._library = library

    def perform(self, task: Task, progress: Progress | None = None) -> Result:
        """As ``work.perform``."""
        return perform(task, self._library, progress)

    def statuses(self) -> list[Status]:
        """No worker has a status of its own."""
        return []

    def start(self) -> None:
        """Nothing is to be started."""

    def stop(self) -> None:
        """Nothing is to be ended."""


class _Lost(Exception):
    """A worker has ended, or its device has failed."""


@dataclass
class _Worker:
    setting: Setting
    status: Status
    process: subprocess.Popen[bytes] | None = None
    connection: Connection | None = None
    lost: threading.Event = field(default_factory=threading.Event)

    def lose(self, connection: Connection) -> None:
        """Have the process behind a connection ended, unless it is another one by now."""
        if self.connection is connection:
            self.lost.set()


class Processes:
    """Worker processes, one for each of ``settings``."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self.count = len(settings)
        self._workers = [_Worker(setting, Status(setting.device)) for setting in settings]
        self._idle: list[_Worker] = []
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._keepers: list[threading.Thread] = []

    def start(self) -> None:
        """Start the workers; they are used as soon as they are ready."""
        for worker in self._workers:
            keeper = threading.Thread(target=self._keep, args=(worker,), daemon=True, name="perigee-keeper")
            keeper.start()
            self._keepers.append(keeper)

    def stop(self) -> None:
        """End the workers, also those at work."""
        self._ending.set()
        for worker in self._workers:
            worker.lost.set()
        with self._changed:
            self._changed.notify_all()
        for keeper in self._keepers:
            keeper.join(STOP_S)

    def statuses(self) -> list[Status]:
        """How the workers are."""
        with self._changed:
            return [Status(**vars(worker.status)) for worker in self._workers]

    def perform(self, task: Task, progress: Progress | None = None) -> Result:
        """Have a task done by a worker. Raises BusyError where none is up, or where all that tried ended."""
        for _ in range(ATTEMPTS):
            worker, connection = self._take()
            try:
                return self._run(worker, connection, task, progress)
            except _Lost as error:
                log.warning("worker on %s is taken out: %s", worker.status.device, error)
                worker.lose(connection)
            finally:
                self._give_back(worker, connection)
        raise BusyError(f"{ATTEMPTS} workers ended while they worked on this", RETRY_S)

    def _take(self) -> tuple[_Worker, Connection]:
        """An idle worker and the connection to its present process. Raises BusyError where none becomes idle in time."""
        end = time.monotonic() + WAIT_S
        with self._changed:
            while not self._idle:
                if self._ending.is_set():
                    raise BusyError("the service ends", RETRY_S)
                reasons = [f"{w.status.device}: {w.status.reason}" for w in self._workers if w.status.state == "down"]
                left = end - time.monotonic()
                if len(reasons) == self.count or left <= 0:
                    raise BusyError(f"no worker is ready ({'; '.join(reasons) or 'all are busy'})", RETRY_S)
                self._changed.wait(left)
            worker = self._idle.pop(0)
            worker.status.busy = True
            assert worker.connection is not None
            return worker, worker.connection

    def _give_back(self, worker: _Worker, connection: Connection) -> None:
        """Make a worker idle, unless its process is another one by now or ends."""
        with self._changed:
            if worker.connection is connection and worker.status.state == "up" and not worker.lost.is_set():
                worker.status.busy = False
                self._idle.append(worker)
            self._changed.notify_all()

    def _run(self, worker: _Worker, connection: Connection, task: Task, progress: Progress | None) -> Result:
        """The result of a task. Raises _Lost where the worker or its device is gone."""
        stopped: BaseException | None = None
        try:
            connection.send(task)
            while True:
                if not connection.poll(SILENT_S):
                    raise _Lost(f"it has said nothing for {SILENT_S:g} s")
                message: Message = connection.recv()
                if message.kind == PROGRESS:
                    if progress and stopped is None:
                        try:
                            progress(*message.value)  # type: ignore[misc]
                        except BaseException as error:  # whoever asked wants it no longer
                            stopped = error
                            connection.send(STOP)
                    continue
                break
        except (EOFError, OSError) as error:
            raise _Lost("its process has ended") from error
        if stopped is not None:
            raise stopped
        if message.kind == DONE:
            worker.status.tasks += 1
            assert isinstance(message.value, Result)
            return message.value
        assert isinstance(message.value, BaseException)
        if isinstance(message.value, EngineError) and worker.setting.device != CPU_DEVICE:
            raise _Lost(f"its device fails ({message.value})") from message.value
        raise message.value

    def _keep(self, worker: _Worker) -> None:
        """Start a worker, and start it again when it is lost, until the service ends."""
        failures = 0
        while not self._ending.is_set():
            worker.lost.clear()
            reason = self._started(worker)
            if reason is None:
                failures = 0
                while not worker.lost.wait(0.2) and worker.process is not None and worker.process.poll() is None:
                    pass
                self._take_out(worker, "starting", "it has ended and is started again")
            else:
                failures += 1
                self._take_out(worker, "down", reason)
            if not self._ending.is_set():
                worker.status.restarts += 1
                self._ending.wait(PAUSES_S[min(failures, len(PAUSES_S) - 1)])

    def _started(self, worker: _Worker) -> str | None:
        """Start a worker's process and wait until it is ready; why it is not, or None."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*COMMAND, str(theirs.fileno())]
            environment = os.environ | {"PYTHONSAFEPATH": "1"}  # no packages from the working directory
            worker.connection = Connection(ours.detach())  # whoever waits for the process before holds its own
            try:
                worker.process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
                )
            except OSError as error:
                return f"it cannot be started ({error})"
        try:
            worker.connection.send(worker.setting)
            end = time.monotonic() + START_S
            while not worker.connection.poll(0.2):
                if self._ending.is_set() or time.monotonic() > end:
                    return f"it was not ready within {START_S:g} s"
            message: Message = worker.connection.recv()
        except (EOFError, OSError):
            return f"it ended while it started (exit code {worker.process.wait()})"
        if message.kind == FAILED:
            return str(message.value)
        assert message.kind == READY
        with self._changed:
            worker.status.engine = message.value[0]  # type: ignore[index]
            worker.status.state, worker.status.reason, worker.status.busy = "up", "", False
            self._idle.append(worker)
            self._changed.notify_all()
        log.info("worker on %s is ready with %s", worker.status.device, worker.status.engine)
        return None

    def _take_out(self, worker: _Worker, state: str, reason: str) -> None:
        """End a worker's process, at whatever it is."""
        with self._changed:
            worker.status.state, worker.status.reason = state, reason
            if worker in self._idle:
                self._idle.remove(worker)
            self._changed.notify_all()
        if worker.process is not None:
            worker.process.kill()
            worker.process.wait()


def workers_of(devices: Sequence[str], engine: str, library: Library) -> Workers:
    """A worker process for each of ``devices``, or this process where none is named. Workers on the CPU share its cores."""
    if not devices:
        return Here(library)
    threads = library.threads or max(1, usable_cores() // len(devices))
    return Processes([Setting(library.folders, threads, engine, device) for device in devices])


def described(statuses: Sequence[Status]) -> list[dict[str, Any]]:
    """Statuses as JSON-ready values."""
    return [{name: value for name, value in vars(status).items() if value != ""} for status in statuses]
