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
from perigee.support.files import NotAFileError

INTERRUPTED = 130
EXIT_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    (EngineError, os.EX_UNAVAILABLE),
    ((ProfileError, UnknownProfileError), os.EX_CONFIG),
    ((OrderError, CompensationError), os.EX_USAGE),
    (OutputError, os.EX_CANTCREAT),
    (PerigeeError, os.EX_DATAERR),
    ((FileNotFoundError, PermissionError, IsADirectoryError, NotAFileError), os.EX_NOINPUT),
    (OSError, os.EX_IOERR),
)  # the first that fits counts


class Parser(argparse.ArgumentParser):
    """An argument parser with ``--version``, whose usage errors exit with 64 (EX_USAGE), not argparse's 2."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.add_argument("--version", action="version", version=f"%(prog)s {perigee.__version__}")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 64."""
        complain(f"{self.format_usage()}{self.prog}: {message}")
        self.exit(os.EX_USAGE)


def positive(text: str) -> int:
    """An argument that is a whole number of at least 1. Raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def not_negative(text: str) -> int:
    """An argument that is a whole number of at least 0. Raises ArgumentTypeError."""
    return 0 if text == "0" else positive(text)


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


def complain(line: str) -> None:
    """Print a line on standard error. Where that cannot be written to, the exit code has to say it alone."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def say(program: str, line: str) -> int:
    """Print a line on standard output; 0, or the exit code of an output that can no longer be written to.

    It is no error where whoever listened has gone, as with ``| head``.
    """
    try:
        print(line, flush=True)
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(error, BrokenPipeError):
            return os.EX_OK
        complain(f"{program}: standard output: {error.strerror}")
        return os.EX_IOERR
    return os.EX_OK


def ending_signals() -> list[signal.Signals]:
    """SIGTERM, SIGHUP (the terminal was closed) and SIGQUIT, without those that are ignored, as ``nohup`` has it."""
    return [
        number
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]


def exit_on_signals() -> None:
    """Let the signals that end a process do so through ``SystemExit``, so that temporary files are removed.

    The exit code is 128 plus the signal's number. Further such signals do not disturb the clean-up.
    """
    numbers = ending_signals()

    def end(number: int, _: object) -> NoReturn:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, end)


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
        complain(f"{program}: {missing_extra(error, extra)}")
        return os.EX_UNAVAILABLE
    except (PerigeeError, OSError) as error:
        complain(f"{program}: {sentence(error)}")
        return exit_code(error)
