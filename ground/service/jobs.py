"""Long work: a stream and an order are kept in a folder and made one after the other; what was not finished is begun again.

A job's folder holds ``stream.peri``, ``order.json``, ``state.json`` and, when it is done, the product. States are queued,
running, done, failed and cancelled.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import shutil
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perigee.bitstream.errors import PerigeeError
from perigee.bitstream.files import write_atomically
from perigee.ground.library import Library
from perigee.ground.service.orders import Order, fulfil
from perigee.ground.service.problems import Problem, problem_of

OPEN, FINISHED = ("queued", "running"), ("done", "failed", "cancelled")
IDENTIFIER = re.compile(r"[0-9a-f]{32}")
log = logging.getLogger("perigee.jobs")


@dataclass
class State:
    """Of one job; ``progress`` 0..1, ``created`` and ``finished`` in seconds since 1970."""

    status: str = "queued"
    progress: float = 0.0
    created: float = 0.0
    finished: float | None = None
    file: str | None = None
    damage: dict[str, int] | None = None
    problem: dict[str, Any] | None = None


def _told(problem: Problem) -> dict[str, Any]:
    return {"status": problem.status, "detail": problem.detail, **problem.extra}


class _Cancelled(Exception):
    pass


class Jobs:
    """The jobs of a folder and the thread that makes them. ``places``: how many may be kept, finished ones included."""

    def __init__(self, folder: Path, library: Library, decoded_samples: int, places: int) -> None:
        self.folder, self._library, self._samples, self._places = folder, library, decoded_samples, places
        self._lock = threading.Lock()
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._states: dict[str, State] = {}
        self._thread: threading.Thread | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*/state.json"), key=lambda p: p.stat().st_mtime):
            self._recover(path)

    def _recover(self, path: Path) -> None:
        """A job of an earlier process; one that was under way begins again."""
        name = path.parent.name
        try:
            state = State(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            log.warning("job %s is unreadable and left alone (%s)", name, error)
            return
        if state.status in OPEN:
            state.status, state.progress = "queued", 0.0
            self._queue.put(name)
        self._states[name] = state

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="perigee-jobs")
        self._thread.start()

    def stop(self) -> None:
        """Let go of the job under way, which a later process begins again, and end the thread."""
        self._queue.put(None)
        thread, self._thread = self._thread, None
        if thread:
            thread.join()

    def submit(self, order: Order, data: bytes) -> str:
        """Keep a job and return its identifier. Raises Problem 503 where no finished one can make room."""
        with self._lock:
            if len(self._states) >= self._places:
                finished = [n for n, s in self._states.items() if s.status in FINISHED]
                if not finished:
                    raise Problem(503, f"{len(self._states)} jobs are waiting", {"Retry-After": "30"})
                self._remove(min(finished, key=lambda n: self._states[n].finished or 0))
            name = uuid.uuid4().hex
            self._states[name] = State(created=round(time.time(), 3))
        place = self.folder / name
        place.mkdir()
        write_atomically(place / "stream.peri", data)
        write_atomically(place / "order.json", order.to_json().encode())
        self._save(name)
        self._queue.put(name)
        return name

    def described(self, name: str) -> dict[str, Any]:
        """State of a job. Raises Problem 404."""
        with self._lock:
            return {"id": name, **asdict(self._known(name))}

    def all(self) -> list[dict[str, Any]]:
        """States of all jobs, the oldest first."""
        with self._lock:
            return [{"id": name, **asdict(state)} for name, state in self._states.items()]

    def result(self, name: str) -> tuple[Path, dict[str, int] | None]:
        """The product and its damage. Raises Problem 404, or 409 where the job is not done."""
        with self._lock:
            state = self._known(name)
            if state.status != "done" or state.file is None:
                raise Problem(
                    409, f"job {name} is {state.status}", **({"problem": state.problem} if state.problem else {})
                )
            return self.folder / name / state.file, state.damage

    def cancel(self, name: str) -> str:
        """Cancel a job that is not finished, or forget one that is; returns what was done. Raises Problem 404."""
        with self._lock:
            state = self._known(name)
            if state.status in FINISHED:
                self._remove(name)
                return "deleted"
            state.status, state.finished = "cancelled", time.time()
        self._save(name)
        return "cancelled"

    def _known(self, name: str) -> State:
        if not IDENTIFIER.fullmatch(name) or name not in self._states:
            raise Problem(404, f"no job {name!r}")
        return self._states[name]

    def _remove(self, name: str) -> None:
        del self._states[name]
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _save(self, name: str) -> None:
        with self._lock:
            state = self._states.get(name)
            text = json.dumps(asdict(state)) if state else None
        if text is not None:
            write_atomically(self.folder / name / "state.json", text.encode())

    def _work(self) -> None:
        while (name := self._queue.get()) is not None:
            with self._lock:
                state = self._states.get(name)
                if state is None or state.status != "queued":
                    continue
                state.status = "running"
            self._save(name)
            try:
                self._make(name, state)
            except _Cancelled:
                if self._thread is None:  # the service ends: the job stays as it is
                    return
            except Problem as problem:
                self._end(name, state, "failed", _told(problem))
            except PerigeeError as error:
                self._end(name, state, "failed", _told(problem_of(error)))
            except Exception as error:  # a fault of ours ends the job, not the service
                log.error("job %s failed", name, exc_info=error)
                self._end(
                    name, state, "failed", {"status": 500, "detail": "internal error; the service's log has more"}
                )

    def _make(self, name: str, state: State) -> None:
        place = self.folder / name
        order = Order.from_json((place / "order.json").read_text(encoding="utf-8"))

        def progress(done: int, total: int) -> None:
            state.progress = round(done / max(total, 1), 4)
            if state.status == "cancelled" or self._thread is None:
                raise _Cancelled

        made = fulfil(order, (place / "stream.peri").read_bytes(), self._library, place, self._samples, progress)
        if made.path is None:
            path = place / "scene.json"
            write_atomically(path, json.dumps(made.value, default=str).encode())
        else:
            path = made.path
        state.file, state.damage, state.progress = path.name, made.damage, 1.0
        self._end(name, state, "done")

    def _end(self, name: str, state: State, status: str, problem: dict[str, Any] | None = None) -> None:
        with self._lock:
            if state.status == "cancelled":
                return
            state.status, state.problem, state.finished = status, problem, round(time.time(), 3)
        self._save(name)
