"""What a compensator's networks see of a decoded stream: window by window, base image, latents and features, kept while they are needed.

Base images come from blocks at absolute places, so that a pixel does not depend on which rectangle was asked for: a float that rounds differently
is a grey level.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.contract import BLOCK
from perigee.ground.compensation.compensator import Compensator, Features
from perigee.ground.decoder import SceneDecoder
from perigee.ground.regions import Region, squares_over
from perigee.ground.windows import STRIDE, Grid, Window

BASE_SIDE = 4 * STRIDE  # pixels on the side of a block of base image
FEATURES_KEPT = 48  # windows


class Views:
    """Windows of a stream as the networks of a compensator see them."""

    def __init__(self, source: SceneDecoder, compensator: Compensator) -> None:
        self.source, self.compensator = source, compensator
        extent = source.latent_extent.times(BLOCK)
        self.grid = Grid(extent.rows, extent.cols, compensator.settings.window)
        self._bases: OrderedDict[tuple[int, int, int], FloatArray] = OrderedDict()
        self._seen: OrderedDict[tuple[int, Window], tuple[Features, FloatArray, FloatArray]] = OrderedDict()

    def _base_block(self, group: int, row: int, col: int) -> FloatArray:
        """Base image of a block at an absolute place, padding of the last patches included."""
        key = (group, row, col)
        if key not in self._bases:
            rows, cols = (
                min(BASE_SIDE, self.grid.rows - row * BASE_SIDE),
                min(BASE_SIDE, self.grid.cols - col * BASE_SIDE),
            )
            region = Region(row * BASE_SIDE, col * BASE_SIDE, rows, cols)
            self._bases[key] = self.source.image(group, region)
            while len(self._bases) > 2 * (-(-self.grid.cols // BASE_SIDE) + 2):
                self._bases.popitem(last=False)
        self._bases.move_to_end(key)
        return self._bases[key]

    def base(self, group: int, region: Region) -> FloatArray:
        """Base image [3, rows, cols] of a rectangle, from blocks at absolute places."""
        out = np.empty((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
        for row, col, inner, outer in squares_over(region, BASE_SIDE):
            out[(slice(None), *outer)] = self._base_block(group, row, col)[(slice(None), *inner)]
        return out

    def region(self, window: Window) -> Region:
        """What of a window lies in the scene."""
        top, left = window.row * STRIDE, window.col * STRIDE
        side = self.grid.side
        return Region(top, left, min(side, self.grid.rows - top), min(side, self.grid.cols - left))

    def window(self, group: int, window: Window) -> tuple[Features, FloatArray, FloatArray]:
        """Features, base image and latents of a window, what lies beyond the scene repeated from its edge."""
        key = (group, window)
        if key not in self._seen:
            region, side = self.region(window), self.grid.side
            missing = (side - region.rows, side - region.cols)
            base = np.pad(self.base(group, region), ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
            place = Region(*(n // BLOCK for n in region))
            canvas = self.source.canvas(group, place)
            if canvas is None:
                channels = self.source.engine.profile.contract.widths.latents + 1
                canvas = np.zeros((channels, place.rows, place.cols), np.float32)
            latents = np.pad(canvas, ((0, 0), (0, missing[0] // BLOCK), (0, missing[1] // BLOCK)), mode="edge")[None]
            self._seen[key] = self.compensator.features(base[None], latents), base, latents
            while len(self._seen) > FEATURES_KEPT:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]
