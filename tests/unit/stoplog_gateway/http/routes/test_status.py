from __future__ import annotations

import httpx

from stoplog.client.cluster_status import Readiness
from tests.support.fake_limiter import FakeLimiter


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


async def test_readyz_without_a_store_is_503_with_the_reason(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    limiter.readiness = Readiness(False, "no broker at 127.0.0.1:9092")
    response = await http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["detail"] == "no broker at 127.0.0.1:9092"
