"""HEAD and TRACE on each route, and the settings of connections."""

from __future__ import annotations

from typing import Any, Final

import httpx
import pytest
from pydantic import ValidationError
from stoplog_gateway.access.scopes import ANY_METHOD, ROUTES
from stoplog_gateway.settings import GatewaySettings

PARAMETERS: Final = {
    "/console/{name}": "/console/console.js",
    "/docs/{name}": "/docs/swagger-ui.css",
}
GET_ROUTES: Final = [path for path, methods in ROUTES.items() if methods.keys() & {"GET", ANY_METHOD}]


def url(path: str) -> str:
    """Return a path of the route."""
    return PARAMETERS.get(path) or path.translate(str.maketrans("{}:", "xxx"))


@pytest.mark.parametrize("path", GET_ROUTES)
async def test_head_gets_the_head_of_the_response_to_get(http: httpx.AsyncClient, path: str) -> None:
    fields = {"X-Client-Id": "alice"}
    get = await http.get(url(path), headers=fields)
    head = await http.head(url(path), headers=fields)
    assert head.status_code == get.status_code != 405
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("path", [path for path, methods in ROUTES.items() if ANY_METHOD not in methods])
async def test_trace_gets_405_with_the_methods_of_the_route(http: httpx.AsyncClient, path: str) -> None:
    response = await http.request("TRACE", url(path))
    assert response.status_code == 405
    assert {*ROUTES[path]} <= {*response.headers["allow"].split(", ")}
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", ["keepalive_s", "head_timeout_s", "body_timeout_s"])
def test_times_of_a_connection_are_from_1_to_3600_seconds(name: str) -> None:
    def settings(seconds: int) -> GatewaySettings:
        fields: dict[str, Any] = {name: seconds}
        return GatewaySettings(**fields)

    for seconds in (0, 3_601):
        with pytest.raises(ValidationError, match=name):
            settings(seconds)
    for seconds in (1, 3_600):
        assert getattr(settings(seconds), name) == seconds


def test_times_of_a_connection_have_defaults() -> None:
    settings = GatewaySettings()
    assert (settings.keepalive_s, settings.head_timeout_s, settings.body_timeout_s) == (75, 10, 10)
    assert settings.drain_s == 5
