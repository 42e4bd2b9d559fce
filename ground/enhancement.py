"""An image source that carries what an enhancer adds to a decoded colour image of 8 bits, window by window at absolute places.

It wraps any image source: a file of another codec (``coded_file.py``) or one of our streams. What it adds to a pixel does not depend on which
rectangle was asked for. Images of other bands or types are left alone, and the source says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray, Samples
from perigee.engines.coding import Coding
from perigee.engines.enhancer import TOKEN, WINDOW, Enhancer
from perigee.engines.jpeg_cells import JpegCells
from perigee.ground.regions import Region
from perigee.ground.source import Decoded, ImageSource
from perigee.ground.windows import STRIDE, Grid, Window, noise_at

BLOCK = 4 * STRIDE  # pixels on the side of what is given at once
HIGHEST = 255.0


class EnhancedSource:
    """As the source that it wraps, enhanced where that has red, green and blue of uint8."""

    def __init__(
        self,
        source: ImageSource,
        enhancer: Enhancer,
        coding: Coding,
        strength: float = 1.0,
        seed: int = 0,
        cells: JpegCells | None = None,
    ) -> None:
        """``coding`` says how the source was coded; ``strength`` (0 to 1) is the share that is taken of what the enhancer adds at that
        coarseness, ``seed`` that of the noise, ``cells`` what the file says of its original."""
        self.source, self.coding, self._enhancer, self._seed = source, coding, enhancer, seed
        self._cells = cells
        self.strength = strength * enhancer.strength_of(coding.codec, coding.bits_per_pixel, coding.coarseness)
        self.width, self.height, self.bands, self.dtype = source.width, source.height, source.bands, source.dtype
        self.metadata, self.report = source.metadata, source.report
        colour = self.bands == 3 if self.metadata.colour is None else self.metadata.colour and self.bands >= 3
        self.left_alone = ""
        if not colour or self.dtype != "uint8":
            self.left_alone = f"{self.bands} bands of {self.dtype}; enhancers know red, green and blue of uint8 alone"
        elif coding.reversible:
            self.left_alone = "its transform is reversible, so that little or nothing was lost"
        elif self.strength == 0:
            self.left_alone = (
                f"it was quantised with a step of about {coding.coarseness:.2g} grey levels, where nothing is added"
            )
        self._grid = Grid(self.height, self.width, WINDOW)
        self._windows: OrderedDict[Window, FloatArray] = OrderedDict()

    @property
    def incomplete(self) -> bool:
        """As the source."""
        return self.source.incomplete

    @property
    def has_gaps(self) -> bool:
        """As the source."""
        return self.source.has_gaps

    def settle(self, samples: Samples, valid: BoolArray) -> None:
        """As the source."""
        self.source.settle(samples, valid)

    def provenance(self) -> dict[str, str]:
        """The source's tags, and that it was enhanced."""
        if self.left_alone:
            return self.source.provenance() | {"PERIGEE_ENHANCED": "NO", "PERIGEE_NOT_ENHANCED": self.left_alone}
        return (
            self.source.provenance()
            | {
                "PERIGEE_ENHANCED": "YES",
                "PERIGEE_ENHANCER": self._enhancer.name,
                "PERIGEE_ENHANCER_DIGEST": self._enhancer.digest,
                "PERIGEE_STRENGTH": f"{self.strength:.3g}",
                "PERIGEE_GENERATED_DETAIL": "YES",
                "PERIGEE_HELD_TO_RECEIVED": "YES" if self._cells else "NO",
            }
            | ({"PERIGEE_SEED": str(self._seed)} if self._enhancer.tokens else {})
        )

    def _place(self, window: Window) -> Region:
        """What of a window lies in the scene."""
        whole = Region(0, 0, self.height, self.width)
        return Region(window.row * STRIDE, window.col * STRIDE, WINDOW, WINDOW).intersection(whole)

    def _image(self, region: Region) -> FloatArray:
        """The source's colours float32 [3, rows, cols] in 0..1."""
        out = np.empty((3, region.rows, region.cols), np.float32)
        for place, block in self.source.blocks(region, [0, 1, 2]):
            out[(slice(None), *place.within(region))] = block.samples
        return out / np.float32(HIGHEST)

    def _added(self, window: Window) -> FloatArray:
        """What is added to a window, float32 [3, 256, 256]; what lies beyond the scene repeats its edge."""
        if window not in self._windows:
            place = self._place(window)
            missing = ((0, 0), (0, WINDOW - place.rows), (0, WINDOW - place.cols))
            image = np.pad(self._image(place), missing, mode="edge")
            noise = None
            if self._enhancer.tokens:
                side, step = WINDOW // TOKEN, STRIDE // TOKEN
                shape = (self._enhancer.tokens, side, side)
                noise = noise_at(self._seed, 0, window.row * step, window.col * step, shape)
            added = self._enhancer.added(image, self.coding.condition, noise)
            self._windows[window] = self._cells.held(image, added, place.rows, place.cols) if self._cells else added
            while len(self._windows) > 2 * (self._grid.shape[1] + 2):
                self._windows.popitem(last=False)
        self._windows.move_to_end(window)
        return self._windows[window]

    def _enhanced(self, region: Region) -> Samples:
        """Red, green and blue uint8 [3, rows, cols] of a region."""
        added = np.zeros((3, region.rows, region.cols), np.float32)
        for window in self._grid.over(*region):
            place = Region(window.row * STRIDE, window.col * STRIDE, WINDOW, WINDOW)
            common = place.intersection(region)
            if common.pixels:
                weighted = self._added(window) * self._grid.weights(window)
                added[(slice(None), *common.within(region))] += weighted[(slice(None), *common.within(place))]
        image = self._image(region) + np.float32(self.strength) * added
        return np.rint(np.clip(image, 0, 1) * np.float32(HIGHEST)).astype(np.uint8)

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """The image or a region of it in blocks, row by row; ``bands`` counts from 0 (None: all)."""
        chosen = list(range(self.bands)) if bands is None else list(bands)
        if self.left_alone or not any(band < 3 for band in chosen):
            yield from self.source.blocks(region, bands)
            return
        whole = region or Region(0, 0, self.height, self.width)
        for top in range(whole.top, whole.bottom, BLOCK):
            for left in range(whole.left, whole.right, BLOCK):
                place = Region(top, left, min(BLOCK, whole.bottom - top), min(BLOCK, whole.right - left))
                yield place, self._block(place, chosen)

    def _block(self, place: Region, chosen: list[int]) -> Decoded:
        colours = self._enhanced(place)
        samples = np.empty((len(chosen), place.rows, place.cols), np.uint8)
        valid = np.empty(samples.shape, bool)
        alpha = None
        for part, block in self.source.blocks(place, chosen):
            inside = part.within(place)
            samples[(slice(None), *inside)], valid[(slice(None), *inside)] = block.samples, block.valid
            if block.alpha is not None:
                alpha = np.empty((place.rows, place.cols), block.alpha.dtype) if alpha is None else alpha
                alpha[inside] = block.alpha
        for number, band in enumerate(chosen):
            if band < 3:
                samples[number] = np.where(valid[number], colours[band], samples[number])
        self.settle(samples, valid)
        return Decoded(samples, valid, alpha)
