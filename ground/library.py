"""The profiles that the ground knows, by the contract that a stream names; engines are made when first needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from perigee.bitstream import format as fmt
from perigee.bitstream.errors import ProfileError, UnknownProfileError
from perigee.bitstream.metadata import Metadata, unpack_metadata
from perigee.bitstream.profile import MANIFEST_FILE, Profile, find_profile, load_profile, shipped_profiles
from perigee.engines.onnxruntime import GroundEngine
from perigee.ground.compensation.decoder import CompensatedDecoder, Compensation
from perigee.ground.compensation.model import Compensator, find_compensator, is_compensator
from perigee.ground.decoder import SceneDecoder

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
            found = (
                [folder]
                if (folder / MANIFEST_FILE).is_file()
                else [p.parent for p in sorted(folder.glob(f"*/{MANIFEST_FILE}"))]
            )
            if not found:
                raise ProfileError(f"{folder}: no profile there, neither a manifest nor folders with one")
            for path in found:
                if not is_compensator(path):
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

    def decoder(
        self, stream: fmt.Stream, damaged: bool = False, compensation: str = NONE, wanted: Compensation | None = None
    ) -> SceneDecoder:
        """A decoder for a stream; ``compensation``: ``none``, or a compensator's ``NAME`` or ``NAME:METHOD``."""
        engine = self.engine(stream.header.contract)
        if compensation == NONE:
            return SceneDecoder(stream, engine, damaged=damaged)
        name, _, method = compensation.partition(":")
        compensator = self.compensator(name, stream.header.contract)
        wanted = replace(wanted or Compensation(), method=method or None)
        return CompensatedDecoder(stream, engine, compensator, wanted, damaged=damaged)


def inspect(stream: fmt.Stream, size_bytes: int) -> dict[str, Any]:
    """What a stream says of itself, as JSON-ready values; nothing is decoded."""
    h = stream.header
    metadata = unpack_metadata(stream.metadata) if stream.metadata is not None else Metadata()
    modes: dict[str, int] = {}
    for segment in stream.segments.values():
        name = {fmt.NETWORK: "network", fmt.DROPPED: "dropped", fmt.EMPTY: "empty"}[segment.mode]
        modes[name] = modes.get(name, 0) + 1
    qualities = [s.quality_step / 2.5 for s in stream.segments.values() if s.mode == fmt.NETWORK]
    acquisition = {}
    if metadata.acquisition is not None:
        for name, value in vars(metadata.acquisition).items():
            acquisition[name] = value.isoformat() if hasattr(value, "isoformat") else value
    words = sum(4 * len(s.words) for s in stream.segments.values())
    return {
        "format_version": fmt.VERSION,
        "contract": h.contract.hex(),
        "width": h.width,
        "height": h.height,
        "bands": h.bands,
        "dtype": h.dtype,
        "patch_side": h.patch_side,
        "patches": h.units // h.groups,
        "segments": modes,
        "cut_segments": sorted(unit for unit, s in stream.segments.items() if s.cut),
        "quality": [min(qualities), max(qualities)] if qualities else None,
        "bytes": size_bytes,
        "coded_bytes": words,
        "bpp": round(8 * size_bytes / (h.width * h.height), 5),
        "masked_patches": len(stream.masks),
        "coding_ranges": None if stream.ranges is None else stream.ranges.tolist(),
        "epsg": metadata.epsg,
        "transform": metadata.transform,
        "gcps": len(metadata.gcps),
        "rpc": metadata.rpc is not None,
        "nodata": metadata.nodata,
        "band_names": list(metadata.band_names),
        "acquisition": acquisition,
        "ancillary_bytes": len(metadata.ancillary),
        "damage": stream.damage,
    }
