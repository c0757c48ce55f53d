from __future__ import annotations

import httpx
import pytest

from stoplog.client.answer import Answer
from stoplog.client.fail_open import BROKER, FAIL_OPEN
from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter
from tests.unit.stoplog_gateway.http.conftest import connect

ALICE = {"x-client-id": "alice"}
DENIED = Answer(False, 100, 0, 60_000, 2_001, 7)


async def test_what_the_limit_allows_is_200_with_the_headers(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.get("/v1/authorize?cost=2&plan=gold&resource=login", headers=ALICE)
    assert response.status_code == 200
    assert response.json()["allowed"] is True
    assert response.headers["ratelimit"] == '"default";r=99;t=60'
    assert response.headers["cache-control"] == "no-store"
    assert limiter.checks == [Check("alice", 2, "gold", "login")]


async def test_a_denial_is_a_429_that_says_when_to_come_back(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = DENIED
    response = await http.get("/v1/authorize", headers=ALICE)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.headers["ratelimit"] == '"default";r=0;t=3'
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["remedy"] == "try again in 3 s"


async def test_a_cost_above_the_limit_is_not_told_to_wait(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = Answer(False, 10, 10, 0, None, 7)
    response = await http.get("/v1/authorize?cost=11", headers=ALICE)
    assert response.status_code == 429
    assert "retry-after" not in response.headers
    assert response.json()["detail"] == "the cost exceeds the limit of 10"


async def test_without_the_store_it_is_let_through(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_OPEN[BROKER]
    response = await http.get("/v1/authorize", headers=ALICE)
    assert response.status_code == 200
    assert "ratelimit" not in response.headers
    assert response.json()["degraded"] is True


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "PROPFIND"])
async def test_any_method_and_a_callers_own_path_are_one_check(
    http: httpx.AsyncClient, limiter: FakeLimiter, method: str
) -> None:
    here = await http.request(method, "/v1/authorize", headers=ALICE)
    below = await http.request(method, "/v1/authorize/orders/7?cost=0&plan=gold&x=%FF", headers=ALICE)
    assert (here.status_code, below.status_code) == (200, 200)
    assert limiter.checks == [Check("alice")] * 2


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([], "X-Client-Id is missing"),
        ([("x-client-id", "a"), ("X-CLIENT-ID", "b")], "X-Client-Id occurs more than once"),
        ([("x-client-id", "")], "X-Client-Id: empty"),
        ([("x-client-id", b"\xff")], "X-Client-Id: not UTF-8"),
        ([("x-client-id", "a" * 257)], "X-Client-Id: longer than 256 bytes of UTF-8"),
    ],
)
async def test_a_client_that_cannot_be_used_is_a_403_which_nginx_passes_on(
    http: httpx.AsyncClient, limiter: FakeLimiter, headers: list[tuple[str, str | bytes]], detail: str
) -> None:
    response = await http.get("/v1/authorize", headers=httpx.Headers(headers))  # type: ignore[arg-type]
    assert response.status_code == 403
    assert response.json()["field"] == "X-Client-Id"
    assert response.json()["detail"] == detail
    assert limiter.checks == []


async def test_an_id_may_be_any_utf8(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    await http.get("/v1/authorize", headers={b"x-client-id": "zoë".encode()})
    assert limiter.checks == [Check("zoë")]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("cost=-1", "cost"),
        ("cost=1000001", "cost"),
        ("plan=", "plan"),
        ("ressource=x", "ressource"),
        ("plan=%FF", "query"),
    ],
)
async def test_a_query_that_cannot_be_used_is_a_422(
    http: httpx.AsyncClient, limiter: FakeLimiter, query: str, field: str
) -> None:
    response = await http.get(f"/v1/authorize?{query}", headers=ALICE)
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert limiter.checks == []


async def test_the_header_is_a_setting_and_so_are_the_legacy_fields(limiter: FakeLimiter) -> None:
    async with connect(limiter, client_header="X-User", legacy_headers=True) as http:
        response = await http.get("/v1/authorize", headers={**ALICE, "x-user": "bob"})
    assert response.headers["x-ratelimit-remaining"] == "99"
    assert limiter.checks == [Check("bob")]
