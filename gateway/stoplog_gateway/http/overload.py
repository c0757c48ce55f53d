"""Refuse requests for which a turn of the event loop has no time, count them, and log them.

Checks are not refused: they fail open (:mod:`stoplog_gateway.http.fast_path`), also those of proxies
(:mod:`stoplog_gateway.http.proxies`), whose callers a 503 would reach. The same is true for reservations
(:mod:`stoplog_gateway.http.reservations_at_once`). The exceptions are lists and bodies that are long. Probes
are served, because an orchestrator would restart a gateway that does not answer them.

======================================  =======  =====  ===================================================
metric                                  type     label  what
======================================  =======  =====  ===================================================
``stoplog_http_overload_refused_total``  counter  what   requests that got a 503, because there was no time
======================================  =======  =====  ===================================================
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import httptools
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from stoplog.asgi.problem import problem
from stoplog.asgi.responses import PROBLEM, render
from stoplog.log_throttle import LogThrottle
from stoplog_gateway.access.proxy_paths import is_for_proxies
from stoplog_gateway.http.handlers import SendResponse
from stoplog_gateway.http.problems import OVERLOADED
from stoplog_gateway.http.request_head import split_target

log: Final = logging.getLogger(__name__)

_PROBES: Final = (b"/healthz", b"/readyz", b"/metrics")
_LOG_PAUSE_S: Final = 60.0

MAX_UNREAD: Final = 4 << 10
"""Maximum bytes of a request that is refused together with its connection."""

MAX_BODY: Final = 1 << 16
"""Maximum bytes of a body that are received only to refuse its request and to keep the connection."""

REQUEST: Final = "request"
LIST: Final = "list"
WHAT: Final = {
    REQUEST: "requests other than checks and reservations",
    LIST: "lists of checks, or checks and reservations with a long body",
}
"""Kinds of refused requests: values of the label ``what``, with their meaning."""

_RESPONSE: Final = render(
    problem(OVERLOADED, "the gateway has no time for this request", None, "try again, or add gateways"),
    OVERLOADED.status,
    [(b"retry-after", b"1")],
    media=PROBLEM,
)


def is_probe(method: bytes, path: bytes) -> bool:
    """Return whether a request is served whatever the load is."""
    return path in _PROBES and method in (b"GET", b"HEAD")


def can_be_refused_unread(data: bytes) -> bool:
    r"""Return whether a connection may be refused with 503 before its first request is handled.

    Args:
        data: The bytes that have arrived. ``False`` unless they are exactly one request with its entire body:
            without the rest, it could be one that must be served, and the system would reset the connection.

    >>> can_be_refused_unread(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    True
    >>> can_be_refused_unread(b"GET /readyz?strict=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    False
    """
    if len(data) >= MAX_UNREAD:
        return False
    request = _FirstRequest()
    parser = httptools.HttpRequestParser(request)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return False
    if not request.begun == request.complete == 1:
        return False
    path, _ = split_target(request.target)
    # 5xx of a proxy's check could let its caller pass, and so could that of a check that asks for a denial.
    # A backslash can hide the word: JSON permits it with escapes.
    return not (
        is_probe(parser.get_method(), path)
        or is_for_proxies(path.decode("latin-1"))
        or b"deny" in request.body
        or b"\\" in request.body
    )


class _FirstRequest:
    """What the parser finds in the first bytes of a connection."""

    def __init__(self) -> None:
        self.begun = self.complete = 0
        self.target = self.body = b""

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


class OverloadRefusals(Collector):
    """The requests that this process has refused. Its methods are handlers."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(WHAT, 0)
        self._throttle = LogThrottle(_LOG_PAUSE_S)

    def refuse_request(self, _: bytes, send: SendResponse) -> None:
        """Send a 503 to a request that is about no check or reservation."""
        self._refuse(REQUEST, send)

    def refuse_list(self, _: bytes, send: SendResponse) -> None:
        """Send a 503 to a long list of checks, or to a check or reservation with a long body."""
        self._refuse(LIST, send)

    def _refuse(self, what: str, send: SendResponse) -> None:
        self._counts[what] += 1
        if (end := self._throttle.admit(what)) is not None:
            log.warning(
                "overload: %s are refused with 503, because the event loop is late. Add gateways, or "
                "processes with STOPLOG_PROCESSES%s",
                WHAT[what],
                end,
            )
        send(_RESPONSE)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric family, for a scrape."""
        family = CounterMetricFamily(
            "stoplog_http_overload_refused", "Requests refused with 503 in overload", labels=["what"]
        )
        for what, count in self._counts.items():
            family.add_metric([what], count)
        yield family
