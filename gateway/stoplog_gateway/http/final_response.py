"""Problem responses that the protocol sends itself. The connection ends after each of them."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from stoplog.asgi.problem import Kind, problem
from stoplog.asgi.responses import PROBLEM, render
from stoplog_gateway.http.problems import (
    BAD_REQUEST,
    HEAD_TOO_LARGE,
    OVERLOADED,
    TIMED_OUT,
    TOO_MANY_CONNECTIONS,
)

MAX_HEAD: Final = 64 << 10
"""Maximum bytes of a request line and its header fields, and of the chunk headers and trailers of a body.

Proxies forward less by default (Envoy 60 KiB, nginx 32 KiB)."""


def final_response(kind: Kind, detail: str, field: str | None, remedy: str) -> bytes:
    """Return the bytes of a problem response with ``Connection: close``."""
    status, headers, body = render(
        problem(kind, detail, field, remedy), kind.status, [(b"connection", b"close")], media=PROBLEM
    )
    return b"".join((STATUS_LINE[status], *(b"%s: %s\r\n" % item for item in headers), b"\r\n", body))


HEAD_TOO_LARGE_RESPONSE: Final = final_response(
    HEAD_TOO_LARGE,
    f"the request line and header fields exceed {MAX_HEAD >> 10} KiB",
    None,
    "send fewer or shorter header fields, and send lists in the body",
)
BAD_REQUEST_RESPONSE: Final = final_response(
    BAD_REQUEST, "the request is not valid HTTP/1.1", None, "send requests with an HTTP library"
)
HEAD_TIMEOUT_RESPONSE: Final = final_response(
    TIMED_OUT, "the header fields did not arrive in time", None, "send the whole request at once"
)
BODY_TIMEOUT_RESPONSE: Final = final_response(
    TIMED_OUT, "the rest of the body did not arrive in time", "body", "send the whole request at once"
)
TOO_MANY_RESPONSE: Final = final_response(
    TOO_MANY_CONNECTIONS,
    "all connections of this gateway process are busy",
    None,
    "try again, reuse connections, or raise the gateway's limit of open files",
)
OVERLOADED_RESPONSE: Final = final_response(
    OVERLOADED, "the gateway has no time for another connection", None, "try again, or add gateways"
)
