"""The page at `/`: static files of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGE = Path(__file__).with_name("page")

_HEADERS: Mapping[str, str] = {
    # Scripts, styles, images and requests of this server only, and no HTML made from strings.
    "Content-Security-Policy": (
        "default-src 'self'; require-trusted-types-for 'script'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    # With ETag: asked every time, so that an upgrade shows at once.
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI, folder: Path = PAGE) -> None:
    """Serves `index.html` of a folder at `/` and all of its files below `/page/`."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> Response:
        return FileResponse(folder / "index.html", headers=dict(_HEADERS))

    app.mount("/page", _Files(directory=folder), name="page")
