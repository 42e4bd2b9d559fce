"""Long work: streams and orders are kept in a folder and made one after the other; what was not finished is begun again.

A job's folder holds ``stream.peri`` (or ``image`` and ``wish.json`` for one of another codec), ``order.json``, ``state.json`` and, when it is
done, the product. States are queued, running, done, failed and cancelled.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import re
import shutil
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perigee.bitstream.errors import (
    BusyError,
    Fault,
    OrderError,
    OutputError,
    PerigeeError,
    UnfinishedJobError,
    UnknownJobError,
)
from perigee.ground.enhancing import Wish
from perigee.ground.maps.reading import map_file_in, map_file_of
from perigee.ground.orders import FORMATS, Order, OrderLimits
from perigee.ground.service.problems import Problem, problem_of, sound
from perigee.ground.service.workers import Workers
from perigee.ground.service.workspace import LOCK, hold
from perigee.ground.work import Task
from perigee.support.files import PREFIX, read_bounded, write_atomically

OPEN, FINISHED = ("queued", "running"), ("done", "failed", "cancelled")
ATTEMPTS = 3
STOP_S = 5.0  # for the job under way to notice that the service ends
FULL_RETRY_S, DISK_RETRY_S = 30, 300
RECORD_MAX_BYTES = 1 << 20
STREAM, OTHER = "stream.peri", "image"  # what is given
PROBLEM_DEPTH = 4
IDENTIFIER = re.compile(r"[0-9a-f]{32}")
log = logging.getLogger("perigee.jobs")


@dataclass
class State:
    """State of one job; ``progress`` is 0..1, ``created`` and ``finished`` are seconds since 1970, ``buildings`` those of the map by support."""

    status: str = "queued"
    progress: float = 0.0
    created: float = 0.0
    finished: float | None = None
    file: str | None = None
    damage: dict[str, int] | None = None
    buildings: dict[str, int] | None = None
    problem: dict[str, Any] | None = None
    attempts: int = 0

    @staticmethod
    def from_json(text: bytes) -> State:
        """A state that was kept. Raises ValueError, TypeError or RecursionError where a field is not what the service wrote."""
        state = State(**json.loads(text))
        sound = {
            "status": state.status in (*OPEN, *FINISHED),
            "progress": _is_number(state.progress),
            "created": _is_number(state.created),
            "finished": state.finished is None or _is_number(state.finished),
            "file": state.file in (None, *(f"scene.{suffix}" for suffix in FORMATS))
            and (state.status != "done" or state.file is not None),
            "damage": _is_plain(state.damage, 1),
            "buildings": _is_plain(state.buildings, 1),
            "problem": _is_plain(state.problem, PROBLEM_DEPTH),
            "attempts": type(state.attempts) is int,
        }
        if not all(sound.values()):
            raise ValueError(f"unusable: {', '.join(name for name, good in sound.items() if not good)}")
        return state


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is None or a JSON object of so many levels, whose texts are UTF-8."""
    if value is not None and not isinstance(value, dict):
        return False
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return _levels(value) <= depth


def _levels(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(_levels, parts), default=0)


def _told(problem: Problem) -> dict[str, Any]:
    told: dict[str, Any] = sound({"status": problem.status, "detail": problem.detail, **problem.extra})
    return told


def _read(path: Path) -> State:
    """A job's state; that of a failed job where it cannot be read."""
    try:
        return State.from_json(read_bounded(path, RECORD_MAX_BYTES))
    except (OSError, PerigeeError, ValueError, TypeError, RecursionError) as error:
        log.warning("the record of job %s cannot be read (%s)", path.parent.name, error)
        now = round(time.time(), 3)
        problem = _told(Problem(500, "the job's record cannot be read; the service's log has more"))
        return State("failed", created=now, finished=now, problem=problem)


def _order(path: Path) -> Order:
    """A job's order. Raises OrderError, LimitError or OSError where it cannot be read."""
    try:
        return Order.from_json(read_bounded(path, RECORD_MAX_BYTES).decode())
    except (UnicodeDecodeError, RecursionError) as error:
        raise OrderError(f"the order cannot be read ({error})", Fault.UNREADABLE, field="order") from error


