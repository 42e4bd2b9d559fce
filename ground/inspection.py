"""What a stream says of itself, without decoding it."""

from __future__ import annotations

from typing import Any

from perigee.bitstream import format as fmt
from perigee.bitstream.metadata import Metadata, read_metadata_packet, unpack_metadata
from perigee.bitstream.parsing import parse_stream
from perigee.bitstream.samples import quality_of


def inspect(stream: fmt.Stream, size_bytes: int) -> dict[str, Any]:
    """What a stream says of itself, as JSON-ready values; nothing is decoded."""
    h = stream.header
    metadata = unpack_metadata(stream.metadata) if stream.metadata is not None else Metadata()
    modes: dict[str, int] = {}
    for segment in stream.segments.values():
        name = {fmt.NETWORK: "network", fmt.DROPPED: "dropped", fmt.EMPTY: "empty"}[segment.mode]
        modes[name] = modes.get(name, 0) + 1
    qualities = [quality_of(s.quality_step) for s in stream.segments.values() if s.mode == fmt.NETWORK]
    words = sum(4 * len(s.words) for s in stream.segments.values())
    return {
        "format_version": fmt.VERSION,
        "contract": h.contract.hex(),
        "width": h.width,
        "height": h.height,
        "bands": h.bands,
        "dtype": h.dtype,
        "patch_side": h.patch_side,
        "patches": h.units // h.groups,
        "segments": modes,
        "cut_segments": sorted(unit for unit, s in stream.segments.items() if s.cut),
        "quality": [min(qualities), max(qualities)] if qualities else None,
        "bytes": size_bytes,
        "coded_bytes": words,
        "bpp": round(8 * size_bytes / (h.width * h.height), 5),
        "masked_patches": len(stream.masks),
        "coding_ranges": None if stream.ranges is None else stream.ranges.tolist(),
        **_described(metadata),
        "damage": stream.damage,
    }


def inspect_bytes(data: bytes, damaged: bool = False) -> dict[str, Any]:
    """:func:`inspect` of a stream's bytes, or of a metadata packet that travelled alone. Raises a BitstreamError."""
    if data[:1] == bytes([fmt.METADATA]):
        return {"bytes": len(data)} | _described(read_metadata_packet(data))
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
        "nodata": metadata.nodata,
        "band_names": list(metadata.band_names),
        "acquisition": acquisition,
        "ancillary_bytes": len(metadata.ancillary),
    }
