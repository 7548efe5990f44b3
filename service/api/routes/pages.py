"""The page that shows the OpenAPI document, with everything it needs: it works where nothing but this server can be reached."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

PAGES = Path(__file__).resolve().parents[1] / "pages"
HEADERS = {
    # the interface sets style attributes and has its icons in `data:`; scripts and requests are this server's alone
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
FILES = {
    "/docs": "docs.html",
    "/redoc": "docs.html",  # the name of a second view of the same document, which is the same page now
    "/docs/swagger-ui-bundle.js": "swagger-ui-bundle.js",
    "/docs/swagger-ui.css": "swagger-ui.css",
    "/docs/start.js": "start.js",
}
"""Path -> file."""

router = APIRouter(include_in_schema=False)


def _add(path: str, file: Path) -> None:
    @router.get(path)
    async def page() -> FileResponse:
        return FileResponse(file, media_type=TYPES[file.suffix], headers=HEADERS)


for _path, _name in FILES.items():
    _add(_path, PAGES / _name)
