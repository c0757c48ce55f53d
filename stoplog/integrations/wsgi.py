"""WSGI middleware, for Flask and any other application with threads.

::

    limiter = BlockingLimiter("127.0.0.1:9092")
    app.wsgi_app = RateLimitMiddleware(app.wsgi_app, limiter=limiter, identify=header("X-Api-Key"))

An allowed request gets the application's response, with ``RateLimit`` and ``RateLimit-Policy``. A denied one
gets 429, a problem (RFC 9457) and ``Retry-After``, and the application is not called. A blocked address gets
403. Preflights (CORS) are not charged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from stoplog.asgi.denial import render_denial
from stoplog.asgi.rate_limit_headers import EXPOSE, Headers, exposed_fields, rate_limit_headers
from stoplog.client.blocking import BlockingLimiter
from stoplog.client.fail_open import OnUnavailable
from stoplog.integrations.blocking_check import BlockingRequestCheck, Of
from stoplog.integrations.environ import client_address, header

__all__ = ["RateLimitMiddleware", "client_address", "header"]

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class RateLimitMiddleware:
    """Checks each request with a limiter before *app* is called.

    The first request starts the limiter, also in each process that a server forks. The end of the process
    stops it. An application may start it itself (``with limiter:``).

    Args:
        app: The application.
        limiter: Decides. The application may share it.
        identify: Returns the client id of a request, or ``None`` if the request is not limited. Like the
            functions for the other arguments, it gets the WSGI environment. Its exceptions reach the server.
            By default, the setting ``identify`` names the client.
        cost: Requests to charge; 0 only looks. A value or a function.
        plan: Plan whose limits apply if the client has none of its own. A value or a function.
        resource: Resource with limits and counters of its own. A value or a function.
        on_unavailable: ``deny`` makes a request fail closed: it is denied with 503 if the store does not
            decide it, or if the limiter fails. By default, it fails open. A value or a function.
        legacy_headers: Also send ``X-RateLimit-Limit``, ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``.

    Raises:
        InvalidInput: *on_unavailable* is invalid, or nothing identifies clients.
        SettingsError: gevent or eventlet has replaced the threads of this process.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        limiter: BlockingLimiter,
        identify: Callable[[WSGIEnvironment], str | None] | None = None,
        cost: Of[int, WSGIEnvironment] = 1,
        plan: Of[str, WSGIEnvironment] = "",
        resource: Of[str, WSGIEnvironment] = "",
        on_unavailable: Of[OnUnavailable, WSGIEnvironment] = "allow",
        legacy_headers: bool = False,
    ) -> None:
        self.app = app
        self._legacy = legacy_headers
        self._check: BlockingRequestCheck[WSGIEnvironment] = BlockingRequestCheck(
            limiter,
            identify,
            environ=lambda environ: environ,
            cost=cost,
            plan=plan,
            resource=resource,
            on_unavailable=on_unavailable,
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        answer = self._check.check(environ)
        if answer is None:
            return self.app(environ, start_response)
        origin = "HTTP_ORIGIN" in environ
        if not answer.allowed:
            status, fields, body = render_denial(answer, legacy=self._legacy)
            start_response(
                f"{status} {HTTPStatus(status).phrase}", _text(exposed_fields(fields) if origin else fields)
            )
            return [body]
        fields = rate_limit_headers(answer, legacy=self._legacy)
        added = _text(exposed_fields(fields) if origin else fields)

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            names = {name.lower() for name, _ in headers}
            own = "ratelimit" in names
            # The application's own fields are kept.
            new = [] if own else [one for one in added if one[0] != EXPOSE.decode() or one[0] not in names]
            return start_response(status, [*headers, *new], *error)

        return self.app(environ, start)


def _text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in headers]
