"""Perigee: a learned image codec for satellites.

:func:`encode` and :func:`decode` turn images into streams and back, :func:`open` opens a stream as a dataset that decodes what is read, and
:func:`inspect` looks at a stream without decoding it.
Each imports only what it needs: encoding the packages of the extra ``onboard``, decoding those of ``ground``. The commands
``onboard-encode`` and ``ground-decode`` do the same for files, with progress, atomic output and georeferenced products.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasterio.io import DatasetReader

    from perigee.bitstream.arrays import BoolArray, Samples
    from perigee.bitstream.metadata import Acquisition, Metadata
    from perigee.bitstream.records import RecordsOfScene
    from perigee.ground.library import Library
    from perigee.ground.source import Report
    from perigee.onboard.bounded_encoder import ErrorBounds
    from perigee.onboard.encoders import Encoders
    from perigee.onboard.source import Source

__version__ = "0.7.0"
__all__ = ["Image", "decode", "encode", "inspect", "open"]


@dataclass(frozen=True)
class Image:
    """A decoded image.

    ``samples`` are uint8, uint16, int16 or float32 [band, row, col]; ``valid`` is bool of the same shape and False where the scene has no
    data; ``alpha`` [row, col] is of the samples' type, None where the scene has no alpha band. ``metadata`` are those of the whole
    scene, whichever part of it was decoded. ``report`` tells what a cut or damaged stream could not give, ``tags`` where the pixels
    come from. ``records`` are those that came with the lines of the whole scene, None where none did.
    """

    samples: Samples
    valid: BoolArray
    alpha: Samples | None
    metadata: Metadata
    report: Report
    tags: dict[str, str]
    records: RecordsOfScene | None = None


def encode(
    image: Samples | str | Path,
    quality: float = 50.0,
    profile: str | Path = "auto",
    metadata: Metadata | Acquisition | str | Path | None = None,
    *,
    valid: BoolArray | None = None,
    max_error: float | Sequence[float] | None = None,
    max_relative_error: float | None = None,
    analysis: str | None = None,
    threads: int | None = None,
) -> bytes:
    """Encode an image as a complete stream, as the satellite does.

    ``image`` is an array, uint8, uint16, int16 or float32 [band, row, col] or [row, col], or the path of a GeoTIFF. Samples of float32
    need a bound of the error. ``quality`` is 0 to 100, continuous. ``profile`` names a shipped profile or a folder that holds one; ``auto``
    takes ``flight3`` for three bands of uint8 and ``spectral1`` for everything else. ``metadata`` of an array may be a whole
    :class:`~perigee.bitstream.metadata.Metadata`; of either kind of image acquisition fields, or the path of a STAC item or JSON
    sidecar that has them. ``valid`` marks the samples of an array that mean something, bool [band, row, col] or [row, col].
    ``max_error`` promises instead of a quality that no valid sample is further off than so many counts, of float32 than so much, for all
    bands or for each (0 is lossless); ``max_relative_error`` that it is within so many percent of itself. ``analysis`` is one of
    the profile's, ``threads`` the number of CPU threads (None: all cores).

    What a GeoTIFF has and a stream cannot carry is told by a warning.

    Raises ValueError for a quality or bound outside its range, RasterError for an image that cannot be coded, MetadataError, ProfileError,
    EngineError, OSError where a file cannot be read, and ModuleNotFoundError, which names the extra to install, where a package is
    missing.
    """
    with _extra("onboard"):
        from perigee.bitstream.metadata import Acquisition, Metadata
        from perigee.onboard.acquisition import read_acquisition
        from perigee.onboard.raster import Raster
        from perigee.onboard.source import ArraySource
        from perigee.support.files import check_regular

    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality}: accepted are 0 to 100")
    bounds = _bounds(max_error, max_relative_error)
    encoders = _encoders(str(profile), analysis, threads)
    acquisition = metadata if isinstance(metadata, Acquisition) else None
    if isinstance(metadata, (str, Path)):
        acquisition = read_acquisition(Path(metadata))
    whole = metadata if isinstance(metadata, Metadata) else None
    if not isinstance(image, (str, Path)):
        return _stream(encoders, ArraySource(image, whole, valid), quality, acquisition, bounds)
    if whole is not None or valid is not None:
        raise ValueError("a GeoTIFF brings its own metadata and validity; only acquisition fields can be added")
    check_regular(Path(image))
    with Raster(Path(image)) as raster:
        data = _stream(encoders, raster, quality, acquisition, bounds)
        for line in raster.left_behind:
            warnings.warn(f"{image}: not carried: {line}", stacklevel=2)
        return data


def decode(
    stream: bytes | str | Path,
    window: Sequence[int] | None = None,
    bands: Sequence[int] | None = None,
    scale: str = "1",
    *,
    damaged: bool = False,
    compensation: str = "none",
    steps: int | None = None,
    seed: int = 0,
    strength: float = 1.0,
    profiles: Sequence[str | Path] = (),
    threads: int | None = None,
) -> Image:
    """Decode a stream, or a part of it, into memory.

    ``stream`` is its bytes or the path of a ``.peri`` file. ``window`` is top, left, rows and columns in pixels; ``bands`` count from
    1; ``scale`` is 1, 1/2, 1/4, 1/8 or 1/16. ``damaged`` decodes what is sound of a damaged stream. ``compensation`` adds generated
    detail by the compensator ``NAME`` or ``NAME:METHOD``, in so many diffusion ``steps``, with a ``seed`` and a ``strength`` of 0
    to 1. ``profiles`` are folders with more profiles or compensators.

    Raises a BitstreamError for bytes that are no valid stream, OrderError for a window, band or scale that the scene does not have,
    CompensationError, ProfileError, EngineError, OSError where the file cannot be read, and ModuleNotFoundError, which names the
    extra to install, where a package is missing.
    """
    with _extra("ground"):
        import numpy as np

        from perigee.bitstream.version2 import ComponentStream
        from perigee.ground.orders import Order, open_source, stream_of
        from perigee.ground.regions import Region
        from perigee.ground.views import blocks_of

    order = Order(
        window=tuple(window) if window is not None else None,
        bands=tuple(bands) if bands is not None else None,
        scale=scale,
        damaged=damaged,
        compensation=compensation,
        steps=steps,
        seed=seed,
        strength=strength,
    )
    library = _library(tuple(str(folder) for folder in profiles), threads)
    source = open_source(order, _bytes(stream), library)
    view = order.view(source)
    shape = (len(view.bands), *view.size)
    samples, valid = np.empty(shape, source.dtype), np.empty(shape, bool)
    alpha = None if source.metadata.alpha_band is None else np.empty(view.size, source.dtype)
    for place, block in blocks_of(source, view):
        inside = place.within(Region(0, 0, *view.size))
        samples[(slice(None), *inside)] = block.samples
        valid[(slice(None), *inside)] = block.valid
        if alpha is not None and block.alpha is not None:
            alpha[inside] = block.alpha
    parsed = stream_of(source)
    records = parsed.records if isinstance(parsed, ComponentStream) else None
    return Image(samples, valid, alpha, source.metadata, source.report, source.provenance(), records)


def open(
    stream: bytes | str | Path,
    *,
    damaged: bool = False,
    compensation: str = "none",
    steps: int | None = None,
    seed: int = 0,
    strength: float = 1.0,
    profiles: Sequence[str | Path] = (),
    threads: int | None = None,
) -> DatasetReader:
    """Open a stream as a rasterio dataset, which decodes what is read and nothing else.

    ``stream`` is its bytes or the path of a ``.peri`` file; the other parameters are those of :func:`decode`. At full size the samples are
    those of ``ground-decode``; overviews are quick looks, as of ``--effort fast``. Close the dataset, or use it in a ``with`` statement.

    Raises a BitstreamError for bytes that are no valid stream, CompensationError, ProfileError, EngineError, MetadataError for a CRS that
    cannot be interpreted, OSError where the file cannot be read, and ModuleNotFoundError, which names the extra to install, where a package
    is missing. Reading pixels of a damaged segment raises rasterio's RasterioIOError.
    """
    with _extra("ground"):
        from perigee.ground.dataset import open_dataset
        from perigee.ground.orders import Order

    order = Order(damaged=damaged, compensation=compensation, steps=steps, seed=seed, strength=strength)
    return open_dataset(_bytes(stream), order, library=_library(tuple(str(folder) for folder in profiles), threads))


def inspect(stream: bytes | str | Path, *, damaged: bool = False) -> dict[str, Any]:
    """What a stream says of itself (size, bands, quality, georeferencing, acquisition), as JSON-ready values.

    Nothing is decoded and no profile is needed. ``stream`` is its bytes or the path of a ``.peri`` file, or a metadata packet that
    travelled alone. Raises a BitstreamError or OSError.
    """
    from perigee.ground.inspection import inspect_bytes

    return inspect_bytes(_bytes(stream), damaged)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Let a ModuleNotFoundError say which extra brings the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        from perigee.support.command import missing_extra

        raise ModuleNotFoundError(missing_extra(error, name), name=error.name, path=error.path) from error


def _bytes(stream: bytes | str | Path) -> bytes:
    from perigee.support.files import read_bounded

    return read_bounded(Path(stream)) if isinstance(stream, (str, Path)) else bytes(stream)


def _bounds(counts: float | Sequence[float] | None, percent: float | None) -> ErrorBounds | None:
    """What is promised of every sample. Raises ValueError."""
    from perigee.onboard.bounded_encoder import ErrorBounds

    if counts is None and percent is None:
        return None
    if percent is not None and not percent > 0:
        raise ValueError(f"max_relative_error {percent}: accepted are numbers above 0")
    return ErrorBounds((counts,) if isinstance(counts, (int, float)) else tuple(counts or ()), percent or 0.0)


def _stream(
    encoders: Encoders, source: Source, quality: float, acquisition: Acquisition | None, bounds: ErrorBounds | None
) -> bytes:
    if bounds:
        return encoders.bounded_encoder(bounds).encode_scene(source, acquisition).data
    return encoders.encoder_for(source.info).encode_scene(source, quality, acquisition).data


@lru_cache(maxsize=8)
def _encoders(profile: str, analysis: str | None, threads: int | None) -> Encoders:
    """Encoders, kept for the next image: loading the networks takes longer than a small image."""
    from perigee.engines.flight import FlightEngine
    from perigee.onboard.encoders import Encoders

    return Encoders(profile, lambda found: FlightEngine(found, threads, analysis=analysis))


@lru_cache(maxsize=8)
def _library(folders: tuple[str, ...], threads: int | None) -> Library:
    from perigee.ground.library import Library

    return Library([Path(folder) for folder in folders], threads)
