from __future__ import annotations

from typing import Any

import httpx
import pytest

from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter


async def test_refund_passes_the_request_to_the_limiter_and_returns_what_became_of_it(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    fields = {"client_id": "zoë/ 1", "cost": 3.0, "plan": "free", "resource": "tokens", "refund_id": "7"}
    response = await http.post("/v1/refunds", json=fields)
    assert response.status_code == 200
    assert response.json() == {
        "id": "7",
        "state": "refunded",
        "units": 3,
        "repeated": False,
        "reason": None,
    }
    assert limiter.refunds == [Check("zoë/ 1", 3, "free", "tokens")]


async def test_refund_has_the_cost_1_and_a_new_id_by_default(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/refunds", json={"client_id": "a"})
    assert (response.json()["id"], limiter.refunds) == ("new", [Check("a")])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "client_id"),
        ({"client_id": ""}, "client_id"),
        ({"client_id": "a", "cost": -1}, "cost"),
        ({"client_id": "a", "cost": 1.5}, "cost"),
        ({"client_id": "a", "cost": 1_000_001}, "cost"),
        ({"client_id": "a", "refund_id": ""}, "refund_id"),
        ({"client_id": "a", "refund_id": 7}, "refund_id"),
        ({"client_id": "a", "plan": ""}, "plan"),
        ({"client_id": "a", "resource": ""}, "resource"),
        ({"client_id": "a", "on_unavailable": "deny"}, "on_unavailable"),
    ],
)
async def test_invalid_refund_is_a_422_that_names_the_field(
    body: Any, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/refunds", json=body)
    assert (response.status_code, response.json()["field"]) == (422, field)
    assert response.json()["remedy"]
    assert not limiter.refunds
