"""Authorize the requests that change limits, reset counters or list clients (client ids can be API keys).

================================  ==============================================================
the gateway                       accepts these requests
================================  ==============================================================
has an admin token                with ``Authorization: Bearer <token>``
has no token, on loopback         from programs on the same machine
has no token, beyond loopback     none; the 403 response states the reason
================================  ==============================================================

With a token, no other header field matters: a page of another site and a client behind a proxy do not know
the token. Without one, on loopback, the gateway answers no foreign request at all
(:mod:`stoplog_gateway.http.local_callers`), except on the routes for proxies. In all other cases, checks are
open to every API caller that can connect.

A proxy on the same machine that adds no header field and replaces ``Host`` looks like a local program.
Therefore, set a token behind any proxy.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers

from stoplog_gateway.http.local_callers import foreign_field, is_loopback
from stoplog_gateway.http.problems import FORBIDDEN, UNAUTHORIZED, ProblemError
from stoplog_gateway.settings import GatewaySettings

_SET_TOKEN: Final = "set STOPLOG_ADMIN_TOKEN and send Authorization: Bearer <token>"


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
    require_local(headers.raw)


def serves_local_callers_only(settings: GatewaySettings) -> bool:
    """Return whether the gateway answers programs on the same machine only: on loopback, without a token."""
    return settings.admin_token is None and is_loopback(settings.host)


def require_local(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Return if a request with these *headers* comes from a program on the same machine.

    Raises:
        ProblemError: 403.
    """
    foreign = foreign_field(headers)
    if foreign is not None:
        raise _foreign(*foreign)


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
