"""Perigee as the benchmarks see it: an array to the bytes of a complete stream, and back."""

from __future__ import annotations

import numpy as np

from perigee.benchmarks.common import Pixels
from perigee.bitstream import format as fmt
from perigee.bitstream.profile import Profile, find_profile
from perigee.engines.onnxruntime import FlightEngine, GroundEngine
from perigee.ground.decoder import Region, SceneDecoder
from perigee.onboard.encoder import Encoder, quality_step_of

QUALITIES = (4, 14, 24, 33, 42, 50, 58, 66, 74, 82, 90, 97)


class ArrayCodec:
    """Whole streams, header and end mark included, of RGB arrays uint8 [row, col, 3]."""

    def __init__(self, profile: str | Profile, threads: int | None = None, analysis: str | None = None) -> None:
        self.profile = find_profile(profile) if isinstance(profile, str) else profile
        self.encoder = Encoder(self.profile, FlightEngine(self.profile, threads, analysis=analysis))
        self.ground = GroundEngine(self.profile, threads)

    def encode(self, pixels: Pixels, quality: float) -> bytes:
        """Stream of a scene of any size."""
        height, width, _ = pixels.shape
        header = fmt.Header(self.profile.contract.digest, width, height, 3, "uint8", self.profile.contract.patch_side)
        step = quality_step_of(quality)
        out = [fmt.write_header(header)]
        for unit in range(header.units):
            _, top, left, rows, cols = header.unit_window(unit)
            patch = pixels[top : top + rows, left : left + cols].transpose(2, 0, 1)
            image = patch.astype(np.float32) * np.float32(1 / 255)
            out.append(fmt.write_segment(self.encoder.encode_image(image, step, unit)))
        out.append(fmt.write_end(header.units))
        return b"".join(out)

    def decode(self, data: bytes) -> Pixels:
        """Pixels of a stream."""
        return pixels_of(SceneDecoder(fmt.parse(data), self.ground))


def pixels_of(decoder: SceneDecoder) -> Pixels:
    """All pixels uint8 [row, col, 3] of a scene of three bands."""
    h = decoder.header
    out = np.empty((h.height, h.width, 3), np.uint8)
    for region, block in decoder.blocks(Region(0, 0, h.height, h.width)):
        window = np.s_[region.top : region.top + region.rows, region.left : region.left + region.cols]
        out[window] = block.samples.transpose(1, 2, 0)
    return out
