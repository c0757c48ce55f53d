from __future__ import annotations

from typing import Any

import httpx
import pytest

from stoplog.client.answer import Answer
from stoplog.client.fail_open import INTERNAL_ERROR
from stoplog.wire.checks import Check
from tests.support.fake_limiter import RESERVATION_ID as ID
from tests.support.fake_limiter import FakeLimiter


async def test_reservation_passes_the_request_to_the_limiter_and_returns_its_answer(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    fields = {"client_id": "zoë/ 1", "cost": 30, "plan": "free", "resource": "tokens", "ttl_ms": 9_000}
    response = await http.post("/v1/reservations", json={**fields, "on_unavailable": "deny"})
    assert response.status_code == 200
    assert response.json() == {
        "allowed": True,
        "limit": 100,
        "remaining": 99,
        "reset_after_ms": 60_000,
        "retry_after_ms": 0,
        "policy_version": -1,
        "degraded": False,
        "reason": None,
        "id": ID,
        "held": 30,
        "ttl_ms": 9_000,
        "detail": None,
    }
    assert response.headers["ratelimit"] == '"default";r=99;t=60'
    assert (limiter.checks, limiter.ttls) == ([Check("zoë/ 1", 30, "free", "tokens")], [9_000])
    assert limiter.fail_closed == [True]


async def test_reservation_has_the_cost_1_and_lasts_a_minute_by_default(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    await http.post("/v1/reservations", json={"client_id": "a"})
    assert (limiter.checks, limiter.ttls, limiter.fail_closed) == ([Check("a")], [60_000], [False])


async def test_denied_reservation_is_a_200_with_retry_after(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = Answer(False, 100, 0, 60_000, 12_001, 41)
    response = await http.post("/v1/reservations", json={"client_id": "alice"})
    assert (response.status_code, response.json()["allowed"]) == (200, False)
    assert response.headers["retry-after"] == "13"


async def test_settlement_charges_what_was_used_and_deletion_nothing(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post(f"/v1/reservations/{ID}/settle", json={"used": 3.0})
    assert response.status_code == 200
    expected = {"id": ID, "state": "settled", "used": 3, "repeated": False, "reason": None}
    assert response.json() == expected
    response = await http.delete(f"/v1/reservations/{ID}")
    assert (response.status_code, response.json()) == (200, {**expected, "used": 0})
    assert limiter.settled == [(ID, 3), (ID, 0)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "client_id"),
        ({"client_id": ""}, "client_id"),
        ({"client_id": "a", "cost": -1}, "cost"),
        ({"client_id": "a", "cost": 1.5}, "cost"),
        ({"client_id": "a", "cost": 1_000_001}, "cost"),
        ({"client_id": "a", "ttl_ms": 0}, "ttl_ms"),
        ({"client_id": "a", "ttl_ms": 1.5}, "ttl_ms"),
        ({"client_id": "a", "ttl_ms": 3_600_001}, "ttl_ms"),
        ({"client_id": "a", "ttl_ms": None}, "ttl_ms"),
        ({"client_id": "a", "plan": ""}, "plan"),
        ({"client_id": "a", "resource": ""}, "resource"),
        ({"client_id": "a", "on_unavailable": "maybe"}, "on_unavailable"),
        ({"client_id": "a", "used": 1}, "used"),
    ],
)
async def test_invalid_reservation_is_a_422_that_names_the_field(
    body: Any, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/reservations", json=body)
    assert (response.status_code, response.json()["field"]) == (422, field)
    assert response.json()["remedy"]
    assert not limiter.checks


@pytest.mark.parametrize("body", [{}, {"used": -1}, {"used": 1.5}, {"used": 1_000_001}, {"used": None}])
async def test_invalid_use_is_a_422_that_names_the_field(
    body: Any, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post(f"/v1/reservations/{ID}/settle", json=body)
    assert (response.status_code, response.json()["field"]) == (422, "used")
    assert not limiter.settled


async def test_foreign_id_is_a_422_that_names_the_field(http: httpx.AsyncClient) -> None:
    for response in (
        await http.post("/v1/reservations/none/settle", json={"used": 1}),
        await http.delete(f"/v1/reservations/{ID[:-1]}"),
    ):
        assert (response.status_code, response.json()["field"]) == (422, "reservation_id")
        assert "the answer to the reservation" in response.json()["remedy"]


async def test_bug_makes_a_reservation_that_asked_for_it_fail_closed(
    http: httpx.AsyncClient, limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.error = ZeroDivisionError("a bug")
    response = await http.post("/v1/reservations", json={"client_id": "a", "on_unavailable": "deny"})
    answer = response.json()
    assert response.status_code == 200
    assert (answer["allowed"], answer["reason"], answer["id"]) == (False, INTERNAL_ERROR, None)
    assert "ZeroDivisionError" in caplog.text
    assert (await http.post("/v1/reservations", json={"client_id": "a"})).status_code == 500
