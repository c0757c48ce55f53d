"""Access control with tokens in memory, whose refusals take no time."""

from __future__ import annotations

from collections.abc import Mapping

from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.access.refusals import Refusals
from stoplog_gateway.access.tokens import Token, Tokens, digest_of
from stoplog_gateway.access.tokens_file import parse_scopes


def access_control(
    tokens: Mapping[str, str] | None = None, *, host: str = "127.0.0.1", check_needs_token: bool = False
) -> AccessControl:
    """Return access control with *tokens*, given as texts with their scopes (``check,read``).

    Each token is named by its scopes. ``None`` stands for a gateway without a tokens file.
    """
    access = AccessControl(host=host, refusals=Refusals(first_delay_s=0))
    if tokens is not None:
        access.tokens = Tokens(
            Token(f"for-{scopes}", parse_scopes(scopes.split(",")), digest_of(text.encode()))
            for text, scopes in tokens.items()
        )
    access.check_needs_token = check_needs_token
    return access
