from __future__ import annotations

import httpx
import pytest

from stoplog.client.answer import Answer
from stoplog.client.fail_open import BROKER, FAIL_CLOSED, FAIL_OPEN, INTERNAL_ERROR
from stoplog.policy import digest_id
from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter
from tests.support.gateway_http import connect

ALICE = {"x-client-id": "alice"}
DENIED = Answer(False, 100, 0, 60_000, 2_001, 7)


async def test_authorize_allowed_is_a_200_with_rate_limit_headers(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.get("/v1/authorize?cost=2&plan=gold&resource=login", headers=ALICE)
    assert response.status_code == 200
    assert response.json()["allowed"] is True
    assert response.headers["ratelimit"] == '"default";r=99;t=60'
    assert response.headers["cache-control"] == "no-store"
    assert limiter.checks == [Check("alice", 2, "gold", "login")]


async def test_authorize_denied_is_a_429_with_retry_after(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = DENIED
    response = await http.get("/v1/authorize", headers=ALICE)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.headers["ratelimit"] == '"default";r=0;t=3'
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["remedy"] == "try again in 3 s"


async def test_authorize_with_a_cost_above_the_limit_is_a_429_without_retry_after(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = Answer(False, 10, 10, 0, None, 7)
    response = await http.get("/v1/authorize?cost=11", headers=ALICE)
    assert response.status_code == 429
    assert "retry-after" not in response.headers
    assert response.json()["detail"] == "the cost exceeds the limit of 10"


async def test_authorize_without_a_store_fails_open(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_OPEN[BROKER]
    response = await http.get("/v1/authorize", headers=ALICE)
    assert response.status_code == 200
    assert "ratelimit" not in response.headers
    assert response.json()["degraded"] is True


async def test_authorize_failed_closed_is_a_429_with_retry_after(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = FAIL_CLOSED[BROKER]
    response = await http.get("/v1/authorize?unavailable=deny", headers=ALICE)
    assert response.status_code == response.json()["status"] == 429
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert "ratelimit" not in response.headers
    assert response.json()["type"] == "urn:stoplog:problem:store-unavailable"
    assert response.json()["detail"] == "the store did not decide the check (broker)"


@pytest.mark.parametrize(
    ("url", "header", "fails_closed"),
    [
        ("/v1/authorize", None, False),
        ("/v1/authorize?unavailable=allow", None, False),
        ("/v1/authorize?unavailable=deny", None, True),
        ("/v1/authorize?unavailable=deny", "allow", True),  # the caller of the proxy may have sent the field
        ("/v1/authorize?unavailable=allow", "deny", True),
        ("/v1/authorize/orders", None, False),
        ("/v1/authorize/orders", "deny", True),
        ("/v1/authorize/orders?unavailable=deny", None, False),  # the query is that of the proxy's caller
        ("/v1/authorize/orders?unavailable=no", None, False),
    ],
)
async def test_authorize_fails_closed_if_the_query_or_the_header_field_says_so(
    http: httpx.AsyncClient, limiter: FakeLimiter, url: str, header: str | None, fails_closed: bool
) -> None:
    headers = ALICE if header is None else {**ALICE, "stoplog-unavailable": header}
    assert (await http.get(url, headers=headers)).status_code == 200
    assert limiter.fail_closed == [fails_closed]


async def test_authorize_with_an_invalid_header_field_is_a_422(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.get("/v1/authorize/x", headers={**ALICE, "stoplog-unavailable": "denied"})
    assert response.status_code == 422
    assert response.json()["field"] == "Stoplog-Unavailable"
    assert limiter.checks == []


@pytest.mark.parametrize("url", ["/v1/authorize?unavailable=deny", "/v1/authorize/x"])
async def test_authorize_with_a_bug_fails_closed_if_the_proxy_asked_for_it(
    http: httpx.AsyncClient, limiter: FakeLimiter, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    limiter.error = ZeroDivisionError("a bug")
    deny = {**ALICE, "stoplog-unavailable": "deny"}
    response = await http.get(url, headers=deny)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["detail"] == "the store did not decide the check (internal_error)"
    assert limiter.metrics.failed_closed[INTERNAL_ERROR] == 1
    assert "ZeroDivisionError" in caplog.text
    assert (await http.get("/v1/authorize", headers=ALICE)).status_code == 500


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "PROPFIND"])
async def test_authorize_accepts_any_method_and_any_path_below(
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
        ([("x-client-id", " ")], "X-Client-Id: empty"),
    ],
)
async def test_authorize_without_a_valid_client_is_a_403(
    http: httpx.AsyncClient, limiter: FakeLimiter, headers: list[tuple[str, str | bytes]], detail: str
) -> None:
    response = await http.get("/v1/authorize", headers=httpx.Headers(headers))  # type: ignore[arg-type]
    assert response.status_code == 403
    assert response.json()["field"] == "X-Client-Id"
    assert response.json()["detail"] == detail
    assert limiter.checks == []


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("zoë".encode(), "zoë"),
        ("zoë".encode("latin-1"), digest_id("zoë".encode("latin-1"))),
        (b"a" * 257, digest_id(b"a" * 257)),
        (b"[2001:DB8:0:0::1]:443", "2001:db8::/64"),
        (b"192.0.2.1:443", "192.0.2.1"),
        (b"192.0.2.1, 192.0.2.2", "192.0.2.1, 192.0.2.2"),
    ],
)
async def test_authorize_takes_any_value_of_the_client_header_as_one_client(
    http: httpx.AsyncClient, limiter: FakeLimiter, value: bytes, client: str
) -> None:
    await http.get("/v1/authorize", headers={b"x-client-id": value})
    assert limiter.checks == [Check(client)]


async def test_authorize_with_a_chain_ignores_the_client_header(limiter: FakeLimiter) -> None:
    chain = "header:X-Api-Key,address"
    async with connect(limiter, identify=chain, trusted_proxies="127.0.0.1") as http:
        await http.get("/v1/authorize", headers={**ALICE, "x-api-key": "key"})
        await http.get("/v1/authorize", headers={**ALICE, "x-forwarded-for": "evil, 192.0.2.1:4711"})
        await http.get("/v1/authorize", headers={**ALICE, "x-api-key": ""})
    assert limiter.checks == [Check("key"), Check("192.0.2.1"), Check("127.0.0.1")]


async def test_authorize_with_a_chain_that_names_no_one_is_a_403(limiter: FakeLimiter) -> None:
    async with connect(limiter, identify="header:X-Api-Key") as http:
        response = await http.get("/v1/authorize", headers=ALICE)
    assert response.status_code == 403
    assert response.json()["remedy"] == "send one of them, or add address to the chain"
    assert limiter.checks == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-forwarded-for": "192.0.2.1"}, 403),
        ({**ALICE, "x-forwarded-for": "192.0.2.1"}, 403),
        ({**ALICE, "x-forwarded-for": "198.51.100.1", "x-real-ip": "192.0.2.1"}, 403),
        ({"x-forwarded-for": "2001:db8::1"}, 200),
        ({"x-client-id": "2001:db8:ffff::1"}, 200),
        ({"x-client-id": "::ffff:192.0.2.9"}, 403),
    ],
)
async def test_authorize_charges_nothing_for_a_blocked_or_exempt_address(
    limiter: FakeLimiter, headers: dict[str, str], status: int
) -> None:
    async with connect(
        limiter,
        trusted_proxies="127.0.0.0/8",
        blocked_addresses="192.0.2.0/24",
        exempt_addresses="2001:db8::/32 192.0.2.0/25",
    ) as http:
        response = await http.get("/v1/authorize", headers=headers)
    assert response.status_code == status
    assert limiter.checks == []
    assert (limiter.metrics.blocked, limiter.metrics.exempt) == (status == 403, status == 200)
    if status == 403:
        assert response.json()["type"] == "urn:stoplog:problem:blocked"
    else:
        assert response.json()["allowed"] is True
        assert "ratelimit" not in response.headers


