"""Authorize the requests that change limits, reset counters or list clients (client ids can be API keys).

All other routes, including checks, are open to every API caller that can connect.

================================  ==============================================================
the gateway                       accepts these requests
================================  ==============================================================
has an admin token                with ``Authorization: Bearer <token>``
has no token, on loopback         from programs on the same machine, by the checks below
has no token, beyond loopback     none; the 403 response states the reason
================================  ==============================================================

With a token, no other header field matters: a page of another site and a client behind a proxy do not know
the token. Without one, a request from a program on the same machine passes three checks. ``Host`` is a
loopback name or address, which excludes DNS rebinding. ``Origin``, if present, is the gateway's own address,
which excludes pages of other sites. No header field of a proxy is present.

A proxy on the same machine that adds no header field looks like a local program. Therefore, set a token
behind any proxy.
"""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers

from stoplog_gateway.http.problems import FORBIDDEN, UNAUTHORIZED, ProblemError
from stoplog_gateway.settings import GatewaySettings

_SET_TOKEN: Final = "set STOPLOG_ADMIN_TOKEN and send Authorization: Bearer <token>"
_PROXY_HEADERS: Final = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
)
"""Header fields that proxies add to forwarded requests."""


async def require_admin(request: Request) -> None:
    """Authorize a request. A dependency of every route that changes data or lists clients.

    Raises:
        ProblemError: 401 or 403.
    """
    authorize(request.app.state.settings, request.headers)


def authorize(settings: GatewaySettings, headers: Headers) -> None:
    """Return if a request with these *headers* is authorized.

    Raises:
        ProblemError: 401 if the token is missing or wrong; 403 if the gateway has no token and the request
            is not local.
    """
    if settings.admin_token is not None:
        return _require_token(settings.admin_token.get_secret_value(), headers.get("authorization"))
    if not is_loopback(settings.host):
        raise ProblemError(
            FORBIDDEN,
            f"the gateway listens on {settings.host}, beyond loopback, and has no admin token",
            "Authorization",
            _SET_TOKEN,
        )
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_loopback(_without_port(host)):
        raise _foreign("Host", host)
    if origin is not None and origin.lower() != f"http://{host}".lower():
        raise _foreign("Origin", origin)
    for name in _PROXY_HEADERS:
        if name in headers:
            raise _foreign(name.title(), headers[name])


def _require_token(token: str, authorization: str | None) -> None:
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode()):
        return
    detail = "the admin token is wrong" if authorization else "this request needs the admin token"
    challenge = b'Bearer realm="stoplog"' + (b', error="invalid_token"' if authorization else b"")
    raise ProblemError(
        UNAUTHORIZED,
        detail,
        "Authorization",
        "send Authorization: Bearer <STOPLOG_ADMIN_TOKEN>",
        [(b"www-authenticate", challenge)],
    )


def _foreign(field: str, value: str) -> ProblemError:
    return ProblemError(
        FORBIDDEN,
        f"{field} {value[:80]!r} is foreign, and without an admin token only local programs have access",
        field,
        f"call http://127.0.0.1 directly, or {_SET_TOKEN}",
    )


def is_loopback(host: str) -> bool:
    """Return whether *host* is reachable only from this machine. The only trusted name is ``localhost``.

    >>> [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "127.9.9.9")]
    [True, True, True, True]
    >>> [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "", "127.0.0.1.example.com")]
    [False, False, False, False, False]
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
