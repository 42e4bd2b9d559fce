"""The profiles that the ground knows, by the contract that a stream names; engines are made when first needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from perigee.bitstream import format as fmt
from perigee.bitstream.errors import Fault, ProfileError, UnknownProfileError
from perigee.bitstream.manifest import PROFILE, kind_of, manifests_in
from perigee.bitstream.profile import Profile, find_profile, load_profile, shipped_profiles
from perigee.engines.ground import GroundEngine
from perigee.ground.compensation.compensator import Compensator, find_compensator
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import RUNS_LIMIT, CompensatedSource
from perigee.ground.decoder import SceneDecoder
from perigee.ground.source import Progress

NONE = "none"  # no compensation: the base image, what was measured and nothing else


class Library:
    """What is shipped plus the folders given; a folder may be a profile or a compensator, or hold several."""

    def __init__(self, folders: Iterable[Path] = (), threads: int | None = None) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._engines: dict[bytes, GroundEngine] = {}
        self._folders = tuple(folders)
        self._compensators: dict[tuple[str, bytes], Compensator] = {}
        self.profiles: dict[bytes, Profile] = {}
        for name in shipped_profiles():
            self._add(find_profile(name))
        for folder in self._folders:
            found = manifests_in(folder)
            if not found:
                raise ProfileError(
                    f"{folder}: no profile there, neither a manifest nor folders with one",
                    Fault.MISSING,
                    field="profiles",
                    expected="a folder with manifest.json, or folders that have one",
                    found=str(folder),
                )
            for path in found:
                if kind_of(path) == PROFILE:
                    self._add(load_profile(path))

    def _add(self, profile: Profile) -> None:
        self.profiles[profile.contract.digest] = profile

    def profile(self, contract: bytes) -> Profile:
        """The profile with this contract. Raises UnknownProfileError naming the known ones."""
        found = self.profiles.get(contract)
        if found is None:
            raise UnknownProfileError(contract.hex(), {p.name: d.hex() for d, p in self.profiles.items()})
        return found

    def engine(self, contract: bytes) -> GroundEngine:
        """The engine for a contract, self-tested. Raises UnknownProfileError, ProfileError or EngineError."""
        profile = self.profile(contract)
        with self._lock:
            if contract not in self._engines:
                self._engines[contract] = GroundEngine(profile, self._threads)
            return self._engines[contract]

    def compensator(self, name: str, contract: bytes) -> Compensator:
        """A compensator for streams of a contract. Raises CompensationError or EngineError."""
        with self._lock:
            if (name, contract) not in self._compensators:
                found = find_compensator(name, contract, self._folders, self._threads)
                self._compensators[name, contract] = found
            return self._compensators[name, contract]

    def source(
        self,
        stream: fmt.Stream,
        damaged: bool = False,
        compensation: str = NONE,
        wanted: Compensation | None = None,
        runs_limit: int = RUNS_LIMIT,
        progress: Progress | None = None,
    ) -> SceneDecoder | CompensatedSource:
        """A stream as an image source; ``compensation`` is ``none``, or a compensator's ``NAME`` or ``NAME:METHOD``.

        ``runs_limit`` and ``progress`` are the compensator's. Raises UnknownProfileError, FormatError, CompensationError,
        ProfileError or EngineError.
        """
        decoder = SceneDecoder(stream, self.engine(stream.header.contract), damaged=damaged)
        if compensation == NONE:
            return decoder
        name, _, method = compensation.partition(":")
        compensator = self.compensator(name, stream.header.contract)
        wanted = replace(wanted or Compensation(), method=method or None)
        return CompensatedSource(decoder, compensator, wanted, runs_limit, progress)
