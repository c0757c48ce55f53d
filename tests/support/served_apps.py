"""Applications for the servers of tests/e2e/test_python_servers.py. Each response is the id of the process.

The limiter gets its settings from the environment. With ``ENTERED=1``, the process that loads the module
enters the limiter, as programs do that begin before their server forks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from stoplog import BlockingLimiter, Limiter, RateLimitMiddleware, Settings
from stoplog.integrations import wsgi as integration

KEY = "X-Api-Key"

blocking = BlockingLimiter(Settings())
if os.environ.get("ENTERED"):
    blocking.__enter__()
    blocking.peek("entered")


def pid(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Answer with the id of the process."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


def wsgi() -> Any:
    """Return the WSGI application."""
    return integration.RateLimitMiddleware(pid, limiter=blocking, identify=integration.header(KEY))


async def route(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(os.getpid()))


asgi = Starlette(routes=[Route("/", route)])
asgi.add_middleware(RateLimitMiddleware, limiter=Limiter(Settings()), identify=lambda c: c.headers.get(KEY))
