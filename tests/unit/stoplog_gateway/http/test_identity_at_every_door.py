"""One table of requests: every door names the same client, or refuses or exempts the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import httpx
import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from stoplog_gateway.envoy.mapping import DescriptorMapping
from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings

from stoplog import BlockingLimiter
from stoplog.client.settings import Settings
from stoplog.identity.identity import Identity, Verdict
from stoplog.integrations.django import rate_limit
from stoplog.integrations.wsgi import RateLimitMiddleware
from stoplog.policy import digest_id
from tests.support.access import access_control
from tests.support.django_site import configure_django
from tests.support.fake_kafka import Kafka
from tests.support.fake_limiter import FakeLimiter
from tests.support.fast_path_equivalence import whole_fast_path
from tests.support.protocol_connection import Connection, Request, status_of
from tests.support.web_apps import fastapi_app, starlette_app

configure_django()

PROXY: Final = "10.0.0.1"
"""The caller of each request, which is trusted. Its address is in the list of exempt ones."""

EXEMPT, BLOCKED, NO_CLIENT = "<exempt>", "<blocked>", "<no client>"

CHAIN = {
    "identify": "header:X-Api-Key,address",
    "trusted_proxies": "10.0.0.0/8",
    "exempt_addresses": "10.0.0.0/8,198.51.100.0/24",
    "blocked_addresses": "192.0.2.0/24",
}
KEY_ALONE = {"identify": "header:X-Api-Key"}
REAL_IP_ALONE = {**CHAIN, "forwarding_header": "X-Real-IP"}
BY_NUMBER = {**CHAIN, "trusted_proxies": "1"}

Fields = list[tuple[str, str]]


class Case(NamedTuple):
    """A request, and its client or fate.

    Envoy finds the *address* itself. ``None`` if the case says nothing of it.
    """

    settings: dict[str, str]
    fields: Fields
    outcome: str
    address: str | None = None


FROM = ("X-Forwarded-For", "203.0.113.5")
KEY = ("X-Api-Key", "K")


def keys(*values: str) -> Fields:
    return [("X-Api-Key", value) for value in values]


CASES = [
    Case(CHAIN, [KEY, FROM], "K", "203.0.113.5"),
    Case(CHAIN, [FROM], "203.0.113.5", "203.0.113.5"),
    # a field that occurs twice, or is empty
    Case(CHAIN, [*keys("", "r0"), FROM], "r0", "203.0.113.5"),
    Case(CHAIN, [*keys("", ""), FROM], "203.0.113.5", "203.0.113.5"),
    Case(CHAIN, [*keys(" , "), FROM], "203.0.113.5", "203.0.113.5"),
    Case(CHAIN, [*keys("K", "K"), FROM], "K", "203.0.113.5"),
    Case(CHAIN, [*keys("K", "r0"), FROM], NO_CLIENT, "203.0.113.5"),
    Case(CHAIN, [*keys("r0, K"), FROM], NO_CLIENT, "203.0.113.5"),
    Case(CHAIN, [*keys("K", "r0"), ("X-Forwarded-For", "192.0.2.9")], BLOCKED, "192.0.2.9"),
    Case(CHAIN, [*keys("K", "r0"), ("X-Forwarded-For", "198.51.100.9")], EXEMPT, "198.51.100.9"),
    # nothing that names the client
    Case(KEY_ALONE, [KEY], "K", "203.0.113.5"),
    Case(KEY_ALONE, [FROM], NO_CLIENT),
    Case(KEY_ALONE, keys(""), NO_CLIENT),
    # a key that looks like an address
    *(
        Case(CHAIN, [("X-Api-Key", value), FROM], digest_id(value.encode()), "203.0.113.5")
        for value in ("198.51.100.7", "[2001:DB8::1]:80", "192.0.2.0/24", "2001:db8:1:2::/64", "unknown")
    ),
    # a field that another one contradicts, or that cannot be read
    Case(CHAIN, [FROM, ("X-Real-IP", "203.0.113.6")], PROXY),
    Case(CHAIN, [FROM, ("X-Real-IP", "192.0.2.9")], BLOCKED),
    Case(CHAIN, [FROM, ("X-Real-IP", "198.51.100.9")], PROXY),
    Case(CHAIN, [FROM, ("Forwarded", "for=_hidden")], PROXY),
    Case(CHAIN, [FROM, ("Forwarded", "for=unknown")], PROXY),
    Case(CHAIN, [("X-Real-IP", "198.51.100.9"), ("X-Forwarded-For", "unix:")], PROXY),
    Case(CHAIN, [("X-Real-IP", "192.0.2.9"), ("X-Forwarded-For", "unix:")], BLOCKED),
    Case(REAL_IP_ALONE, [FROM, ("X-Real-IP", "203.0.113.6")], "203.0.113.6"),
    Case(REAL_IP_ALONE, [("X-Real-IP", "203.0.113.6"), ("X-Forwarded-For", "unix:")], "203.0.113.6"),
    Case(REAL_IP_ALONE, [FROM], PROXY),
    # the address of the proxy exempts no one
    Case(CHAIN, [], PROXY),
    Case(CHAIN, [KEY], "K"),
    Case(CHAIN, [("X-Forwarded-For", "203.0.113.5, unknown")], PROXY),
    Case(BY_NUMBER, [], PROXY),
    Case(BY_NUMBER, [("X-Forwarded-For", "unknown")], PROXY),
    Case(CHAIN, [("X-Forwarded-For", "198.51.100.9")], EXEMPT, "198.51.100.9"),
    Case(CHAIN, [("X-Forwarded-For", "10.0.0.3")], EXEMPT, "10.0.0.3"),
    Case(CHAIN, [KEY, ("X-Forwarded-For", "192.0.2.9")], BLOCKED, "192.0.2.9"),
]


def outcome_of(status: int, body: str, clients: list[str]) -> str:
    if status == 403:
        assert clients == []
        return BLOCKED if "address of the client is blocked" in body else NO_CLIENT
    assert status == 200
    if not clients:
        return EXEMPT
    [client] = clients
    return client


async def through_asgi(app: Any, limiter: FakeLimiter, case: Case) -> str:
    transport = httpx.ASGITransport(app, client=(PROXY, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        response = await http.get("/", headers=case.fields)
    return outcome_of(response.status_code, response.text, [check.client for check in limiter.checks])


async def through_middleware(case: Case) -> str:
    limiter = FakeLimiter(Identity.of(Settings(**case.settings)))  # type: ignore[arg-type]
    return await through_asgi(starlette_app(limiter, None), limiter, case)


async def through_dependency(case: Case) -> str:
    limiter = FakeLimiter(Identity.of(Settings(**case.settings)))  # type: ignore[arg-type]
    return await through_asgi(fastapi_app(limiter, identify=None), limiter, case)


def environ_of(case: Case) -> dict[str, str]:
    """Return the header fields as a WSGI server passes them on: joined by commas."""
    environ: dict[str, str] = {}
    for name, value in case.fields:
        key = f"HTTP_{name.upper().replace('-', '_')}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def through_threads(case: Case, serve: Callable[[BlockingLimiter], tuple[int, str]]) -> str:
    limiter = BlockingLimiter("kafka:9092", deadline_ms=60_000, **case.settings)
    try:
        status, body = serve(limiter)
        if status == 403 or not limiter._limiter.running:
            return outcome_of(status, body, [])
        transport: Any = limiter._limiter._engine.transport
        return outcome_of(status, body, [check.client for check in transport.checks])
    finally:
        limiter.stop()


async def through_wsgi(case: Case) -> str:
    def serve(limiter: BlockingLimiter) -> tuple[int, str]:
        statuses: list[str] = []

        def hello(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b"hello"]

        app: Any = RateLimitMiddleware(hello, limiter=limiter, cost=2)
        environ = {"REQUEST_METHOD": "GET", "REMOTE_ADDR": PROXY, **environ_of(case)}
        body = b"".join(app(environ, lambda status, _: statuses.append(status)))
        return int(statuses[0].partition(" ")[0]), body.decode()

    return through_threads(case, serve)


async def through_django(case: Case) -> str:
    def serve(limiter: BlockingLimiter) -> tuple[int, str]:
        view = rate_limit(limiter=limiter, cost=2)(lambda _: HttpResponse("hello"))
        response = view(RequestFactory().get("/", REMOTE_ADDR=PROXY, **environ_of(case)))
        return response.status_code, response.content.decode()

    return through_threads(case, serve)


async def through_authorize(case: Case, *, fast: bool) -> str:
    settings = GatewaySettings(**case.settings)  # type: ignore[arg-type]
    limiter = FakeLimiter()
    fast_path = whole_fast_path(limiter, identity=Identity.of(settings)) if fast else None
    connection = Connection(create_app(settings, limiter, access_control()), fast_path)
    connection.protocol.client = PROXY, 4711
    fields = tuple((name.encode(), value.encode()) for name, value in case.fields)
    response = await connection.send(*Request("GET", "/v1/authorize", fields).data())
    await connection.disconnect()
    return outcome_of(status_of(response), response.decode(), [check.client for check in limiter.checks])


async def through_fast_authorize(case: Case) -> str:
    return await through_authorize(case, fast=True)


async def through_slow_authorize(case: Case) -> str:
    return await through_authorize(case, fast=False)


async def through_envoy(case: Case) -> str:
    if case.address is None:
        return case.outcome
    mapping = DescriptorMapping(identity=Identity.of(Settings(**case.settings)))  # type: ignore[arg-type]
    joined = ",".join(value for name, value in case.fields if name == KEY[0])  # as Envoy does
    entries = [("path", "/"), ("x-api-key", joined), ("remote_address", case.address)]
    verdict = mapping.verdict([entries])
    named = {Verdict.EXEMPT: EXEMPT, Verdict.BLOCKED: BLOCKED, Verdict.UNNAMED: NO_CLIENT}
    return named.get(verdict) or mapping.resolve("edge", entries).client


DOORS: list[Callable[[Case], Awaitable[str]]] = [
    through_middleware,
    through_dependency,
    through_wsgi,
    through_django,
    through_fast_authorize,
    through_slow_authorize,
    through_envoy,
]


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_names_the_same_client(
    door: Callable[[Case], Awaitable[str]], kafka: type[Kafka]
) -> None:
    outcomes = [await door(case) for case in CASES]
    assert outcomes == [case.outcome for case in CASES]
