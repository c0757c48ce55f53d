"""Refuse requests that :class:`~stoplog_gateway.access.control.AccessControl` does not permit."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from stoplog_gateway.access.control import AccessControl, Refusal, bearer_token, proxy_token
from stoplog_gateway.access.proxy_paths import is_for_proxies
from stoplog_gateway.access.refusals import FOREIGN, MISSING_SCOPE, NO_TOKEN, NO_TOKENS_FILE
from stoplog_gateway.access.scopes import Scope as TokenScope
from stoplog_gateway.access.scopes import scope_of
from stoplog_gateway.http.problems import (
    FORBIDDEN,
    PROXY_UNAUTHORIZED,
    UNAUTHORIZED,
    ProblemError,
    render_error,
)
from stoplog_gateway.http.responses import RenderedResponse

SET_TOKENS: Final = "set STOPLOG_TOKENS_FILE and send Authorization: Bearer <token>"
SEND_TOKEN: Final = "send Authorization: Bearer <token>; `stoplog tokens add` makes tokens"
SEND_PROXY_TOKEN: Final = "make the proxy send stoplog-token: <token>; `stoplog tokens add` makes tokens"


async def require_scope(request: Request) -> None:
    """Permit a request to go on to its route. A dependency of every route.

    It writes the caller's token, if there is one, to ``request.state.token``.

    Raises:
        ProblemError: 401 or 403, after a delay.
    """
    access: AccessControl = request.app.state.access
    headers = request.scope["headers"]
    path = request.scope["route"].path
    scope = scope_of(path, request.method)
    for_proxies = is_for_proxies(path)
    text = proxy_token(headers) if for_proxies else bearer_token(headers)
    decision = access.decide(scope, text, None if for_proxies else headers)
    if isinstance(decision, Refusal):
        raise await refuse(access, decision, scope, _address(request.scope), for_proxies=for_proxies)
    request.state.token = decision


class RequireLocalCallers:
    """On loopback, refuse requests from elsewhere without a token, also those that no route answers."""

    def __init__(self, app: ASGIApp, access: AccessControl) -> None:
        self.app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, or send 401 or 403."""
        if scope["type"] == "http" and not is_for_proxies(scope["path"]):
            headers = scope["headers"]
            decision = self._access.decide(None, bearer_token(headers), headers)
            if isinstance(decision, Refusal):
                rendered = render_error(await refuse(self._access, decision, None, _address(scope)))
                assert rendered is not None
                return await RenderedResponse(rendered)(scope, receive, send)
        await self.app(scope, receive, send)


async def refuse(
    access: AccessControl,
    refusal: Refusal,
    scope: TokenScope | None,
    address: str | None,
    *,
    for_proxies: bool = False,
) -> ProblemError:
    """Count, log and delay a refusal, and return its problem."""
    name = refusal.token.name if refusal.token is not None else None
    await access.refusals.add(refusal.reason, scope or "open", address, name)
    return _problem(access, refusal, scope, for_proxies=for_proxies)


def refuse_check_at_once(
    access: AccessControl, refusal: Refusal, address: str | None, *, for_proxies: bool
) -> ProblemError:
    """Count and log a check that is refused in overload, and return its problem. It is not delayed."""
    name = refusal.token.name if refusal.token is not None else None
    access.refusals.count(refusal.reason, TokenScope.CHECK, address, name)
    return _problem(access, refusal, TokenScope.CHECK, for_proxies=for_proxies)


def _problem(
    access: AccessControl, refusal: Refusal, scope: TokenScope | None, *, for_proxies: bool
) -> ProblemError:
    if refusal.reason == FOREIGN:
        assert refusal.field is not None
        return _foreign(*refusal.field, has_tokens=access.tokens is not None)
    field = "stoplog-token" if for_proxies else "Authorization"
    if refusal.reason == NO_TOKENS_FILE:
        detail = "the gateway listens beyond loopback and has no tokens file"
        return ProblemError(FORBIDDEN, detail, field, SET_TOKENS)
    if refusal.reason == MISSING_SCOPE:
        assert refusal.token is not None
        return ProblemError(
            FORBIDDEN,
            f"the token {refusal.token.name} lacks the scope {scope}",
            field,
            f"use a token with the scope {scope}; `stoplog tokens list` shows all",
        )
    missing = refusal.reason == NO_TOKEN
    detail = f"this request needs a token with the scope {scope}" if missing else "the token is unknown"
    if for_proxies:
        # A 401 would ask the proxy's caller for a token, and nginx would take it for a denial.
        return ProblemError(PROXY_UNAUTHORIZED, detail, field, SEND_PROXY_TOKEN)
    challenge = b'Bearer realm="stoplog"' + (b"" if missing else b', error="invalid_token"')
    return ProblemError(UNAUTHORIZED, detail, field, SEND_TOKEN, [(b"www-authenticate", challenge)])


def _foreign(field: str, value: str, *, has_tokens: bool) -> ProblemError:
    return ProblemError(
        FORBIDDEN,
        f"{field} {value[:80]!r} is foreign, and without a token only local programs have access",
        field,
        f"call http://127.0.0.1 directly, or {SEND_TOKEN if has_tokens else SET_TOKENS}",
    )


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None
