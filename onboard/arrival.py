"""Whole lines out of a pipe or a file, which may still grow, and a bounded buffer for lines that cannot wait."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections import deque

from perigee.bitstream.errors import Fault, RasterError

POLL_S = 0.02  # how often a file is looked at that has not grown
READ_BYTES = 1 << 20


class Arrival:
    """Lines of an input, as bytes. Without a buffer they are read when they are taken."""

    def __init__(self, handle: int, line_bytes: int, skip_bytes: int = 0, timeout_s: float | None = None) -> None:
        """``handle`` is open for reading. After ``timeout_s`` without a byte the input counts as ended; None: a pipe has no such time, and a file
        ends where it ends."""
        self._handle, self._line_bytes, self._skip = handle, line_bytes, skip_bytes
        self._timeout, self._ended = timeout_s, False
        self._is_file = stat.S_ISREG(os.fstat(handle).st_mode)
        self._bytes = bytearray()

    @property
    def left(self) -> int:
        """Bytes that have come of a line that is not whole."""
        return len(self._bytes)

    @property
    def has_more(self) -> bool:
        """Whether bytes are known to follow, without waiting for any."""
        state = os.fstat(self._handle)
        inside = stat.S_ISREG(state.st_mode) and os.lseek(self._handle, 0, os.SEEK_CUR) < state.st_size
        return bool(self._bytes) or inside

    @property
    def fullness(self) -> float:
        """How full the buffer is, 0 to 1: there is none."""
        return 0.0

    def wait(self, lines: int = 1) -> bool:
        """Wait for a line, and read up to so many at once; whether there is one. Once there is none there will be none. Raises OSError."""
        while len(self._bytes) < self._line_bytes and not self._ended:
            wanted = min(max(lines * self._line_bytes - len(self._bytes), 1), READ_BYTES)
            part = self._read(wanted if not self._skip else min(self._skip, READ_BYTES))
            self._ended = not part
            if self._skip:
                self._skip -= len(part)
            else:
                self._bytes += part
        return len(self._bytes) >= self._line_bytes

    def take(self, lines: int) -> bytes:
        """At least one line and at most so many, or b"" at the end of the input. Raises OSError."""
        if not Arrival.wait(self, lines):  # not that of a buffer, which takes its lines from here
            return b""
        size = min(len(self._bytes) // self._line_bytes, lines) * self._line_bytes
        found = bytes(self._bytes[:size])
        del self._bytes[:size]
        return found

    def _read(self, size: int) -> bytes:
        """Some bytes, or b"" at the end of the input, or after a time in which none came."""
        start = time.monotonic()
        while True:
            if not self._is_file and not select.select([self._handle], [], [], self._timeout)[0]:
                return b""
            try:
                part = os.read(self._handle, size)
            except BlockingIOError:  # someone else took what was there
                continue
            if part or not self._is_file or self._timeout is None or time.monotonic() - start > self._timeout:
                return part
            time.sleep(POLL_S)


class BufferedArrival(Arrival):
    """Lines that are read by a thread as soon as they come, into a bounded buffer."""

    def __init__(
        self, handle: int, line_bytes: int, buffer_bytes: int, skip_bytes: int = 0, timeout_s: float | None = None
    ) -> None:
        """As :class:`Arrival`. Raises RasterError for a buffer of less than a line."""
        super().__init__(handle, line_bytes, skip_bytes, timeout_s)
        if buffer_bytes < line_bytes:
            raise RasterError(
                f"a buffer of {buffer_bytes} bytes for lines of {line_bytes}",
                Fault.RANGE,
                field="buffer",
                expected=f"at least {line_bytes} bytes",
                found=buffer_bytes,
            )
        self._most = buffer_bytes
        self._queue: deque[bytes] = deque()
        self._held, self._done = 0, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._fill, name="lines", daemon=True).start()

    @property
    def has_more(self) -> bool:
        """As :attr:`Arrival.has_more`, or in the buffer."""
        return bool(self._queue) or super().has_more

    @property
    def fullness(self) -> float:
        """How full the buffer is, 0 to 1."""
        return self._held / self._most

    def wait(self, lines: int = 1) -> bool:
        """As :meth:`Arrival.wait`."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._done)
            if self._error and not self._queue:
                raise self._error
            return bool(self._queue)

    def take(self, lines: int) -> bytes:
        """As :meth:`Arrival.take`."""
        if not self.wait():
            return b""
        with self._changed:
            part = self._queue.popleft()
            size = lines * self._line_bytes
            if len(part) > size:
                self._queue.appendleft(part[size:])
                part = part[:size]
            self._held -= len(part)
            self._changed.notify_all()
            return part

    def _fill(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._held + self._line_bytes <= self._most)
                    room = self._most - self._held
                part = super().take(max(min(room, READ_BYTES) // self._line_bytes, 1))
                if not part:
                    break
                with self._changed:
                    self._queue.append(part)
                    self._held += len(part)
                    self._changed.notify_all()
        except BaseException as error:  # whoever waits for lines has to be told
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()
