"""How much of what an enhancer adds is taken, and how wide its intervals are, by codec and quantisation step: found on images that were held
out of the training.

An enhancer should never make an image worse. At each step the strength is the one that gains most among those that harm next to no
image, and none where the gain is not worth having. The expected error is multiplied by what makes 90 % of all errors smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.conditions import BandScale, is_rough
from perigee.engines.coding import JPEG, JPEG2000, PERIGEE, Coding
from perigee.engines.enhancer import BANDS, ROUGHER, UNKNOWN, at_step
from perigee.models.enhancement.prior import TOKEN, Enhancer
from perigee.training.bands import Raster
from perigee.training.data import ImageSet, Pixels
from perigee.training.degraded import COLOURS, Coded, by_jpeg, by_jpeg2000, by_jpeg2000_bands, by_stream

SIDE, UNIT, BANDS_SIDE_LEAST = 256, 16, 96
RATES = (0.06, 0.1, 0.16, 0.25, 0.4, 0.6, 1.0, 1.5, 2.2, 3.0, 4.0)  # bits per pixel of JPEG 2000
QUALITIES = (10, 20, 30, 45, 60, 75, 85, 92, 96)  # of JPEG
STREAM_QUALITIES = (5, 15, 25, 35, 45, 55, 65, 75, 85)
BANDS_DB = (22, 26, 30, 34, 38, 42, 46, 50, 54)
STRENGTHS = np.round(np.arange(0, 1.01, 0.1), 1)
HARM_DB, HARMED_SHARE = 0.02, 0.01  # an image that loses more is harmed; so many may be
GAIN_DB = 0.03  # the least median gain for which anything is added
# Octaves between the steps of a table, how far an image may be from one, and how many must be near
APART, NEAR, NEAR_LEAST = 0.5, 0.5, 12
INTERVAL = 0.9  # of the errors
KEPT = 1500  # samples of an image, for the intervals
ERROR_LEAST = 1e-6
Table = list[list[float]]


@dataclass(frozen=True)
class Seen:
    """What came of one coded image: the gain in dB at each of ``STRENGTHS``, and of some samples what is missing, what is added, and the error
    that is expected, in 0..1."""

    name: str
    coding: Coding
    gains: list[float]
    missing: FloatArray
    added: FloatArray
    expected: FloatArray


def large_enough(image: Pixels) -> bool:
    """Whether strengths can be fitted on an image."""
    return bool(min(image.shape[:2]) >= SIDE)


def seen_of(
    enhancer: Enhancer, name: str, original: Pixels | FloatArray, decoded: Pixels | FloatArray, coding: Coding
) -> Seen:
    """Enhance an image in grey levels, whose sides are multiples of 8; of 8 bits the result is rounded as a product would be."""
    image = torch.from_numpy(decoded.transpose(2, 0, 1).astype(np.float32))[None] / 255
    noise = torch.randn(1, enhancer.tokens, *(max(1, n // TOKEN) for n in decoded.shape[:2]))
    with torch.no_grad():
        added, doubt = enhancer(image, torch.tensor([coding.condition]), noise=noise)
    change = added[0].numpy().transpose(1, 2, 0) * 255
    whole = decoded.dtype == np.uint8
    before, after = decoded.astype(np.float32), []
    for strength in STRENGTHS:
        better = before + strength * change
        better = np.rint(np.clip(better, 0, 255)) if whole else better
        after.append(max(float(np.square(better - original).mean()), 1e-9))
    error = max(float(np.square(before - original).mean()), 1e-9)
    expected = np.broadcast_to(np.exp(doubt[0, 0].numpy())[..., None], change.shape)
    places = np.random.default_rng(1).integers(0, change.size, KEPT)
    picked = [np.asarray(x.reshape(-1)[places] / 255, np.float32) for x in (original - before, change, 255 * expected)]
    return Seen(name, coding, [10 * float(np.log10(error / left)) for left in after], *picked)


def best_strength(found: list[list[float]]) -> float:
    """The strength for the gains [image][strength] about one step."""
    table = np.array(found)
    harmed = (table < -HARM_DB).mean(0)
    medians = np.where(harmed <= HARMED_SHARE, np.median(table, axis=0), -np.inf)
    best = int(medians.argmax())
    return float(STRENGTHS[best]) if medians[best] >= GAIN_DB else 0.0


def _near(found: Sequence[Seen]) -> Iterator[tuple[float, list[Seen]]]:
    """Steps half an octave apart, each with the images about it."""
    if not found:
        return
    places = np.log2([one.coding.coarseness for one in found])
    for middle in np.arange(np.floor(places.min()), np.ceil(places.max()) + APART / 2, APART):
        near = [one for place, one in zip(places, found, strict=True) if abs(place - middle) <= NEAR]
        if len(near) >= NEAR_LEAST:
            yield round(float(2**middle), 4), near


def strength_table(found: Sequence[Seen]) -> Table:
    """Steps and strengths. Finer than all steps nothing is added."""
    rows = [[step, best_strength([one.gains for one in near])] for step, near in _near(found)]
    return [[rows[0][0] / 2 if rows else 1.0, 0.0], *rows]


def interval_table(found: Sequence[Seen], strengths: Table) -> Table:
    """Steps, and the factors of the expected error for the image as it is and for the enhanced one."""
    rows = []
    for step, near in _near(found):
        (strength,) = at_step(np.array(strengths, np.float32), step)
        ratios = [
            np.concatenate(
                [np.abs(one.missing - share * one.added) / np.maximum(one.expected, ERROR_LEAST) for one in near]
            )
            for share in (0.0, strength)
        ]
        rows.append([step, *(round(float(np.quantile(ratio, INTERVAL)), 4) for ratio in ratios)])
    return rows


def _coded(crops: list[Pixels]) -> Iterator[tuple[str, Pixels, Coded]]:
    for crop in crops:
        yield from ((JPEG2000, crop, by_jpeg2000(crop, rate)) for rate in RATES)
        yield from ((JPEG, crop, by_jpeg(crop, quality, 2)) for quality in QUALITIES)
        yield from ((PERIGEE, crop, by_stream(crop, quality)) for quality in STREAM_QUALITIES)


def _coded_bands(rasters: Sequence[Raster]) -> Iterator[tuple[FloatArray, FloatArray, Coding]]:
    for raster in rasters:
        _, rows, cols = raster.samples.shape
        side = min(SIDE, rows, cols) // UNIT * UNIT
        top, left = (rows - side) // 2, (cols - side) // 2
        for first in range(0, len(raster.samples) - COLOURS + 1, COLOURS):
            bands = np.s_[first : first + COLOURS]
            scale = BandScale.of(raster.samples[bands])
            window = np.ascontiguousarray(raster.samples[bands, top : top + side, left : left + side])
            yield from (by_jpeg2000_bands(window, scale, decibels) for decibels in BANDS_DB)


def fitted(
    enhancer: Enhancer, images: ImageSet, rasters: Sequence[Raster] = (), seed: int = 1
) -> tuple[dict[str, Table], dict[str, Table]]:
    """By codec a table of steps in grey levels and strengths, of JPEG 2000 one for rough images and one for all others, and one for bands where
    there are ``rasters``; and by codec a table of steps and factors of the intervals. ``unknown`` has the smallest of all strengths."""
    rng = np.random.default_rng(seed)
    crops = []
    for image in images.images:
        if large_enough(image):
            top, left = (int(rng.integers(0, n - SIDE + 1)) for n in image.shape[:2])
            crops.append(np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE]))
    found = [seen_of(enhancer, name, crop, one.decoded, one.coding) for name, crop, one in _coded(crops)]
    fitting = [r for r in rasters if min(r.samples.shape[1:]) >= BANDS_SIDE_LEAST and len(r.samples) >= COLOURS]
    found += [seen_of(enhancer, JPEG2000 + BANDS, *one) for one in _coded_bands(fitting)]

    def rough(one: Seen) -> bool:
        return one.name == JPEG2000 and is_rough(one.coding.bits_per_pixel, one.coding.coarseness)

    groups = {name: [one for one in found if one.name == name] for name in (JPEG2000, JPEG, PERIGEE, JPEG2000 + BANDS)}
    out = {name: strength_table([one for one in group if not rough(one)]) for name, group in groups.items() if group}
    out[JPEG2000 + ROUGHER] = strength_table([one for one in found if rough(one)])
    intervals = {name: interval_table(group, out[name]) for name, group in groups.items() if group}
    grid = [row[0] for row in out[JPEG2000]]
    files = [np.array(out[name], np.float32) for name in (JPEG2000, JPEG2000 + ROUGHER, JPEG)]
    unknown = [[step, min(at_step(table, step)[0] for table in files)] for step in grid]
    return out | {UNKNOWN: unknown}, {name: table for name, table in intervals.items() if table}
