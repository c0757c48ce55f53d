from __future__ import annotations

import httpx
import pytest

from gateway.admin import Applied
from streams.contract.records import UpdateKey
from tests.unit.gateway.api.fake import FakeLimiter


@pytest.mark.parametrize(("applied", "status"), [(True, 200), (False, 202)])
async def test_reset(applied: bool, status: int, http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.applied = Applied(applied, 4)
    response = await http.post("/v1/clients/alice/reset?resource=login")
    assert response.status_code == status
    assert response.json() == {"client_id": "alice", "resource": "login", "applied": applied}
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
async def test_bad_names_reset_nothing(
    url: str, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post(url)
    assert response.status_code == 422
    assert response.json()["field"] == field
    assert not limiter.changes
