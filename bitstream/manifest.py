"""The manifest of a profile or a compensator: what the folder is, what it belongs to, and the digest of each of its files.

A file is used only after its SHA-256 was found equal to the manifest's. What only one kind of folder needs (a compensator's
schedule, the facts of a training) stays in ``details``, and whoever needs it reads it there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perigee.bitstream.errors import CompensationError, Fault, PerigeeError, ProfileError

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
MANIFEST_MAX_BYTES = 1 << 20
PROFILE, COMPONENTS, COMPENSATOR, ENHANCER = "profile", "component profile", "compensator", "enhancer"
ERRORS: dict[str, type[PerigeeError]] = {
    PROFILE: ProfileError,
    COMPONENTS: ProfileError,
    COMPENSATOR: CompensationError,
    ENHANCER: CompensationError,
}


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. ``contracts`` are the digests of the contracts that the folder is for; a profile has one, an enhancer none.

    ``files`` maps names to SHA-256 in hexadecimal. ``shared`` maps some of these names to the sibling folder in which the file
    lies, for profiles that have one synthesis in common.
    """

    kind: str
    folder: Path
    name: str
    contracts: tuple[bytes, ...]
    files: Mapping[str, str]
    shared: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def has(self, name: str) -> bool:
        """Whether the folder has a file of this name."""
        return name in self.files

    def file(self, name: str) -> Path:
        """Path of a file whose SHA-256 equals the manifest's. Raises ProfileError or CompensationError otherwise."""
        error = ERRORS[self.kind]
        sibling = self.shared.get(name)
        folder = self.folder if sibling is None else self.folder.resolve().parent / Path(str(sibling)).name
        path = folder / Path(name).name
        wanted = self.files.get(name)
        if wanted is None or not path.is_file():
            raise error(f"{self.kind} {self.name}: {name} is not installed in {path.parent}", Fault.MISSING, field=name)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != wanted:
            raise error(
                f"{self.kind} {self.name}: {name} has SHA-256 {found[:16]}..., the manifest says {wanted[:16]}...",
                Fault.DIGEST,
                field=name,
                expected=wanted,
                found=found,
            )
        return path


def read_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of the profile or compensator (``kind``) in ``folder``. Raises ProfileError or CompensationError."""
    error = ERRORS[kind]
    path = folder / MANIFEST_FILE
    try:
        size = path.stat().st_size
        if size > MANIFEST_MAX_BYTES:
            raise error(
                f"{path} is larger than {MANIFEST_MAX_BYTES} bytes",
                Fault.LIMIT,
                field=MANIFEST_FILE,
                expected=f"at most {MANIFEST_MAX_BYTES}",
                found=size,
            )
        data = path.read_bytes()
        values = json.loads(data)
    except (OSError, ValueError, RecursionError) as fault:
        raise error(f"{path}: no readable {kind} manifest ({fault})", Fault.UNREADABLE, field=MANIFEST_FILE) from fault
    if not isinstance(values, dict) or values.get("kind", PROFILE) != kind:
        raise error(f"{path}: not a {kind}'s manifest", Fault.KIND, field="kind", expected=kind)
    if values.get("manifest_version") != MANIFEST_VERSION:
        raise error(
            f"{path}: manifest version {values.get('manifest_version')}, this reader knows {MANIFEST_VERSION}",
            Fault.VERSION,
            field="manifest_version",
            expected=MANIFEST_VERSION,
            found=values.get("manifest_version"),
        )
    try:
        contracts = [] if kind == ENHANCER else values["contracts"] if kind == COMPENSATOR else [values["contract"]]
        return Manifest(
            kind,
            folder,
            str(values["name"]),
            tuple(bytes.fromhex(text) for text in contracts),
            {str(name): str(digest) for name, digest in dict(values["files"]).items()},
            dict(values.get("shared", {})),
            values,
            hashlib.sha256(data).hexdigest()[:16],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        wanted = "name, contracts and files" if kind == COMPENSATOR else "name, contract and files"
        raise error(
            f"{path}: a manifest needs {wanted}", Fault.MISSING, field=MANIFEST_FILE, expected=wanted
        ) from fault


def manifests_in(folder: Path) -> list[Path]:
    """The folder itself where it has a manifest, else its sub-folders that have one, in order of name."""
    if (folder / MANIFEST_FILE).is_file():
        return [folder]
    return [path.parent for path in sorted(folder.glob(f"*/{MANIFEST_FILE}"))]


def kind_of(folder: Path) -> str:
    """What a folder's manifest says that it is; a profile where it says nothing or cannot be read."""
    try:
        values = json.loads((folder / MANIFEST_FILE).read_bytes()[:MANIFEST_MAX_BYTES])
    except (OSError, ValueError, RecursionError):
        return PROFILE
    return str(values.get("kind", PROFILE)) if isinstance(values, dict) else PROFILE