def _wish(path: Path) -> Wish | None:
    """What is wanted of an image of another codec, or None for a job about a stream. Raises OrderError, LimitError or OSError."""
    if not path.exists():
        return None
    try:
        return Wish(**json.loads(read_bounded(path, RECORD_MAX_BYTES)))
    except (ValueError, TypeError, RecursionError) as error:
        raise OrderError(f"the wish cannot be read ({error})", Fault.UNREADABLE, field="wish") from error


class _Cancelled(Exception):
    pass


class Jobs:
    """The jobs of a folder and the thread that makes them. ``places``: how many may be kept, finished ones included."""

    def __init__(self, folder: Path, workers: Workers, limits: OrderLimits, places: int) -> None:
        """Raises OutputError where the folder cannot be made."""
        self.folder, self._workers, self._limits, self._places = folder, workers, limits, places
        self._lock = threading.Lock()  # of the states
        self._disk = threading.RLock()  # of their files: what is written last is what is true
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._states: dict[str, State] = {}
        self._thread: threading.Thread | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = hold(folder / LOCK)
        except OSError as error:
            raise OutputError(f"jobs cannot be kept in {folder} ({error})", field="jobs", found=str(folder)) from error
        if lock is None:
            raise OutputError(
                f"jobs cannot be kept in {folder}: another service uses it",
                Fault.EXISTS,
                field="jobs",
                found=str(folder),
            )
        self._folder_lock = lock
        for unfinished in (*folder.glob(f"*/{PREFIX}*"), *folder.glob(f"{PREFIX}*")):  # of a process that was killed
            shutil.rmtree(unfinished, ignore_errors=True) if unfinished.is_dir() else unfinished.unlink()
        records = [path for path in folder.glob("*/state.json") if IDENTIFIER.fullmatch(path.parent.name)]
        found = {path.parent.name: _read(path) for path in records}
        for name, state in sorted(found.items(), key=lambda item: item[1].created):
            self._states[name] = state
            if state.status in OPEN:
                state.status, state.progress = "queued", 0.0
                self._queue.put(name)

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="perigee-jobs")
        self._thread.start()

    def stop(self) -> None:
        """Let go of the job under way, which a later process begins again, and end the thread.

        A job that does not notice in time is left to itself: its thread ends with the process.
        """
        self._queue.put(None)
        thread, self._thread = self._thread, None
        if thread:
            thread.join(STOP_S)
        if thread and thread.is_alive():
            with self._lock:
                running = [name for name, state in self._states.items() if state.status == "running"]
                for name in running:
                    self._states[name].attempts -= 1
            for name in running:
                self._save(name)
        self._folder_lock.close()

    def submit(self, order: Order, data: bytes, wish: Wish | None = None, guide: bytes | None = None) -> dict[str, Any]:
        """Keep a job and return its state; with a ``wish`` the data are an image of another codec; ``guide`` is a map. Raises BusyError where
        there is no room for it."""
        with self._lock:
            if len(self._states) >= self._places:
                finished = [n for n, s in self._states.items() if s.status in FINISHED]
                if not finished:
                    raise BusyError(f"{len(self._states)} jobs are waiting", FULL_RETRY_S)
                oldest = min(finished, key=lambda n: self._states[n].finished or 0)
                del self._states[oldest]
            else:
                oldest = None
            name = uuid.uuid4().hex
            self._states[name] = state = State(created=round(time.time(), 3))
        if oldest:
            self._remove(oldest)
        place = self.folder / name
        try:
            with self._disk:
                place.mkdir()
                write_atomically(place / (STREAM if wish is None else OTHER), data)
                if guide is not None:
                    write_atomically(place / map_file_of(guide), guide)
                if wish is not None:
                    write_atomically(place / "wish.json", json.dumps(asdict(wish)).encode())
                write_atomically(place / "order.json", order.to_json().encode())
                write_atomically(place / "state.json", json.dumps(asdict(state)).encode())
        except OSError as error:
            with self._lock:
                del self._states[name]
            self._remove(name)
            raise BusyError(f"the job cannot be kept ({error.strerror})", DISK_RETRY_S) from error
        self._queue.put(name)
        return {"id": name, **asdict(state)}

    def described(self, name: str) -> dict[str, Any]:
        """State of a job. Raises UnknownJobError."""
        with self._lock:
            return {"id": name, **asdict(self._known(name))}

    def all(self) -> list[dict[str, Any]]:
        """States of all jobs, the oldest first."""
        with self._lock:
            return [{"id": name, **asdict(state)} for name, state in self._states.items()]

    def result(self, name: str) -> tuple[Path, State]:
        """The product and the state of its job. Raises UnknownJobError, or UnfinishedJobError where the job is not done.

        A job whose product was emptied has failed. One whose product leads out of its folder has none.
        """
        with self._lock:
            state = self._known(name)
            if state.status != "done" or state.file is None:
                raise UnfinishedJobError(f"job {name} is {state.status}", state.problem)
            path = self.folder / name / state.file
        inside = path.resolve() == self.folder.resolve() / name / path.name
        if not inside or not path.is_file():  # removed a moment ago, or by hand
            raise UnknownJobError(f"the product of job {name} is gone", Fault.MISSING, field="job", found=name)
        if path.stat().st_size == 0:
            self._end(name, state, "failed", _told(Problem(500, "the job's product is empty")))
            raise UnfinishedJobError(f"job {name} is failed", state.problem)
        return path, state

    def cancel(self, name: str) -> str:
        """Cancel a job that is not finished, or forget one that is; returns what was done. Raises UnknownJobError."""
        with self._lock:
            state = self._known(name)
            finished = state.status in FINISHED
            if finished:
                del self._states[name]
            else:
                state.status, state.finished = "cancelled", round(time.time(), 3)
        if finished:
            self._remove(name)
            return "deleted"
        self._save(name)
        return "cancelled"

    def _known(self, name: str) -> State:
        if not IDENTIFIER.fullmatch(name) or name not in self._states:
            raise UnknownJobError(f"no job {name!r}", field="job", found=name)
        return self._states[name]

    def _remove(self, name: str) -> None:
        with self._disk:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _save(self, name: str) -> None:
        """Write a job's state as it is now; what cannot be written is logged, and the job goes on."""
        with self._disk:
            with self._lock:
                state = self._states.get(name)
                text = json.dumps(asdict(state)) if state else None
            if text is not None:
                try:
                    write_atomically(self.folder / name / "state.json", text.encode())
                except OSError as error:
                    log.error("the state of job %s cannot be kept (%s)", name, error)

    def _work(self) -> None:
        while (name := self._queue.get()) is not None and self._thread is not None:
            with self._lock:
                state = self._states.get(name)
                if state is None or state.status != "queued":
                    continue
                state.status, state.attempts = "running", state.attempts + 1
            self._save(name)
            try:
                if state.attempts > ATTEMPTS:  # it took the whole process with it, more than once
                    raise Problem(500, f"the job did not end in {ATTEMPTS} attempts")
                self._make(name, state)
            except _Cancelled:
                if self._thread is None:  # the service ends: the job stays as it is, and this was no attempt
                    state.attempts -= 1
                    self._save(name)
                    return
            except Problem as problem:
                self._end(name, state, "failed", _told(problem))
            except (PerigeeError, OSError) as error:
                self._end(name, state, "failed", _told(problem_of(error)))
            except Exception as error:  # a fault of ours ends the job, not the service
                log.error("job %s failed", name, exc_info=error)
                self._end(
                    name, state, "failed", {"status": 500, "detail": "internal error; the service's log has more"}
                )

    def _make(self, name: str, state: State) -> None:
        place = self.folder / name
        order = _order(place / "order.json")

        def progress(done: int, total: int) -> None:
            state.progress = round(done / max(total, 1), 4)
            if state.status == "cancelled" or self._thread is None:
                raise _Cancelled

        wish = _wish(place / "wish.json")
        path = place / f"scene.{order.format}"
        given = place / (STREAM if wish is None else OTHER)
        task = Task(
            order,
            given,
            dict.fromkeys(order.products, path),
            self._limits,
            wish,
            map_file_in(place),
        )
        made = self._workers.perform(task, progress)
        if made.value is not None:
            write_atomically(path, json.dumps(made.value).encode())
        state.file, state.damage, state.buildings, state.progress = path.name, made.damage, made.buildings, 1.0
        self._end(name, state, "done")

    def _end(self, name: str, state: State, status: str, problem: dict[str, Any] | None = None) -> None:
        with self._lock:
            if state.status == "cancelled":
                return
            state.status, state.problem, state.finished = status, problem, round(time.time(), 3)
        self._save(name)
