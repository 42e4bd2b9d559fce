"""A stream as a rasterio dataset: GDAL reads its virtual GeoTIFF through an opener, and decodes no tile before it needs it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import rasterio
from rasterio.abc import FileContainer
from rasterio.io import DatasetReader

from perigee.ground.library import Library
from perigee.ground.orders import FAST, FULL, Order, open_source
from perigee.ground.tiles import CACHE_BYTES, Cache
from perigee.ground.virtual import VirtualFile, VirtualTiff


def virtual_tiff(
    data: bytes,
    library: Library,
    order: Order | None = None,
    cache: Cache | None = None,
    owner: object = None,
    samples_most: int | None = None,
) -> VirtualTiff:
    """A stream as a virtual GeoTIFF; overviews of what is not compensated are quick looks, made of ``samples_most`` samples a tile.

    Raises what ``orders.open_source`` raises, MetadataError for a CRS that the order refuses, and OutputError.
    """
    order = order or Order()
    source = open_source(order, data, library)
    quick = Order(damaged=order.damaged, effort=FAST)
    overview = open_source(quick, data, library) if order.compensation == "none" and order.effort == FULL else source
    return VirtualTiff(source, overview, order.unknown_crs, cache, owner, samples_most)


class _Container(FileContainer):  # type: ignore[misc]
    """A file system that holds one virtual GeoTIFF."""

    def __init__(self, name: str, tiff: VirtualTiff) -> None:
        self._name, self._tiff = name, tiff

    def open(self, path: str, mode: str = "r", **_: Any) -> VirtualFile:
        """The file; FileNotFoundError for any other."""
        if not self.isfile(path):
            raise FileNotFoundError(path)
        return VirtualFile(self._tiff)

    def isfile(self, path: str) -> bool:
        """Whether it is the one."""
        return Path(path).name == self._name

    def isdir(self, path: str) -> bool:
        """Nothing is."""
        return False

    def ls(self, path: str) -> list[str]:
        """The one file."""
        return [self._name]

    def mtime(self, path: str) -> int:
        """Always the same: its content does not change."""
        return 0

    def rm(self, path: str) -> None:
        """Refused."""
        raise PermissionError(path)

    def size(self, path: str) -> int:
        """In bytes, none of which needs to exist."""
        return self._tiff.size


def open_dataset(data: bytes, order: Order, library: Library, cache_bytes: int = CACHE_BYTES) -> DatasetReader:
    """A stream as an open rasterio dataset that keeps so many bytes of what it decoded. Raises what :func:`virtual_tiff` raises."""
    tiff = virtual_tiff(data, library, order, Cache(cache_bytes))
    name = f"perigee-{uuid.uuid4().hex}.tif"
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        return rasterio.open(name, opener=_Container(name, tiff), driver="GTiff")
