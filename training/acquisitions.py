"""What the ``index.csv`` of a folder of images tells of their acquisition, as the numbers that condition a compensator.

The columns are ``file``, ``gsd_m``, ``lat``, ``lon``, ``date`` (2018 or 2018-06-29) or ``datetime`` (2018-06-29T10:20:00, UTC), ``off_nadir``,
``target_azimuth``, ``sun_azimuth`` and ``sun_elevation`` in degrees; a field that is not known is left empty. Cloud cover is not read: it is not
known on board. Positions are left out unless they are asked for, since a network remembers places by them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from perigee.bitstream.arrays import FloatArray
from perigee.bitstream.conditions import FIELDS, condition_of
from perigee.bitstream.errors import Fault, RasterError
from perigee.bitstream.metadata import Acquisition

Condition = tuple[FloatArray, FloatArray]  # values and known fields, see ``bitstream.conditions.condition_of``
ANGLES = ("off_nadir", "target_azimuth", "sun_azimuth", "sun_elevation")
TIME_PARTS = ("month", "day", "hour")


def _time_of(row: Mapping[str, str]) -> tuple[datetime | None, int]:
    """When an image was taken, and how many parts of it are known: 1 the year, 3 the day, 4 the hour."""
    if row.get("datetime"):
        return datetime.fromisoformat(row["datetime"]).replace(tzinfo=timezone.utc), 4
    day = [int(part) for part in row.get("date", "").split("-") if part]
    if not day:
        return None, 0
    year, month, date = (day + [1, 1])[:3]
    return datetime(year, month, date, tzinfo=timezone.utc), len(day)


def condition_of_row(row: Mapping[str, str], positions: bool = False) -> Condition:
    """The condition that a row of an index tells. Raises KeyError or ValueError for one that cannot be understood."""
    placed = positions and row.get("lat") and row.get("lon")
    time, parts = _time_of(row)
    acquisition = Acquisition(
        longitude_deg=float(row["lon"]) if placed else None,
        latitude_deg=float(row["lat"]) if placed else None,
        timestamp=time,
        gsd_m=float(row["gsd_m"]) if row.get("gsd_m") else None,
        **{f"{name}_deg": float(row[name]) if row.get(name) else None for name in ANGLES},
    )
    values, known = condition_of(acquisition)
    if parts < len(TIME_PARTS) + 1:
        known[FIELDS.index("hour")] = 0
    if parts < len(TIME_PARTS):
        known[FIELDS.index("season")] = 0
    return values * known[:, None], known


def conditions_of(folders: Iterable[Path], positions: bool = False) -> dict[str, Condition]:
    """The conditions of the files that the folders' indices name, by file name. Raises RasterError for a row that cannot be understood."""
    out: dict[str, Condition] = {}
    for folder in folders:
        index = folder / "index.csv"
        if not index.is_file():
            continue
        with index.open(newline="", encoding="utf-8") as handle:
            for number, row in enumerate(csv.DictReader(handle), 2):
                try:
                    out[Path(row["file"]).name] = condition_of_row(row, positions)
                except (KeyError, ValueError) as error:
                    raise RasterError(
                        f"{index}: line {number} cannot be understood ({error})",
                        Fault.TEXT,
                        field=str(index),
                        found=number,
                    ) from error
    return out
