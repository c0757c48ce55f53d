from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.routes.check import parse_check, parse_checks, render_answer

from stoplog.client.answer import Answer
from stoplog.client.fail_open import DEADLINE, FAIL_CLOSED, FAIL_OPEN, INTERNAL_ERROR
from stoplog.errors import InvalidInput
from stoplog.wire.checks import Check
from tests.support.check_bodies import check_bodies
from tests.support.fake_limiter import FakeLimiter


async def test_check_passes_the_request_to_the_limiter_and_returns_its_answer(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/check", json={"client_id": "zoë/ 1", "cost": 3, "plan": "free"})
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
    }
    assert response.headers["ratelimit-policy"] == '"default";q=100'
    assert response.headers["ratelimit"] == '"default";r=99;t=60'
    assert "retry-after" not in response.headers
    assert limiter.checks == [Check("zoë/ 1", 3, "free", "")]


async def test_check_denied_is_a_200_with_retry_after(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.answer = Answer(False, 100, 0, 60_000, 12_001, 41)
    response = await http.post("/v1/check", json={"client_id": "alice"})
    assert response.status_code == 200
    assert response.json()["allowed"] is False
    assert response.headers["retry-after"] == "13"


async def test_check_degraded_returns_the_reason(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_OPEN[DEADLINE]
    response = await http.post("/v1/check", json={"client_id": "alice"})
    assert response.json()["degraded"] is True
    assert response.json()["reason"] == DEADLINE
    assert "ratelimit" not in response.headers


async def test_check_failed_closed_is_a_200_with_retry_after(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = FAIL_CLOSED[DEADLINE]
    response = await http.post("/v1/check", json={"client_id": "alice", "on_unavailable": "deny"})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["allowed"], answer["degraded"], answer["reason"]) == (False, True, DEADLINE)
    assert response.headers["retry-after"] == "1"
    assert "ratelimit" not in response.headers
    assert limiter.fail_closed == [True]


async def test_checks_pass_on_what_each_of_them_asks_for(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    rules: list[dict[str, str]] = [{"on_unavailable": "deny"}, {}, {"on_unavailable": "allow"}]
    await http.post("/v1/checks", json=[{"client_id": "a", **rule} for rule in rules])
    assert limiter.fail_closed == [True, False, False]


async def test_bug_makes_a_check_that_asked_for_it_fail_closed(
    http: httpx.AsyncClient, limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.error = ZeroDivisionError("a bug")
    response = await http.post("/v1/check", json={"client_id": "alice", "on_unavailable": "deny"})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["allowed"], answer["degraded"], answer["reason"]) == (False, True, INTERNAL_ERROR)
    assert response.headers["retry-after"] == "1"
    assert limiter.metrics.failed_closed[INTERNAL_ERROR] == 1
    assert "ZeroDivisionError" in caplog.text
    assert (await http.post("/v1/check", json={"client_id": "alice"})).status_code == 500


async def test_bug_degrades_all_checks_of_a_list_if_one_asked_to_fail_closed(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.error = ZeroDivisionError("a bug")
    checks = [{"client_id": "a"}, {"client_id": "b", "on_unavailable": "deny"}]
    response = await http.post("/v1/checks", json=checks)
    assert response.status_code == 200
    assert [answer["allowed"] for answer in response.json()] == [True, False]
    assert {answer["reason"] for answer in response.json()} == {INTERNAL_ERROR}
    assert limiter.metrics.degraded[INTERNAL_ERROR] == limiter.metrics.failed_closed[INTERNAL_ERROR] == 1
    assert (await http.post("/v1/checks", json=checks[:1])).status_code == 500


async def test_plain_functions_and_the_route_give_the_same_bytes(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    body = b'{"client_id": "alice"}'
    response = await http.post("/v1/check", content=body, headers={"content-type": "application/json"})
    rendered = render_answer(limiter.answer, legacy=False)
    assert parse_check(body) == (limiter.checks[0], "allow")
    assert (response.status_code, response.content) == (rendered.status, rendered.body)
    assert response.headers.raw == rendered.headers


async def test_checks_returns_answers_in_order(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    checks = [{"client_id": f"client {i}", "cost": i} for i in range(10_000)]
    response = await http.post("/v1/checks", json=checks)
    assert [answer["remaining"] for answer in response.json()] == [99 - i for i in range(10_000)]
    assert limiter.checks == [Check(f"client {i}", i) for i in range(10_000)]


async def test_checks_of_an_empty_list_returns_an_empty_list(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/checks", json=[])).json() == []


A = "alice"
INVALID: list[tuple[Any, str]] = [
    ({}, "client_id"),
    ({"client_id": ""}, "client_id"),
    ({"client_id": None}, "client_id"),
    ({"client_id": 7}, "client_id"),
    ({"client_id": "a" * 257}, "client_id"),
    ({"client_id": "é" * 129}, "client_id"),
    ({"client_id": "a\nb"}, "client_id"),
    ({"client_id": "a\x00"}, "client_id"),
    ({"client_id": A, "cost": -1}, "cost"),
    ({"client_id": A, "cost": 1.5}, "cost"),
    ({"client_id": A, "cost": 1e300}, "cost"),
    ({"client_id": A, "cost": True}, "cost"),
    ({"client_id": A, "cost": "1"}, "cost"),
    ({"client_id": A, "cost": None}, "cost"),
    ({"client_id": A, "cost": 1_000_001}, "cost"),
    ({"client_id": A, "cost": 10**60}, "cost"),
    ({"client_id": A, "plan": ""}, "plan"),
    ({"client_id": A, "plan": ["free"]}, "plan"),
    ({"client_id": A, "resource": ""}, "resource"),
    ({"client_id": A, "resource": "a\x7f"}, "resource"),
    ({"client_id": A, "on_unavailable": "Deny"}, "on_unavailable"),
    ({"client_id": A, "on_unavailable": ""}, "on_unavailable"),
    ({"client_id": A, "on_unavailable": None}, "on_unavailable"),
    ({"client_id": A, "on_unavailable": False}, "on_unavailable"),
    ({"client_id": A, "client": 1}, "client"),
    ([], "body"),
    ("alice", "body"),
]


@pytest.mark.parametrize(("body", "field"), INVALID)
async def test_invalid_check_is_a_422_that_names_the_field(
    body: Any, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/check", json=body)
    problem = response.json()
    assert response.status_code == problem["status"] == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == "urn:stoplog:problem:invalid-value"
    assert problem["field"] == field
    assert problem["remedy"]
    assert not limiter.checks


@pytest.mark.parametrize(("body", "field"), [b for b in INVALID if isinstance(b[0], dict)])
async def test_invalid_check_in_a_list_is_named_with_its_index(
    body: Any, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/checks", json=[{"client_id": A}, body])
    assert response.status_code == 422
    assert response.json()["field"] == f"[1].{field}"
    assert not limiter.checks


async def test_list_of_more_than_ten_thousand_checks_is_a_422(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/checks", json=[{"client_id": A}] * 10_001)
    assert response.status_code == 422
    assert response.json()["field"] == "body"
    assert not limiter.checks


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"alice", b'{"client_id": "\xff"}', b'{"client_id": "a"} x', b'{"client_id": "\\ud800"}'],
)
async def test_body_that_is_not_json_is_a_400(
    body: bytes, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/check", content=body, headers={"content-type": "application/json"})
    assert response.status_code == response.json()["status"] == 400
    assert response.json()["field"] == "body"
    assert not limiter.checks


@given(check_bodies)
def test_parsing_any_bytes_returns_a_check_or_raises_a_problem_with_a_field(body: bytes) -> None:
    for parse in (parse_check, lambda raw: parse_checks(b"[" + raw + b"]")):
        try:
            parse(body)
        except (ProblemError, InvalidInput) as exc:
            rendered = render_error(exc)
            assert rendered is not None
            assert rendered.status in (400, 422)
            problem = json.loads(rendered.body)
            assert problem["field"]
            assert problem["remedy"]


@pytest.mark.parametrize("cost", [b"3.0", b"3e0", b"0.3e1"])
async def test_cost_in_the_notation_of_a_float_is_a_whole_number(
    cost: bytes, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    check = b'{"client_id": "alice", "cost": %s}' % cost
    headers = {"content-type": "application/json"}
    assert (await http.post("/v1/check", content=check, headers=headers)).status_code == 200
    assert (await http.post("/v1/checks", content=b"[%s]" % check, headers=headers)).status_code == 200
    assert [check.cost for check in limiter.checks] == [3, 3]
    assert {type(check.cost) for check in limiter.checks} == {int}
