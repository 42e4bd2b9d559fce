"""The profiles that the ground knows, by the contract that a stream names; engines are made when first needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from perigee.bitstream import format as fmt
from perigee.bitstream.component_profile import ComponentProfile, find_component_profile, load_component_profile
from perigee.bitstream.errors import CompensationError, Fault, ProfileError, UnknownProfileError
from perigee.bitstream.manifest import COMPENSATOR, COMPONENTS, PROFILE, kind_of, manifests_in, read_manifest
from perigee.bitstream.profile import Profile, find_profile, load_profile, shipped_profiles
from perigee.bitstream.version2 import ComponentStream
from perigee.engines.backend import CPU_BACKEND, Backend
from perigee.engines.coding import coding_of_stream
from perigee.engines.enhancer import Enhancer, find_enhancer, known_enhancers
from perigee.engines.ground import GroundEngine
from perigee.engines.ground_components import GroundComponents
from perigee.engines.quick import QuickLook
from perigee.ground.compensation.compensator import Compensator, find_compensator, known_folders
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import RUNS_LIMIT, CompensatedSource
from perigee.ground.component_decoder import ComponentDecoder
from perigee.ground.decoder import SceneDecoder
from perigee.ground.enhancement import EnhancedSource, held_to_symbols
from perigee.ground.maps.planes import MapPlanes
from perigee.ground.maps.reading import VectorMap
from perigee.ground.source import Progress

NONE = "none"  # no compensation: the base image, what was measured and nothing else


class Library:
    """What is shipped plus the folders given; a folder may be a profile or a compensator, or hold several."""

    def __init__(
        self, folders: Iterable[Path] = (), threads: int | None = None, backend: Backend = CPU_BACKEND
    ) -> None:
        """``backend`` runs the networks. Raises ProfileError where a folder is unusable."""
        self.threads, self.backend = threads, backend
        self._lock = threading.Lock()
        self._engines: dict[bytes, GroundEngine] = {}
        self._quick: dict[bytes, QuickLook | None] = {}
        self.folders = tuple(folders)
        self._component_engines: dict[bytes, GroundComponents] = {}
        self._enhancers: dict[str, Enhancer] = {}
        self._compensators: dict[tuple[str, bytes], Compensator] = {}
        self.profiles: dict[bytes, Profile] = {}
        self.component_profiles: dict[bytes, ComponentProfile] = {}
        for name in shipped_profiles():
            self._add(find_profile(name))
        for name in shipped_profiles(COMPONENTS):
            self._add_components(find_component_profile(name))
        for folder in self.folders:
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
                elif kind_of(path) == COMPONENTS:
                    self._add_components(load_component_profile(path))

    def _add(self, profile: Profile) -> None:
        self.profiles[profile.contract.digest] = profile

    def _add_components(self, profile: ComponentProfile) -> None:
        self.component_profiles[profile.contract.digest] = profile

    def knows(self, contract: bytes) -> bool:
        """Whether streams of this contract can be decoded."""
        return contract in self.profiles or contract in self.component_profiles

    @property
    def count(self) -> int:
        """How many profiles there are, of either format version."""
        return len(self.profiles) + len(self.component_profiles)

    def component_engine(self, contract: bytes) -> GroundComponents:
        """The engine for a contract of components, self-tested. Raises UnknownProfileError, ProfileError or EngineError."""
        profile = self.component_profiles.get(contract)
        if profile is None:
            known = {p.name: d.hex() for d, p in self.component_profiles.items()}
            raise UnknownProfileError(contract.hex(), known)
        with self._lock:
            if contract not in self._component_engines:
                self._component_engines[contract] = GroundComponents(profile, self.threads, backend=self.backend)
            return self._component_engines[contract]

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
                self._engines[contract] = GroundEngine(profile, self.threads, self.backend)
            return self._engines[contract]

    def quick(self, contract: bytes) -> QuickLook | None:
        """Quick looks at streams of a contract; None where they need the synthesis."""
        engine = self.engine(contract)
        with self._lock:
            if contract not in self._quick:
                self._quick[contract] = QuickLook(engine) if engine.can_project else None
            return self._quick[contract]

    def compensator(self, name: str, contract: bytes) -> Compensator:
        """A compensator for streams of a contract. Raises CompensationError or EngineError."""
        with self._lock:
            if (name, contract) not in self._compensators:
                found = find_compensator(name, contract, self.folders, self.threads, self.backend)
                self._compensators[name, contract] = found
            return self._compensators[name, contract]

    def enhancer(self, name: str) -> Enhancer:
        """An enhancer by its name. Raises CompensationError or EngineError."""
        with self._lock:
            if name not in self._enhancers:
                self._enhancers[name] = find_enhancer(name, self.folders, self.threads, self.backend)
            return self._enhancers[name]

    def additions(self, contract: bytes) -> list[str]:
        """What can be asked of streams of a contract as compensation without a map: the names of compensators, and of enhancers."""
        if contract not in self.profiles:
            return []
        return [*self._serving(contract, guided=False), *known_enhancers(self.folders)]

    def guided(self, contract: bytes) -> list[str]:
        """The names of the compensators for streams of a contract that take a map."""
        return self._serving(contract, guided=True) if contract in self.profiles else []

    def _serving(self, contract: bytes, guided: bool) -> list[str]:
        manifests = {name: read_manifest(folder, COMPENSATOR) for name, folder in known_folders(self.folders).items()}
        serving = {name: found for name, found in manifests.items() if contract in found.contracts}
        return [name for name, found in serving.items() if bool(found.details.get("planes")) == guided]

    def component_source(
        self, stream: ComponentStream, damaged: bool = False, compensation: str = NONE, fast: bool = False
    ) -> ComponentDecoder:
        """A stream of format version 2 as an image source, ``fast`` without the synthesis.

        No compensator serves such streams: one that is asked for is left out, and the source says so. Raises UnknownProfileError,
        FormatError, ProfileError or EngineError.
        """
        decoder = ComponentDecoder(stream, self.component_engine(stream.header.contract), damaged=damaged, fast=fast)
        if compensation != NONE:
            name = decoder.engine.profile.name
            decoder.left_alone = (
                f"not compensated: {compensation} does not serve the profile {name}, whose bands stay as decoded"
            )
        return decoder

    def source(
        self,
        stream: fmt.Stream,
        damaged: bool = False,
        compensation: str = NONE,
        wanted: Compensation | None = None,
        runs_limit: int = RUNS_LIMIT,
        progress: Progress | None = None,
        size_bytes: int = 0,
        fast: bool = False,
        guide: VectorMap | None = None,
    ) -> SceneDecoder | CompensatedSource | EnhancedSource:
        """A stream of ``size_bytes`` as an image source; ``compensation`` is ``none``, a compensator's ``NAME`` or ``NAME:METHOD``, or the name
        of an enhancer. ``fast`` leaves out the synthesis where nothing is added and the profile can do without. ``guide`` is the map of a
        compensator that takes one.

        ``runs_limit`` and ``progress`` are the compensator's. Raises UnknownProfileError, FormatError, CompensationError,
        MapError, ProfileError or EngineError.
        """
        contract = stream.header.contract
        if guide is not None and (compensation == NONE or compensation in known_enhancers(self.folders)):
            raise CompensationError(
                f"compensation {compensation} takes no map",
                Fault.MISFIT,
                field="map",
                expected="no map",
                found=compensation,
            )
        quick = self.quick(contract) if fast and compensation == NONE else None
        decoder = SceneDecoder(stream, self.engine(contract), damaged=damaged, quick=quick)
        if compensation == NONE:
            return decoder
        name, _, method = compensation.partition(":")
        if compensation in known_enhancers(self.folders):
            wanted = wanted or Compensation()
            coding = coding_of_stream(stream, size_bytes, decoder.engine.profile)
            hold = (
                held_to_symbols(decoder) if stream.ranges is None else None
            )  # cells are of images in their coding range
            return EnhancedSource(decoder, self.enhancer(name), coding, wanted.strength, wanted.seed, hold)
        if name not in known_folders(self.folders):
            accepted = ", ".join([NONE, *self.additions(contract), *self.guided(contract)])
            raise CompensationError(
                f"compensation {name!r}: accepted are {accepted}",
                Fault.NAME,
                field="compensation",
                expected=accepted,
                found=name,
            )
        compensator = self.compensator(name, stream.header.contract)
        wanted = replace(wanted or Compensation(), method=method or None)
        planes = MapPlanes(guide, decoder.metadata, decoder.height, decoder.width) if guide else None
        return CompensatedSource(decoder, compensator, wanted, runs_limit, progress, planes)