@pytest.mark.parametrize("trusted", ["", "127.0.0.1", "1"])
async def test_authorize_exempts_no_one_for_the_address_of_the_proxy(
    limiter: FakeLimiter, trusted: str
) -> None:
    async with connect(limiter, trusted_proxies=trusted, exempt_addresses="127.0.0.0/8 10.0.0.0/8") as http:
        assert (await http.get("/v1/authorize")).status_code == 403
        await http.get("/v1/authorize", headers=ALICE)
        await http.get("/v1/authorize", headers={**ALICE, "x-forwarded-for": "10.0.0.1, unknown"})
        assert limiter.checks == [Check("alice")] * 2
        await http.get("/v1/authorize", headers={**ALICE, "x-forwarded-for": "10.0.0.1"})
    assert limiter.metrics.exempt == (trusted != "")


async def test_authorize_with_several_values_of_the_field_of_a_chain_is_a_403(limiter: FakeLimiter) -> None:
    async with connect(limiter, identify="header:X-Api-Key,address") as http:
        response = await http.get("/v1/authorize", headers={"x-api-key": "a, b"})
    assert response.status_code == 403
    assert response.json()["detail"] == "X-Api-Key has several values"
    assert response.json()["field"] == "X-Api-Key"
    assert response.json()["remedy"] == "send one value, without a comma"
    assert limiter.checks == []


async def test_authorize_without_a_client_checks_no_address_that_is_not_listed(limiter: FakeLimiter) -> None:
    async with connect(limiter, blocked_addresses="192.0.2.0/24") as http:
        assert (await http.get("/v1/authorize")).json()["type"] == "urn:stoplog:problem:no-client"
        assert (await http.get("/v1/authorize", headers=ALICE)).status_code == 200
    assert limiter.checks == [Check("alice")]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("cost=-1", "cost"),
        ("cost=1000001", "cost"),
        ("plan=", "plan"),
        ("unavailable=", "unavailable"),
        ("unavailable=DENY", "unavailable"),
        ("unavailable=allow&unavailable=no", "unavailable"),
        ("ressource=x", "ressource"),
        ("plan=%FF", "query"),
    ],
)
async def test_authorize_with_an_invalid_query_is_a_422(
    http: httpx.AsyncClient, limiter: FakeLimiter, query: str, field: str
) -> None:
    response = await http.get(f"/v1/authorize?{query}", headers=ALICE)
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert limiter.checks == []


async def test_authorize_uses_the_client_header_and_legacy_headers_of_the_settings(
    limiter: FakeLimiter,
) -> None:
    async with connect(limiter, client_header="X-User", legacy_headers=True) as http:
        response = await http.get("/v1/authorize", headers={**ALICE, "x-user": "bob"})
    assert response.headers["x-ratelimit-remaining"] == "99"
    assert limiter.checks == [Check("bob")]
