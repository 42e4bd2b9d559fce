"""What a command finds out about a machine, line by line: for ``onboard-encode doctor`` and ``ground-serve doctor``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from perigee.support.command import say
from perigee.support.cores import usable_cores


class Finding(NamedTuple):
    """One line of the report; ``ok`` is None where nothing can be wrong."""

    what: str
    ok: bool | None
    details: str


def machine_findings(packages: Iterable[str]) -> Iterator[Finding]:
    """Processor, board and the versions of ``packages``."""
    cores = usable_cores()
    yield Finding("machine", None, f"{platform.machine()}, {cores} cores, {platform.system()} {platform.release()}")
    model = Path("/proc/device-tree/model")
    if model.is_file():
        yield Finding("board", None, model.read_text(errors="replace").strip("\0"))
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} missing")
    yield Finding("packages", None, f"Python {platform.python_version()}, " + ", ".join(versions))


def tell(program: str, findings: Iterable[Finding], as_json: bool) -> int:
    """Print findings as they come, for people or one JSON object a line; the exit code says whether all is well."""
    failed = False
    for finding in findings:
        failed |= finding.ok is False
        mark = {True: "ok", False: "FAILED", None: "-"}[finding.ok]
        say(program, json.dumps(finding._asdict()) if as_json else f"{finding.what:20} {mark:7} {finding.details}")
    return os.EX_UNAVAILABLE if failed else os.EX_OK
