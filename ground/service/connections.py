"""Connections that cannot fill the service: their number has a limit, and whoever sends no whole request head is cut off."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from perigee.ground.service.limits import Settings

CONNECTIONS_MAX = 512
FILES_A_CONNECTION = 4  # its socket, a product, its workspace's lock, and one in reserve
ACCEPTED_AT_ONCE_MAX = 32  # several such groups are open before the first of them is counted
EXHAUSTED = (errno.EMFILE, errno.ENFILE)
QUIET_S = 60.0


def connection_limits() -> tuple[int, int]:
    """How many connections may be open, and how many are accepted at a time, so that descriptors are left for files."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX, ACCEPTED_AT_ONCE_MAX
    connections = max(1, min(CONNECTIONS_MAX, descriptors // FILES_A_CONNECTION))
    return connections, max(1, min(ACCEPTED_AT_ONCE_MAX, descriptors // 32))


class Connection(H11Protocol):
    """A connection that is closed where no request is under way and none arrives whole within ``head_s`` seconds.

    Beyond ``limit`` connections, that one goes which has waited longest for a request. An answer that is made but has not been
    read has ``write_s`` seconds more.
    """

    head_s: float
    write_s: float
    limit: int
    waiting: dict[Connection, asyncio.TimerHandle]  # those without a request under way, the longest waiting first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and end one that waits where there are too many."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.limit:
            longest = next(iter(self.waiting))
            longest.stop_waiting()
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; only a whole head ends the waiting."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def stop_waiting(self) -> None:
        """Let the connection be."""
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.stop_waiting()
        elif self in self.connections and self not in self.waiting:
            self.waiting[self] = self.loop.call_later(self.head_s, self._expire)

    def _expire(self) -> None:
        if self.transport.get_write_buffer_size():
            self.waiting[self] = self.loop.call_later(self.write_s, self.transport.abort)
        else:
            self.transport.abort()


def connections_of(settings: Settings, most: int) -> type[Connection]:
    """The class of a service's connections, of which there may be ``most``."""
    values: dict[str, Any] = {"head_s": settings.head_s, "write_s": settings.write_s, "limit": most, "waiting": {}}
    return type("BoundedConnection", (Connection,), values)


class Seldom(logging.Filter):
    """Tells once a minute, in one line, that the process has no descriptors left; asyncio tells it for every attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be told."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, OSError) or error.errno not in EXHAUSTED:
            return True
        record.msg, record.args, record.exc_info, record.exc_text = "no descriptors are left", (), None, None
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + QUIET_S
        return True
