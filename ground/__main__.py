"""``python -m perigee.ground``: the same as ``ground-decode``."""

import sys

from perigee.ground.cli import main

sys.exit(main())
