"""What stays on the ground.

GDAL reads its settings when it is loaded, so one is made here, before anything in this package imports it. The commands go
further and run GDAL and PROJ in an environment of their own (``environment.py``).
"""

import os

os.environ.setdefault(
    "GDAL_CACHEMAX", "64"
)  # MB; GDAL's default is a twentieth of the memory, and large scenes fill it
