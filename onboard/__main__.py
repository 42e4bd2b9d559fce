"""``python -m perigee.onboard``: the same as ``onboard-encode``."""

import sys

from perigee.onboard.cli import main

sys.exit(main())
