from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.routes.check import parse_check, parse_checks, render_answer

from stoplog.client.answer import Answer
from stoplog.client.fail_open import DEADLINE, FAIL_OPEN
from stoplog.errors import InvalidInput
from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter


async def test_a_check_reaches_the_limiter_and_its_answer_comes_back(
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


async def test_a_denial_is_a_200_that_says_when_to_come_back(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    limiter.answer = Answer(False, 100, 0, 60_000, 12_001, 41)
    response = await http.post("/v1/check", json={"client_id": "alice"})
    assert response.status_code == 200
    assert response.json()["allowed"] is False
    assert response.headers["retry-after"] == "13"


async def test_a_degraded_answer_says_why(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_OPEN[DEADLINE]
    response = await http.post("/v1/check", json={"client_id": "alice"})
    assert response.json()["degraded"] is True
    assert response.json()["reason"] == DEADLINE
    assert "ratelimit" not in response.headers


async def test_the_plain_functions_and_the_route_give_the_same_bytes(
    http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    body = b'{"client_id": "alice"}'
    response = await http.post("/v1/check", content=body, headers={"content-type": "application/json"})
    rendered = render_answer(limiter.answer, legacy=False)
    assert parse_check(body) == limiter.checks[0]
    assert (response.status_code, response.content) == (rendered.status, rendered.body)
    assert response.headers.raw == rendered.headers


async def test_a_list_is_answered_in_order(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    checks = [{"client_id": f"client {i}", "cost": i} for i in range(10_000)]
    response = await http.post("/v1/checks", json=checks)
    assert [answer["remaining"] for answer in response.json()] == [99 - i for i in range(10_000)]
    assert limiter.checks == [Check(f"client {i}", i) for i in range(10_000)]


async def test_an_empty_list_has_no_answers(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/checks", json=[])).json() == []


A = "alice"
BAD: list[tuple[Any, str]] = [
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
    ({"client_id": A, "cost": 1.0}, "cost"),
    ({"client_id": A, "cost": True}, "cost"),
    ({"client_id": A, "cost": "1"}, "cost"),
    ({"client_id": A, "cost": None}, "cost"),
    ({"client_id": A, "cost": 1_000_001}, "cost"),
    ({"client_id": A, "cost": 10**60}, "cost"),
    ({"client_id": A, "plan": ""}, "plan"),
    ({"client_id": A, "plan": ["free"]}, "plan"),
    ({"client_id": A, "resource": ""}, "resource"),
    ({"client_id": A, "resource": "a\x7f"}, "resource"),
    ({"client_id": A, "client": 1}, "client"),
    ([], "body"),
    ("alice", "body"),
]


@pytest.mark.parametrize(("body", "field"), BAD)
async def test_what_cannot_be_used_is_refused_by_name(
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


@pytest.mark.parametrize(("body", "field"), [b for b in BAD if isinstance(b[0], dict)])
async def test_in_a_list_the_name_has_the_place(
    body: Any, field: str, http: httpx.AsyncClient, limiter: FakeLimiter
) -> None:
    response = await http.post("/v1/checks", json=[{"client_id": A}, body])
    assert response.status_code == 422
    assert response.json()["field"] == f"[1].{field}"
    assert not limiter.checks


async def test_a_list_over_ten_thousand_is_refused(http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    response = await http.post("/v1/checks", json=[{"client_id": A}] * 10_001)
    assert response.status_code == 422
    assert response.json()["field"] == "body"
    assert not limiter.checks


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"alice", b'{"client_id": "\xff"}', b'{"client_id": "a"} x', b'{"client_id": "\\ud800"}'],
)
async def test_what_is_not_json_is_a_400(body: bytes, http: httpx.AsyncClient, limiter: FakeLimiter) -> None:
    response = await http.post("/v1/check", content=body, headers={"content-type": "application/json"})
    assert response.status_code == response.json()["status"] == 400
    assert response.json()["field"] == "body"
    assert not limiter.checks


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["client_id", "cost", "plan", "resource"]) | st.text()
bodies = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(fields, json_values, max_size=4).map(lambda value: json.dumps(value).encode())
)


@given(bodies)
def test_any_bytes_are_a_check_or_a_problem_with_a_field(body: bytes) -> None:
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
