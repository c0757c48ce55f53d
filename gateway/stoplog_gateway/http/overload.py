"""Refuse requests of the application for which a turn of the event loop has no time.

Checks are never refused: they fail open, also those of proxies
(:mod:`stoplog_gateway.http.proxies_in_overload`), whose callers a 503 would reach. Probes are served, because
an orchestrator would restart a gateway that does not answer them.
"""

from __future__ import annotations

from typing import Final

from stoplog.asgi.problem import problem
from stoplog.asgi.responses import PROBLEM, render
from stoplog_gateway.access.proxy_paths import is_for_proxies
from stoplog_gateway.http.handlers import SendResponse
from stoplog_gateway.http.problems import OVERLOADED

PROBES: Final = (
    *(b"%s %s" % (method, path) for method in (b"GET", b"HEAD") for path in (b"/healthz", b"/readyz")),
    b"GET /metrics",
)
"""Beginnings of requests that are always served."""

_SERVED: Final = ("/healthz", "/readyz", "/metrics", "/v1/check", "/v1/checks")
_METHODS: Final = (b"GET", b"POST", b"PUT", b"DELETE")
_MAX_BODY: Final = 1 << 16
"""Maximum bytes of a body that is read only to refuse its request."""

_RESPONSE: Final = render(
    problem(OVERLOADED, "the gateway has no time for this request", None, "try again, or add gateways"),
    OVERLOADED.status,
    [(b"retry-after", b"1")],
    media=PROBLEM,
)


def can_be_refused(method: bytes, target: bytes, length: int) -> bool:
    """Return whether a request may get a 503.

    Args:
        method: Its method.
        target: Its target, with the query.
        length: Bytes of its body; negative if they are not announced.
    """
    path = target.partition(b"?")[0].decode("latin-1")
    served = path in _SERVED or is_for_proxies(path)
    return method in _METHODS and 0 <= length <= _MAX_BODY and not served


def refuse(_: bytes, send: SendResponse) -> None:
    """Send a 503; a handler of the fast path."""
    send(_RESPONSE)
