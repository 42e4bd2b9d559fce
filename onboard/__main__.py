"""``python -m perigee.onboard``: the same as ``onboard-encode``."""

import sys

from .cli import main

sys.exit(main())
