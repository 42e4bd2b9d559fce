"""How an order about an image of another codec is made: one way for the command and the service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.conditions import FILE_CODECS
from perigee.bitstream.errors import OrderError
from perigee.engines.jpeg_cells import cells_of_file
from perigee.ground.coded_file import CodedFile
from perigee.ground.enhancement import EnhancedSource
from perigee.ground.georeference import usable_crs
from perigee.ground.library import Library
from perigee.ground.orders import IMAGE, STAC, TRUST, Order, OrderLimits, check_size
from perigee.ground.products import check_png, check_trust, compressing, png_view, write_cog, write_png, write_trust
from perigee.ground.regions import Region
from perigee.ground.source import Progress
from perigee.ground.stac import stac_item
from perigee.ground.views import View
from perigee.support.files import replacing, write_atomically

BPP_MOST = 128


@dataclass(frozen=True)
class Wish:
    """An image of another codec, and how it was coded where its file does not tell, or not truly. Raises OrderError."""

    codec: str | None = None
    bits_per_pixel: float | None = None

    def __post_init__(self) -> None:
        if self.codec not in (None, *FILE_CODECS):
            accepted = ", ".join(FILE_CODECS)
            raise OrderError(
                f"codec={self.codec}: accepted are {accepted}", field="codec", expected=accepted, found=self.codec
            )
        if self.bits_per_pixel is not None and not 0 < self.bits_per_pixel <= BPP_MOST:
            raise OrderError(
                f"bpp={self.bits_per_pixel:g}: accepted is more than 0 and at most {BPP_MOST}",
                field="bpp",
                expected=f"above 0, at most {BPP_MOST}",
                found=self.bits_per_pixel,
            )


def open_enhanced(path: Path, order: Order, wish: Wish, library: Library) -> EnhancedSource:
    """An image file as an image source that is enhanced.

    Raises RasterError for a file that is no such image, CompensationError, EngineError and OSError.
    """
    enhancer = library.enhancer(order.compensation)
    file = CodedFile(path)
    coding = file.coding
    if wish.codec is not None:
        coding = replace(coding, codec=wish.codec, reversible=False, step=None)
    if wish.bits_per_pixel is not None:
        coding = replace(coding, bits_per_pixel=wish.bits_per_pixel, step=None)
    cells = cells_of_file(path)

    def held(image: FloatArray, added: FloatArray, place: Region) -> FloatArray:
        return added if cells is None else cells.held(image, added, place.rows, place.cols)

    hold = None if cells is None else held
    return EnhancedSource(file, enhancer, coding, order.strength, order.seed, hold, file.overview)


def make_enhanced(
    source: EnhancedSource,
    order: Order,
    paths: Mapping[str, Path],
    threads: int | None = None,
    limits: OrderLimits | None = None,
    progress: Progress | None = None,
) -> View:
    """Write the order's products, each whole or not at all, at ``paths`` (by product), and return what of the image they hold.

    Raises OrderError for what this image does not have, CompensationError where its errors are wanted and not known, TooLargeError,
    RasterError, OutputError and OSError.
    """
    view = order.view(source)
    check_size(view, limits or OrderLimits())
    trusted = check_trust(source, view) if TRUST in order.products else None
    if order.format == "png":
        check_png(source)
        view = png_view(view)
    usable_crs(source.metadata, order.unknown_crs)
    if IMAGE in order.products:
        with compressing(threads, view), replacing(paths[IMAGE]) as temporary:
            (write_png if order.format == "png" else write_cog)(temporary, source, view, progress, order.unknown_crs)
    if trusted is not None:
        with compressing(threads, view), replacing(paths[TRUST]) as temporary:
            write_trust(temporary, trusted, view, progress, order.unknown_crs)
    if STAC in order.products:
        item = stac_item(source, view, paths[IMAGE], paths.get(TRUST))
        write_atomically(paths[STAC], (json.dumps(item, indent=1) + "\n").encode())
    return view
