"""What of an image is wanted: a region, bands and a reduction; and the reduction of a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from perigee.bitstream.errors import OrderError
from perigee.ground.regions import Region
from perigee.ground.source import Decoded, ImageSource, Progress

SCALES = (1, 2, 4, 8, 16)
QUICK_PX = 2048  # pixels of the source on the side of what a quick look reduces at once


@runtime_checkable
class Reducing(Protocol):
    """An image source that can give a reduced image without making the whole one."""

    @property
    def reduces(self) -> bool: ...

    def reduced(self, region: Region, bands: Sequence[int], factor: int) -> Decoded: ...


@dataclass(frozen=True)
class View:
    """What of a scene is wanted: a pixel region, bands (from 0), and a reduction factor."""

    region: Region
    bands: tuple[int, ...]
    reduction: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return -(-self.region.rows // self.reduction), -(-self.region.cols // self.reduction)


@dataclass(frozen=True)
class Layout:
    """Where the bands of a product stand, from 0: ``places`` those of the view, ``alpha`` the alpha band or None."""

    places: tuple[int, ...]
    alpha: int | None

    @property
    def count(self) -> int:
        """How many bands the product has."""
        return len(self.places) + (self.alpha is not None)


def layout_of(source: ImageSource, view: View) -> Layout:
    """The source's alpha band keeps its place, or comes last where bands were chosen that leave that place beyond the end."""
    alpha = source.metadata.alpha_band
    if alpha is None:
        return Layout(tuple(range(len(view.bands))), None)
    place = min(alpha, len(view.bands))
    return Layout(tuple(i + (i >= place) for i in range(len(view.bands))), place)


def view_of(
    source: ImageSource, window: Region | None = None, bands: Sequence[int] | None = None, reduction: int = 1
) -> View:
    """A checked view; everything by default. ``bands`` counts from 1, as operators do. Raises OrderError."""
    h = source
    region = window or Region(0, 0, h.height, h.width)
    if region.rows < 1 or region.cols < 1 or region.top < 0 or region.left < 0:
        raise OrderError(
            f"window {tuple(region)}: top and left from 0, rows and columns from 1",
            field="window",
            found=str(tuple(region)),
        )
    if region.top + region.rows > h.height or region.left + region.cols > h.width:
        raise OrderError(
            f"window {tuple(region)} leaves the scene of {h.height} rows and {h.width} columns",
            field="window",
            expected=f"within {h.height} rows and {h.width} columns",
            found=str(tuple(region)),
        )
    wrong = [b for b in bands or [] if not 1 <= b <= h.bands]
    if wrong or (bands is not None and (not bands or len(set(bands)) < len(bands))):
        raise OrderError(
            f"bands {bands}: accepted are different numbers from 1 to {h.bands}",
            field="bands",
            expected=f"different numbers from 1 to {h.bands}",
            found=str(bands),
        )
    if reduction not in SCALES:
        raise OrderError(
            f"scale 1/{reduction}: accepted are " + ", ".join(f"1/{s}" for s in SCALES),
            field="scale",
            expected=", ".join(f"1/{s}" for s in SCALES),
            found=f"1/{reduction}",
        )
    return View(region, tuple(range(h.bands)) if bands is None else tuple(b - 1 for b in bands), reduction)


def blocks_of(source: ImageSource, view: View, progress: Progress | None = None) -> Iterator[tuple[Region, Decoded]]:
    """The view's blocks, reduced, each with the place in the product at which it belongs.

    ``progress`` is told how many of the source's pixels have been taken by whoever reads the blocks.
    """
    f, done = view.reduction, 0
    if f > 1 and isinstance(source, Reducing) and source.reduces and view.region.top % f == view.region.left % f == 0:
        side = QUICK_PX
        for row in range(0, view.region.rows, side):
            for col in range(0, view.region.cols, side):
                rows, cols = min(side, view.region.rows - row), min(side, view.region.cols - col)
                block = source.reduced(Region(view.region.top + row, view.region.left + col, rows, cols), view.bands, f)
                yield Region(row // f, col // f, *block.samples.shape[1:]), block
                done += rows * cols
                if progress:
                    progress(done, view.region.pixels)
        return
    for region, block in source.blocks(view.region, list(view.bands)):
        reduced = reduce_block(source, block, f)
        top, left = (region.top - view.region.top) // f, (region.left - view.region.left) // f
        yield Region(top, left, *reduced.samples.shape[1:]), reduced
        done += region.pixels
        if progress:
            progress(done, view.region.pixels)


def reduce_block(source: ImageSource, block: Decoded, factor: int) -> Decoded:
    """Mean over factor x factor pixels of the valid samples; a pixel is valid where any of its samples was. Of classes the first pixel is
    taken."""
    if factor == 1:
        return block
    if source.metadata.palette:
        return Decoded(block.samples[:, ::factor, ::factor], block.valid[:, ::factor, ::factor], None)
    bands, rows, cols = block.samples.shape
    pad = ((0, 0), (0, -rows % factor), (0, -cols % factor))
    shape = (bands, -(-rows // factor), factor, -(-cols // factor), factor)
    weight = np.pad(block.valid, pad).reshape(shape)
    count = weight.sum((2, 4))
    total = np.pad(np.where(block.valid, block.samples, 0).astype(np.float64), pad).reshape(shape).sum((2, 4))
    mean = total / np.maximum(count, 1)
    mean = (mean if block.samples.dtype.kind == "f" else np.rint(mean)).astype(block.samples.dtype)
    valid = count > 0
    source.settle(mean, valid)
    alpha = None
    if block.alpha is not None:
        alpha = np.pad(block.alpha, pad[1:]).reshape(shape[1:]).max((1, 3))
    return Decoded(mean, valid, alpha)
