"""What the service and its workers say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

READY, PROGRESS, DONE, FAILED, STOP = "ready", "progress", "done", "failed", "stop"


@dataclass(frozen=True)
class Setting:
    """What a worker is started with; ``engine`` and ``device`` as on the command line."""

    profiles: tuple[Path, ...]
    threads: int | None
    engine: str
    device: str


class Message(NamedTuple):
    """What a worker says: it is ready, how far it is, or that a task is done or failed. ``value`` belongs to the kind."""

    kind: str
    value: object
