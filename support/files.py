"""Files: input that is read within bounds, and atomic output, which appears under its name whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from perigee.bitstream.errors import LimitError

STREAM_MAX_BYTES = 2 << 30
PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # names of what is open already, such as a shell's pipe
CHUNK_BYTES = 1 << 20
PREFIX, SUFFIX = ".perigee-", ".part"  # of unfinished files: hidden, and no product has this suffix


class NotAFileError(OSError):
    """A path leads to a folder, a device, a socket or a named pipe where a file is expected."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "Not a regular file", str(path))


def check_regular(path: Path) -> os.stat_result:
    """The state of a regular file. Raises NotAFileError for anything else, which is not opened, and OSError."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise NotAFileError(path)
    return state


def read_bounded(path: Path, limit_bytes: int = STREAM_MAX_BYTES) -> bytes:
    """The bytes of a regular file, or of a pipe that is open already, such as ``/dev/stdin``.

    Raises LimitError where there are more than ``limit_bytes``, NotAFileError, and OSError.
    """
    if not (str(path).startswith(PIPES) and stat.S_ISFIFO(path.stat().st_mode)) and (
        check_regular(path).st_size > limit_bytes
    ):
        raise _too_large(path, limit_bytes)
    parts, size = [], 0
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                raise _too_large(path, limit_bytes)
    return b"".join(parts)


def _too_large(path: Path, limit_bytes: int) -> LimitError:
    return LimitError(f"{path} is larger than {limit_bytes} bytes", expected=f"at most {limit_bytes} bytes")


def destination(path: Path) -> Path:
    """Where an output's path leads when its links are followed. Raises OSError, for example where links form a circle."""
    with suppress(FileNotFoundError):
        path.stat()
    return path.resolve()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``, on failure removed.

    Its name does not look like a product's, so that whoever watches the folder does not take it for one.
    """
    handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=SUFFIX, dir=path.parent)
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
