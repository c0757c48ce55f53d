"""The floor for HTTP: the gateway's HTTP server, which answers each check with the same bytes.

Like the gateway, it recognizes heads that it has parsed before, and answers without the web framework. It
does not read the body.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Final

import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.handlers import Handler, SendResponse
from stoplog_gateway.http.known_heads import KnownHeads
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.http.routes.check import render_answer

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.client.answer import Answer

_RESPONSE: Final = render_answer(Answer(True, 1_000_000, 999_999, 60_000, 0, -1), legacy=False)


class ConstantPath:
    """Stands in the place of the gateway's fast path. Every request with a body gets the same response."""

    def __init__(self) -> None:
        self.known_heads: Final = KnownHeads[tuple[Handler, int]]()

    def handler_for(
        self,
        method: bytes,
        target: bytes,
        length: int,
        fields: Headers,
        headers: Headers,
        address: str | None,
    ) -> Handler | None:
        """Return the handler of a request with a body."""
        return _respond if length > 0 else None

    def handler_of(self, head: bytes) -> None:
        """Return ``None``: there are no requests of proxies."""

    def remember(
        self, head: bytes, handler: Handler, body_size: int, *, target: bytes, fields: Headers
    ) -> None:
        """Remember the *head* of a request with a body."""
        self.known_heads.remember(head, (handler, body_size))


def _respond(_: bytes, send: SendResponse) -> None:
    send(_RESPONSE)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer requests that are no checks."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def main(port: int) -> None:
    """Serve until the process is stopped."""
    path: Any = ConstantPath()
    protocol: Any = partial(GatewayProtocol, path, Connections())
    config = uvicorn.Config(
        _not_found,
        host="127.0.0.1",
        port=port,
        http=protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    uvloop.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main(int(sys.argv[1]))
