"""``python -m perigee.ground.service``: the same as ``ground-serve``."""

import sys

from perigee.ground.service.cli import main

sys.exit(main())
