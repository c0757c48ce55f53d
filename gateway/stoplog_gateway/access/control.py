"""Decide whether a request is permitted, for HTTP, its fast path, and gRPC.

==================  =====================  ==========================================================
the gateway         a request needs        is permitted
==================  =====================  ==========================================================
has a tokens file   ``admin``, ``read``    with a token that has the scope
has a tokens file   ``check``              always; with a token that has the scope if
                                           ``STOPLOG_CHECK_TOKEN=required``
has none            ``admin``, ``read``    on loopback only
has none            ``check``              always
==================  =====================  ==========================================================

A gateway on loopback answers a request without a valid token only if it is local
(:mod:`stoplog_gateway.access.local_callers`): otherwise the page of any site could spend and read. Routes for
proxies are exempt, because a proxy passes on its caller's header fields.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.errors import SettingsError
from stoplog_gateway.access.local_callers import foreign_field, is_loopback
from stoplog_gateway.access.refusals import (
    FOREIGN,
    MISSING_SCOPE,
    NO_TOKEN,
    NO_TOKENS_FILE,
    UNKNOWN_TOKEN,
    Refusals,
)
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens import Token, Tokens
from stoplog_gateway.access.tokens_file import read_tokens
from stoplog_gateway.access.watched_files import FileWatcher, WatchedFiles
from stoplog_gateway.settings import GatewaySettings

PROXY_FIELD: Final = b"stoplog-token"
"""Header field and gRPC metadata key with the token of a proxy. ``Authorization`` is its caller's."""

_BEARER: Final = b"bearer "


class Refusal(NamedTuple):
    """Why a request is refused.

    Attributes:
        reason: One of :data:`stoplog_gateway.access.refusals.REASONS`.
        field: Name and value of the foreign header field, if that is the reason.
        token: The token that lacks the scope, if that is the reason.
    """

    reason: str
    field: tuple[str, str] | None = None
    token: Token | None = None


class AccessControl:
    """The rules of one process.

    Args:
        host: Address that the gateway listens on.
        tokens_file: Path of the tokens file, if there is one.
        check_needs_token: Checks need a token, too.
        refusals: Counts refusals; by default, new ones.

    Raises:
        SettingsError: The tokens file cannot be used, or it is missing although checks need a token.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        tokens_file: Path | None = None,
        check_needs_token: bool = False,
        refusals: Refusals | None = None,
    ) -> None:
        self.refusals = refusals or Refusals()
        self.files = FileWatcher()
        self.tokens: Tokens | None = None
        self.check_needs_token = check_needs_token
        self.loopback = is_loopback(host)
        if tokens_file is not None:
            path, self.tokens = tokens_file, Tokens()
            tokens = self.tokens
            self.files.add(WatchedFiles("tokens", [path], lambda: tokens.replace(read_tokens(path))))
        elif check_needs_token:
            raise SettingsError("STOPLOG_CHECK_TOKEN=required needs tokens: set STOPLOG_TOKENS_FILE, too")

    @classmethod
    def of(cls, settings: GatewaySettings) -> Self:
        """Return the rules that *settings* state.

        Raises:
            SettingsError: As the constructor, or for the variable of earlier releases.
        """
        if os.environ.get("STOPLOG_ADMIN_TOKEN"):
            # Without it, a gateway behind a proxy would take the proxy's callers for local programs.
            raise SettingsError(
                "STOPLOG_ADMIN_TOKEN has no effect any more: make a token with `stoplog tokens add`, set "
                "STOPLOG_TOKENS_FILE, and unset it"
            )
        return cls(
            host=settings.host,
            tokens_file=settings.tokens_file,
            check_needs_token=settings.check_token == "required",
        )

    def decide(
        self,
        scope: Scope | None,
        text: bytes | None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
    ) -> Token | Refusal | None:
        """Decide about a request.

        Args:
            scope: Scope that the request needs; ``None`` if its route is open.
            text: The token that it carries.
            headers: Its header fields, with names in lower case; ``None`` if it may be foreign, because
                proxies send it.

        Returns:
            The caller's token, ``None`` for a permitted caller without one, or why the request is refused.
        """
        token = self.tokens.find(text) if self.tokens is not None and text is not None else None
        if token is None and self.loopback and headers is not None:
            foreign = foreign_field(headers)
            if foreign is not None:
                unknown = self.tokens is not None and text is not None
                return Refusal(UNKNOWN_TOKEN) if unknown else Refusal(FOREIGN, foreign)
        if scope is None or (scope is Scope.CHECK and not self.check_needs_token):
            return token
        if self.tokens is None:
            return None if self.loopback else Refusal(NO_TOKENS_FILE)
        if token is None:
            return Refusal(NO_TOKEN if text is None else UNKNOWN_TOKEN)
        return token if token.permits(scope) else Refusal(MISSING_SCOPE, token=token)

    def permits_check(self, headers: Headers) -> bool:
        """Return whether :meth:`decide` permits ``POST /v1/check`` with these *headers*.

        The fast path calls it for each head that it does not know.
        """
        if not self.loopback and not self.check_needs_token:
            return True
        return not isinstance(self.decide(Scope.CHECK, bearer_token(headers), headers), Refusal)

    def permits_proxy(self, headers: Headers) -> bool:
        """Return whether :meth:`decide` permits the check of a proxy with these *headers*."""
        if not self.check_needs_token:
            return True
        return not isinstance(self.decide(Scope.CHECK, proxy_token(headers)), Refusal)


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the token in the first ``Authorization``, or ``None``; another scheme is an unknown token."""
    for name, value in headers:
        if name == b"authorization":
            return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else b""
    return None


def proxy_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the token in the first ``stoplog-token``, or ``None``."""
    for name, value in headers:
        if name == PROXY_FIELD:
            return value.strip()
    return None
