from __future__ import annotations

import httpx
import pytest

from stoplog.client.limits_admin import Applied
from stoplog.errors import Unavailable
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey
from tests.support.fake_limiter import FakeLimiter


@pytest.mark.parametrize(("applied", "status"), [(True, 200), (False, 202)])
async def test_reset_is_a_200_if_applied_and_a_202_otherwise(
    applied: bool, status: int, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.applied = Applied(applied, 4, False if applied else None)
    response = await http.post("/v1/clients/alice/reset?resource=login")
    assert response.status_code == status
    assert response.json() == {
        "client_id": "alice",
        "resource": "login",
        "applied": applied,
        "existed": limiter.applied.existed,
    }
    assert limiter.changes == [UpdateKey("reset", "alice", "login")]


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("/v1/clients//reset", "client_id"),
        ("/v1/clients/a%0A/reset", "client_id"),
        ("/v1/clients/%FF/reset", "path"),
        ("/v1/clients/a/reset?resource=", "resource"),
    ],
)
async def test_reset_with_an_invalid_name_is_a_422(
    url: str, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post(url)
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert not limiter.changes


async def test_usage_returns_every_window_and_the_source_of_the_limits(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.get("/v1/clients/a/usage/usage?plan=gold&resource=login")
    assert response.status_code == 200
    assert limiter.checks == [Check("a/usage", 0, "gold", "login")]
    assert response.json() == {
        "client_id": "a/usage",
        "plan": "gold",
        "resource": "login",
        "held_to": {"kind": "plan", "id": "gold", "resource": None},
        "policy_version": 41,
        "windows": [{"limit": "100/minute", "used": 60, "reset_after_ms": 43_000, "held": 45}],
        "holds": {
            "reservations": {"open": 2, "units": 40, "next_end_ms": 12_000},
            "leases": {"open": 1, "units": 5, "next_end_ms": 1_900},
        },
    }
    assert (await http.get("/v1/clients/a/usage")).json()["held_to"] is None


async def test_usage_without_a_worker_is_a_503(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.error = Unavailable(
        "the worker of partition 2 did not reply: check that it runs (`stoplog status`)"
    )
    response = await http.get("/v1/clients/alice/usage")
    assert response.status_code == 503
    assert "partition 2" in response.json()["detail"]


async def test_client_with_the_id_rejected_does_not_hide_the_list(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    assert (await http.get("/v1/clients/rejected")).json() == {
        "gateway": "gateway-1",
        "seconds": 300,
        "items": [{"client_id": "mallory", "checks": 7, "surplus": 1}],
    }
    assert (await http.get("/v1/clients/rejected/usage")).json()["client_id"] == "rejected"
