"""Responses of the routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

from stoplog.asgi.responses import Rendered, render


class RenderedResponse(Response):
    """A Starlette response with the content of a :class:`Rendered`."""

    def __init__(self, rendered: Rendered) -> None:
        self.status_code, self.raw_headers, self.body = rendered
        self.background = None


def respond(value: Any, status: int = 200, extra: Iterable[tuple[bytes, bytes]] = ()) -> RenderedResponse:
    """Return a route's JSON response."""
    return RenderedResponse(render(value, status, extra))
