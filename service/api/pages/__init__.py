"""The pages that the service shows, and where: the dashboard at `/`, the HTTP API at `/docs`."""

from __future__ import annotations

from pathlib import Path

PAGES = Path(__file__).resolve().parent
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Suffix -> content type of what is served."""

DASHBOARD = {
    f"/{path.relative_to(PAGES).as_posix()}": path
    for path in sorted((PAGES / "dashboard").rglob("*"))
    if path.suffix in TYPES and path.name != "index.html"
}
"""Path -> file of what the page at `/` loads."""

FILES = {
    "/": PAGES / "dashboard" / "index.html",
    **DASHBOARD,
    "/docs": PAGES / "docs.html",
    "/redoc": PAGES / "docs.html",  # the name of a second view of the same document, which is the same page now
    "/docs/swagger-ui-bundle.js": PAGES / "swagger-ui-bundle.js",
    "/docs/swagger-ui.css": PAGES / "swagger-ui.css",
    "/docs/start.js": PAGES / "start.js",
}
"""Path -> file."""
