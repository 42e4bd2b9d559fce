"""Pictures of scenes for a browser: PNG of one or three bands, stretched to 8 bits, transparent where there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np

from perigee.bitstream.arrays import BoolArray, FloatArray
from perigee.bitstream.errors import OrderError
from perigee.ground.regions import Region
from perigee.ground.service.scenes import Opened
from perigee.ground.source import Decoded, Trusted

STRETCH = (2.0, 98.0)  # percentiles that become black and white where a scene is not of 8 bits
TRUST_FULL = 0.08  # half width, as a share of the range, from which on the overlay has its full colour
TRUST_COLOUR, CHANGED_COLOUR = (214, 39, 40), (31, 119, 180)
OPACITY = 200


def shown_bands(scene: Opened, bands: Sequence[int] | None) -> list[int]:
    """Bands from 0 that are shown: the chosen ones, counted from 1, else the first three, or the first. Raises OrderError."""
    count = scene.source.bands
    if bands is None:
        return [0, 1, 2] if count >= 3 else [0]
    if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
        wanted = f"one or three numbers from 1 to {count}"
        raise OrderError(
            f"bands={list(bands)}: expected {wanted}", field="bands", expected=wanted, found=str(list(bands))
        )
    return [band - 1 for band in bands]


def statistics(scene: Opened) -> list[dict[str, Any]]:
    """For each band two percentiles, least and largest value of its valid samples in the smallest overview; None where it has none."""
    tiles = scene.tiff.tiles
    block = tiles.tile(len(tiles.levels) - 1, 0, 0)
    out: list[dict[str, Any]] = []
    for band in range(scene.source.bands):
        values = block.samples[band][block.valid[band]].astype(np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            out.append({"band": band + 1, "low": None, "high": None, "min": None, "max": None})
            continue
        low, high = np.percentile(values, STRETCH)
        out.append(
            {
                "band": band + 1,
                "low": float(low),
                "high": float(high),
                "min": float(values.min()),
                "max": float(values.max()),
            }
        )
    return out


def limits_of(
    scene: Opened, bands: Sequence[int], low: Sequence[float] | None, high: Sequence[float] | None
) -> FloatArray:
    """What becomes black and white, float [band, 2]: as asked for, else 0 and 255 of 8 bits and percentiles of other scenes. Raises OrderError."""
    for name, values in (("low", low), ("high", high)):
        if values is not None and len(values) not in (1, len(bands)):
            wanted = f"one number, or {len(bands)}"
            raise OrderError(
                f"{name}={list(values)}: expected {wanted}", field=name, expected=wanted, found=str(list(values))
            )
    ends = np.array([[0.0, 255.0]] * len(bands))
    if scene.source.dtype != "uint8" and (low is None or high is None):
        found = statistics(scene)
        ends = np.array([[0.0, 1.0] if found[b]["low"] is None else [found[b]["low"], found[b]["high"]] for b in bands])
    for place, values in enumerate((low, high)):
        if values is not None:
            ends[:, place] = values
    return np.asarray(ends, np.float32)


def picture(scene: Opened, block: Decoded, bands: Sequence[int], ends: FloatArray, side: int | None = None) -> bytes:
    """A PNG of a block; with ``side`` a square of so many pixels, transparent beyond the block."""
    palette = scene.source.metadata.palette
    samples = block.samples[list(bands)]
    if palette and list(bands) == [0]:
        table = np.frombuffer(palette, np.uint8).reshape(-1, 3)
        colours = table[np.minimum(samples[0], len(table) - 1)].transpose(2, 0, 1)
    else:
        low, high = ends[:, 0, None, None], ends[:, 1, None, None]
        scaled = (np.nan_to_num(samples.astype(np.float32)) - low) / np.maximum(high - low, 1e-9)
        colours = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    colours = np.broadcast_to(colours, (3, *colours.shape[1:]))
    opacity = block.opacity(scene.source.metadata.nbits)
    most = 1 if opacity.dtype.kind == "f" else np.iinfo(opacity.dtype).max
    shown = block.valid[list(bands)].all(0) & np.isfinite(samples).all(0)
    alpha = np.where(shown, np.rint(opacity * (255 / most)), 0).astype(np.uint8)
    return _png(np.concatenate([colours, alpha[None]]), side)


def trust_picture(scene: Opened, region: Region, valid: BoolArray, side: int) -> bytes:
    """A PNG of a square tile that lies over a picture at full size: the stronger its colour, the wider the 90 % interval; red where the image was
    changed, blue where it was not. Raises OrderError or CompensationError where nothing is known of the errors."""
    source = scene.source
    if not isinstance(source, Trusted):
        raise OrderError(
            "how far to trust an image is told by what estimates it: ask for compensation", field="compensation"
        )
    source.check_interval()
    with scene.tiff.tiles.alone():
        share = np.clip(source.half_width(0, region) / TRUST_FULL, 0, 1)
        changed = source.generated_in(0, region)
    share *= valid
    colours = np.empty((4, region.rows, region.cols), np.uint8)
    for number in range(3):
        colours[number] = np.where(changed, TRUST_COLOUR[number], CHANGED_COLOUR[number])
    colours[3] = np.rint(share * OPACITY).astype(np.uint8)
    return _png(colours, side)


def _png(planes: np.ndarray, side: int | None) -> bytes:
    if planes.shape[1:] == (1, 1):  # which the encoder refuses
        planes = planes.repeat(2, 1).repeat(2, 2)
    if side is not None:
        planes = np.pad(planes, ((0, 0), (0, side - planes.shape[1]), (0, side - planes.shape[2])))
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(planes.transpose(1, 2, 0)), level=1))
