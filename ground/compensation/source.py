"""An image source whose images carry what a compensator adds: window by window at absolute places, projected to the symbols.

It wraps a decoded stream, since it needs the stream's latents and the cells of its symbols. The base image is decoded in
blocks at absolute places too, so that a pixel does not depend on which rectangle was asked for. The compensated image of each
window is projected to where coding it again gives the received symbols (decision 0005), and a patch that then agrees with
them less than its base image does remains the base image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream.arrays import BoolArray, FloatArray, Samples
from perigee.bitstream.cells import PROJECTIONS, ROUNDING
from perigee.bitstream.conditions import FIELDS, condition_of
from perigee.bitstream.contract import BLOCK
from perigee.bitstream.errors import CompensationError, Fault, LimitError
from perigee.bitstream.samples import DTYPE_RANGE
from perigee.engines.flight import FlightEngine
from perigee.ground.compensation.compensator import DIFFUSION, Compensator
from perigee.ground.compensation.consistency import Agreement, costly, shares
from perigee.ground.compensation.request import Compensation
from perigee.ground.compensation.sampler import runs_of, sample
from perigee.ground.compensation.views import Views
from perigee.ground.decoder import SceneDecoder
from perigee.ground.maps.planes import MapPlanes
from perigee.ground.maps.support import ObjectSupport
from perigee.ground.regions import Place, Region, squares_over
from perigee.ground.source import Decoded, Progress
from perigee.ground.windows import STRIDE, Window, noise_at

RUNS_LIMIT = 100_000  # of the denoiser for one product: a day on two cores
TEXTURE_PIXELS = 2  # pixels to an element of the noise that texture is made of
TEXTURE_KEY = 1 << 32  # so that its noise is not that of z
STRIPE_PATCHES = (
    16  # on the width of what is decoded from top to bottom, so that memory does not grow with the width of the scene
)
PATCHES_KEPT = 32  # at least: more than a block of 4x4 and its neighbours
SAMPLED_PIXELS = 64_000_000  # of patches whose latents are kept while z is sampled


class CompensatedSource:
    """As the decoded stream that it wraps, with generated detail in the bands that the compensator knows: red, green, blue."""

    def __init__(
        self,
        source: SceneDecoder,
        compensator: Compensator,
        wanted: Compensation | None = None,
        runs_limit: int = RUNS_LIMIT,
        progress: Progress | None = None,
        guide: MapPlanes | None = None,
    ) -> None:
        """``runs_limit`` bounds how often the denoiser may run; ``progress`` is told of the sampling, which comes before any pixel. ``guide`` is
        the map of a compensator that takes one.

        Raises CompensationError where compensator and stream do not go together.
        """
        self.source, self.compensator = source, compensator
        self.width, self.height, self.bands, self.dtype = source.width, source.height, source.bands, source.dtype
        self.metadata, self.report = source.metadata, source.report
        self.wanted = wanted or Compensation()
        self.method = self.wanted.method or compensator.settings.method
        profile = source.engine.profile
        if self.method not in compensator.methods:
            raise CompensationError(
                f"method {self.method!r}: {compensator.name} has {', '.join(compensator.methods)}",
                Fault.NAME,
                field="method",
                expected=", ".join(compensator.methods),
                found=self.method,
            )
        if profile.contract.digest not in compensator.contracts:
            raise CompensationError(
                f"{compensator.name} is not for the profile {profile.name}", Fault.MISFIT, field="contract"
            )
        if bool(compensator.settings.planes) != (guide is not None):
            raise CompensationError(
                f"{compensator.name} {'takes no map' if guide else 'is guided by a map, and none was given'}",
                Fault.MISFIT if guide else Fault.MISSING,
                field="map",
                expected="no map" if guide else "a map",
            )
        self.guide = guide
        self.support: ObjectSupport | None = None
        self.steps = self.wanted.steps or compensator.settings.default_steps
        h = source.header
        colour = h.bands == 3 if self.metadata.colour is None else self.metadata.colour
        self.groups = (0,) if colour and h.bands >= fmt.BANDS_PER_GROUP else ()
        self.left_alone = ""
        if len(self.groups) < h.groups:
            self.left_alone = f"{compensator.name} knows red, green and blue alone: " + (
                "nothing is compensated" if not self.groups else "bands from 4 on are left as they are"
            )
        values, known = condition_of(self.metadata.acquisition)
        self._condition = values, compensator.known_fields(known)
        self._views = Views(source, compensator)
        self.grid = self._views.grid
        if guide is not None:
            whole, thresholds = Region(0, 0, self.height, self.width), compensator.settings.support
            self.support = ObjectSupport(guide, lambda region: self._views.base(0, region), whole, thresholds)
        self._z: dict[int, dict[Window, FloatArray]] = {}
        self._patches_done: OrderedDict[tuple[int, int, int], FloatArray] = OrderedDict()
        low, high = (float(v) for v in DTYPE_RANGE[h.dtype])
        coded = source.stream.ranges
        ranges = np.array([[low, high]] * 3) if coded is None else coded[: fmt.BANDS_PER_GROUP]
        zero, span = ranges[:, 0].astype(np.float64), np.diff(ranges.astype(np.float64))[:, 0]
        # what a product can show, in units of the image [3, 1, 1], and the standard deviation of its rounding
        self._darkest, self._brightest = (((v - zero) / span).astype(np.float32)[:, None, None] for v in (low, high))
        self._rounding = ROUNDING / float(span.min())
        self.widest_range = 255.0 if coded is None else float(span.max())  # in samples: what 1 in an image stands for
        self._flight: FlightEngine | None = None  # codes again what was decoded
        self._runs_limit, self._progress = runs_limit, progress
        self.agreement: dict[int, Agreement] = {}  # by unit, of the patches decoded so far

    def forget(self) -> None:
        """As the decoded stream."""
        self.source.forget()

    @property
    def incomplete(self) -> bool:
        """As the decoded stream."""
        return self.source.incomplete

    @property
    def has_gaps(self) -> bool:
        """As the decoded stream."""
        return self.source.has_gaps

    def settle(self, samples: Samples, valid: BoolArray) -> None:
        """As the decoded stream."""
        self.source.settle(samples, valid)

    @property
    def active(self) -> bool:
        """Whether anything is added at all; strength 0 is the base image, bit for bit."""
        return self.wanted.strength > 0 and bool(self.groups)

    @property
    def uses_diffusion(self) -> bool:
        """Whether images are sampled in diffusion steps."""
        return self.active and self.method == DIFFUSION

    def _sampled(self, group: int, windows: list[Window]) -> dict[Window, FloatArray]:
        """z0 of the windows: those of the scene that is being decoded, or sampled now with what they depend on."""
        done = self._z.get(group, {})
        if all(window in done for window in windows):
            return done

        runs = runs_of(self.grid, windows, self.steps)
        if runs > self._runs_limit:
            raise LimitError(
                f"{self.steps} steps for this part of the scene take {runs} runs of the denoiser, accepted are "
                f"{self._runs_limit}: ask for fewer steps or a smaller window",
                field="steps",
                expected=f"at most {self._runs_limit} runs",
                found=runs,
            )

        def denoise(window: Window, z: FloatArray, step: float) -> FloatArray:
            if self.source.units_kept * self.source.header.patch_side**2 > SAMPLED_PIXELS:
                self.source.forget()  # they are decoded again when they are needed
            features, _, latents = self._views.window(group, window)
            v: FloatArray = self.compensator.denoise(z[None], step, features, latents, *self._condition)[0]
            return v

        return sample(
            self.grid,
            windows,
            denoise,
            self.steps,
            self.wanted.seed,
            group,
            self.compensator.settings.start,
            self.compensator.settings.schedule_steps,
            progress=self._progress,
        )

    def _strengths(self, group: int, region: Region) -> FloatArray:
        """How much of the detail is added to each pixel [rows, cols]: by the rate of its patch, 0 where there is none."""
        out = np.zeros((region.rows, region.cols), np.float32)
        for unit, outer in self._blocks_of(group, region):
            segment = self.source.stream.segments.get(unit)
            if segment is None or segment.mode != fmt.NETWORK or unit in self.source.report.lost:
                continue
            if segment.linear and not segment.cut:  # others have no cells to be projected to
                _, _, _, rows, cols = self.source.header.unit_region(unit)
                bpp = 32 * len(segment.words) / (rows * cols)
                out[outer] = self.wanted.strength * self.compensator.strength_of(bpp)
        return out

    def _detail(self, group: int, window: Window, z: FloatArray | None) -> FloatArray:
        """What the network adds to the base image of a window [3, S, S], before it is projected to the symbols."""
        features, base, _ = self._views.window(group, window)
        n, move = self.grid.side // TEXTURE_PIXELS, STRIDE // TEXTURE_PIXELS
        shape = (self.compensator.settings.noise, n, n)
        noise = noise_at(self.wanted.seed, TEXTURE_KEY + group, window.row * move, window.col * move, shape)
        detail: FloatArray = self.compensator.one_step(features, base[None], noise[None])[0]
        if z is not None:
            detail = detail + self.compensator.remainder(features, z[None])[0]
        if self.support is not None:
            place = Region(window.row * STRIDE, window.col * STRIDE, self.grid.side, self.grid.side)
            detail = detail + self.compensator.guided(features, self.support.planes(place)[None])[0]
        return detail

    def _compensated(self, group: int, window: Window, z: FloatArray | None) -> FloatArray:
        """Base image and detail of a window within the scene, projected to the symbols: [3, rows, cols]."""
        _, base, _ = self._views.window(group, window)
        region = self._views.region(window)
        inside = np.s_[:, : region.rows, : region.cols]
        image = base[inside] + self._detail(group, window, z)[inside] * self._strengths(group, region)
        place = Region(*(n // BLOCK for n in region))
        for _ in range(PROJECTIONS):  # in turn onto what a product can show and onto what was received
            image = np.ascontiguousarray(image.clip(self._darkest, self._brightest))
            image = self.source.project_to_cells(image, group, place, self._rounding)
        return image

    def _patch(self, group: int, row: int, col: int) -> FloatArray:
        """Image [3, rows, cols] of a whole patch with its padding: compensated, or the base where that agrees better."""
        key = (group, row, col)
        if key not in self._patches_done:
            side = self.source.header.patch_side
            top, left = row * side, col * side
            region = Region(top, left, min(side, self.grid.rows - top), min(side, self.grid.cols - left))
            windows = self.grid.over(*region)
            z = self._sampled(group, windows) if self.method == DIFFUSION else {}
            out = np.zeros((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
            for window in windows:
                place = self._views.region(window)
                weights = self.grid.weights(window)[: place.rows, : place.cols]
                part = self._compensated(group, window, z.get(window)) * weights
                common = place.intersection(region)
                out[(slice(None), *common.within(region))] += part[(slice(None), *common.within(place))]
            unit = (row * self.source.header.grid[1] + col) * self.source.header.groups + group
            base = self._views.base(group, region)
            agreement = self._agreement(unit, out, base)
            if agreement is not None:
                self.agreement[unit] = agreement
            self._patches_done[key] = out if agreement is None or agreement.kept else base
            while len(self._patches_done) > max(2 * (self.source.header.grid[1] + 1), PATCHES_KEPT):
                self._patches_done.popitem(last=False)
        self._patches_done.move_to_end(key)
        return self._patches_done[key]

    def _agreement(self, unit: int, image: FloatArray, base: FloatArray) -> Agreement | None:
        """How well a patch's symbols are met, as a product of 8 bits would have it; None where its analysis was not linear."""
        received = self.source.received(unit)
        if received is None:
            return None
        profile = self.source.engine.profile
        dear = costly(profile.contract.tables, self.source.symbols(unit))
        quality_step = self.source.stream.segments[unit].quality_step
        if self._flight is None:
            self._flight = FlightEngine(profile, self.compensator.threads, check=False)
        found = []
        for pixels in (image, base):
            rounded = (
                np.clip(np.rint(pixels * 255), 0, 255) / np.float32(255)
                if self.source.stream.ranges is None
                else pixels
            )
            q, _ = self._flight.analyse(rounded[None].astype(np.float32), quality_step)
            found.append(shares(q[0], received, dear))
        return Agreement(*found[0], *found[1])

    def generated_in(self, group: int, region: Region) -> BoolArray:
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
        z = self._sampled(group, windows) if self.uses_diffusion else {}
        both = np.zeros((2, region.rows, region.cols), np.float32)
        for window in windows:
            features, base, _ = self._views.window(group, window)
            detail = np.zeros_like(base)
            if self.active:
                place = self._views.region(window)
                inside = np.s_[:, : place.rows, : place.cols]
                detail[inside] = self._detail(group, window, z.get(window))[inside] * self._strengths(group, place)
            scale = self.compensator.scale(features, base[None], detail[None])[0] * self.grid.weights(window)
            place = Region(window.row * STRIDE, window.col * STRIDE, self.grid.side, self.grid.side)
            common = place.intersection(region)
            both[(slice(None), *common.within(region))] += scale[(slice(None), *common.within(place))]
        for unit, outer in self._blocks_of(group, region):
            segment = self.source.stream.segments.get(unit)
            quality_step = segment.quality_step if segment is not None and segment.mode == fmt.NETWORK else 0
            both[0][outer] *= self.compensator.interval_factor(quality_step, "base")
            both[1][outer] *= self.compensator.interval_factor(quality_step, self.method)
        return np.asarray(np.where(generated, both[1], both[0]), np.float32)

    def _blocks_of(self, group: int, region: Region) -> Iterator[tuple[int, Place]]:
        """Units that touch a pixel region: number, and where they lie in it."""
        h = self.source.header
        for row, col, _, outer in squares_over(region, h.patch_side):
            yield (row * h.grid[1] + col) * h.groups + group, outer

    def image(self, group: int, region: Region) -> FloatArray:
        """Image float32 [3, rows, cols] of a pixel region, nominally 0..1, compensated where the compensator applies."""
        if not self.active or group not in self.groups:
            return self.source.image(group, region)
        out = np.empty((fmt.BANDS_PER_GROUP, region.rows, region.cols), np.float32)
        for row, col, inner, outer in squares_over(region, self.source.header.patch_side):
            out[(slice(None), *outer)] = self._patch(group, row, col)[(slice(None), *inner)]
        return out

    def blocks(
        self, region: Region | None = None, bands: Sequence[int] | None = None
    ) -> Iterator[tuple[Region, Decoded]]:
        """Squares of two patches on a side, stripe by stripe from the left, so that progress is seen on small scenes as well; z is sampled for all
        of the region first, which is small: 1/48 of the samples."""
        side = self.source.header.patch_side
        whole = region or Region(0, 0, self.height, self.width)
        chosen = range(self.bands) if bands is None else bands
        if self.uses_diffusion and any(band // fmt.BANDS_PER_GROUP in self.groups for band in chosen):
            # whole patches: that is what images are made of
            patches = whole.blocks(side).times(side).intersection(Region(0, 0, self.grid.rows, self.grid.cols))
            for group in self.groups:
                self._z[group] = self._sampled(group, self.grid.over(*patches))
        if (
            not self.active or len(self.groups) < self.source.header.groups
        ):  # what stays as it is comes in its own windows
            yield from self.source.blocks(region, bands, self.image)
            return
        for first in range(whole.left, whole.right, STRIPE_PATCHES * side):
            last = min(first + STRIPE_PATCHES * side, whole.right)
            for top in range(whole.top, whole.bottom, 2 * side):
                rows = min(2 * side, whole.bottom - top)
                for left in range(first, last, 2 * side):
                    square = Region(top, left, rows, min(2 * side, last - left))
                    yield from self.source.blocks(square, bands, self.image)
            self.source.forget()

    def provenance(self) -> dict[str, str]:
        """As the decoded stream, with what a product has to say of its generated detail."""
        tags = self.source.provenance()
        if not self.active:
            return tags
        tags |= {
            "PERIGEE_GENERATED_DETAIL": "YES",
            "PERIGEE_COMPENSATOR": self.compensator.name,
            "PERIGEE_COMPENSATOR_HASH": self.compensator.digest,
            "PERIGEE_COMPENSATION_METHOD": self.method,
            "PERIGEE_COMPENSATION_STRENGTH": f"{self.wanted.strength:g}",
            "PERIGEE_COMPENSATION_FIELDS_IGNORED": " ".join(self._ignored()),
        }
        if self.guide is not None and self.support is not None:
            tags |= self.guide.provenance() | self.support.provenance()
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
        if self.method == DIFFUSION or self.compensator.settings.noise:
            tags["PERIGEE_COMPENSATION_SEED"] = str(self.wanted.seed)
        if self.method == DIFFUSION:
            tags |= {"PERIGEE_COMPENSATION_SAMPLER": "DDIM, eta 0", "PERIGEE_COMPENSATION_STEPS": str(self.steps)}
        return tags

    def _ignored(self) -> list[str]:
        """Fields that the stream has and that the compensator never saw in training: they count as absent."""
        _, known = condition_of(self.metadata.acquisition)
        return [name for name, k, used in zip(FIELDS, known, self._condition[1], strict=True) if k and not used]
