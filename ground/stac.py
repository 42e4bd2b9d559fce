"""A product as a STAC item (version 1.0.0): where, when, and where its pixels come from."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rasterio.errors import CRSError
from rasterio.transform import Affine
from rasterio.warp import transform

from perigee.bitstream.errors import MetadataError
from perigee.ground.georeference import crs_of
from perigee.ground.products import COG_MEDIA_TYPE, GDAL_ERRORS
from perigee.ground.source import PREFIX, ImageSource
from perigee.ground.views import View

EDGE_POINTS = 21  # on each edge of a product, for its footprint
DIGITS = 7  # of a degree: a centimetre
PLACELESS = (
    *GDAL_ERRORS,
    ValueError,
    ArithmeticError,
)  # what GDAL, PROJ and arithmetic say of a scene that is not on the Earth
# acquisition fields by the names of STAC's common metadata and its extensions eo and view
PROPERTIES = {
    "gsd_m": "gsd",
    "cloud_cover_percent": "eo:cloud_cover",
    "off_nadir_deg": "view:off_nadir",
    "target_azimuth_deg": "view:azimuth",
    "sun_azimuth_deg": "view:sun_azimuth",
    "sun_elevation_deg": "view:sun_elevation",
}
EXTENSIONS = {
    "eo": "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "view": "https://stac-extensions.github.io/view/v1.0.0/schema.json",
    "proj": "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
}


def _projected(source: ImageSource, view: View) -> tuple[Any, dict[str, Any]]:
    """The CRS and the view's transform, and the projection's properties; None for a scene that has no place."""
    m = source.metadata
    found: dict[str, Any] = {"proj:shape": list(view.size)}
    try:
        crs = crs_of(m)
    except MetadataError:
        crs = None
    if crs is None or m.transform is None:
        return None, found
    corner = Affine(*m.transform) @ Affine.translation(view.region.left, view.region.top) @ Affine.scale(view.reduction)
    found["proj:epsg"] = m.epsg
    if all(math.isfinite(v) for v in corner):  # JSON has no NaN
        found["proj:transform"] = list(corner)[:6]
    return (crs, corner), found


def _outline(size: tuple[int, int], corner: Affine, crs: Any) -> list[tuple[float, float]]:
    """The edge of a product in longitude and latitude, with points between the corners, without a jump at the 180th meridian.

    Latitudes end at the poles: a grid of pixel centres reaches half a pixel beyond. Raises one of ``PLACELESS`` where the edge has
    no place on the Earth.
    """
    rows, cols = size
    steps = [i / EDGE_POINTS for i in range(EDGE_POINTS)]
    pixels = [(cols * t, 0.0) for t in steps] + [(float(cols), rows * t) for t in steps]
    pixels += [(cols * (1 - t), float(rows)) for t in steps] + [(0.0, rows * (1 - t)) for t in steps]
    places = [corner @ pixel for pixel in pixels]
    lons, lats = transform(crs, "EPSG:4326", [p[0] for p in places], [p[1] for p in places])
    if not all(math.isfinite(v) for v in (*lons, *lats)):
        raise CRSError("a corner of the product has no place on the Earth")
    if min(lats) > 90 or max(lats) < -90:
        raise CRSError("the product lies beyond a pole")
    lats = [min(max(lat, -90.0), 90.0) for lat in lats]
    whole = [lons[0]]
    for lon in lons[1:]:
        whole.append(lon + 360 * round((whole[-1] - lon) / 360))
    return list(zip(whole, lats, strict=True))


def _beside(ring: list[tuple[float, float]], meridian: float, east: bool) -> list[tuple[float, float]]:
    """The part of a ring on one side of a meridian (Sutherland and Hodgman 1974)."""

    def inside(point: tuple[float, float]) -> bool:
        return point[0] >= meridian if east else point[0] <= meridian

    out = []
    for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
        if inside(a):
            out.append(a)
        if inside(a) != inside(b):
            share = (meridian - a[0]) / (b[0] - a[0])
            out.append((meridian, a[1] + share * (b[1] - a[1])))
    return out


def footprint(outline: list[tuple[float, float]]) -> tuple[dict[str, Any], list[float]]:
    """GeoJSON geometry and bbox of an outline whose longitudes do not jump (RFC 7946, sections 3.1.9 and 5).

    An outline across the 180th meridian becomes a MultiPolygon that is cut there, and its bbox has west > east. An outline around a
    pole becomes the cap that reaches to the pole, and one that is 360 degrees wide or more becomes the whole band of latitudes.
    """
    lons, lats = [p[0] for p in outline], [p[1] for p in outline]
    turn = 360 * round((lons[-1] - lons[0]) / 360)
    if turn:  # once around a pole
        pole = 90.0 if sum(lats) > 0 else -90.0
        edge = min(lats) if pole > 0 else max(lats)
        return _around(min(edge, pole), max(edge, pole))
    if max(lons) - min(lons) >= 360 - 10**-DIGITS:
        return _around(min(lats), max(lats))
    shift = 360 * math.floor((min(lons) + 180) / 360)
    ring = [(lon - shift, lat) for lon, lat in outline]
    west, east = min(lons) - shift, max(lons) - shift
    if east <= 180:
        return {"type": "Polygon", "coordinates": [_closed(ring)]}, _rounded([west, min(lats), east, max(lats)])
    parts = [_beside(ring, 180.0, False), [(lon - 360, lat) for lon, lat in _beside(ring, 180.0, True)]]
    geometry = {"type": "MultiPolygon", "coordinates": [[_closed(part)] for part in parts]}
    return geometry, _rounded([west, min(lats), east - 360, max(lats)])


def _around(south: float, north: float) -> tuple[dict[str, Any], list[float]]:
    """Geometry and bbox of everything between two latitudes."""
    ring = [(-180.0, south), (180.0, south), (180.0, north), (-180.0, north)]
    return {"type": "Polygon", "coordinates": [_closed(ring)]}, _rounded([-180.0, south, 180.0, north])


def item_place(source: ImageSource, view: View) -> dict[str, Any]:
    """Geometry and bbox of a view in longitude and latitude, as in a STAC item; geometry None where it has no place on the Earth."""
    return _place(_projected(source, view)[0], view)


def _place(place: Any, view: View) -> dict[str, Any]:
    """Geometry and bbox of an item; no geometry where the view has no place on the Earth, as on another body or in a local CRS."""
    if place is None:
        return {"geometry": None}
    crs, corner = place
    try:
        geometry, box = footprint(_outline(view.size, corner, crs))
    except PLACELESS:
        return {"geometry": None}
    return {"geometry": geometry, "bbox": box}


def _rounded(values: list[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def _closed(ring: list[tuple[float, float]]) -> list[list[float]]:
    """A ring as GeoJSON wants it: counter-clockwise, the first point repeated at the end."""
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))
    turned = ring if area >= 0 else ring[::-1]
    points = [_rounded(list(point)) for point in turned]
    return [*points, points[0]]


def stac_item(source: ImageSource, view: View, product: Path, trust: Path | None = None) -> dict[str, Any]:
    """The item of a product that lies beside it. Where no time is known it gives the range from the first satellite to now."""
    acquisition = source.metadata.acquisition
    place, projection = _projected(source, view)
    properties: dict[str, Any] = {"datetime": None, **projection}
    if acquisition is not None:
        properties |= {
            name: getattr(acquisition, field)
            for field, name in PROPERTIES.items()
            if getattr(acquisition, field) is not None
        }
    if acquisition is not None and acquisition.timestamp is not None:
        properties["datetime"] = acquisition.timestamp.isoformat().replace("+00:00", "Z")
    else:  # STAC wants a range where no time is known
        now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        properties |= {"start_datetime": "1957-10-04T00:00:00Z", "end_datetime": now}
    properties |= {f"perigee:{name.removeprefix(PREFIX).lower()}": value for name, value in source.provenance().items()}
    used = {name.split(":")[0] for name in properties if ":" in name}
    assets = {
        "image": {"href": quote(product.name), "type": COG_MEDIA_TYPE if product.suffix != ".png" else "image/png", "roles": ["data"]}
    }  # fmt: skip
    if trust is not None:
        assets["trust"] = {"href": quote(trust.name), "type": COG_MEDIA_TYPE, "roles": ["metadata"]}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [url for name, url in EXTENSIONS.items() if name in used],
        "id": product.stem,
        **_place(place, view),
        "properties": properties,
        "links": [],
        "assets": assets,
    }
