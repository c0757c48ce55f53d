"""Django: a middleware for all views, and a decorator for single ones.

::

    # settings.py
    MIDDLEWARE = ["stoplog.integrations.django.RateLimitMiddleware", ...]
    STOPLOG = {"limiter": BlockingLimiter("127.0.0.1:9092"), "identify": header("X-Api-Key")}

    # views.py
    @rate_limit(limiter=limiter, identify=header("X-Api-Key"), cost=10, resource="reports")
    def report(request): ...
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

try:
    from asgiref.sync import iscoroutinefunction  # also true of async views that are classes
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.http import HttpRequest, HttpResponse
except ImportError as exc:
    raise ImportError("this needs Django, which is not installed: run pip install django") from exc

from stoplog.asgi.denial import render_denial
from stoplog.asgi.rate_limit_headers import EXPOSE, exposed_fields, rate_limit_headers
from stoplog.client.blocking import BlockingLimiter
from stoplog.client.fail_open import OnUnavailable
from stoplog.identity.addresses import DEFAULT_IPV6_PREFIX
from stoplog.identity.identifiers import Adapted
from stoplog.integrations import environ
from stoplog.integrations.blocking_check import BlockingRequestCheck, Of

View = Callable[..., Any]


def header(name: str) -> Callable[[HttpRequest], str | None]:
    """Return an identifier: the id in the header field *name* (:func:`stoplog.identity.header`)."""
    find = environ.header(name)
    return lambda request: find(request.META)


def client_address(
    trusted_proxies: str = "", *, ipv6_prefix: int = DEFAULT_IPV6_PREFIX, field: str = ""
) -> Callable[[HttpRequest], str]:
    """Return an identifier: the address of the client (:func:`stoplog.identity.client_address`)."""
    find = environ.client_address(trusted_proxies, ipv6_prefix=ipv6_prefix, field=field)
    return Adapted[HttpRequest](find, lambda request: request.META)


class _Limit:
    """Checks requests, and adds limits to responses. The arguments are those of :func:`rate_limit`."""

    def __init__(
        self,
        limiter: BlockingLimiter,
        identify: Callable[[HttpRequest], str | None] | None = None,
        *,
        cost: Of[int, HttpRequest] = 1,
        plan: Of[str, HttpRequest] = "",
        resource: Of[str, HttpRequest] = "",
        on_unavailable: Of[OnUnavailable, HttpRequest] = "allow",
        legacy_headers: bool = False,
    ) -> None:
        self._legacy = legacy_headers
        self._check: BlockingRequestCheck[HttpRequest] = BlockingRequestCheck(
            limiter,
            identify,
            environ=lambda request: request.META,
            cost=cost,
            plan=plan,
            resource=resource,
            on_unavailable=on_unavailable,
        )

    def respond(self, request: HttpRequest, view: Callable[[], Any]) -> Any:
        """Return the response of *view*, or a denial."""
        answer = self._check.check(request)
        if answer is None:
            return view()
        if answer.allowed:
            response, headers = view(), rate_limit_headers(answer, legacy=self._legacy)
            if response.has_header("RateLimit"):  # of the view, or of its own limit
                return response
        else:
            status, headers, body = render_denial(answer, legacy=self._legacy)
            response = HttpResponse(body, status=status)
        for name, value in exposed_fields(headers) if "Origin" in request.headers else headers:
            if name != EXPOSE or not response.has_header(EXPOSE.decode()):
                response[name.decode().title() if name != b"ratelimit" else "RateLimit"] = value.decode()
        return response


class RateLimitMiddleware:
    """Checks each request before its view. Its arguments are the items of the setting ``STOPLOG``.

    They are those of :func:`rate_limit`. Put the middleware behind that of CORS, so that browsers of other
    origins can read denials.

    Raises:
        ImproperlyConfigured: There is no such setting, or it has other items.
        InvalidInput: *on_unavailable* is invalid, or nothing identifies clients.
        SettingsError: gevent or eventlet has replaced the threads of this process.
    """

    def __init__(self, get_response: View) -> None:
        self._get_response = get_response
        try:
            self._limit = _Limit(**settings.STOPLOG)
        except (AttributeError, TypeError) as exc:
            raise ImproperlyConfigured(
                f'the setting STOPLOG cannot be used ({exc}): set it to {{"limiter": BlockingLimiter(...), '
                f'"identify": header("X-Api-Key")}}'
            ) from exc

    def __call__(self, request: HttpRequest) -> Any:
        """Serve one request."""
        return self._limit.respond(request, lambda: self._get_response(request))


def rate_limit(**options: Any) -> Callable[[View], View]:
    """Return a decorator that checks each request to a view before it runs. The view must not be async.

    Args:
        **options: *limiter* is a :class:`~stoplog.BlockingLimiter`, which the first request starts.
            *identify* returns the client id of a request, or ``None`` if it is not limited; by default, the
            setting ``identify`` names the client. *cost*, *plan*,
            *resource* and *on_unavailable* are values, or functions of the request. *legacy_headers* adds the
            ``X-RateLimit-*`` fields.

    Raises:
        InvalidInput: *on_unavailable* is invalid, or nothing identifies clients.
        SettingsError: gevent or eventlet has replaced the threads of this process.
        TypeError: An option does not exist, or the view is async.
    """
    limit = _Limit(**options)

    def decorate(view: View) -> View:
        if iscoroutinefunction(view):
            raise TypeError(f"{view.__qualname__} is async: use the middleware, or a view that is not")

        @wraps(view)
        def limited(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return limit.respond(request, lambda: view(request, *args, **kwargs))

        return limited

    return decorate
