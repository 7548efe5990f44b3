"""The dashboard, and the page that shows the OpenAPI document: they work where nothing but this server can be reached."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Request, Response

from service.api.pages import DASHBOARD, FILES, PAGES, TYPES
from service.api.problems import Problem

DOCUMENT_POLICY = (
    # the interface sets style attributes and has its icons in `data:`; scripts and requests are this server's alone
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DASHBOARD_POLICY = (
    # names and metadata are what clients posted: nothing inline runs or styles, and no text becomes markup or code
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/dashboard/{file:path}")
async def show_file(file: str, request: Request) -> Response:
    """What the dashboard is made of; one route for all of it, so that metrics count it as one."""
    path = f"/dashboard/{file}"
    if path not in DASHBOARD:
        raise Problem("not_found", "there is no such file")
    return _answer(path, request)


async def _show_page(request: Request) -> Response:
    return _answer(request.url.path, request)


for _path in FILES.keys() - DASHBOARD.keys():
    router.get(_path)(_show_page)


def _answer(path: str, request: Request) -> Response:
    content, headers, media_type = _LOADED[path]
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def _load(path: str) -> tuple[bytes, dict[str, str], str]:
    file = FILES[path]
    content = file.read_bytes()
    headers = {
        "Content-Security-Policy": DASHBOARD_POLICY if file.is_relative_to(PAGES / "dashboard") else DOCUMENT_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # files of two versions must not be mixed; those that are the same are not sent again
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
    }
    return content, headers, TYPES[file.suffix]


_LOADED = {path: _load(path) for path in FILES}
