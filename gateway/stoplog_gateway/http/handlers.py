"""How a request on the fast path is handled: a function of its body and of what sends the response."""

from __future__ import annotations

from collections.abc import Callable

from stoplog.asgi.responses import Rendered

SendResponse = Callable[[Rendered], None]
"""Receives the response: within the call of the handler, or later in the event loop."""

Handler = Callable[[bytes, SendResponse], None]
"""Handles a request, given its body."""
