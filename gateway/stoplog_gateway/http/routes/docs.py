"""``/docs``: show the OpenAPI document in Swagger UI, with the files of the package ``fastapi-offline``.

The page has the same origin as the console, so it must run only scripts of this gateway. It works without
access to the internet.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Stoplog API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START: Final = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true})\n'
_STATIC: Final = files("fastapi_offline") / "static"
_TYPES: Final = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_HEADERS: Final = {
    # Swagger UI sets styles in attributes, and loads icons from data: URLs.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def page() -> Response:
    """Serve the page."""
    return Response(_PAGE, headers=_HEADERS, media_type="text/html")


@router.get("/docs/start.js")
async def start() -> Response:
    """Serve the script that starts Swagger UI."""
    return Response(_START, headers=_HEADERS, media_type="text/javascript")


@router.get("/docs/{name}")
async def static_file(name: str) -> Response:
    """Serve Swagger UI's script or style sheet."""
    if name not in _TYPES:
        raise HTTPException(404)
    return Response((_STATIC / name).read_bytes(), headers=_HEADERS, media_type=_TYPES[name])
