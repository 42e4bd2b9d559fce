"""The page at ``/`` and its files: everything comes from the package, and nothing may be loaded from elsewhere."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def _folder() -> Path:
    return Path(str(resources.files("perigee.ground.service"))) / "static"


def page_routes() -> APIRouter:
    """The page, and below ``/page`` what it is made of."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(
            _folder() / "index.html", media_type="text/html", headers={"Content-Security-Policy": POLICY}
        )

    @router.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return FileResponse(_folder() / "icon.svg", media_type="image/svg+xml")

    router.routes.append(Mount("/page", _Files(directory=_folder())))
    return router


class _Files(StaticFiles):
    """Files that a browser asks for again whenever the page is loaded, so that a newer release is seen."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """As of StaticFiles, with the page's policy."""
        answer: Response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["Cache-Control"] = "no-cache"
        return answer
