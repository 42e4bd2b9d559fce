"""A scene decoder whose images carry what a compensator adds: window by window at absolute places, held to the symbols.

The base image is decoded in blocks at absolute places too, so that a pixel does not depend on which rectangle was asked for.
The compensated image of each window is projected to where coding it again gives the received symbols (see decision 0005), and
a patch that then agrees with them less than its base image does remains the base image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perigee.bitstream import format as fmt
from perigee.bitstream.acquisition import FIELDS, condition_of
from perigee.bitstream.entropy import DecodedPatch
from perigee.bitstream.errors import CompensationError, LimitError
from perigee.bitstream.profile import BLOCK
from perigee.engines.onnxruntime import PROJECTIONS, ROUNDING, FlightEngine, GroundEngine
from perigee.ground.compensation.consistency import Agreement, costly, shares
from perigee.ground.compensation.model import DIFFUSION, STEPS_MAX, Compensator, Features
from perigee.ground.compensation.sampler import runs_of, sample
from perigee.ground.compensation.windows import STRIDE, FloatArray, Grid, Window, noise_at
from perigee.ground.decoder import DTYPE_RANGE, Decoded, Place, Region, SceneDecoder, tiles_over

RUNS_LIMIT = 100_000  # of the denoiser for one product: a day on two cores
BASE_SIDE = 4 * STRIDE  # pixels on the side of a block of base image
TEXTURE_UNIT = 2  # pixels to an element of the noise that texture is made of
TEXTURE_KEY = 1 << 32  # so that its noise is not that of z
FEATURES_KEPT = 48  # windows
PATCHES_KEPT = 32  # at least: more than a block of 4x4 and its neighbours
SAMPLED_PIXELS = 64_000_000  # of patches whose latents are kept while z is sampled


@dataclass(frozen=True)
class Compensation:
    """What is asked of a compensator; None takes its default. ``strength`` 0..1 scales its own strength at each rate."""

    method: str | None = None
    steps: int | None = None
    seed: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= STEPS_MAX:
            raise CompensationError(f"steps {self.steps}: accepted are 1 to {STEPS_MAX}")
        if not 0 <= self.strength <= 1:
            raise CompensationError(f"strength {self.strength}: accepted are 0 to 1")
        if not 0 <= self.seed < 1 << 63:
            raise CompensationError(f"seed {self.seed}: accepted are 0 to {(1 << 63) - 1}")


class CompensatedDecoder(SceneDecoder):
    """As its base, with generated detail in the bands that the compensator knows: red, green and blue."""

    def __init__(
        self,
        stream: fmt.Stream,
        engine: GroundEngine,
        compensator: Compensator,
        wanted: Compensation | None = None,
        coder: str = "auto",
        damaged: bool = False,
    ) -> None:
        """Raises CompensationError where compensator and stream do not go together."""
        super().__init__(stream, engine, coder, damaged)
        self.compensator = compensator
        self.wanted = wanted or Compensation()
        self.method = self.wanted.method or compensator.method
        if self.method not in compensator.methods:
            raise CompensationError(f"method {self.method!r}: {compensator.name} has {', '.join(compensator.methods)}")
        if engine.profile.contract.digest not in compensator.contracts:
            raise CompensationError(f"{compensator.name} is not for the profile {engine.profile.name}")
        self.steps = self.wanted.steps or compensator.default_steps
        h = self.header
        colour = h.bands == 3 if self.metadata.colour is None else self.metadata.colour
        self.groups = (0,) if colour and h.bands >= fmt.BANDS_PER_GROUP else ()
        self.left_alone = ""
        if len(self.groups) < h.groups:
            self.left_alone = f"{compensator.name} knows red, green and blue alone: " + (
                "nothing is compensated" if not self.groups else "bands from 4 on are left as they are"
            )
        values, known = condition_of(self.metadata.acquisition)
        self._condition = values, compensator.known_fields(known)
        rows, cols = self._latent_extent()
        self.grid = Grid(rows * BLOCK, cols * BLOCK, compensator.window)
        self._bases: OrderedDict[tuple[int, int, int], FloatArray] = OrderedDict()
        self._seen: OrderedDict[tuple[int, Window], tuple[Features, FloatArray, FloatArray]] = OrderedDict()
        self._z: dict[int, dict[Window, FloatArray]] = {}
        self._patches_done: OrderedDict[tuple[int, int, int], FloatArray] = OrderedDict()
        self._costly: dict[int, npt.NDArray[np.uint8]] = {}
        low, high = (float(v) for v in DTYPE_RANGE[h.dtype])
        ranges = np.array([[low, high]] * 3) if stream.ranges is None else stream.ranges[: fmt.BANDS_PER_GROUP]
        zero, span = ranges[:, 0].astype(np.float64), np.diff(ranges.astype(np.float64))[:, 0]
        # what a product can show, in units of the image [3, 1, 1], and the deviation of its rounding
        self._darkest, self._brightest = (((v - zero) / span).astype(np.float32)[:, None, None] for v in (low, high))
        self._rounding = ROUNDING / float(span.min())
        self._flight: FlightEngine | None = None  # codes again what was decoded
        self.runs_limit = RUNS_LIMIT
        self.progress: Callable[[int, int], None] | None = None  # of the sampling, which comes before any pixel
        self.agreement: dict[int, Agreement] = {}  # by unit, of the patches decoded so far

    @property
    def active(self) -> bool:
        """Whether anything is added at all; strength 0 is the base image, bit for bit."""
        return self.wanted.strength > 0 and bool(self.groups)

    @property
    def samples(self) -> bool:
        """Whether images take a diffusion's steps."""
        return self.active and self.method == DIFFUSION

    def _base_block(self, group: int, row: int, col: int) -> FloatArray:
        """Base image of a block at an absolute place, padding of the last patches included."""
        key = (group, row, col)
        if key not in self._bases:
            rows, cols = (
                min(BASE_SIDE, self.grid.rows - row * BASE_SIDE),
                min(BASE_SIDE, self.grid.cols - col * BASE_SIDE),
            )
            region = Region(row * BASE_SIDE, col * BASE_SIDE, rows, cols)
            self._bases[key] = super().image(group, region)
            while len(self._bases) > 2 * (-(-self.grid.cols // BASE_SIDE) + 2):
                self._bases.popitem(last=False)
        self._bases.move_to_end(key)
        return self._bases[key]

    def base(self, group: int, region: Region) -> FloatArray:
        """Base image [3, rows, cols] of a rectangle, from blocks at absolute places."""
        out = np.empty((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
        for row, col, inner, outer in tiles_over(region, BASE_SIDE):
            out[(slice(None), *outer)] = self._base_block(group, row, col)[(slice(None), *inner)]
        return out

    def _region(self, window: Window) -> Region:
        """What of a window lies in the scene."""
        top, left = window.row * STRIDE, window.col * STRIDE
        side = self.grid.side
        return Region(top, left, min(side, self.grid.rows - top), min(side, self.grid.cols - left))

    def _window(self, group: int, window: Window) -> tuple[Features, FloatArray, FloatArray]:
        """Features, base image and latents of a window, what lies beyond the scene repeated from its edge."""
        key = (group, window)
        if key not in self._seen:
            region, side = self._region(window), self.grid.side
            missing = (side - region.rows, side - region.cols)
            base = np.pad(self.base(group, region), ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
            place = Region(*(n // BLOCK for n in region))
            canvas = self._canvas(group, place)
            if canvas is None:
                canvas = np.zeros((self.engine.profile.contract.widths.latents + 1, place.rows, place.cols), np.float32)
            latents = np.pad(canvas, ((0, 0), (0, missing[0] // BLOCK), (0, missing[1] // BLOCK)), mode="edge")[None]
            self._seen[key] = self.compensator.features(base[None], latents), base, latents
            while len(self._seen) > FEATURES_KEPT:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]

    def _sampled(self, group: int, windows: list[Window]) -> dict[Window, FloatArray]:
        """z0 of the windows: those of the scene that is being decoded, or sampled now with what they depend on."""
        done = self._z.get(group, {})
        if all(window in done for window in windows):
            return done

        runs = runs_of(self.grid, windows, self.steps)
        if runs > self.runs_limit:
            raise LimitError(
                f"{self.steps} steps for this part of the scene take {runs} runs of the denoiser, accepted are {self.runs_limit}: "
                "ask for fewer steps or a smaller window"
            )

        def denoise(window: Window, z: FloatArray, step: float) -> FloatArray:
            if len(self._latents) * self.header.patch_side**2 > SAMPLED_PIXELS:  # decoded again when needed
                self._latents.clear()
                self._linear.clear()
            features, _, latents = self._window(group, window)
            v: FloatArray = self.compensator.denoise(z[None], step, features, latents, *self._condition)[0]
            return v

        return sample(
            self.grid,
            windows,
            denoise,
            self.steps,
            self.wanted.seed,
            group,
            self.compensator.start,
            self.compensator.steps_of_schedule,
            progress=self.progress,
        )

    def _strengths(self, group: int, region: Region) -> FloatArray:
        """How much of the detail is added to each pixel [rows, cols]: by the rate of its patch, 0 where there is none."""
        out = np.zeros((region.rows, region.cols), np.float32)
        for unit, outer in self._blocks_of(group, region):
            segment = self.stream.segments.get(unit)
            if segment is None or segment.mode != fmt.NETWORK or unit in self.report.lost:
                continue
            if segment.linear and not segment.cut:  # others cannot be held to their symbols
                _, _, _, rows, cols = self.header.unit_window(unit)
                bpp = 32 * len(segment.words) / (rows * cols)
                out[outer] = self.wanted.strength * self.compensator.strength_of(bpp)
        return out

    def symbols(self, unit: int) -> DecodedPatch:
        """As the base's; remembers which symbols cost something."""
        decoded = super().symbols(unit)
        if self.stream.segments[unit].linear:
            self._costly[unit] = np.packbits(costly(self.engine.profile.contract.tables, decoded))
        return decoded

    def _held_to_symbols(
        self, image: FloatArray, group: int, region: Region, rounding: float | None = None
    ) -> FloatArray:
        """As the base's; patches that it has dropped since are decoded again, so that the order of requests does not matter."""
        for unit, _, _ in self._patches(group, region):
            self.latents(unit)
        return super()._held_to_symbols(image, group, region, rounding)

    def _detail(self, group: int, window: Window, z: FloatArray | None) -> FloatArray:
        """What the network adds to the base image of a window [3, S, S], before it is held to the symbols."""
        features, base, _ = self._window(group, window)
        if z is None:
            n, unit = self.grid.side // TEXTURE_UNIT, STRIDE // TEXTURE_UNIT
            shape = (self.compensator.noise, n, n)
            noise = noise_at(self.wanted.seed, TEXTURE_KEY + group, window.row * unit, window.col * unit, shape)
            found = self.compensator.one_step(features, base[None], noise[None])
        else:
            found = self.compensator.decode(features, z[None])
        detail: FloatArray = found[0]
        return detail

    def _compensated(self, group: int, window: Window, z: FloatArray | None) -> FloatArray:
        """Base image and detail of a window within the scene, held to the symbols: [3, rows, cols]."""
        _, base, _ = self._window(group, window)
        region = self._region(window)
        inside = np.s_[:, : region.rows, : region.cols]
        image = base[inside] + self._detail(group, window, z)[inside] * self._strengths(group, region)
        place = Region(*(n // BLOCK for n in region))
        for _ in range(PROJECTIONS):  # in turn onto what a product can show and onto what was received
            image = np.ascontiguousarray(image.clip(self._darkest, self._brightest))
            image = self._held_to_symbols(image, group, place, self._rounding)
        return image

    def _patch(self, group: int, row: int, col: int) -> FloatArray:
        """Image [3, rows, cols] of a whole patch with its padding: compensated, or the base where that agrees better."""
        key = (group, row, col)
        if key not in self._patches_done:
            side = self.header.patch_side
            top, left = row * side, col * side
            region = Region(top, left, min(side, self.grid.rows - top), min(side, self.grid.cols - left))
            windows = self.grid.over(*region)
            z = self._sampled(group, windows) if self.method == DIFFUSION else {}
            out = np.zeros((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
            for window in windows:
                place = self._region(window)
                weights = self.grid.weights(window)[: place.rows, : place.cols]
                part = self._compensated(group, window, z.get(window)) * weights
                r0, r1 = max(place.top, top), min(place.top + place.rows, top + region.rows)
                c0, c1 = max(place.left, left), min(place.left + place.cols, left + region.cols)
                inner = part[:, r0 - place.top : r1 - place.top, c0 - place.left : c1 - place.left]
                out[:, r0 - top : r1 - top, c0 - left : c1 - left] += inner
            unit = (row * self.header.grid[1] + col) * self.header.groups + group
            base = self.base(group, region)
            agreement = self._agreement(unit, out, base)
            if agreement is not None:
                self.agreement[unit] = agreement
            self._patches_done[key] = out if agreement is None or agreement.kept else base
            while len(self._patches_done) > max(2 * (self.header.grid[1] + 1), PATCHES_KEPT):
                self._patches_done.popitem(last=False)
        self._patches_done.move_to_end(key)
        return self._patches_done[key]

    def _agreement(self, unit: int, image: FloatArray, base: FloatArray) -> Agreement | None:
        """How well a patch's symbols are met, as a product of 8 bits would have it; None where its analysis was not linear."""
        received = self._linear.get(unit)
        if received is None:
            return None
        dear = np.unpackbits(self._costly[unit], count=received.size).astype(bool).reshape(received.shape)
        step = self.stream.segments[unit].quality_step
        if self._flight is None:
            self._flight = FlightEngine(self.engine.profile, self.compensator.threads, check=False)
        found = []
        for pixels in (image, base):
            rounded = np.clip(np.rint(pixels * 255), 0, 255) / np.float32(255) if self.stream.ranges is None else pixels
            q, _ = self._flight.analyse(rounded[None].astype(np.float32), step)
            found.append(shares(q[0], received, dear))
        return Agreement(*found[0], *found[1])

    def generated_in(self, group: int, region: Region) -> npt.NDArray[np.bool_]:
        """Where in a region the image carries generated detail [rows, cols]; decodes it where that is not done yet."""
        out = np.zeros((region.rows, region.cols), bool)
        if self.active and group in self.groups:
            self.image(group, region)
            out = self._strengths(group, region) > 0
            for unit, outer in self._blocks_of(group, region):
                if unit in self.agreement and not self.agreement[unit].kept:
                    out[outer] = False
        return out

    def check_interval(self) -> None:
        """Raises CompensationError where the compensator cannot say how large errors are expected to be."""
        for kind in ("base", self.method) if self.active else ("base",):
            if not self.compensator.has_interval(kind):
                raise CompensationError(f"{self.compensator.name} gives no uncertainty for {kind}")
        if not self.groups:
            raise CompensationError(f"{self.compensator.name} gives no uncertainty for these bands")

    def half_width(self, group: int, region: Region) -> FloatArray:
        """Half the width of the 90 % interval around each pixel's value, mean over red, green and blue [rows, cols], in 0..1.

        Raises CompensationError where the compensator has no such estimate, or does not know these bands.
        """
        self.check_interval()
        if group not in self.groups:
            raise CompensationError(f"{self.compensator.name} gives no uncertainty for these bands")
        generated = self.generated_in(group, region)
        windows = self.grid.over(*region)
        z = self._sampled(group, windows) if self.samples else {}
        both = np.zeros((2, region.rows, region.cols), np.float32)
        for window in windows:
            features, base, _ = self._window(group, window)
            detail = np.zeros_like(base)
            if self.active:
                place = self._region(window)
                inside = np.s_[:, : place.rows, : place.cols]
                detail[inside] = self._detail(group, window, z.get(window))[inside] * self._strengths(group, place)
            scale = self.compensator.scale(features, base[None], detail[None])[0] * self.grid.weights(window)
            place = Region(window.row * STRIDE, window.col * STRIDE, self.grid.side, self.grid.side)
            r0, r1 = max(place.top, region.top), min(place.top + place.rows, region.top + region.rows)
            c0, c1 = max(place.left, region.left), min(place.left + place.cols, region.left + region.cols)
            inner = scale[:, r0 - place.top : r1 - place.top, c0 - place.left : c1 - place.left]
            both[:, r0 - region.top : r1 - region.top, c0 - region.left : c1 - region.left] += inner
        for unit, outer in self._blocks_of(group, region):
            segment = self.stream.segments.get(unit)
            step = segment.quality_step if segment is not None and segment.mode == fmt.NETWORK else 0
            both[0][outer] *= self.compensator.interval_factor(step, "base")
            both[1][outer] *= self.compensator.interval_factor(step, self.method)
        return np.asarray(np.where(generated, both[1], both[0]), np.float32)

    def _blocks_of(self, group: int, region: Region) -> Iterator[tuple[int, Place]]:
        """Units that touch a pixel region: number, and where they lie in it."""
        h = self.header
        for row, col, _, outer in tiles_over(region, h.patch_side):
            yield (row * h.grid[1] + col) * h.groups + group, outer

    def image(self, group: int, region: Region) -> FloatArray:
        """Image float32 [3, rows, cols] of a pixel region, nominally 0..1, compensated where the compensator applies."""
        if not self.active or group not in self.groups:
            return super().image(group, region)
        out = np.empty((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
        for row, col, inner, outer in tiles_over(region, self.header.patch_side):
            out[(slice(None), *outer)] = self._patch(group, row, col)[(slice(None), *inner)]
        return out

    def blocks(self, region: Region | None = None, bands: list[int] | None = None) -> Iterator[tuple[Region, Decoded]]:
        """As the base's; z is sampled for the whole of it first, which is small: 1/48 of the samples."""
        h, side = self.header, self.header.patch_side
        whole = region or Region(0, 0, h.height, h.width)
        chosen = range(h.bands) if bands is None else bands
        if self.samples and any(band // fmt.BANDS_PER_GROUP in self.groups for band in chosen):
            # whole patches: that is what images are made of
            top, left = whole.top // side * side, whole.left // side * side
            bottom = min(-(-(whole.top + whole.rows) // side) * side, self.grid.rows)
            right = min(-(-(whole.left + whole.cols) // side) * side, self.grid.cols)
            for group in self.groups:
                self._z[group] = self._sampled(group, self.grid.over(top, left, bottom - top, right - left))
        yield from super().blocks(region, bands)

    def generated(self) -> dict[str, str]:
        """What a product has to say of its generated detail."""
        if not self.active:
            return {}
        tags = {
            "PERIGEE_GENERATED_DETAIL": "YES",
            "PERIGEE_COMPENSATOR": self.compensator.name,
            "PERIGEE_COMPENSATOR_HASH": self.compensator.digest,
            "PERIGEE_COMPENSATION_METHOD": self.method,
            "PERIGEE_COMPENSATION_STRENGTH": f"{self.wanted.strength:g}",
            "PERIGEE_COMPENSATION_FIELDS_IGNORED": " ".join(self._ignored()),
        }
        if self.left_alone:
            tags["PERIGEE_COMPENSATION_LEFT_ALONE"] = self.left_alone
        if self.agreement:
            told = np.array(list(self.agreement.values()))
            kept = sum(a.kept for a in self.agreement.values())
            shown = np.array([a[:2] if a.kept else a[2:] for a in self.agreement.values()])
            tags["PERIGEE_COMPENSATION_AGREEMENT"] = " ".join(
                f"{v:.4f}" for v in (*shown.mean(0), *told[:, 2:].mean(0))
            )
            tags["PERIGEE_COMPENSATION_PATCHES"] = f"{kept} of {len(told)}; the others are the base image"
        if self.method == DIFFUSION or self.compensator.noise:
            tags["PERIGEE_COMPENSATION_SEED"] = str(self.wanted.seed)
        if self.method == DIFFUSION:
            tags |= {"PERIGEE_COMPENSATION_SAMPLER": "DDIM, eta 0", "PERIGEE_COMPENSATION_STEPS": str(self.steps)}
        return tags

    def _ignored(self) -> list[str]:
        """Fields that the stream has and that the compensator never saw in training: they count as absent."""
        _, known = condition_of(self.metadata.acquisition)
        return [name for name, k, used in zip(FIELDS, known, self._condition[1], strict=True) if k and not used]
