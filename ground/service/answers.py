"""A product as an answer that cannot wait for ever: whoever does not read it in time is cut off, and the product goes in any case."""

from __future__ import annotations

import logging
from pathlib import Path

from anyio import fail_after
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from perigee.ground.service.workspace import Workspace

log = logging.getLogger("perigee.service")


class ProductResponse(FileResponse):
    """A file whose workspace is closed once it was sent, was not fetched in time, or the service ends."""

    def __init__(self, path: Path, media_type: str, write_s: float, workspace: Workspace | None = None) -> None:
        """``write_s`` bounds the time, in seconds, that a part of the answer may wait for its reader."""
        super().__init__(path, media_type=media_type)
        self._write_s, self._workspace = write_s, workspace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            with fail_after(self._write_s):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("an answer was not read for %g s and is cut off", self._write_s)
            raise
        finally:
            if self._workspace is not None:
                self._workspace.close()
