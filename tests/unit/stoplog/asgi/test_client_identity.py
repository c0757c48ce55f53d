"""How the middleware and the dependency name clients, and heed the lists of addresses."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from stoplog import Limiter, RateLimit, RateLimitMiddleware
from stoplog.client.settings import Settings
from stoplog.errors import InvalidInput
from stoplog.identity import client_address, first_of, header
from stoplog.identity.identity import Identity
from stoplog.policy import digest_id
from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter
from tests.support.web_apps import fastapi_app, starlette_app

LISTS = Identity.of(
    Settings(blocked_addresses="192.0.2.0/24", exempt_addresses="2001:db8::/32", trusted_proxies="127.0.0.1")
)


def client(app: Any) -> TestClient:
    return TestClient(app, client=("127.0.0.1", 4711))


def headers_of(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-api-key")


IDENTIFIERS: list[Any] = [
    headers_of,
    lambda c: c.headers["X-Api-Key"],
    lambda c: c.headers.getlist("x-api-key")[0],
    lambda c: dict(c.headers)["x-api-key"],
    lambda c: dict(zip(c.headers.keys(), c.headers.values(), strict=True))["x-api-key"],
    header("X-Api-Key"),
    first_of(header("x-other"), header("x-api-key")),
]


@pytest.mark.parametrize("identify", IDENTIFIERS)
@pytest.mark.parametrize("door", ["middleware", "dependency"])
@pytest.mark.parametrize(
    ("value", "id_"),
    [
        ("élise".encode(), "élise"),
        ("élise".encode("latin-1"), digest_id("élise".encode("latin-1"))),
        (b"a" * 257, digest_id(b"a" * 257)),
    ],
)
async def test_header_field_is_decoded_as_at_every_door(
    identify: Any, door: str, value: bytes, id_: str
) -> None:
    limiter = FakeLimiter()
    if door == "middleware":
        app: Any = starlette_app(limiter, identify)
    else:
        app = fastapi_app(limiter, identify=identify)
    transport = httpx.ASGITransport(app)  # TestClient would encode the value anew
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        assert (await http.get("/", headers={b"x-api-key": value})).status_code == 200
    assert limiter.checks == [Check(id_)]


def test_missing_header_field_is_missing() -> None:
    limiter = FakeLimiter()
    with pytest.raises(KeyError, match="x-none"):
        client(starlette_app(limiter, lambda c: c.headers["x-none"])).get("/")
    assert client(starlette_app(limiter, header("x-none"))).get("/").status_code == 200
    assert limiter.checks == []


async def key_of_a_database(connection: HTTPConnection) -> str | None:
    return {"k1": "team-1"}.get(connection.headers.get("x-api-key", ""))


@pytest.mark.parametrize(
    ("headers", "id_"),
    [
        ({"x-api-key": "k1"}, "team-1"),
        ({"x-api-key": "k2"}, "203.0.113.5"),
        ({}, "203.0.113.5"),
    ],
)
def test_chain_of_identifiers_takes_the_first_id(headers: dict[str, str], id_: str) -> None:
    limiter = FakeLimiter()
    app = starlette_app(limiter, first_of(key_of_a_database, client_address("127.0.0.1")))
    client(app).get("/", headers={**headers, "x-forwarded-for": "1.1.1.1, 203.0.113.5"})
    assert limiter.checks == [Check(id_)]


def test_client_address_without_trusted_proxies_is_the_caller() -> None:
    limiter = FakeLimiter()
    app = starlette_app(limiter, client_address())
    client(app).get("/", headers={"x-forwarded-for": "203.0.113.5"})
    TestClient(app).get("/")
    TestClient(app, client=("2001:DB8:0::1", 1)).get("/")
    assert limiter.checks == [Check("127.0.0.1"), Check("testclient"), Check("2001:db8::/64")]


@pytest.mark.parametrize("door", ["middleware", "dependency"])
def test_settings_name_the_client_by_default(door: str) -> None:
    chain = Settings(identify="header:X-Api-Key,address", trusted_proxies="1", ipv6_prefix=48)
    limiter = FakeLimiter(Identity.of(chain))
    app = starlette_app(limiter, None) if door == "middleware" else fastapi_app(limiter, identify=None)
    client(app).get("/", headers={"x-api-key": "key"})
    client(app).get("/", headers={"x-forwarded-for": "[2001:db8:1:2::3]:80"})
    assert limiter.checks == [Check("key"), Check("2001:db8:1::/48")]


def test_nothing_that_names_the_clients_is_an_error_at_once() -> None:
    for make in (
        lambda: RateLimit(FakeLimiter()),
        lambda: RateLimitMiddleware(FastAPI(), limiter=FakeLimiter()),
    ):
        with pytest.raises(InvalidInput, match=r"identify: missing; pass a function.*STOPLOG_IDENTIFY"):
            make()


@pytest.mark.parametrize("identify", [header("X-Api-Key"), first_of(header("X-Api-Key"), client_address())])
@pytest.mark.parametrize("door", ["middleware", "dependency"])
def test_request_with_several_values_of_the_field_that_names_it_is_denied(door: str, identify: Any) -> None:
    limiter = FakeLimiter()
    app: Any
    if door == "middleware":
        app = starlette_app(limiter, identify)
    else:
        app = fastapi_app(limiter, identify=identify)
    denied = client(app).get("/", headers=[("X-Api-Key", "a"), ("x-api-key", "b")])
    assert (denied.status_code, denied.headers["content-type"]) == (403, "application/problem+json")
    assert "no header field names the client, or one has several values" in denied.text
    assert "retry-after" not in denied.headers
    assert limiter.checks == []
    client(app).get("/", headers=[("X-Api-Key", ""), ("x-api-key", "b")])
    assert limiter.checks == [Check("b")]


@pytest.mark.parametrize("door", ["middleware", "dependency"])
def test_request_that_the_chain_names_no_client_for_is_denied_but_no_preflight(door: str) -> None:
    limiter = FakeLimiter(Identity.of(Settings(identify="header:X-Api-Key")))
    app: Any = starlette_app(limiter, None) if door == "middleware" else fastapi_app(limiter, identify=None)
    denied = client(app).get("/")
    assert denied.status_code == 403
    assert "no header field names the client" in denied.text
    if door == "middleware":
        assert denied.json()["type"] == "urn:stoplog:problem:no-client"
        assert denied.json()["remedy"] == "send such a field with one value"
    preflight = {"origin": "https://page.example", "access-control-request-method": "GET"}
    assert client(app).options("/", headers=preflight).status_code == 405
    with (
        pytest.raises((WebSocketDenialResponse, WebSocketDisconnect)),
        client(app).websocket_connect("/socket"),
    ):
        pass
    assert limiter.checks == []


def test_client_address_reads_only_the_field_that_the_proxies_set() -> None:
    limiter = FakeLimiter()
    app = starlette_app(limiter, client_address("127.0.0.1", field="X-Real-IP"))
    client(app).get("/", headers={"x-forwarded-for": "203.0.113.6", "x-real-ip": "203.0.113.5"})
    assert limiter.checks == [Check("203.0.113.5")]


@pytest.mark.parametrize("identify", [client_address("1"), first_of(header("X-A"), client_address("1"))])
def test_identifier_that_trusts_proxies_is_refused_if_the_lists_trust_none(identify: Any) -> None:
    limiter = FakeLimiter(Identity.of(Settings(exempt_addresses="10.0.0.0/8")))
    with pytest.raises(InvalidInput, match=r"identify: trusts proxies.*; set STOPLOG_TRUSTED_PROXIES to the"):
        RateLimit(limiter, identify)
    for other in (client_address(), first_of(client_address()), headers_of):
        RateLimit(limiter, other)
    RateLimit(FakeLimiter(LISTS), identify)
    RateLimit(FakeLimiter(), identify)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: client_address(field="Via"), r"field: 'Via' has no addresses of callers; use X-Forwarded"),
        (lambda: client_address("proxy"), r"trusted_proxies: 'proxy' is no address or network; write it as"),
        (lambda: client_address(ipv6_prefix=0), r"ipv6_prefix: 0 is out of bounds; use 1 to 128"),
        (lambda: header("X Key"), r"name: 'X Key' is no header field; use a name such as X-Api-Key"),
        (lambda: first_of(), r"identifiers: none of them; give at least one"),
    ],
)
def test_invalid_argument_of_an_identifier_is_refused_with_a_remedy(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("door", ["middleware", "dependency"])
@pytest.mark.parametrize("identify", [None, headers_of])
def test_blocked_address_gets_403_and_an_exempt_one_passes_and_neither_is_charged(
    door: str, identify: Any
) -> None:
    limiter = FakeLimiter(LISTS)
    if identify is None:
        identify = header("x-none")
    app: Any = (
        starlette_app(limiter, identify) if door == "middleware" else fastapi_app(limiter, identify=identify)
    )
    key = {"x-api-key": "alice"}
    blocked = client(app).get("/", headers={**key, "x-forwarded-for": "192.0.2.9:80"})
    assert (blocked.status_code, blocked.headers["content-type"]) == (403, "application/problem+json")
    assert "the address of the client is blocked" in blocked.text
    assert "retry-after" not in blocked.headers
    exempt = client(app).get("/", headers={**key, "x-forwarded-for": "2001:db8::9"})
    assert exempt.status_code == 200
    assert "ratelimit" not in exempt.headers
    doubtful = client(app).get(
        "/", headers={**key, "x-forwarded-for": "2001:db8::9", "x-real-ip": "192.0.2.9"}
    )
    assert doubtful.status_code == 403
    assert limiter.checks == []
    assert (limiter.metrics.blocked, limiter.metrics.exempt) == (2, 1)
    client(app).get("/", headers={**key, "x-forwarded-for": "2001:db8::9", "x-real-ip": "203.0.113.5"})
    assert limiter.checks == ([Check("alice")] if identify is headers_of else [])


@pytest.mark.parametrize("door", ["middleware", "dependency"])
def test_websocket_of_a_blocked_address_is_denied(door: str) -> None:
    limiter = FakeLimiter(LISTS)
    app: Any = starlette_app(limiter) if door == "middleware" else fastapi_app(limiter)
    with (
        pytest.raises((WebSocketDenialResponse, WebSocketDisconnect)) as denied,
        client(app).websocket_connect("/socket", headers={"x-forwarded-for": "192.0.2.9"}),
    ):
        pass
    if isinstance(denied.value, WebSocketDenialResponse):
        assert denied.value.status_code == 403
    assert limiter.metrics.blocked == 1


def test_limiter_has_the_identity_of_its_settings() -> None:
    limiter = Limiter("127.0.0.1:9", identify="header:X-Key", blocked_addresses="192.0.2.0/24")
    assert limiter.identity.chain.links == (b"x-key",)
    assert limiter.identity.has_lists
