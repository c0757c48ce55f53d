"""How a request is handled without the framework: a function of its body and of what sends the response."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from stoplog.asgi.responses import Rendered

SendResponse = Callable[[Rendered], None]
"""Receives the response: within the call of the handler, or later in the event loop."""

Handler = Callable[[bytes, SendResponse], None]
"""Handles a request, given its body."""


class AtOnce(NamedTuple):
    """How a request is answered for which a turn of the event loop has no time.

    Attributes:
        handle: Handles the request.
        max_body: Maximum bytes of its body that are received for that.
        refuse: Handles a request with a larger body, before it is received, without it.
    """

    handle: Handler
    max_body: int
    refuse: Handler


def without_body(handler: Handler) -> Handler:
    """Return a handler that responds as *handler* does, but to a HEAD request."""

    def handle(body: bytes, send: SendResponse) -> None:
        handler(body, lambda rendered: send(rendered._replace(body=b"")))

    return handle
