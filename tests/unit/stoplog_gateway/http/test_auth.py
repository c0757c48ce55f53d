from __future__ import annotations

import httpx
import pytest
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.local_callers import is_loopback
from stoplog_gateway.settings import GatewaySettings

from tests.support.fake_limiter import FakeLimiter
from tests.support.gateway_http import connect
from tests.support.protocol_connection import respond_to_stream, status_of

TOKEN = "correct horse"
CHANGES = [
    ("PUT", "/v1/limits/alice"),
    ("DELETE", "/v1/limits/alice"),
    ("PUT", "/v1/plans/free"),
    ("DELETE", "/v1/plans/free"),
    ("PUT", "/v1/default"),
    ("DELETE", "/v1/default"),
    ("POST", "/v1/clients/alice/reset"),
]

CLIENT_LISTS = ["/v1/limits", "/v1/clients/rejected"]


async def send(
    client: httpx.AsyncClient, method: str, url: str, headers: dict[str, str] | httpx.Headers
) -> httpx.Response:
    return await client.request(
        method, url, json={"limits": "1/day"} if method == "PUT" else None, headers=headers
    )


@pytest.mark.parametrize(("method", "url"), CHANGES)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer wrong token", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer", 401),
        ("Bearer \xff", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
    ],
)
async def test_changes_with_an_admin_token_set_need_it(
    host: str, authorization: str | None, status: int, method: str, url: str
) -> None:
    limiter = FakeLimiter()
    given = {} if authorization is None else {"authorization": authorization}
    headers = httpx.Headers({"host": "stoplog.example.com", **given}, encoding="latin-1")
    async with connect(limiter, host=host, token=TOKEN) as client:
        response = await send(client, method, url, headers)
    assert response.status_code == status
    assert bool(limiter.changes) == (status == 200)
    if status == 401:
        assert response.headers["www-authenticate"].startswith('Bearer realm="stoplog"')
        assert response.json()["field"] == "Authorization"
        assert TOKEN not in response.text


@pytest.mark.parametrize(("method", "url"), CHANGES)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway-1", ""])
async def test_changes_beyond_loopback_without_an_admin_token_are_forbidden(
    host: str, method: str, url: str
) -> None:
    limiter = FakeLimiter()
    async with connect(limiter, host=host) as client:
        response = await send(client, method, url, {"authorization": "Bearer anything"})
    assert response.status_code == 403
    assert "beyond loopback" in response.json()["detail"]
    assert "STOPLOG_ADMIN_TOKEN" in response.json()["remedy"]
    assert not limiter.changes


@pytest.mark.parametrize(("method", "url"), CHANGES)
@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({}, None),
        ({"host": "localhost:8080"}, None),
        ({"host": "[::1]:8080"}, None),
        ({"host": "[::1]:8080", "origin": "http://[::1]:8080"}, None),
        ({"host": "127.0.0.1:8080", "origin": "http://127.0.0.1:8080"}, None),
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
        ({"x-forwarded-host": "stoplog.example.com"}, "X-Forwarded-Host"),
        ({"x-forwarded-proto": "https"}, "X-Forwarded-Proto"),
        ({"x-real-ip": "203.0.113.9"}, "X-Real-Ip"),
        ({"x-forwarded-port": "443"}, "X-Forwarded-Port"),
        ({"x-original-forwarded-for": "203.0.113.9"}, "X-Original-Forwarded-For"),
        ({"x-envoy-external-address": "203.0.113.9"}, "X-Envoy-External-Address"),
        ({"cf-connecting-ip": "203.0.113.9"}, "Cf-Connecting-Ip"),
        ({"true-client-ip": "203.0.113.9"}, "True-Client-Ip"),
    ],
)
async def test_changes_on_loopback_without_an_admin_token_are_limited_to_local_programs(
    headers: dict[str, str], field: str | None, method: str, url: str
) -> None:
    limiter = FakeLimiter()
    async with connect(limiter) as client:
        response = await send(client, method, url, headers)
    assert response.status_code == (200 if field is None else 403)
    assert bool(limiter.changes) == (field is None)
    if field is not None:
        assert response.json()["field"] == field


