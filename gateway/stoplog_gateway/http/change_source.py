"""The source of a change of limits or of a reset, for the audit."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Final

from fastapi import Depends, Request

from stoplog.wire.audit import ChangeSource
from stoplog_gateway.access.tokens import Token

REQUEST_ID: Final = b"x-request-id"

_VALID_ID: Final = re.compile(r"[!-~]{1,128}")


async def _change_source(request: Request) -> ChangeSource:
    """Return who makes a change, from which address, and the request's id.

    The author is the name of the token. Without a token, only programs on this machine may make changes.
    The address is that of the connection. Behind a proxy it is the proxy's, because any caller can write a
    forwarding header field. A request without a valid ``X-Request-Id`` gets an id.
    """
    token: Token | None = request.state.token
    who = token.name if token is not None else "local"
    given = request.headers.get(REQUEST_ID.decode(), "")
    id_ = given if _VALID_ID.fullmatch(given) else secrets.token_hex(8)
    return ChangeSource(who, request.client.host if request.client is not None else "", id_)


Source = Annotated[ChangeSource, Depends(_change_source)]


def request_id_header(source: ChangeSource) -> list[tuple[bytes, bytes]]:
    """Return the header field with the id under which the audit has a request."""
    return [(REQUEST_ID, source.request_id.encode())]
