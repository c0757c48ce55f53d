"""Who may change limits, reset counters and list clients, whose ids may be API keys.

All else, checks above all, is open to whoever can connect.

==================  ==============================================================================
listens on          it is accepted
==================  ==============================================================================
anything, a token   with ``Authorization: Bearer <token>``; nothing else is looked at, since neither
                    another site's page nor a proxy's caller can add a token they do not know
loopback, no token  from programs on this machine: ``Host`` names loopback (a rebound DNS name does
                    not), ``Origin``, which browsers send, is this very address, and no proxy says
                    that it forwards for somebody else
beyond, no token    never: 403 says why
==================  ==============================================================================

A proxy on this machine that says nothing of itself cannot be told from a program here: behind any proxy,
set a token.
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
_FORWARDED: Final = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
)
"""Fields by which a proxy says that it forwards for somebody else."""


async def guard(request: Request) -> None:
    """A dependency of every route that changes something or lists clients.

    Raises:
        ProblemError: 401 or 403.
    """
    authorize(request.app.state.settings, request.headers)


def authorize(settings: GatewaySettings, headers: Headers) -> None:
    """Accept a request with these *headers*, or say why not.

    Raises:
        ProblemError: 401, the token is missing or wrong; 403, no token could help.
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
    for name in _FORWARDED:
        if name in headers:
            raise _foreign(name.title(), headers[name])


def _require_token(token: str, authorization: str | None) -> None:
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode()):
        return
    detail = "the admin token is not this one" if authorization else "this needs the admin token"
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
        f"{field} {value[:80]!r} is not this machine, and without an admin token only it may do this",
        field,
        f"call http://127.0.0.1 directly, or {_SET_TOKEN}",
    )


def is_loopback(host: str) -> bool:
    """Whether *host* can only be reached from this machine; a name other than localhost is not trusted.

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
