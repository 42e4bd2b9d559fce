"""The environment in which the commands of the ground run GDAL and PROJ: their own, whatever was inherited.

A variable that points PROJ to the data of another installation, or an option of GDAL that somebody set for another program,
would change a product without a word. Commands call :func:`own_environment` before anything imports GDAL, which reads these
variables when it is loaded.
"""

from __future__ import annotations

import os
import re
import sys

# options of GDAL and PROJ by what their names begin with, those of overviews, and single ones that can change a product
FOREIGN = re.compile(
    "(PROJ|GDAL|GTIFF|GEOTIFF|OGR|OSR|CPL|VSI|COG|TIFF|PNG|JPEG|LERC|RASTERIO|OVERVIEW)_.*|.*_OVERVIEW"
    "|USE_RRD|HFA_USE_RRD|ESRI_XML_PAM|CENTER_LONG|INSERT_CENTER_LONG|CHECK_WITH_INVERT_PROJ|CONVERT_YCBCR_TO_RGB"
    "|IGNORE_COG_LAYOUT_BREAK|IGNORE_COORDINATE_EPOCH"
)
HARMLESS = ("_CURL_", "_HTTP_")  # how to reach a network, which decoding never does
OWN = {"GDAL_CACHEMAX": "64"}  # MB; GDAL's default is a twentieth of the memory, and large scenes fill it


def own_environment(program: str) -> None:
    """Remove inherited variables of GDAL and PROJ, set ours, and say on standard error which were removed."""
    foreign = sorted(
        name
        for name, value in os.environ.items()
        if FOREIGN.fullmatch(name) and not any(part in name for part in HARMLESS) and value != OWN.get(name)
    )
    for name in foreign:
        del os.environ[name]
    os.environ.update(OWN)
    if foreign:
        print(f"{program}: not used: the environment's {', '.join(foreign)}", file=sys.stderr)
