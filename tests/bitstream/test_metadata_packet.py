"""The metadata packet travels alone."""

import pytest

from perigee.bitstream.errors import ChecksumError, FormatError, TruncatedError
from perigee.bitstream.metadata import Acquisition, Metadata, pack_metadata, read_metadata_packet, write_metadata_packet


def test_a_packet_travels_alone():
    metadata = Metadata(
        epsg=32633,
        transform=(10.0, 0.0, 5e5, 0.0, -10.0, 5e6),
        acquisition=Acquisition(gsd_m=0.5),
        ancillary=b"attitude" * 1000,
    )
    packet = write_metadata_packet(pack_metadata(metadata))
    assert read_metadata_packet(packet) == metadata
    with pytest.raises(TruncatedError):
        read_metadata_packet(packet[:-1])
    with pytest.raises(FormatError):
        read_metadata_packet(packet + b"\0")
    with pytest.raises(TruncatedError):
        read_metadata_packet(b"")
    with pytest.raises(ChecksumError):
        read_metadata_packet(packet[:30] + bytes([packet[30] ^ 1]) + packet[31:])


def test_full_metadata_of_a_tile_are_lean():
    """EPSG, north-up transform and all eight fields: the whole stream's overhead stays within 160 bytes."""
    from datetime import datetime, timezone

    acquisition = Acquisition(
        10.5, 51.25, datetime(2024, 6, 1, tzinfo=timezone.utc), 0.6, 12.0, 3.0, 181.0, 140.0, 44.0
    )
    packet = write_metadata_packet(
        pack_metadata(Metadata(epsg=32633, transform=(0.6, 0.0, 5e5, 0.0, -0.6, 5e6), acquisition=acquisition))
    )
    assert len(packet) + 56 <= 160
