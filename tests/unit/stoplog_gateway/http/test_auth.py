"""Every route of the application, against the table of scopes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Final

import httpx
import pytest
from fastapi.routing import APIRoute
from stoplog_gateway.access.proxy_paths import is_for_proxies
from stoplog_gateway.access.scopes import ANY_METHOD, ROUTES, Scope
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.settings import GatewaySettings

from stoplog.client.reservations import ReservationId, encode_id
from tests.support.access import access_control
from tests.support.broker import CHECKOUT
from tests.support.fake_limiter import FakeLimiter
from tests.support.gateway_http import connect
from tests.support.protocol_connection import forbidden_app, respond_to_stream, status_of

TOKENS: Final = {
    "check-token": "check",
    "read-token": "read",
    "both-token": "check,read",
    "admin-token": "admin",
}
PERMITTED: Final = {
    Scope.CHECK: {"check-token", "both-token", "admin-token"},
    Scope.READ: {"read-token", "both-token", "admin-token"},
    Scope.ADMIN: {"admin-token"},
}
PRESENTED: Final = [None, "wrong-token", "", *TOKENS]
RESERVATION: Final = encode_id(ReservationId(1, 7, 1 << 63, "alice", "", "", 0))
PATHS: Final = {
    "/v1/authorize/{path:id}": "/v1/authorize/a/b",
    "/v1/reservations/{reservation_id}": f"/v1/reservations/{RESERVATION}",
    "/v1/reservations/{reservation_id}/settle": f"/v1/reservations/{RESERVATION}/settle",
    "/v1/limits/{client_id:id}": "/v1/limits/alice",
    "/v1/plans/{plan:id}": "/v1/plans/free",
    "/v1/clients/{client_id:id}/usage": "/v1/clients/alice/usage",
    "/v1/clients/{client_id:id}/reset": "/v1/clients/alice/reset",
    "/console/{name}": "/console/api.js",
    "/docs/{name}": "/docs/swagger-ui.css",
}
BODIES: Final = {
    "/v1/check": {"client_id": "a"},
    "/v1/checks": [{"client_id": "a"}],
    "/v1/reservations": {"client_id": "a"},
    "/v1/reservations/{reservation_id}/settle": {"used": 1},
    "/v1/refunds": {"client_id": "a"},
    "/json": {"domain": "d", "descriptors": [{"entries": [{"key": "user", "value": "a"}]}]},
}


def rows() -> Iterator[tuple[str, str, Scope | None]]:
    for path, methods in ROUTES.items():
        for method, scope in methods.items():
            yield ("GET" if method == ANY_METHOD else method), path, scope


ROWS: Final = list(rows())
IDS: Final = [f"{method} {path}" for method, path, _ in ROWS]


async def send(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str] | None = None
) -> httpx.Response:
    body = {"limits": "1/day"} if method == "PUT" else BODIES.get(path)
    url = PATHS.get(path, path)
    return await client.request(method, url, json=body, headers={"x-client-id": "alice", **(headers or {})})


def presenting(token: str | None, path: str) -> dict[str, str]:
    if token is None:
        return {}
    return {"stoplog-token": token} if is_for_proxies(path) else {"authorization": f"Bearer {token}"}


def granted(response: httpx.Response) -> bool:
    """Return whether the route answered; 404 is its answer for a client without limits."""
    return response.status_code == 200 or "no-limits" in response.text


def test_every_route_of_the_application_has_a_row_and_every_row_has_a_route() -> None:
    app = create_app(GatewaySettings(), FakeLimiter())
    found = {("/openapi.json", "GET")}
    for included in app.routes:
        for route in getattr(getattr(included, "original_router", None), "routes", ()):
            assert isinstance(route, APIRoute)
            for method in route.methods or {ANY_METHOD}:
                found.add((route.path, method))
    assert {getattr(route, "path", None) for route in app.routes} == {None, "/openapi.json"}
    listed = {(path, method) for path, methods in ROUTES.items() for method in methods}
    # GET /v1/authorize is a route of its own only for the reference in /docs.
    assert found - {("/v1/authorize", "GET")} == listed


def test_documentation_has_the_same_table() -> None:
    page = (CHECKOUT / "docs" / "security.md").read_text()
    found = re.findall(r"^\| `([A-Z*]+) (/\S*)` \| (\S+) \|", page, re.MULTILINE)
    listed = {
        (method, re.sub(r":id", "", path), scope or "open")
        for path, methods in ROUTES.items()
        for method, scope in methods.items()
    }
    assert {(method, path, scope.strip("`")) for method, path, scope in found} == listed
    assert len(found) == len(listed)


def test_api_reference_names_all_routes_that_are_open_and_those_that_a_token_for_checks_closes() -> None:
    page = (CHECKOUT / "docs" / "http-api.md").read_text()
    access = page.partition("\n## Access\n")[2]
    is_open = access.partition("Other\nroutes need a token")[0].lower()
    required = re.search(r"With `STOPLOG_CHECK_TOKEN=required`, ([^.]*) need `check`", access)
    assert required
    for path, methods in ROUTES.items():
        name = path.removeprefix("/v1").split("/")[1]
        if set(methods.values()) <= {None, Scope.CHECK}:
            assert name in is_open, path
        if Scope.CHECK in methods.values() and name not in ("authorize", "json"):
            assert name in required[1], path


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_routes_with_a_tokens_file_need_a_token_with_their_scope(host: str, required: bool) -> None:
    async with connect(FakeLimiter(), host=host, tokens=TOKENS, check_needs_token=required) as client:
        for (method, path, scope), token in product(ROWS, PRESENTED):
            response = await send(client, method, path, presenting(token, path))
            needed = None if scope is Scope.CHECK and not required else scope
            if needed is None or token in PERMITTED[needed]:
                assert granted(response), (method, path, token, response.text)
                continue
            known = token in TOKENS
            assert response.status_code == (403 if known or is_for_proxies(path) else 401), token
            problem = response.json()
            assert problem["field"] == ("stoplog-token" if is_for_proxies(path) else "Authorization")
            expected = f"the scope {needed}" if token is None or known else "the token is unknown"
            assert expected in problem["detail"]
            assert ("www-authenticate" in response.headers) == (response.status_code == 401)
            assert not token or token not in response.text


async def test_routes_without_a_tokens_file_serve_local_programs() -> None:
    async with connect(FakeLimiter()) as client:
        for (method, path, _), token in product(ROWS, (None, "any")):
            assert granted(await send(client, method, path, presenting(token, path)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway-1", ""])
async def test_routes_beyond_loopback_without_a_tokens_file_are_for_checks_only(host: str) -> None:
    limiter = FakeLimiter()
    async with connect(limiter, host=host) as client:
        for method, path, scope in ROWS:
            response = await send(client, method, path, presenting("any", path))
            if scope in (None, Scope.CHECK):
                assert granted(response)
            else:
                assert response.status_code == 403
                assert "beyond loopback" in response.json()["detail"]
                assert "STOPLOG_TOKENS_FILE" in response.json()["remedy"]
    assert not limiter.changes


FOREIGN: Final = [
    ({"host": "evil.example:8080"}, "Host"),
    ({"host": "127.0.0.1.evil.example"}, "Host"),
    ({"host": ""}, "Host"),
    ({"host": "evil.example", "origin": "http://evil.example"}, "Host"),
    ({"origin": "http://evil.example"}, "Origin"),
    ({"origin": "http://127.0.0.1:3000"}, "Origin"),
    ({"origin": "null"}, "Origin"),
    ({"x-forwarded-for": "203.0.113.9"}, "X-Forwarded-For"),
    ({"forwarded": "for=203.0.113.9"}, "Forwarded"),
    ({"via": "1.1 proxy"}, "Via"),
    ({"x-real-ip": "203.0.113.9"}, "X-Real-Ip"),
    ({"x-original-forwarded-for": "203.0.113.9"}, "X-Original-Forwarded-For"),
    ({"x-envoy-external-address": "203.0.113.9"}, "X-Envoy-External-Address"),
    ({"cf-connecting-ip": "203.0.113.9"}, "Cf-Connecting-Ip"),
    ({"true-client-ip": "203.0.113.9"}, "True-Client-Ip"),
    ({"wl-proxy-client-ip": "203.0.113.9"}, "Wl-Proxy-Client-Ip"),
    ({"x-forward-for": "203.0.113.9"}, "X-Forward-For"),
    ({"x-nf-client-connection-ip": "203.0.113.9"}, "X-Nf-Client-Connection-Ip"),
    ({"x-arr-log-id": "5"}, "X-Arr-Log-Id"),
    ({"x-varnish": "32770"}, "X-Varnish"),
    ({"x-vercel-id": "fra1::5"}, "X-Vercel-Id"),
]
SOME_FOREIGN: Final = [FOREIGN[0][0], FOREIGN[4][0], FOREIGN[7][0]]
LOCAL: Final = [
    {"host": "localhost:8080"},
    {"host": "[::1]:8080"},
    {"host": "[::1]:8080", "origin": "http://[::1]:8080"},
    {"host": "127.0.0.1:8443", "origin": "https://127.0.0.1:8443"},
]


async def test_every_field_of_a_foreign_request_is_recognized() -> None:
    async with connect(FakeLimiter()) as client:
        for headers, field in FOREIGN:
            response = await client.get("/healthz", headers=headers)
            assert response.status_code == 403
            assert response.json()["field"] == field


@pytest.mark.parametrize("headers", SOME_FOREIGN)
@pytest.mark.parametrize("tokens", [None, TOKENS], ids=["no file", "file"])
async def test_foreign_request_to_loopback_is_refused_without_a_token_except_on_routes_for_proxies(
    tokens: dict[str, str] | None, headers: dict[str, str]
) -> None:
    limiter = FakeLimiter()
    async with connect(limiter, tokens=tokens) as client:
        for method, path, _ in [*ROWS, ("GET", "/none", None), ("HEAD", "/healthz", None)]:
            response = await send(client, method, path, headers)
            if is_for_proxies(path):
                assert granted(response)
            else:
                assert response.status_code == 403
    assert not limiter.changes


async def test_local_request_without_a_tokens_file_may_do_everything() -> None:
    async with connect(FakeLimiter()) as client:
        for (method, path, _), headers in product(ROWS, LOCAL):
            assert granted(await send(client, method, path, headers))


@pytest.mark.parametrize("headers", SOME_FOREIGN)
async def test_foreign_request_with_a_token_is_served(headers: dict[str, str]) -> None:
    async with connect(FakeLimiter(), tokens=TOKENS) as client:
        for method, path, _ in ROWS:
            for token in ("admin-token", "wrong-token"):
                response = await send(client, method, path, {**headers, **presenting(token, path)})
                if token in TOKENS or is_for_proxies(path):
                    assert granted(response)
                else:
                    assert response.status_code == 401


async def test_foreign_request_beyond_loopback_is_served() -> None:
    for tokens in (None, TOKENS):
        async with connect(FakeLimiter(), host="0.0.0.0", tokens=tokens) as client:
            response = await send(client, "POST", "/v1/check", {"host": "stoplog.example.com"})
            assert response.status_code == 200


async def test_routes_for_proxies_ignore_authorization() -> None:
    async with connect(FakeLimiter(), tokens=TOKENS, check_needs_token=True) as client:
        for method, path, _ in [row for row in ROWS if is_for_proxies(row[1])]:
            callers = {"authorization": "Bearer admin-token"}
            assert (await send(client, method, path, callers)).status_code == 403
            proxied = {"authorization": "Basic Zm9vOmJhcg==", "stoplog-token": "check-token"}
            assert (await send(client, method, path, proxied)).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer admin-token", 200),
        ("bearer admin-token", 200),
        ("Bearer  admin-token ", 200),
        ("Basic admin-token", 401),
        ("admin-token", 401),
        ("Bearer", 401),
        ("Bearer \xff", 401),
        ("Bearer admin-tokeN", 401),
    ],
)
async def test_token_is_read_from_a_bearer_field_only(authorization: str, status: int) -> None:
    async with connect(FakeLimiter(), tokens=TOKENS) as client:
        headers = httpx.Headers({"authorization": authorization}, encoding="latin-1")
        assert (await client.get("/v1/limits", headers=headers)).status_code == status


def stream(path: str, fields: dict[str, str]) -> bytes:
    body = b'[{"client_id": "a"}]' if path == "/v1/checks" else b'{"client_id": "a"}'
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    lines += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return f"POST {path} HTTP/1.1\r\n{lines}".encode() + body


AUTHORIZATIONS: Final = [
    None,
    *(f"Bearer {token}" for token in ("", "wrong-token", *TOKENS)),
    "Basic admin-token",
]


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("tokens", [None, TOKENS], ids=["no file", "file"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_fast_path_answers_as_the_routes_do_whatever_the_token(
    host: str, tokens: dict[str, str] | None, required: bool
) -> None:
    required = required and tokens is not None
    access = access_control(tokens, host=host, check_needs_token=required)
    limiter = FakeLimiter()
    app = create_app(GatewaySettings(host=host), limiter, access)
    statuses = set()
    places = [{"host": "localhost"}, {"host": "evil.example"}, {"host": "localhost", "via": "1.1 proxy"}]
    for path, place, authorization in product(("/v1/check", "/v1/checks"), places, AUTHORIZATIONS):
        fields = place if authorization is None else {**place, "authorization": authorization}
        # Twice: the second request has a known head.
        requests = [stream(path, fields)] * 2
        answers, asked = [], []
        for fast in (False, True):
            fast_path = FastPath(limiter, legacy_headers=False, access=access) if fast else None
            answers.append(await respond_to_stream(app, fast_path, requests))
            asked.append(limiter.checks.copy())
            limiter.checks.clear()
        assert answers[0] == answers[1], (fields, answers)
        assert asked[0] == asked[1]
        assert len(asked[0]) == (2 if status_of(answers[0]) == 200 else 0)
        statuses.add(status_of(answers[0]))
    expected = {200}
    if required or host == "127.0.0.1":
        expected |= {403} if tokens is None else {401, 403}
    assert statuses == expected


async def test_permitted_check_takes_the_fast_path_with_a_token_and_a_foreign_host() -> None:
    limiter = FakeLimiter()
    access = access_control(TOKENS, check_needs_token=True)
    fast_path = FastPath(limiter, legacy_headers=False, access=access)
    request = stream("/v1/check", {"host": "shop.example", "authorization": "Bearer check-token"})
    assert status_of(await respond_to_stream(forbidden_app, fast_path, [request] * 2)) == 200
    assert len(limiter.checks) == 2


async def test_head_of_a_revoked_token_is_no_longer_known_to_the_fast_path() -> None:
    limiter = FakeLimiter()
    access = access_control(TOKENS, check_needs_token=True)
    fast_path = FastPath(limiter, legacy_headers=False, access=access)
    app = create_app(GatewaySettings(), limiter, access)
    request = stream("/v1/check", {"host": "localhost", "authorization": "Bearer check-token"})
    assert status_of(await respond_to_stream(app, fast_path, [request])) == 200
    assert fast_path.known_heads
    assert access.tokens is not None
    access.tokens.replace([])
    assert status_of(await respond_to_stream(app, fast_path, [request])) == 401
    assert len(limiter.checks) == 1
