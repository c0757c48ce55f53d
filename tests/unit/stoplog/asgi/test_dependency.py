"""The dependency in real applications. The limiter is a fake without a store."""

from __future__ import annotations

import pytest
from fastapi import HTTPException, Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from stoplog import RateLimitMiddleware
from stoplog.client.answer import Answer
from stoplog.client.fail_open import DEADLINE, FAIL_CLOSED
from stoplog.wire.checks import Check
from tests.support.fake_limiter import FakeLimiter
from tests.support.web_apps import DENIED, KEY, api_key, fastapi_app


@pytest.fixture
def limiter() -> FakeLimiter:
    return FakeLimiter()


def test_dependency_returns_the_answer_and_adds_headers(limiter: FakeLimiter) -> None:
    response = TestClient(fastapi_app(limiter, cost=3, resource="reports")).get("/", headers=KEY)
    assert response.json() == {"left": 99}
    assert response.headers["ratelimit"] == '"default";r=99;t=60'
    assert limiter.checks == [Check("alice", 3, "", "reports")]


def test_dependency_answers_a_denied_request_with_429(limiter: FakeLimiter) -> None:
    limiter.answer = DENIED
    response = TestClient(fastapi_app(limiter)).get("/", headers=KEY)
    assert response.status_code == 429
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "3"
    assert response.json() == {"detail": "the limit of 100 is used up; try again in 3 s"}


def test_dependency_answers_a_request_that_fails_closed_with_503(limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_CLOSED[DEADLINE]
    client = TestClient(fastapi_app(limiter, on_unavailable="deny"))
    response = client.get("/", headers=KEY)
    assert limiter.fail_closed == [True]
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"detail": "the store did not decide the check (deadline); try again in 1 s"}
    limiter.error = RuntimeError("a bug")
    assert client.get("/", headers=KEY).status_code == 503


def test_application_may_handle_the_denial_of_the_dependency(limiter: FakeLimiter) -> None:
    app = fastapi_app(limiter)

    @app.exception_handler(HTTPException)
    async def render(_: Request, exc: HTTPException) -> PlainTextResponse:
        return PlainTextResponse("slow down", exc.status_code)

    limiter.answer = DENIED
    response = TestClient(app).get("/", headers=KEY)
    assert (response.status_code, response.text) == (429, "slow down")


def test_dependency_closes_a_denied_websocket(limiter: FakeLimiter) -> None:
    client = TestClient(fastapi_app(limiter))
    with client.websocket_connect("/socket", headers=KEY) as socket:
        assert socket.receive_text() == "hello"
    limiter.answer = DENIED
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        client.websocket_connect("/socket", headers=KEY),
    ):
        raise AssertionError
    assert (closed.value.code, closed.value.reason) == (1013, "the limit of 100 is used up")


def test_dependency_returns_none_if_unlimited_or_failed(limiter: FakeLimiter) -> None:
    client = TestClient(fastapi_app(limiter))
    assert client.get("/").json() == {"left": None}
    limiter.error = RuntimeError("a bug")
    assert client.get("/", headers=KEY).json() == {"left": None}


def test_headers_of_the_dependency_take_precedence_over_the_middlewares(limiter: FakeLimiter) -> None:
    app = fastapi_app(limiter)
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=lambda _: "all")
    response = TestClient(app).get("/", headers=KEY)
    assert [check.client for check in limiter.checks] == ["all", "alice"]
    assert len(response.headers.get_list("ratelimit")) == 1


def test_dependency_sends_legacy_header_fields_on_demand(limiter: FakeLimiter) -> None:
    client = TestClient(fastapi_app(limiter, legacy_headers=True))
    for limiter.answer in (Answer(True, 100, 99, 60_000, 0, -1), DENIED):
        assert client.get("/", headers=KEY).headers["x-ratelimit-limit"] == "100"


def test_middleware_and_route_charge_one_after_the_other(limiter: FakeLimiter) -> None:
    app = fastapi_app(limiter, resource="route", cost=5)
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=api_key)
    response = TestClient(app).get("/", headers=KEY)
    assert limiter.checks == [Check("alice"), Check("alice", 5, "", "route")]
    assert len(response.headers.get_list("ratelimit")) == 1
    limiter.answer = DENIED
    assert TestClient(app).get("/", headers=KEY).status_code == 429
    assert len(limiter.checks) == 3  # the route's limit is not asked any more
