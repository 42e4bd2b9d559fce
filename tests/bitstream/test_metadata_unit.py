"""The metadata packet as a unit that travels alone."""

import pytest

from perigee.bitstream.errors import ChecksumError, FormatError, TruncatedError
from perigee.bitstream.metadata import Acquisition, Metadata, read_unit, write_unit


def test_a_unit_travels_alone():
    metadata = Metadata(
        epsg=32633,
        transform=(10.0, 0.0, 5e5, 0.0, -10.0, 5e6),
        acquisition=Acquisition(gsd_m=0.5),
        ancillary=b"attitude" * 1000,
    )
    unit = write_unit(metadata)
    assert read_unit(unit) == metadata
    with pytest.raises(TruncatedError):
        read_unit(unit[:-1])
    with pytest.raises(FormatError):
        read_unit(unit + b"\0")
    with pytest.raises(TruncatedError):
        read_unit(b"")
    with pytest.raises(ChecksumError):
        read_unit(unit[:30] + bytes([unit[30] ^ 1]) + unit[31:])


def test_full_metadata_of_a_tile_are_lean():
    """EPSG, north-up transform and all eight fields: the whole stream's overhead stays within 160 bytes."""
    from datetime import datetime, timezone

    acquisition = Acquisition(
        10.5, 51.25, datetime(2024, 6, 1, tzinfo=timezone.utc), 0.6, 12.0, 3.0, 181.0, 140.0, 44.0
    )
    unit = write_unit(Metadata(epsg=32633, transform=(0.6, 0.0, 5e5, 0.0, -0.6, 5e6), acquisition=acquisition))
    assert len(unit) + 56 <= 160
