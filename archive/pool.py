"""Workers on Ray: actors that keep their networks in memory, fed with keys, giving back records; nothing large passes through Ray.

Ray's complaint in such work is the object store that fills and spills to disk; here it never holds more than keys and records.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported: it would report to its makers
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayActorError, RayError

from perigee.archive.records import FAILED, Record
from perigee.archive.stores import Key
from perigee.archive.work import Work, Worker
from perigee.bitstream.errors import EngineError

ATTEMPTS = 3  # at an object that ends its worker
UNDER_WAY = 2  # keys that a worker has beside the one it is at
STORE_BYTES = 80 << 20  # Ray's smallest object store; keys and records need a few kilobytes
START_ATTEMPTS = 20  # of a worker that ends before it has done anything


@ray.remote(max_restarts=0)
class _Actor:
    """A worker in a process of its own."""

    def __init__(self, work: Work, threads: int, engine: str, device: str | None) -> None:
        from perigee.engines.ground_choice import choose
        from perigee.ground.environment import own_environment

        own_environment("perigee-archive")
        backend, _ = choose(engine, device, threads)
        self._worker = Worker(work, threads, backend)

    def ready(self) -> bool:
        return True

    def do(self, store: str, path: str, size: int | None) -> Record:
        return self._worker.do(Key(store, path, size))


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
        """``address`` is that of a running cluster (``auto`` or ``ray://HOST:PORT``), None one that lives as long as the pool on this machine. Each
        worker has so many CPU ``threads`` and ``gpus``. Raises EngineError where Ray does not start."""
        self._own = address is None
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {
                "num_cpus": workers * threads, "include_dashboard": False, "object_store_memory": STORE_BYTES, "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
        try:
            ray.init(address=address, **options)
        except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"Ray does not start ({error})", field="ray") from error
        self._make: Callable[[], Any] = lambda: _Actor.options(num_cpus=threads, num_gpus=gpus).remote(  # type: ignore[attr-defined]
            work, threads, engine, device
        )
        self._actors: dict[int, Any] = {number: self._make() for number in range(workers)}

    def wait(self) -> None:
        """Return when every worker has loaded what it needs. Raises EngineError where one ends before."""
        try:
            ray.get([actor.ready.remote() for actor in self._actors.values()])
        except RayError as error:
            raise EngineError(
                f"a worker does not start ({' '.join(str(error).split())[-300:]})", field="ray"
            ) from error

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
                    pending[actor.do.remote(*key)] = _Given(number, key, attempts)
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
        for actor in self._actors.values():
            ray.kill(actor)
        ray.shutdown()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
