"""How much of what an enhancer adds is taken, by codec and quantisation step: found on images that were held out of the training.

An enhancer should never make an image worse. At each step the strength is the one that gains most among those that harm next to no
image, and none where the gain is not worth having.
"""

from __future__ import annotations

import numpy as np
import torch

from perigee.bitstream.conditions import is_rough
from perigee.engines.coding import JPEG, JPEG2000
from perigee.engines.enhancer import ROUGHER
from perigee.models.enhancement.prior import TOKEN, Enhancer
from perigee.training.data import ImageSet, Pixels
from perigee.training.degraded import Coded, by_jpeg, by_jpeg2000

SIDE = 256
RATES = (0.06, 0.1, 0.16, 0.25, 0.4, 0.6, 1.0, 1.5, 2.2, 3.0, 4.0)  # bits per pixel of JPEG 2000
QUALITIES = (10, 20, 30, 45, 60, 75, 85, 92, 96)  # of JPEG
STRENGTHS = np.round(np.arange(0, 1.01, 0.1), 1)
HARM_DB, HARMED_SHARE = 0.02, 0.01  # an image that loses more is harmed; so many may be
GAIN_DB = 0.03  # the least median gain for which anything is added
# Octaves between the steps of a table, how far an image may be from one, and how many must be near
APART, NEAR, NEAR_LEAST = 0.5, 0.5, 12
Table = list[list[float]]


def large_enough(image: Pixels) -> bool:
    """Whether strengths can be fitted on an image."""
    return bool(min(image.shape[:2]) >= SIDE)


def gains(enhancer: Enhancer, original: Pixels, coded: Coded) -> list[float]:
    """The gain in dB at each of ``STRENGTHS``, after rounding to uint8, of an image of 256x256 pixels."""
    image = torch.from_numpy(coded.decoded.transpose(2, 0, 1).copy())[None].float() / 255
    condition = torch.tensor([coded.coding.condition])
    noise = torch.randn(1, enhancer.tokens, SIDE // TOKEN, SIDE // TOKEN)
    with torch.no_grad():
        added = enhancer(image, condition, noise=noise)[0].numpy().transpose(1, 2, 0) * 255
    error = float(np.square(coded.decoded.astype(np.float32) - original).mean())
    found = []
    for strength in STRENGTHS:
        better = np.rint(np.clip(coded.decoded + strength * added, 0, 255))
        found.append(10 * float(np.log10(max(error, 1e-9) / max(float(np.square(better - original).mean()), 1e-9))))
    return found


def best_strength(found: list[list[float]]) -> float:
    """The strength for the gains [image][strength] about one step."""
    table = np.array(found)
    harmed = (table < -HARM_DB).mean(0)
    medians = np.where(harmed <= HARMED_SHARE, np.median(table, axis=0), -np.inf)
    best = int(medians.argmax())
    return float(STRENGTHS[best]) if medians[best] >= GAIN_DB else 0.0


def table_of(found: list[tuple[float, list[float]]]) -> Table:
    """Steps and strengths for pairs of an image's step and its gains at each of ``STRENGTHS``. Finer than all of them nothing is added."""
    if not found:
        return [[1.0, 0.0]]
    places = np.log2([step for step, _ in found])
    rows = []
    for middle in np.arange(np.floor(places.min()), np.ceil(places.max()) + APART / 2, APART):
        near = [gains for place, (_, gains) in zip(places, found, strict=True) if abs(place - middle) <= NEAR]
        if len(near) >= NEAR_LEAST:
            rows.append([round(float(2**middle), 4), best_strength(near)])
    finest = rows[0][0] / 2 if rows else 1.0
    return [[finest, 0.0], *rows]


def fitted_strengths(enhancer: Enhancer, images: ImageSet, seed: int = 1) -> dict[str, Table]:
    """By codec a table of steps in grey levels and strengths, of JPEG 2000 one for rough images and one for all others. ``unknown`` has the
    smallest of all strengths."""
    rng = np.random.default_rng(seed)
    crops = []
    for image in images.images:
        if large_enough(image):
            top, left = (int(rng.integers(0, n - SIDE + 1)) for n in image.shape[:2])
            crops.append(np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE]))
    coded = {
        JPEG2000: [(crop, by_jpeg2000(crop, rate)) for crop in crops for rate in RATES],
        JPEG: [(crop, by_jpeg(crop, quality, 2)) for crop in crops for quality in QUALITIES],
    }
    found = {name: [(one.coding, gains(enhancer, crop, one)) for crop, one in pairs] for name, pairs in coded.items()}
    groups: dict[str, list[tuple[float, list[float]]]] = {JPEG2000: [], JPEG2000 + ROUGHER: [], JPEG: []}
    for name, pairs in found.items():
        for coding, gain in pairs:
            rough = name == JPEG2000 and is_rough(coding.bits_per_pixel, coding.coarseness)
            groups[name + ROUGHER if rough else name].append((coding.coarseness, gain))
    out = {name: table_of(group) for name, group in groups.items()}
    grid = [row[0] for row in out[JPEG2000]]
    both = [
        [float(np.interp(np.log2(x), np.log2(t[:, 0]), t[:, 1])) for x in grid] for t in map(np.array, out.values())
    ]
    return out | {"unknown": [[x, min(pair)] for x, *pair in zip(grid, *both, strict=True)]}
