"""An image source that carries what an enhancer adds to a decoded image, window by window at absolute places.

It wraps any image source: a file of another codec (``coded_file.py``) or one of our streams. What it adds to a pixel does not depend on which
rectangle was asked for. Red, green and blue of 8 bits are enhanced as they are; other bands three at a time, in grey levels to which the
whole image's contrast brings them. What an enhancer was not made for is left alone, and the source says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray, Samples
from perigee.bitstream.cells import PROJECTIONS, ROUNDING
from perigee.bitstream.conditions import BandScale
from perigee.bitstream.contract import BLOCK as LATENT
from perigee.bitstream.errors import CompensationError
from perigee.bitstream.samples import sample_range
from perigee.engines.coding import Coding
from perigee.engines.enhancer import TOKEN, WINDOW, Enhancer
from perigee.ground.decoder import SceneDecoder
from perigee.ground.regions import Region
from perigee.ground.source import Decoded, ImageSource
from perigee.ground.windows import STRIDE, Grid, Window, noise_at

BLOCK = 4 * STRIDE  # pixels on the side of what is given at once
HIGHEST = np.float32(255)
COLOURS = 3
# Changes what is added to an image of a region, both float32 [3, rows, cols] of images in 0..1, so that the sum contradicts nothing received.
Hold = Callable[[FloatArray, FloatArray, Region], FloatArray]
Overview = Callable[[Sequence[int]], tuple[Samples, BoolArray]]


@dataclass(frozen=True)
class Group:
    """Three bands that a network sees together. ``given`` are those that take the result; the others came from another group."""

    bands: tuple[int, ...]
    given: tuple[int, ...]
    scale: BandScale
    coding: Coding
    strength: float


def held_to_symbols(source: SceneDecoder) -> Hold:
    """Holds an image to the symbols of its stream: coded again, it gives those that were received."""
    rounding = ROUNDING / float(HIGHEST)

    def held(image: FloatArray, added: FloatArray, region: Region) -> FloatArray:
        coded = Region(region.top, region.left, *image.shape[1:]).intersection(source.latent_extent.times(LATENT))
        inside = np.s_[:, : coded.rows, : coded.cols]
        found = image[inside] + added[inside]
        place = Region(*(n // LATENT for n in coded))
        for _ in range(PROJECTIONS):  # in turn onto what a product can show and onto what was received
            found = source.project_to_cells(np.ascontiguousarray(found.clip(0, 1)), 0, place, rounding)
        out = added.copy()
        out[inside] = found - image[inside]
        return out

    return held


class EnhancedSource:
    """As the source that it wraps, enhanced where the enhancer is made for its bands and its coding."""

    def __init__(
        self,
        source: ImageSource,
        enhancer: Enhancer,
        coding: Coding,
        strength: float = 1.0,
        seed: int = 0,
        hold: Hold | None = None,
        overview: Overview | None = None,
    ) -> None:
        """``coding`` says how the source was coded; ``strength`` (0 to 1) is the share that is taken of what the enhancer adds at that
        coarseness, ``seed`` that of the noise. ``overview`` gives the contrast of bands that are no colour; without it these are left alone.
        """
        self.source, self.coding, self._enhancer, self._seed = source, coding, enhancer, seed
        self._hold, self._wanted = hold, strength
        self.width, self.height, self.bands, self.dtype = source.width, source.height, source.bands, source.dtype
        self.metadata, self.report = source.metadata, source.report
        self._range = sample_range(self.dtype, self.metadata.nbits)
        named = self.bands == COLOURS if self.metadata.colour is None else self.metadata.colour
        self._colour = bool(named and self.bands >= COLOURS and self.dtype == "uint8")
        self.groups: list[Group] = []
        self.left_alone = self._found_groups(overview)
        self._grid = Grid(self.height, self.width, WINDOW)
        self._windows: OrderedDict[tuple[int, Window], tuple[FloatArray, FloatArray | None]] = OrderedDict()

    def _found_groups(self, overview: Overview | None) -> str:
        """Fill ``groups``, or say why there are none."""
        coding = self.coding
        if coding.reversible:
            return "its transform is reversible, so that little or nothing was lost"
        if self._colour:
            share = self._wanted * self._enhancer.strength_of(coding.codec, coding.bits_per_pixel, coding.coarseness)
            if share == 0:
                return (
                    f"it was quantised with a step of about {coding.coarseness:.2g} grey levels, where nothing is added"
                )
            self.groups = [Group((0, 1, 2), (0, 1, 2), BandScale((0.0,) * COLOURS, 1.0), coding, share)]
            return ""
        if self.bands < COLOURS or overview is None or not self._enhancer.serves_bands(coding.codec):
            return (
                f"{self.bands} bands of {self.dtype}; {self._enhancer.name} knows red, green and blue of uint8, and three bands or more of "
                "JPEG 2000 where it was trained on them"
            )
        for first in range(0, self.bands, COLOURS):
            given = tuple(range(first, min(first + COLOURS, self.bands)))
            chosen = tuple(range(given[-1] - COLOURS + 1, given[-1] + 1))
            scale = BandScale.of(*overview(chosen))
            own = coding.of_bands(scale, COLOURS, self.bands)
            share = self._enhancer.strength_of(own.codec, own.bits_per_pixel, own.coarseness, colour=False)
            if share * self._wanted > 0:
                self.groups.append(Group(chosen, given, scale, own, share * self._wanted))
        return "" if self.groups else "its bands were quantised too finely for anything to be added"

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
        bands = (
            {}
            if self._colour
            else {"PERIGEE_ENHANCED_BANDS": " ".join(str(b + 1) for g in self.groups for b in g.given)}
        )
        return (
            self.source.provenance()
            | {
                "PERIGEE_ENHANCED": "YES",
                "PERIGEE_ENHANCER": self._enhancer.name,
                "PERIGEE_ENHANCER_DIGEST": self._enhancer.digest,
                "PERIGEE_STRENGTH": " ".join(f"{group.strength:.3g}" for group in self.groups),
                "PERIGEE_GENERATED_DETAIL": "YES",
                "PERIGEE_HELD_TO_RECEIVED": "YES" if self._hold else "NO",
            }
            | bands
            | ({"PERIGEE_SEED": str(self._seed)} if self._enhancer.tokens else {})
        )

    def _place(self, window: Window) -> Region:
        """What of a window lies in the scene."""
        whole = Region(0, 0, self.height, self.width)
        return Region(window.row * STRIDE, window.col * STRIDE, WINDOW, WINDOW).intersection(whole)

    def _image(self, group: Group, region: Region) -> FloatArray:
        """Three bands of the source float32 [3, rows, cols], nominally in 0..1."""
        out = np.empty((COLOURS, region.rows, region.cols), np.float32)
        for place, block in self.source.blocks(region, group.bands):
            out[(slice(None), *place.within(region))] = group.scale.grey(block.samples)
        return out / HIGHEST

    def _seen(self, number: int, window: Window) -> tuple[FloatArray, FloatArray | None]:
        """What is added to a window of a group, float32 [3, 256, 256], and the expected error [256, 256]; what lies beyond the scene repeats its
        edge."""
        key = (number, window)
        if key not in self._windows:
            group, place = self.groups[number], self._place(window)
            missing = ((0, 0), (0, WINDOW - place.rows), (0, WINDOW - place.cols))
            image = np.pad(self._image(group, place), missing, mode="edge")
            noise = None
            if self._enhancer.tokens:
                side, step = WINDOW // TOKEN, STRIDE // TOKEN
                shape = (self._enhancer.tokens, side, side)
                noise = noise_at(self._seed, number, window.row * step, window.col * step, shape)
            added, expected = self._enhancer.added(image, group.coding.condition, noise)
            self._windows[key] = (self._hold(image, added, place) if self._hold else added, expected)
            while len(self._windows) > 2 * len(self.groups) * (self._grid.shape[1] + 2):
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _over(self, region: Region) -> Iterator[tuple[Window, Region, Region]]:
        """The windows over a region: each with its place, and what of it lies in the region."""
        for window in self._grid.over(*region):
            place = Region(window.row * STRIDE, window.col * STRIDE, WINDOW, WINDOW)
            common = place.intersection(region)
            if common.pixels:
                yield window, place, common

    def _enhanced(self, number: int, region: Region, samples: Samples) -> Samples:
        """The bands of a group, enhanced, of what the source has of a region: [3, rows, cols]."""
        group = self.groups[number]
        added = np.zeros((COLOURS, region.rows, region.cols), np.float32)
        for window, place, common in self._over(region):
            weighted = self._seen(number, window)[0] * self._grid.weights(window)
            added[(slice(None), *common.within(region))] += weighted[(slice(None), *common.within(place))]
        found = samples + added * np.float32(group.strength * float(HIGHEST) / group.scale.gain)
        return np.asarray(np.rint(np.clip(found, *self._range)), self.dtype)

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """The image or a region of it in blocks, row by row; ``bands`` counts from 0 (None: all)."""
        chosen = list(range(self.bands)) if bands is None else list(bands)
        if not any(band in group.given for group in self.groups for band in chosen):
            yield from self.source.blocks(region, bands)
            return
        whole = region or Region(0, 0, self.height, self.width)
        for top in range(whole.top, whole.bottom, BLOCK):
            for left in range(whole.left, whole.right, BLOCK):
                place = Region(top, left, min(BLOCK, whole.bottom - top), min(BLOCK, whole.right - left))
                yield place, self._block(place, chosen)

    def _base(self, place: Region, chosen: Sequence[int]) -> Decoded:
        """What the source has of a region, in one piece."""
        samples = np.empty((len(chosen), place.rows, place.cols), self.dtype)
        valid = np.empty(samples.shape, bool)
        alpha = None
        for part, block in self.source.blocks(place, chosen):
            inside = part.within(place)
            samples[(slice(None), *inside)], valid[(slice(None), *inside)] = block.samples, block.valid
            if block.alpha is not None:
                alpha = np.empty((place.rows, place.cols), block.alpha.dtype) if alpha is None else alpha
                alpha[inside] = block.alpha
        return Decoded(samples, valid, alpha)

    def _block(self, place: Region, chosen: list[int]) -> Decoded:
        samples, valid, alpha = self._base(place, chosen)
        for number, group in enumerate(self.groups):
            wanted = [band for band in group.given if band in chosen]
            if wanted:
                found = self._enhanced(number, place, self._base(place, group.bands).samples)
                for at, band in enumerate(chosen):
                    if band in wanted:
                        samples[at] = np.where(valid[at], found[group.bands.index(band)], samples[at])
        self.settle(samples, valid)
        return Decoded(samples, valid, alpha)

    # --- how far to trust it ---------------------------------------------------------------------------------------

    def _factors(self) -> tuple[float, float] | None:
        group = self.groups[0]
        return self._enhancer.interval_factors(group.coding.codec, group.coding.coarseness, self._colour)

    def check_interval(self) -> None:
        """Raises CompensationError where nothing is known of the errors of bands 1 to 3."""
        if not self.groups or self.groups[0].given != (0, 1, 2):
            raise CompensationError(
                f"not enhanced, so that its errors are not known: {self.left_alone or 'bands 1 to 3'}"
            )
        if self._factors() is None:
            raise CompensationError(
                f"{self._enhancer.name} gives no uncertainty for {self.coding.codec or 'unknown codecs'}"
            )

    @property
    def widest_range(self) -> float:
        """How many counts :meth:`half_width` means by 1."""
        return float(HIGHEST) / self.groups[0].scale.gain if self.groups else float(HIGHEST)

    def half_width(self, group: int, region: Region) -> FloatArray:
        """Half the width of the 90 % interval around each value of bands 1 to 3 [rows, cols], as a share of ``widest_range``.

        ``group`` is 0. Raises CompensationError where it is not known.
        """
        self.check_interval()
        factors = self._factors()
        out = np.zeros((region.rows, region.cols), np.float32)
        for window, place, common in self._over(region):
            expected = self._seen(group, window)[1]
            if factors is None or expected is None:
                raise CompensationError(f"{self._enhancer.name} gives no uncertainty")
            weighted = expected * self._grid.weights(window)
            out[common.within(region)] += weighted[common.within(place)]
        factor = factors[0] + self._wanted * (factors[1] - factors[0]) if factors else 0.0
        return out * np.float32(factor)

    def generated_in(self, group: int, region: Region) -> BoolArray:
        """Where in a region bands 1 to 3 differ from what was decoded [rows, cols]; ``group`` is 0."""
        base = self._base(region, self.groups[group].bands).samples
        return np.asarray((self._enhanced(group, region, base) != base).any(0))
