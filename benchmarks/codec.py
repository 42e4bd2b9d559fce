"""Perigee as the benchmarks see it: an RGB array to the bytes of a complete stream, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perigee.bitstream.arrays import Pixels
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.profile import Profile, find_profile
from perigee.engines.flight import FlightEngine
from perigee.engines.ground import GroundEngine
from perigee.ground.compensation.compensator import find_compensator
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.source import CompensatedSource
from perigee.ground.decoder import SceneDecoder
from perigee.ground.source import ImageSource
from perigee.onboard.encoder import Encoder
from perigee.onboard.source import ArraySource, Source

QUALITIES = (4, 14, 24, 33, 42, 50, 58, 66, 74, 82, 90, 97)


class ArrayCodec:
    """Whole streams, header and end mark included, of RGB arrays uint8 [row, col, 3].

    The engines are made once and can be replaced, for benchmarks that compare them; ``perigee.encode`` and ``perigee.decode`` are
    the interface for everything else.
    """

    def __init__(self, profile: str | Profile, threads: int | None = None, analysis: str | None = None) -> None:
        self.profile = find_profile(profile) if isinstance(profile, str) else profile
        self.encoder = Encoder(self.profile, FlightEngine(self.profile, threads, analysis=analysis))
        self.ground = GroundEngine(self.profile, threads)

    def source(self, pixels: Pixels) -> Source:
        """The array as what the encoder reads."""
        return ArraySource(pixels.transpose(2, 0, 1))

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        """Stream of a scene of any size."""
        return self.encoder.encode_scene(self.source(pixels), quality).data

    def decode(self, data: bytes) -> Pixels:
        """Pixels of a stream."""
        return pixels_of(SceneDecoder(parse_stream(data), self.ground))


class CompensatedCodec(ArrayCodec):
    """An :class:`ArrayCodec` whose images are compensated on the ground."""

    def __init__(
        self, codec: ArrayCodec, compensation: str, folders: list[Path], threads: int | None, seed: int = 0
    ) -> None:
        """``compensation``: NAME or NAME:METHOD. Raises CompensationError."""
        self.profile, self.encoder, self.ground = codec.profile, codec.encoder, codec.ground
        name, _, method = compensation.partition(":")
        self.compensator = find_compensator(name, self.profile.contract.digest, folders, threads)
        self.wanted = Compensation(method or None, seed=seed)

    def compensated(self, data: bytes) -> CompensatedSource:
        """A stream as a compensated image source."""
        return CompensatedSource(SceneDecoder(parse_stream(data), self.ground), self.compensator, self.wanted)

    def decode(self, data: bytes) -> Pixels:
        """Pixels of a stream, compensated."""
        return pixels_of(self.compensated(data))


def pixels_of(source: ImageSource) -> Pixels:
    """All pixels uint8 [row, col, 3] of a scene of three bands."""
    out = np.empty((source.height, source.width, 3), np.uint8)
    for region, block in source.blocks():
        out[region.top : region.bottom, region.left : region.right] = block.samples.transpose(1, 2, 0)
    return out
