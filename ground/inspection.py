"""What a stream says of itself, without decoding it."""

from __future__ import annotations

from typing import Any

import numpy as np

from perigee.bitstream import format as fmt
from perigee.bitstream.metadata import Metadata, read_metadata_packet, unpack_metadata
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.records import RecordsOfScene
from perigee.bitstream.samples import quality_of
from perigee.bitstream.spectral import SCALE_BITS, SPECTRAL_BITS
from perigee.bitstream.version2 import PREDICTED, STORED, VERSION, ComponentStream, Parameters, version_of
from perigee.bitstream.version2_parsing import parse_component_stream

MODES = {fmt.NETWORK: "network", PREDICTED: "predicted", STORED: "stored", fmt.DROPPED: "dropped", fmt.EMPTY: "empty"}


def inspect(stream: fmt.Stream | ComponentStream, size_bytes: int) -> dict[str, Any]:
    """What a stream says of itself, as JSON-ready values; nothing is decoded."""
    h = stream.header
    height, width = stream.size if isinstance(stream, ComponentStream) else (h.height, h.width)
    metadata = unpack_metadata(stream.metadata) if stream.metadata is not None else Metadata()
    segments: list[Any] = list(stream.segments.values())
    modes: dict[str, int] = {}
    for segment in segments:
        name = MODES[segment.mode]
        modes[name] = modes.get(name, 0) + 1
    qualities = [quality_of(s.quality_step) for s in segments if s.mode == fmt.NETWORK]
    found = {
        "format_version": fmt.VERSION if isinstance(stream, fmt.Stream) else VERSION,
        "contract": h.contract.hex(),
        "width": width,
        "height": height,
        "bands": h.bands,
        "dtype": h.dtype,
        "patch_side": h.patch_side,
        "patches": h.patches,
        "segments": modes,
        "cut_segments": sorted(number for number, s in stream.segments.items() if s.cut),
        "quality": [min(qualities), max(qualities)] if qualities else None,
        "bytes": size_bytes,
        "coded_bytes": sum(4 * len(s.words) + sum(len(b.data) for b in getattr(s, "stored", ())) for s in segments),
        "bpp": round(8 * size_bytes / (width * height), 5),
        "masked_patches": len(stream.masks),
    }
    if isinstance(stream, fmt.Stream):
        found["coding_ranges"] = None if stream.ranges is None else stream.ranges.tolist()
    else:
        found["bits_per_sample"] = round(8 * size_bytes / (width * height * h.bands), 5)
        found["records"] = None if stream.records is None else _records(stream.records)
        found["band_places"] = None if stream.places is None else stream.places.tolist()
        found["parameters"] = [_parameters(number, p) for number, p in sorted(stream.parameters.items())]
        found["strips"] = [{"row": row, "parameters": number} for row, number in sorted(stream.strips.items())]
    return {**found, **_described(metadata), "damage": stream.damage}


def _records(records: RecordsOfScene) -> dict[str, int]:
    """How many lines have a record, and of how many bytes."""
    return {"lines": int(records.known.sum()), "bytes": records.data.shape[1]}


def _parameters(number: int, parameters: Parameters) -> dict[str, Any]:
    """A set of parameters as JSON-ready values: means and ranges in counts, and the matrix from components to bands."""
    spectral = parameters.spectral
    return {
        "number": number,
        "means": spectral.mean.tolist(),
        "ranges": (spectral.scale / (1 << SCALE_BITS)).tolist(),
        "matrix": None if spectral.is_identity else np.round(spectral.matrix / (1 << SPECTRAL_BITS), 5).tolist(),
        "table_offsets": bool(parameters.offsets.any()),
    }


def inspect_bytes(data: bytes, damaged: bool = False) -> dict[str, Any]:
    """:func:`inspect` of a stream's bytes, or of a metadata packet that travelled alone. Raises a BitstreamError."""
    if data[:1] == bytes([fmt.METADATA]):
        return {"bytes": len(data)} | _described(read_metadata_packet(data))
    if version_of(data) == VERSION:
        return inspect(parse_component_stream(data, damaged=damaged), len(data))
    return inspect(parse_stream(data, damaged=damaged), len(data))


def _described(metadata: Metadata) -> dict[str, Any]:
    """What a metadata packet says, as JSON-ready values."""
    acquisition = {}
    if metadata.acquisition is not None:
        for name, value in vars(metadata.acquisition).items():
            acquisition[name] = value.isoformat() if hasattr(value, "isoformat") else value
    return {
        "epsg": metadata.epsg,
        "transform": metadata.transform,
        "gcps": len(metadata.gcps),
        "rpc": metadata.rpc is not None,
        "nodata": metadata.nodata if np.isfinite(metadata.nodata or 0) else str(metadata.nodata),
        "band_names": list(metadata.band_names),
        "acquisition": acquisition,
        "ancillary_bytes": len(metadata.ancillary),
    }
