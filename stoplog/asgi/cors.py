"""Cross-origin requests (CORS): what limits leave alone, and what scripts of a page need to see of them."""

from __future__ import annotations

from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from stoplog.asgi.rate_limit_headers import Headers, exposed_fields
from stoplog.errors import SettingsError


def is_preflight(scope: Any) -> bool:
    """Return whether a request is a browser's question whether another request is permitted.

    A browser sends it without credentials, so it has no client to charge.
    """
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name.lower() for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


def exposed(headers: Headers, scope: Any) -> Headers:
    """Return *headers*, and let scripts of another origin read them if the request comes from one."""
    if any(name.lower() == b"origin" for name, _ in scope["headers"]):
        return exposed_fields(headers)
    return headers


def check_order(app: ASGIApp) -> None:
    """Check that *app*, which a rate limit encloses, contains no ``CORSMiddleware`` around all routes.

    Raises:
        SettingsError: It does. A denial would not pass it, so a browser would hide the denial from the page.
    """
    inner: Any = app
    while inner is not None:
        if isinstance(inner, CORSMiddleware):
            raise SettingsError(
                "RateLimitMiddleware encloses CORSMiddleware, so browsers could not read denials: call "
                "add_middleware for CORSMiddleware after RateLimitMiddleware, or put it before it in a list"
            )
        inner = getattr(inner, "app", None)
