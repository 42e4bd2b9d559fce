"""Trying an engine in a process of its own: a GPU library that is broken may crash or hang instead of raising."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from perigee.bitstream.errors import EngineError, Fault

PROBE_SECONDS = 60.0


class PassedOver(NamedTuple):
    """An engine that was not taken, and why."""

    name: str
    reason: str


def unknown(name: str, engines: Sequence[str]) -> EngineError:
    """The error for an engine that is none of ``engines``."""
    listing = ", ".join(engines)
    return EngineError(
        f"no engine {name!r}; there are {listing}", Fault.NAME, field="engine", expected=listing, found=name
    )


def failing(module: str, arguments: Sequence[str]) -> str | None:
    """Why ``python -m module arguments`` fails, which tries an engine by :func:`tried`; None where it passes."""
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # no packages from the working directory
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS:g} s"
    except OSError as error:
        return f"cannot be tried in a process of its own ({error})"
    if done.returncode < 0:
        return f"it crashed ({signal.Signals(-done.returncode).name})"
    said = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else said[-1] if said else f"exit code {done.returncode}"


def tried(load: Callable[[], object]) -> int:
    """Load an engine; 0, or 1 and the reason as the last line of stderr."""
    try:
        load()
    except Exception as error:  # also what a GPU library raises
        print(str(error).replace("\n", " ") or type(error).__name__, file=sys.stderr)
        return 1
    return 0
