"""How a proxy asks that its checks fail closed.

It asks in the query of its URL (``?unavailable=deny``) or in the header field ``Stoplog-Unavailable``.
Envoy's ext_authz needs the header field, because it replaces the query by that of its caller. If one of them
says ``deny``, the request fails closed, so a caller whose header fields the proxy passes on cannot undo it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import Depends, Request
from starlette.types import Scope

from stoplog.client.fail_open import ALLOW, DENY, OnUnavailable, fails_closed
from stoplog_gateway.access.proxy_paths import AUTHORIZE, ENVOY_JSON, is_for_proxies

UNAVAILABLE_FIELD: Final = b"stoplog-unavailable"
_SHOWN: Final = "Stoplog-Unavailable"


def asks_to_fail_closed(scope: Scope) -> bool:
    """Return whether the proxy that sent a request asks for a denial if the store does not decide.

    Raises:
        InvalidInput: The query or the header field is neither ``allow`` nor ``deny``.
    """
    path = scope["path"]
    if not is_for_proxies(path):
        return False
    # The query below /v1/authorize is not the proxy's.
    in_query = _asked_in_query(scope["query_string"]) if path in (AUTHORIZE, ENVOY_JSON) else False
    in_headers = False
    for name, value in scope["headers"]:
        if name == UNAVAILABLE_FIELD:
            in_headers |= fails_closed(value.decode("latin-1"), _SHOWN)
    return in_query or in_headers


@lru_cache(256)
def _asked_in_query(query: bytes) -> bool:
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("unavailable", [])
    asked = [fails_closed(value, "unavailable") for value in values]  # each value must be valid
    return any(asked)


async def _on_unavailable(request: Request) -> OnUnavailable:
    return DENY if asks_to_fail_closed(request.scope) else ALLOW


ProxyOnUnavailable = Annotated[OnUnavailable, Depends(_on_unavailable)]
"""The choice of the proxy: ``allow`` or ``deny``."""
