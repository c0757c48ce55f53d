"""Small web applications behind the middleware or the dependency."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Depends, FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from stoplog import Limiter, RateLimit, RateLimitMiddleware
from stoplog.client.answer import Answer
from tests.support.fake_limiter import FakeLimiter

DENIED: Final = Answer(False, 100, 0, 60_000, 2_001, 7)
KEY: Final = {"x-api-key": "alice"}


def api_key(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-api-key")


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def greet(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


ROUTES: Final = [Route("/", hello), WebSocketRoute("/socket", greet)]


def starlette_app(limiter: Limiter, identify: Any = api_key, **options: Any) -> Starlette:
    """Return an application with the middleware around all routes."""
    app = Starlette(routes=ROUTES)
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=identify, **options)
    return app


def fastapi_app(limiter: FakeLimiter, *, identify: Any = api_key, **options: Any) -> FastAPI:
    """Return an application whose routes depend on the limiter."""
    app = FastAPI()
    limited = RateLimit(limiter, identify, **options)

    @app.get("/")
    async def route(answer: Answer | None = Depends(limited)) -> dict[str, Any]:  # noqa: B008
        return {"left": answer and answer.remaining}

    @app.websocket("/socket", dependencies=[Depends(limited)])
    async def socket(socket: WebSocket) -> None:
        await greet(socket)

    return app
