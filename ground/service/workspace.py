"""The folder in which a service makes its products: it goes when the service ends, and at the next start where it was killed.

Each service makes a folder of its own beside the others' in the temporary directory and holds a lock on a file in it. A folder whose
lock is free belongs to a process that is gone.
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
    """A service's folder of temporary files."""

    def __init__(self) -> None:
        """Raises OutputError where no folder can be made: there is no writable temporary directory."""
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = hold(self.folder / LOCK)
        except OSError as error:
            raise OutputError(
                f"no temporary folder can be made ({error.strerror or error}); set TMPDIR to a folder that can be written to",
                Fault.CANNOT_CREATE,
                field="TMPDIR",
            ) from error

    def clear_abandoned(self) -> int:
        """Remove the folders of services that were killed; how many there were."""
        count = 0
        for folder in self.folder.parent.glob(f"{PREFIX}*"):
            if folder == self.folder or not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
            try:
                lock = hold(folder / LOCK)
            except OSError:
                continue
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()
                count += 1
        return count

    def product_folder(self) -> Path:
        """A new folder for one product. Raises OSError."""
        return Path(tempfile.mkdtemp(prefix="product-", dir=self.folder))

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
