"""``xarray.open_dataset("scene.peri")``: a stream as a lazy xarray dataset. xarray finds this module by its entry point."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray
from xarray.backends import BackendArray, BackendEntrypoint, CachingFileManager
from xarray.backends.locks import SerializableLock
from xarray.core import indexing

import perigee

SUFFIX = ".peri"


class _Pixels(BackendArray):
    """The bands of a dataset, read when they are indexed: by one thread at a time, and opened again in another process."""

    def __init__(self, manager: CachingFileManager[Any]) -> None:
        self._manager, self._lock = manager, SerializableLock()
        dataset = manager.acquire()
        self.shape, self.dtype = (dataset.count, dataset.height, dataset.width), np.dtype(dataset.dtypes[0])

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        """What lies within the bounds of the key is decoded, and then indexed."""
        bands, rows, cols = (np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True))
        squeezed = tuple(
            0 if np.ndim(np.arange(n)[k]) == 0 else slice(None) for n, k in zip(self.shape, key, strict=True)
        )
        if not (bands.size and rows.size and cols.size):
            return np.empty((bands.size, rows.size, cols.size), self.dtype)[squeezed]
        window = ((int(rows.min()), int(rows.max()) + 1), (int(cols.min()), int(cols.max()) + 1))
        with self._lock:
            samples = self._manager.acquire().read((bands + 1).tolist(), window=window)
        return samples[np.ix_(np.arange(bands.size), rows - rows.min(), cols - cols.min())][squeezed]


class PerigeeBackend(BackendEntrypoint):
    """Opens ``.peri`` files; ``band_data`` has the dimensions band, y and x, with the coordinates of pixel centres where there is a transform.

    The keyword arguments of :func:`perigee.open` go with ``open_dataset``.
    """

    description = "Perigee streams, decoded where they are read"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "damaged",
        "compensation",
        "steps",
        "seed",
        "strength",
        "profiles",
        "threads",
    )

    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, **options: Any
    ) -> xarray.Dataset:
        """The stream as a dataset. Raises what :func:`perigee.open` raises."""
        manager = CachingFileManager(perigee.open, os.path.abspath(os.fspath(filename_or_obj)), kwargs=options)
        dataset = manager.acquire()
        data = xarray.Variable(("band", "y", "x"), indexing.LazilyIndexedArray(_Pixels(manager)), dataset.tags())
        if dataset.nodata is not None:
            data.attrs["_FillValue"] = dataset.nodata
        coordinates: dict[str, Any] = {"band": np.arange(1, dataset.count + 1)}
        if any(dataset.descriptions):
            coordinates["band_name"] = ("band", [name or "" for name in dataset.descriptions])
        transform = dataset.transform
        if transform.b == transform.d == 0 and not transform.is_identity:
            coordinates["x"] = transform.c + transform.a * (np.arange(dataset.width) + 0.5)
            coordinates["y"] = transform.f + transform.e * (np.arange(dataset.height) + 0.5)
        if dataset.crs:
            place = {"crs_wkt": dataset.crs.to_wkt(), "GeoTransform": " ".join(str(v) for v in transform.to_gdal())}
            coordinates["spatial_ref"] = xarray.Variable((), 0, place)
            data.attrs["grid_mapping"] = "spatial_ref"
        out = xarray.Dataset({"band_data": data}, coordinates)
        out.set_close(manager.close)
        return out.drop_vars([] if drop_variables is None else drop_variables)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name ends as a stream's does."""
        return isinstance(filename_or_obj, (str, os.PathLike)) and os.fspath(filename_or_obj).endswith(SUFFIX)
