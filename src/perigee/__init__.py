"""Perigee: a learned image codec for satellites whose streams decode to the same symbols on every machine.

The rooms (``perigee.bitstream``, ``perigee.onboard``, ``perigee.ground``, ...) are top-level folders of the project,
linked here; see ``docs/architecture.md``.
"""

__version__ = "0.6.0"
