"""WSGI middleware, for Flask and any other application with threads.

::

    limiter = BlockingLimiter("127.0.0.1:9092")
    app.wsgi_app = RateLimitMiddleware(app.wsgi_app, limiter=limiter, identify=header("X-Api-Key"))

An allowed request gets the application's response, with ``RateLimit`` and ``RateLimit-Policy``. A denied one
gets 429, a problem (RFC 9457) and ``Retry-After``, and the application is not called. Preflights (CORS) are
not charged.
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

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def header(name: str) -> Callable[[WSGIEnvironment], str | None]:
    """Return a function that identifies a client by a header field of its request.

    >>> header("X-Api-Key")({"HTTP_X_API_KEY": "alice"})
    'alice'
    """
    key = f"HTTP_{name.upper().replace('-', '_')}"

    def identify(environ: WSGIEnvironment) -> str | None:
        found = environ.get(key)
        # WSGI decodes fields as Latin-1.
        return None if found is None else str(found).encode("latin-1").decode("utf-8", "surrogateescape")

    return identify


class RateLimitMiddleware:
    """Checks each request with a limiter before *app* is called.

    The first request starts the limiter, also in each process that a server forks. The end of the process
    stops it. An application may start it itself (``with limiter:``).

    Args:
        app: The application.
        limiter: Decides. The application may share it.
        identify: Returns the client id of a request, or ``None`` if the request is not limited. Like the
            functions for the other arguments, it gets the WSGI environment. Its exceptions reach the server.
        cost: Requests to charge; 0 only looks. A value or a function.
        plan: Plan whose limits apply if the client has none of its own. A value or a function.
        resource: Resource with limits and counters of its own. A value or a function.
        on_unavailable: ``deny`` makes a request fail closed: it is denied with 503 if the store does not
            decide it, or if the limiter fails. By default, it fails open. A value or a function.
        legacy_headers: Also send ``X-RateLimit-Limit``, ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``.

    Raises:
        InvalidInput: *on_unavailable* is invalid.
        SettingsError: gevent or eventlet has replaced the threads of this process.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        limiter: BlockingLimiter,
        identify: Callable[[WSGIEnvironment], str | None],
        cost: Of[int, WSGIEnvironment] = 1,
        plan: Of[str, WSGIEnvironment] = "",
        resource: Of[str, WSGIEnvironment] = "",
        on_unavailable: Of[OnUnavailable, WSGIEnvironment] = "allow",
        legacy_headers: bool = False,
    ) -> None:
        self.app = app
        self._legacy = legacy_headers
        self._check: BlockingRequestCheck[WSGIEnvironment] = BlockingRequestCheck(
            limiter, identify, cost=cost, plan=plan, resource=resource, on_unavailable=on_unavailable
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        answer = None if _is_preflight(environ) else self._check.check(environ)
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


def _is_preflight(environ: WSGIEnvironment) -> bool:
    return (
        environ["REQUEST_METHOD"] == "OPTIONS"
        and "HTTP_ORIGIN" in environ
        and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
    )


def _text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in headers]
