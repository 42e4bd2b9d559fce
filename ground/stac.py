"""A product as a STAC item (version 1.0.0): where, when, and where its pixels come from."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rasterio.errors import RasterioError
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform_bounds

from perigee.bitstream.errors import MetadataError
from perigee.ground.georeference import crs_of
from perigee.ground.products import COG_MEDIA_TYPE
from perigee.ground.source import ImageSource
from perigee.ground.views import View

PREFIX = "PERIGEE_"
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


def _footprint(source: ImageSource, view: View) -> tuple[list[float] | None, dict[str, Any]]:
    """Bounds in longitude and latitude, and the projection's properties; nothing for a scene that has no place."""
    m = source.metadata
    found: dict[str, Any] = {"proj:shape": list(view.size)}
    try:
        crs = crs_of(m)
    except MetadataError:
        crs = None
    if crs is None or m.transform is None:
        return None, found
    f = view.reduction
    corner = Affine(*m.transform) * Affine.translation(view.region.left, view.region.top) * Affine.scale(f)
    found |= {"proj:epsg": m.epsg, "proj:transform": list(corner)[:6]}
    try:
        bounds = transform_bounds(crs, "EPSG:4326", *array_bounds(*view.size, corner))
    except RasterioError:
        return None, found
    return [round(value, 7) for value in bounds], found


def stac_item(source: ImageSource, view: View, product: Path, trust: Path | None = None) -> dict[str, Any]:
    """The item of a product that lies beside it. Where no time is known it gives the range from the first satellite to now."""
    acquisition = source.metadata.acquisition
    bounds, projection = _footprint(source, view)
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
        "image": {"href": product.name, "type": COG_MEDIA_TYPE if product.suffix != ".png" else "image/png", "roles": ["data"]}
    }  # fmt: skip
    if trust is not None:
        assets["trust"] = {"href": trust.name, "type": COG_MEDIA_TYPE, "roles": ["metadata"]}
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [url for name, url in EXTENSIONS.items() if name in used],
        "id": product.stem,
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": assets,
    }
    if bounds is not None:
        west, south, east, north = bounds
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        item |= {"bbox": bounds, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    return item
