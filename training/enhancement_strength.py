"""How much of what an enhancer adds is taken, by codec and rate: found on images that were held out of the training.

An enhancer should never make an image worse. At each rate the strength is the one that gains most among those that harm next to no
image, and none where the gain is not worth having.
"""

from __future__ import annotations

import numpy as np
import torch

from perigee.bitstream.conditions import coding_condition
from perigee.models.enhancement.prior import TOKEN, Enhancer
from perigee.training.data import ImageSet, Pixels
from perigee.training.degraded import by_jpeg, by_jpeg2000

SIDE = 256
RATES = (0.06, 0.1, 0.16, 0.25, 0.4, 0.6, 1.0, 1.5, 2.2, 3.0, 4.0)  # bits per pixel of JPEG 2000
QUALITIES = (10, 20, 30, 45, 60, 75, 85, 92, 96)  # of JPEG
STRENGTHS = np.round(np.arange(0, 1.01, 0.1), 1)
HARM_DB, HARMED_SHARE = 0.02, 0.01  # an image that loses more is harmed; so many may be
GAIN_DB = 0.03  # the least median gain for which anything is added
Table = list[list[float]]


def large_enough(image: Pixels) -> bool:
    """Whether strengths can be fitted on an image."""
    return bool(min(image.shape[:2]) >= SIDE)


def gains(enhancer: Enhancer, original: Pixels, decoded: Pixels, codec: str, bits_per_pixel: float) -> list[float]:
    """The gain in dB at each of ``STRENGTHS``, after rounding to uint8, of an image of 256x256 pixels."""
    image = torch.from_numpy(decoded.transpose(2, 0, 1).copy())[None].float() / 255
    condition = torch.tensor([coding_condition(bits_per_pixel, codec)])
    noise = torch.randn(1, enhancer.tokens, SIDE // TOKEN, SIDE // TOKEN)
    with torch.no_grad():
        added = enhancer(image, condition, noise=noise)[0].numpy().transpose(1, 2, 0) * 255
    error = float(np.square(decoded.astype(np.float32) - original).mean())
    found = []
    for strength in STRENGTHS:
        better = np.rint(np.clip(decoded + strength * added, 0, 255))
        found.append(10 * float(np.log10(error / max(float(np.square(better - original).mean()), 1e-9))))
    return found


def best_strength(found: list[list[float]]) -> float:
    """The strength for the gains [image][strength] of one rate."""
    table = np.array(found)
    harmed = (table < -HARM_DB).mean(0)
    medians = np.where(harmed <= HARMED_SHARE, np.median(table, axis=0), -np.inf)
    best = int(medians.argmax())
    return float(STRENGTHS[best]) if medians[best] >= GAIN_DB else 0.0


def fitted_strengths(enhancer: Enhancer, images: ImageSet, seed: int = 1) -> dict[str, Table]:
    """By codec a table of bits per pixel and strength. ``unknown`` has the smaller of both codecs' strengths."""
    rng = np.random.default_rng(seed)
    crops = []
    for image in images.images:
        if large_enough(image):
            top, left = (int(rng.integers(0, n - SIDE + 1)) for n in image.shape[:2])
            crops.append(np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE]))
    out: dict[str, Table] = {"jpeg2000": [], "jpeg": []}
    for rate in RATES:
        decoded = [by_jpeg2000(crop, rate) for crop in crops]
        out["jpeg2000"].append(_row(enhancer, crops, decoded, "jpeg2000"))
    for quality in QUALITIES:
        out["jpeg"].append(_row(enhancer, crops, [by_jpeg(crop, quality, 2) for crop in crops], "jpeg"))
    grid = [row[0] for row in out["jpeg2000"]]
    both = [[float(np.interp(x, *np.array(table).T)) for x in grid] for table in out.values()]
    return out | {"unknown": [[x, min(pair)] for x, *pair in zip(grid, *both, strict=True)]}


def _row(enhancer: Enhancer, crops: list[Pixels], decoded: list[tuple[Pixels, float]], codec: str) -> list[float]:
    found = [
        gains(enhancer, original, image, codec, bits) for original, (image, bits) in zip(crops, decoded, strict=True)
    ]
    return [round(float(np.median([bits for _, bits in decoded])), 4), best_strength(found)]
