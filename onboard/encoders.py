"""Which codec a scene is encoded with: the profile that was asked for, or the one that suits its bands and sample type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from perigee.bitstream.component_profile import DEFAULT_COMPONENTS, find_component_profile
from perigee.bitstream.errors import Fault, ProfileError
from perigee.bitstream.manifest import COMPONENTS, kind_of
from perigee.bitstream.profile import DEFAULT_PROFILE, Profile, find_profile, shipped_profiles
from perigee.bitstream.version2 import FLOAT
from perigee.engines.flight import FlightEngine
from perigee.onboard.bounded_encoder import BoundedEncoder, ErrorBounds
from perigee.onboard.component_encoder import ComponentEncoder
from perigee.onboard.encoder import Encoder
from perigee.onboard.source import SourceInfo, not_light

AUTO = "auto"
LoadEngine = Callable[[Profile], FlightEngine]


def profile_for(info: SourceInfo) -> str:
    """The shipped profile that suits a scene: three bands of uint8 are coded as a colour image, all else as components."""
    if info.bands == 3 and info.dtype == "uint8":
        return DEFAULT_PROFILE
    return DEFAULT_COMPONENTS if DEFAULT_COMPONENTS in shipped_profiles(COMPONENTS) else DEFAULT_PROFILE


class Encoders:
    """The encoders of one command, made when they are first needed."""

    def __init__(self, profile: str, load: LoadEngine, version: int | None = None) -> None:
        """``profile`` is a shipped profile's name, a folder, or ``auto``; ``version`` is the format version that is wanted, None
        for that of the profile. Streams of version 1 that was asked for can be read by every reader since 0.1, so they have no offsets
        of the tables. ``load`` makes the engine of a profile of format version 1."""
        self._profile, self._load, self._version = profile, load, version
        self._made: dict[str, Encoder | ComponentEncoder] = {}

    def name_for(self, info: SourceInfo) -> str:
        """Name or folder of the profile that a scene is encoded with. Raises ProfileError where the format does not fit."""
        name = self._profile
        if name == AUTO:
            name = (
                profile_for(info) if self._version is None else (DEFAULT_PROFILE, DEFAULT_COMPONENTS)[self._version - 1]
            )
        version = 2 if is_component_profile(name) else 1
        if self._version not in (None, version):
            raise ProfileError(
                f"profile {name} writes format version {version}; version {self._version} was asked for",
                Fault.MISFIT,
                field="format",
                expected=version,
                found=self._version,
            )
        return name

    def encoder_for(self, info: SourceInfo) -> Encoder | ComponentEncoder:
        """The encoder for a scene. Raises ProfileError or EngineError, and RasterError for samples that are only coded within a bound."""
        if info.dtype == FLOAT:
            raise not_light(
                f"samples of {FLOAT} are coded losslessly or within a bound: --lossless, --max-error or --max-relative-error",
                "a bound",
            )
        if info.classes:
            raise not_light(
                "a palette image, whose values are classes and not light, is coded losslessly alone: --lossless",
                "lossless",
            )
        return self.encoder_of(self.name_for(info))

    def bounded_encoder(self, bounds: ErrorBounds, jpeg_ls: bool = False) -> BoundedEncoder:
        """The encoder for scenes whose samples must stay within bounds, with ``jpeg_ls`` as JPEG-LS images. Raises ProfileError where the profile or
        format that was asked for has no such mode."""
        name = DEFAULT_COMPONENTS if self._profile == AUTO else self._profile
        if self._version == 1 or not is_component_profile(name):
            raise ProfileError(
                f"bounds of the error need a component profile and format version 2, such as {DEFAULT_COMPONENTS}",
                Fault.MISFIT,
                field="profile",
                expected=DEFAULT_COMPONENTS,
                found=name,
            )
        return BoundedEncoder(find_component_profile(name), bounds, jpeg_ls=jpeg_ls)

    def encoder_of(self, name: str) -> Encoder | ComponentEncoder:
        """The encoder of a profile, by its name or folder. Raises ProfileError or EngineError."""
        if name not in self._made:
            if is_component_profile(name):
                self._made[name] = ComponentEncoder(find_component_profile(name))
            else:
                profile = find_profile(name)
                self._made[name] = Encoder(profile, self._load(profile), table_offsets=self._version is None)
        return self._made[name]


def is_component_profile(name_or_folder: str) -> bool:
    """Whether a name or folder is that of a component profile."""
    known = shipped_profiles(COMPONENTS)
    return kind_of(known.get(name_or_folder, Path(name_or_folder))) == COMPONENTS
