"""Workers on Ray: actors that keep their networks in memory, fed with keys, giving back records; nothing large passes through Ray.

Ray's complaint in such work is the object store that fills and spills to disk; here it never holds more than keys and records.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported: it would report to its makers
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayActorError, RayError

from perigee.archive.records import FAILED, Record
from perigee.archive.stores import Key
from perigee.archive.work import PREFIX, Work, Worker
from perigee.bitstream.errors import EngineError, PerigeeError
from perigee.support.command import exit_on_signals

ATTEMPTS = 3  # at an object that ends its worker
UNDER_WAY = 2  # keys that a worker has beside the one it is at
STORE_BYTES = 80 << 20  # Ray's smallest object store; keys and records need a few kilobytes
START_S = 300.0  # in which workers have to load what they need
START_ATTEMPTS = 20  # of a worker that ends before it has done anything


@ray.remote(max_restarts=0)
class _Actor:
    """A worker in a process of its own."""

    def __init__(self, work: Work, threads: int, engine: str, device: str | None, temporary: str | None) -> None:
        from perigee.engines.ground_choice import choose
        from perigee.ground.environment import own_environment

        own_environment("perigee-archive")
        self._failure: Exception | None = None
        try:
            backend, _ = choose(engine, device, threads)
            self._worker = Worker(work, threads, backend, temporary)
        except (PerigeeError, OSError) as error:  # such as a map that is not on this machine
            self._failure = error

    def ready(self) -> str | None:
        """What kept it from starting, None where nothing did."""
        return None if self._failure is None else str(self._failure)

    def do(self, key: Key) -> Record:
        return self._worker.do(key)


class _Given(NamedTuple):
    """What a worker was given, and how many workers it has ended."""

    worker: int
    key: Key
    attempts: int


def _result(reference: Any, key: Key) -> Record | None:
    """The record behind a reference that is ready; None where the worker has died."""
    try:
        found: Record = ray.get(reference)
        return found
    except RayActorError:
        return None
    except RayError as error:
        return Record(key.path, FAILED, error=f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}")


def _room(workers: int, threads: int, gpus: float) -> int:
    """How many of so many workers the cluster can hold. Raises EngineError where it holds none."""
    resources: Any = ray.cluster_resources
    there = resources()
    cpus, devices = int(there.get("CPU", 0)) // threads, there.get("GPU", 0.0)
    count = min(workers, cpus, *([int(devices / gpus + 1e-6)] if gpus else []))
    if count < 1:
        wanted = f"{threads} CPU threads" + (f" and {gpus:g} of a GPU" if gpus else "")
        raise EngineError(
            f"a worker takes {wanted}, and Ray has {there.get('CPU', 0):g} CPUs and {devices:g} GPUs",
            field="ray",
            expected=wanted,
        )
    return count


class Pool:
    """So many workers, on this machine or on a cluster."""

    def __init__(
        self,
        work: Work,
        workers: int,
        threads: int = 1,
        address: str | None = None,
        engine: str = "auto",
        device: str | None = None,
        gpus: float = 0.0,
    ) -> None:
        """``address`` is that of a running cluster of which this machine is a node (``auto`` or ``HOST:PORT``), None one that lives as long as the
        pool on this machine. Each worker has so many CPU ``threads`` and ``gpus``; there are no more than the cluster has room for.

        Raises EngineError where Ray does not start, has no room for a worker, or a worker does not start.
        """
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        self._temporary = None if address else tempfile.TemporaryDirectory(prefix=PREFIX)
        if address is None:
            options |= {
                "num_cpus": workers * threads, "include_dashboard": False, "object_store_memory": STORE_BYTES, "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
        try:
            ray.init(address=address or "local", **options)
        except Exception as error:  # Ray raises plain ones too
            self.close()
            raise EngineError(f"Ray does not start ({' '.join(str(error).split())[:300]})", field="ray") from error
        exit_on_signals()  # Ray has put handlers of its own in their place
        self._actors: dict[int, Any] = {}
        place = None if self._temporary is None else self._temporary.name
        self._make: Callable[[], Any] = lambda: _Actor.options(num_cpus=threads, num_gpus=gpus).remote(  # type: ignore[attr-defined]
            work, threads, engine, device, place
        )
        try:
            self._actors = {number: self._make() for number in range(_room(workers, threads, gpus))}
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Return when every worker has loaded what it needs. Raises EngineError where one does not."""
        try:
            failures = ray.get([actor.ready.remote() for actor in self._actors.values()], timeout=START_S)
        except RayError as error:
            told = " ".join(str(error).split())[-300:]
            raise EngineError(f"a worker does not start ({told})", field="ray") from error
        for failure in failures:
            if failure is not None:
                raise EngineError(f"a worker cannot work: {failure}", field="ray")

    def done(self, keys: Iterable[Key]) -> Iterator[Record]:
        """The records of all keys, as they come. A worker that dies is replaced; an object that ends its worker three times has failed.

        Raises EngineError where workers cannot be started.
        """
        waiting = deque((key, 0) for key in keys)
        pending: dict[Any, _Given] = {}  # in the order in which they were given
        deaths = 0
        while waiting or pending:
            for number, actor in self._actors.items():
                free = UNDER_WAY + 1 - sum(given.worker == number for given in pending.values())
                for _ in range(min(free, len(waiting))):
                    key, attempts = waiting.popleft()
                    pending[actor.do.remote(key)] = _Given(number, key, attempts)
            ready, _ = ray.wait(list(pending), num_returns=1)
            given = pending[ready[0]]
            found = _result(ready[0], given.key)
            if found is not None:
                del pending[ready[0]]
                deaths = 0
                yield found
                continue
            deaths += 1
            if deaths > START_ATTEMPTS:
                raise EngineError(
                    "workers end before they have done anything; perhaps there is not enough memory", field="ray"
                )
            own = {reference: one for reference, one in pending.items() if one.worker == given.worker}
            finished, _ = ray.wait(list(own), num_returns=len(own), timeout=1.0)
            unfinished = []
            for reference, one in own.items():
                del pending[reference]
                found = _result(reference, one.key) if reference in finished else None
                if found is None:
                    unfinished.append(one)
                else:
                    yield found
            # The worker was at what it was given first; it had not begun the others.
            at, *others = unfinished
            waiting.extendleft((one.key, one.attempts) for one in reversed(others))
            if at.attempts + 1 < ATTEMPTS:
                waiting.append((at.key, at.attempts + 1))
            else:
                yield Record(at.key.path, FAILED, error=f"it ended its worker {ATTEMPTS} times")
            self._actors[given.worker] = self._make()

    def close(self) -> None:
        """End the workers, and Ray where it lives for them alone."""
        for actor in getattr(self, "_actors", {}).values():
            ray.kill(actor)
        ray.shutdown()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
