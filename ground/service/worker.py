"""The process of a worker: it loads an engine on one device and does one task after the other for the service that started it.

``python -m perigee.ground.service.worker FD``: over the socket it is first sent its setting, then tasks. It answers each with messages:
progress, and in the end a result or an error. Where the service goes, it goes too.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from perigee.ground.service.messages import DONE, FAILED, PROGRESS, READY, STOP, Message, Setting


class Stopped(Exception):
    """The service wants the task no longer."""


def serve(connection: Connection) -> None:
    """Load, say so, and work until the other side closes the connection."""
    from perigee.bitstream.errors import PerigeeError
    from perigee.engines.ground_choice import choose
    from perigee.ground.library import Library
    from perigee.ground.work import perform

    setting: Setting = connection.recv()
    try:
        backend = choose(setting.engine, setting.device, setting.threads).backend
        library = Library(setting.profiles, setting.threads, backend)
        for digest in library.profiles:
            library.engine(digest)
        for digest in library.component_profiles:
            library.component_engine(digest)
    except Exception as error:  # also what a GPU library raises
        connection.send(Message(FAILED, str(error) or type(error).__name__))
        return
    connection.send(Message(READY, (backend.engine_name, backend.device)))

    def progress(done: int, total: int) -> None:
        if connection.poll() and connection.recv() == STOP:
            raise Stopped
        connection.send(Message(PROGRESS, (done, total)))

    while True:
        task = connection.recv()
        if task == STOP:  # of a task that ended before it was read
            continue
        try:
            answer = Message(DONE, perform(task, library, progress))
        except (PerigeeError, OSError, Stopped) as error:
            answer = Message(FAILED, error)
        except Exception:  # a fault of ours ends the task, not the worker
            answer = Message(FAILED, RuntimeError(traceback.format_exc()))
        connection.send(answer)


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which lets its workers finish
    with Connection(int(sys.argv[1])) as connection:
        try:
            serve(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):  # the service has gone, or wants this worker to go
            return os.EX_OK
    return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
