"""What all commands share: an argument parser, exit codes as in ``sysexits.h``, and one line on stderr for each error.

A command's ``main`` parses its arguments and passes the rest to :func:`run`, so that every command answers a usage error, a
missing extra, a bad input and a full disk in the same way.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import perigee
from perigee.bitstream.errors import (
    CompensationError,
    EngineError,
    OrderError,
    OutputError,
    PerigeeError,
    ProfileError,
    UnknownProfileError,
)

INTERRUPTED, TERMINATED = 130, 143
EXIT_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    (EngineError, os.EX_UNAVAILABLE),
    ((ProfileError, UnknownProfileError), os.EX_CONFIG),
    ((OrderError, CompensationError), os.EX_USAGE),
    (OutputError, os.EX_CANTCREAT),
    (PerigeeError, os.EX_DATAERR),
    ((FileNotFoundError, PermissionError, IsADirectoryError), os.EX_NOINPUT),
    (OSError, os.EX_IOERR),
)  # the first that fits counts


class Parser(argparse.ArgumentParser):
    """An argument parser with ``--version``, whose usage errors exit with 64 (EX_USAGE), not argparse's 2."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.add_argument("--version", action="version", version=f"%(prog)s {perigee.__version__}")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 64."""
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1. Raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def exit_code(error: BaseException) -> int:
    """The exit code of an error; 70 (EX_SOFTWARE) for a fault of ours."""
    for kind, code in EXIT_CODES:
        if isinstance(error, kind):
            return code
    return os.EX_SOFTWARE


def sentence(error: BaseException) -> str:
    """The error as one line for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__


def missing_extra(error: ModuleNotFoundError, extra: str) -> str:
    """The line that names the command which installs a missing package."""
    return f"{error.name} is missing: pip install '.[{extra}]' in Perigee's checkout"


def exit_on_sigterm() -> None:
    """Let SIGTERM end the process through ``SystemExit``, so that temporary files are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))


def prepare_streams() -> None:
    """Make standard input, output and error usable: open those that are closed, and never fail on a name that is not UTF-8.

    A process may be started with any of them closed. Whatever file is opened next would then take their number, and a library
    that writes to standard error would write into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(program: str, extra: str, body: Callable[[], int]) -> int:
    """Run a command's body and return its exit code; an error becomes one line on stderr and the code of its kind.

    Call :func:`prepare_streams` first, before the arguments are parsed.

    ``extra`` names the extra that is to be installed where ``body`` cannot import a package. Errors that are none of ours are
    raised.
    """
    try:
        return body()
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        print(f"{program}: {missing_extra(error, extra)}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except (PerigeeError, OSError) as error:
        print(f"{program}: {sentence(error)}", file=sys.stderr)
        return exit_code(error)