FOREIGN = [
    {"host": "evil.example"},
    {"origin": "http://evil.example"},
    {"x-forwarded-for": "203.0.113.9"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_on_loopback_without_a_token_foreign_requests_are_refused_except_on_routes_for_proxies(
    headers: dict[str, str],
) -> None:
    limiter = FakeLimiter()
    async with connect(limiter) as client:
        for url in ("/healthz", "/metrics", "/v1/status", "/v1/clients/alice/usage", "/console", "/none"):
            response = await client.get(url, headers=headers)
            assert response.status_code == 403
            assert "STOPLOG_ADMIN_TOKEN" in response.json()["remedy"]
        assert (await client.post("/v1/check", json={"client_id": "a"}, headers=headers)).status_code == 403
        assert not limiter.checks
        for url in ("/v1/authorize", "/v1/authorize/a/b"):
            response = await client.get(url, headers={**headers, "x-client-id": "alice"})
            assert response.status_code == 200
        assert (await client.post("/json", json={}, headers=headers)).status_code == 400
    for fields in ({"token": TOKEN}, {"host": "0.0.0.0"}):
        async with connect(limiter, **fields) as client:
            response = await client.post("/v1/check", json={"client_id": "a"}, headers=headers)
            assert response.status_code == 200


@pytest.mark.parametrize("headers", FOREIGN)
async def test_fast_path_refuses_foreign_requests_as_the_routes_do(headers: dict[str, str]) -> None:
    limiter = FakeLimiter()
    app = create_app(GatewaySettings(), limiter)
    given = {"host": "localhost", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    request = (
        f"POST /v1/check HTTP/1.1\r\n{lines}content-type: application/json\r\ncontent-length: 18\r\n\r\n"
        '{"client_id": "a"}'
    ).encode()
    fast_path = FastPath(limiter, legacy_headers=False, local_only=True)
    answers = [await respond_to_stream(app, path, [request]) for path in (None, fast_path)]
    assert answers[0] == answers[1]
    assert status_of(answers[0]) == 403
    assert not limiter.checks
    everyone = FastPath(limiter, legacy_headers=False, local_only=False)
    assert status_of(await respond_to_stream(app, everyone, [request])) == 200


@pytest.mark.parametrize("url", ["/v1/status", "/healthz", "/readyz", "/metrics", "/v1/clients/alice/usage"])
async def test_reads_and_checks_need_no_token(url: str) -> None:
    async with connect(FakeLimiter(), host="0.0.0.0", token=TOKEN) as client:
        assert (await client.get(url)).status_code == 200
        assert (await client.post("/v1/check", json={"client_id": "alice"})).status_code == 200


@pytest.mark.parametrize("url", CLIENT_LISTS)
async def test_lists_of_clients_with_an_admin_token_set_need_it(url: str) -> None:
    async with connect(FakeLimiter(), token=TOKEN) as client:
        for headers in ({}, {"authorization": "Bearer wrong token"}):
            response = await client.get(url, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert "mallory" not in response.text
        assert (await client.get(url, headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200


@pytest.mark.parametrize("url", CLIENT_LISTS)
async def test_lists_of_clients_without_an_admin_token_are_limited_to_local_programs(url: str) -> None:
    async with connect(FakeLimiter()) as client:
        assert (await client.get(url)).status_code == 200
        assert (await client.get(url, headers={"host": "rebound.example"})).status_code == 403
    async with connect(FakeLimiter(), host="0.0.0.0") as client:
        response = await client.get(url)
        assert response.status_code == 403
        assert "STOPLOG_ADMIN_TOKEN" in response.json()["remedy"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_is_loopback_of_a_loopback_host_is_true(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "128.0.0.1", "localhost.example", "127.1", "2130706433"]
)
def test_is_loopback_of_another_host_is_false(host: str) -> None:
    assert not is_loopback(host)
