"""The scopes of tokens, and the scope that each HTTP route needs.

A route that is missing in :data:`ROUTES` needs ``admin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from stoplog_gateway.access.proxy_paths import AUTHORIZE, ENVOY_JSON


class Scope(StrEnum):
    """The requests that a token permits. ``admin`` includes the other two.

    ==========  ==================================================================
    scope       permits
    ==========  ==================================================================
    ``check``   ask checks, reservations and refunds
    ``read``    read limits, usage, lists of clients, and the state of the system
    ``admin``   change limits and reset counters; everything
    ==========  ==================================================================
    """

    CHECK = "check"
    READ = "read"
    ADMIN = "admin"


OPEN: Final = None
"""The scope of a route that needs no token at all."""

ANY_METHOD: Final = "*"

ROUTES: Final[Mapping[str, Mapping[str, Scope | None]]] = {
    "/v1/check": {"POST": Scope.CHECK},
    "/v1/checks": {"POST": Scope.CHECK},
    "/v1/reservations": {"POST": Scope.CHECK},
    "/v1/reservations/{reservation_id}/settle": {"POST": Scope.CHECK},
    "/v1/reservations/{reservation_id}": {"DELETE": Scope.CHECK},
    "/v1/refunds": {"POST": Scope.CHECK},
    AUTHORIZE: {ANY_METHOD: Scope.CHECK},
    f"{AUTHORIZE}/{{path:id}}": {ANY_METHOD: Scope.CHECK},
    ENVOY_JSON: {"POST": Scope.CHECK},
    "/v1/limits": {"GET": Scope.READ},
    "/v1/limits/{client_id:id}/history": {"GET": Scope.READ},
    "/v1/plans/{plan:id}/history": {"GET": Scope.READ},
    "/v1/default/history": {"GET": Scope.READ},
    "/v1/limits/{client_id:id}": {"GET": Scope.READ, "PUT": Scope.ADMIN, "DELETE": Scope.ADMIN},
    "/v1/plans/{plan:id}": {"GET": Scope.READ, "PUT": Scope.ADMIN, "DELETE": Scope.ADMIN},
    "/v1/default": {"GET": Scope.READ, "PUT": Scope.ADMIN, "DELETE": Scope.ADMIN},
    "/v1/clients/rejected": {"GET": Scope.READ},
    "/v1/clients/{client_id:id}/usage": {"GET": Scope.READ},
    "/v1/clients/{client_id:id}/reset": {"POST": Scope.ADMIN},
    "/v1/status": {"GET": Scope.READ},
    "/v1/traffic": {"GET": Scope.READ},
    "/healthz": {"GET": OPEN},
    "/readyz": {"GET": OPEN},
    "/metrics": {"GET": OPEN},
    "/console": {"GET": OPEN},
    "/console/{name}": {"GET": OPEN},
    "/docs": {"GET": OPEN},
    "/docs/start.js": {"GET": OPEN},
    "/docs/{name}": {"GET": OPEN},
    "/openapi.json": {"GET": OPEN},
}
"""The scope of each route, by its path and method. Open routes show nothing about clients."""


def scope_of(path: str, method: str) -> Scope | None:
    """Return the scope that a request needs.

    Args:
        path: The route's path, with its parameters as in :data:`ROUTES`.
        method: HTTP method; that of a HEAD request is GET here.
    """
    methods = ROUTES.get(path, {})
    return methods.get(method, methods.get(ANY_METHOD, Scope.ADMIN))
