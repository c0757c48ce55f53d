from __future__ import annotations

import httpx
import pytest

from stoplog.client.cluster_status import Readiness
from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter
from tests.support.gateway_http import connect


async def test_status_returns_the_limiters_status(http: httpx.AsyncClient) -> None:
    status = (await http.get("/v1/status")).json()
    assert status["mode"] == "normal"
    assert status["store"] == "ok"
    assert status["partitions"] == 4


async def test_metrics_are_prometheus_text(http: httpx.AsyncClient) -> None:
    response = await http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "# TYPE stoplog_checks_received_total counter" in response.text


async def test_healthz_without_a_store_is_200(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.readiness = Readiness(False, "no broker")
    response = await http.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


@pytest.mark.parametrize(("query", "status"), [("", 200), ("?strict=0", 200), ("?strict=1", 503)])
async def test_readyz_of_a_gateway_that_fails_open_is_503_only_if_strict(
    query: str, status: int, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.get(f"/readyz{query}")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    limiter.readiness = Readiness(False, "no broker at 127.0.0.1:9092")
    response = await http.get(f"/readyz{query}")
    assert response.status_code == status
    if status == 503:
        assert response.json()["detail"] == "no broker at 127.0.0.1:9092"


async def test_readyz_before_every_partition_has_answered_is_503_with_the_reason(
    limiter: FakeLimiter,
) -> None:
    limiter.readiness = Readiness(False, "partition 2 has not answered yet")
    for startup_s, status in ((10, 503), (0, 200)):
        async with connect(limiter, startup_s=startup_s) as client:
            response = await client.get("/readyz")
            assert response.status_code == status
    async with connect(limiter) as client:
        assert (await client.get("/readyz?strict=x")).status_code == 422
        assert (await client.get("/readyz?strikt=1")).status_code == 422


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/readyz", "/metrics", "/v1/status", "/v1/limits", "/console", "/docs", "/openapi.json"],
)
async def test_head_gets_the_header_fields_of_get_without_a_body(path: str, http: httpx.AsyncClient) -> None:
    get, head = await http.get(path), await http.head(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers.keys() == get.headers.keys()
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_of_authorize_charges_like_get(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    response = await http.head("/v1/authorize?cost=2", headers={"x-client-id": "alice"})
    assert (response.status_code, response.content) == (200, b"")
    assert "ratelimit" in response.headers
    assert limiter.checks == [Check("alice", 2)]
