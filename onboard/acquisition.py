"""Acquisition fields from a STAC item or a flat JSON sidecar (fMoW's names), checked for the traps of the field."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from perigee.bitstream.errors import MetadataError
from perigee.bitstream.metadata import Acquisition

MAX_BYTES = 1 << 20
UNKNOWN = -999.0
LONGEST = timedelta(days=1)  # range of times that counts as the time of one acquisition
# field: names in STAC properties, then in fMoW's JSON
NAMES: dict[str, tuple[str, ...]] = {
    "gsd_m": ("gsd",),
    "cloud_cover_percent": ("eo:cloud_cover", "cloud_cover"),
    "off_nadir_deg": ("view:off_nadir", "off_nadir_angle_dbl"),
    "target_azimuth_deg": ("view:azimuth", "target_azimuth_dbl"),
    "sun_azimuth_deg": ("view:sun_azimuth", "sun_azimuth_dbl"),
    "sun_elevation_deg": ("view:sun_elevation", "sun_elevation_dbl"),
}


def _number(properties: dict[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = properties.get(name)
        if value is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise MetadataError(f"{name} is {value!r}, expected a number") from error
        if number != UNKNOWN and math.isfinite(number):
            return number
    return None


def _timestamp(properties: dict[str, Any]) -> datetime | None:
    """When the image was taken, or the start of a short range; a long range, as of an item without a time, says nothing."""
    text = properties.get("datetime") or properties.get("timestamp")
    if text is not None:
        return _moment(text)
    start, end = properties.get("start_datetime"), properties.get("end_datetime")
    if start is None or end is None:
        return None
    first, last = _moment(start), _moment(end)
    return first if timedelta(0) <= last - first <= LONGEST else None


def _moment(text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text).upper().replace("Z", "+00:00"))
    except ValueError as error:
        raise MetadataError(f"time {text!r}, expected RFC 3339 like 2024-06-01T10:20:30Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _unwrapped(points: list[Any]) -> tuple[list[float], list[float]]:
    """Longitudes and latitudes of points; across the 180th meridian longitudes count from the east."""
    lons, lats = [float(p[0]) for p in points], [float(p[1]) for p in points]
    if max(lons) - min(lons) > 180:
        lons = [lon + 360 if lon < 0 else lon for lon in lons]
    return lons, lats


def _centroid(points: list[Any]) -> tuple[float, float]:
    """The centroid of the area in a ring; the middle of its box where it has no area or crosses itself."""
    lons, lats = _unwrapped(points)
    x, y = [lon - lons[0] for lon in lons], [lat - lats[0] for lat in lats]
    area = moment_x = moment_y = 0.0
    for i in range(len(x)):  # the last point closes the ring, whether or not the first one is repeated
        cross = x[i - 1] * y[i] - x[i] * y[i - 1]
        area += cross
        moment_x += (x[i - 1] + x[i]) * cross
        moment_y += (y[i - 1] + y[i]) * cross
    if area:
        lon, lat = lons[0] + moment_x / (3 * area), lats[0] + moment_y / (3 * area)
        if min(lons) <= lon <= max(lons) and min(lats) <= lat <= max(lats):
            return _wrapped(lon), lat
    return _middle(points)


def _middle(points: list[Any]) -> tuple[float, float]:
    """The middle of the box around points, as of a footprint that is cut at the 180th meridian."""
    lons, lats = _unwrapped(points)
    return _wrapped((min(lons) + max(lons)) / 2), (min(lats) + max(lats)) / 2


def _wrapped(lon: float) -> float:
    """A longitude in -180..180."""
    return lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180


def _centre(item: dict[str, Any], properties: dict[str, Any]) -> tuple[float, float] | None:
    """Longitude and latitude: proj:centroid, the geometry's or bbox's middle, fMoW's raw_location, or lon and lat."""
    try:
        centroid = properties.get("proj:centroid")
        if centroid:
            return float(centroid["lon"]), float(centroid["lat"])
        geometry = item.get("geometry") or {}
        if geometry.get("type") == "Point":
            return float(geometry["coordinates"][0]), float(geometry["coordinates"][1])
        if geometry.get("type") == "Polygon":
            return _centroid(geometry["coordinates"][0])
        if geometry.get("type") == "MultiPolygon":
            return _middle([point for polygon in geometry["coordinates"] for point in polygon[0]])
        box = item.get("bbox")
        if box:
            half = len(box) // 2
            west, east = float(box[0]), float(box[half])
            east += 360 if west > east else 0  # across the antimeridian
            return ((west + east) / 2 + 180) % 360 - 180, (box[1] + box[half + 1]) / 2
        text = str(properties.get("raw_location", ""))
        if text.upper().startswith("POLYGON"):
            pairs = text[text.index("((") + 2 : text.index("))")].split(",")
            return _centroid([[float(v) for v in pair.split()] for pair in pairs])
        lon, lat = properties.get("longitude", properties.get("lon")), properties.get("latitude", properties.get("lat"))
        return None if lon is None or lat is None else (float(lon), float(lat))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise MetadataError(f"the position cannot be read ({error}); expected GeoJSON, bbox, or lon and lat") from error


def read_acquisition(path: Path) -> Acquisition:
    """Fields of a STAC item or sidecar. Raises MetadataError naming the field that is wrong, or OSError."""
    if path.stat().st_size > MAX_BYTES:
        raise MetadataError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        item = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{path}: not JSON ({error})") from error
    if not isinstance(item, dict):
        raise MetadataError(f"{path}: a JSON object is expected: a STAC item or flat fields")
    properties = item["properties"] if isinstance(item.get("properties"), dict) else item
    try:
        centre = _centre(item, properties)
        return Acquisition(
            longitude_deg=None if centre is None else centre[0],
            latitude_deg=None if centre is None else centre[1],
            timestamp=_timestamp(properties),
            **{field: _number(properties, names) for field, names in NAMES.items()},
        )
    except MetadataError as error:
        raise MetadataError(f"{path}: {error}") from error
