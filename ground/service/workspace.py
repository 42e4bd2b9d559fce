"""Folders for what a service makes: each goes when it is closed, and at the next start where the service was killed.

A folder lies in the temporary directory and has a file in it on which the service holds a lock. One whose lock is free belongs to a
process that is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from perigee.bitstream.errors import Fault, OutputError

PREFIX = "perigee-serve-"
LOCK = "lock"


def hold(path: Path) -> IO[str] | None:
    """Lock a file for this process; the open file holds the lock. None where another process has it. Raises OSError."""
    handle = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


class Workspace:
    """A temporary folder that belongs to this process until it is closed."""

    def __init__(self) -> None:
        """Raises OSError, for example where the disk is full."""
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = hold(self.folder / LOCK)
        _open.add(self)

    def close(self) -> None:
        """Remove the folder and everything in it."""
        _open.discard(self)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


_open: set[Workspace] = set()


def close_all() -> None:
    """Close the workspaces that are left when the process ends: of requests that were still being worked on."""
    for workspace in list(_open):
        workspace.close()


def check_temporary_folder() -> None:
    """Raise OutputError where no workspace can be made: there is no temporary directory that can be written to."""
    try:
        Workspace().close()
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be made ({error.strerror or error}); set TMPDIR to a folder that can be written to",
            Fault.CANNOT_CREATE,
            field="TMPDIR",
        ) from error


def clear_abandoned() -> int:
    """Remove the workspaces of services that were killed; how many there were."""
    count = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
            lock = hold(folder / LOCK)
        except OSError:
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()
            count += 1
    return count
