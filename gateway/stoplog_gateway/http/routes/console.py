"""``/console``: a page for operators, served from the files in ``stoplog_gateway/console/``.

The page itself is open. It shows what the JSON routes of this gateway return, and sends them the token that
its user enters. The Content-Security-Policy allows requests to this gateway only, and prevents that data
becomes markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

_FOLDER: Final = Path(__file__).parents[2] / "console"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_FILES: Final = {file.name: file.read_bytes() for file in _FOLDER.iterdir() if file.suffix in _TYPES}

router = APIRouter(include_in_schema=False)


@router.get("/console")
async def page() -> Response:
    """Serve the page."""
    return _file("index.html")


@router.get("/console/{name}")
async def part(name: str) -> Response:
    """Serve the style sheet, a script module or the icon."""
    return _file(name)


def _file(name: str) -> Response:
    content = _FILES.get(name)
    if content is None:
        raise HTTPException(404)
    return Response(content, headers={**_HEADERS, "content-type": _TYPES[Path(name).suffix]})
