"""What stays on the ground. GDAL reads its settings when it is loaded, so they are made before anything here imports it."""

import os

os.environ.setdefault(
    "GDAL_CACHEMAX", "64"
)  # MB; GDAL's default is a twentieth of the memory, and large scenes fill it
