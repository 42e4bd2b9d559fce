"""A rio-tiler reader for streams, so that rio-tiler and TiTiler make map tiles of ``.peri`` files."""

from __future__ import annotations

from typing import Any

import attr
from rio_tiler.io import Reader

import perigee


@attr.s
class PerigeeReader(Reader):
    """As rio-tiler's own reader, for the path of a stream; ``open_options`` are keyword arguments of :func:`perigee.open`."""

    open_options: dict[str, Any] = attr.ib(factory=dict)

    def __attrs_post_init__(self) -> None:
        """Open the stream. Raises what :func:`perigee.open` raises."""
        self.dataset = self._ctx_stack.enter_context(perigee.open(str(self.input), **self.open_options))
        super().__attrs_post_init__()  # type: ignore[no-untyped-call]
