"""Charging by the response, in the middleware and the dependency. The limiter is a fake without a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Response, WebSocket, WebSocketException
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from stoplog import RateLimit, RateLimitMiddleware
from stoplog.client.fail_open import DEADLINE, FAIL_CLOSED, FAIL_OPEN
from stoplog.errors import InvalidInput
from stoplog.wire.checks import Check
from tests.support.fake_limiter import RESERVATION_ID, FakeLimiter
from tests.support.web_apps import DENIED, KEY, api_key, starlette_app

COST = 50
"""What each request reserves. No response of these tests is charged the same, so it marks the whole cost."""


@pytest.fixture
def limiter() -> FakeLimiter:
    return FakeLimiter()


def x_cost(status: int, headers: Headers) -> int:
    """Charge what the application says, and by status otherwise."""
    return int(headers.get("X-Cost", 0 if status >= 500 else status))


def charged(limiter: FakeLimiter) -> list[int]:
    assert {id_ for id_, _ in limiter.settled} <= {RESERVATION_ID}
    return [used for _, used in limiter.settled]


def behind(limiter: FakeLimiter, app: ASGIApp, **options: Any) -> RateLimitMiddleware:
    options = {"cost": COST, "charge": x_cost, **options}
    return RateLimitMiddleware(app, limiter=limiter, identify=api_key, **options)


def get(limiter: FakeLimiter, app: ASGIApp, **options: Any) -> list[int]:
    client = TestClient(behind(limiter, app, **options), raise_server_exceptions=False)
    client.get("/", headers=KEY)
    return charged(limiter)


async def call(app: ASGIApp, send: Send | None = None, **scope: Any) -> list[str]:
    """Call *app* as a server does; return the types of the messages that it sends."""
    sent: list[str] = []

    async def record(message: Message) -> None:
        sent.append(message["type"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "path": "/", "method": "GET", "headers": [(b"x-api-key", b"alice")], **scope}
    await app(scope, receive, send or record)
    return sent


# --- the middleware -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (PlainTextResponse("fresh"), 200),
        (PlainTextResponse("no news", 304), 304),
        (PlainTextResponse("a bug", 503), 0),
        (PlainTextResponse("much", headers={"x-cost": "7"}), 7),
        (PlainTextResponse("more than was reserved", headers={"x-cost": "51"}), 51),
        (PlainTextResponse("not a number", headers={"x-cost": "seven"}), COST),
        (PlainTextResponse("less than nothing", headers={"x-cost": "-1"}), COST),
    ],
    ids=lambda value: bytes(value.body).decode() if isinstance(value, Response) else "",
)
def test_response_decides_the_charge(
    limiter: FakeLimiter, response: Response, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert get(limiter, response) == [expected]
    assert limiter.checks == [Check("alice", COST)]
    assert limiter.ttls == [60_000]
    failed = "charge failed, so a request was charged its whole cost" in caplog.text
    assert failed == (expected == COST)


def test_names_of_header_fields_have_any_case(limiter: FakeLimiter) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-COST", b"3")]})
        await send({"type": "http.response.body"})

    assert get(limiter, app) == [3]


@pytest.mark.parametrize("value", [True, 1.0, None, 1_000_001])
def test_charge_that_is_no_cost_charges_the_whole_cost(
    limiter: FakeLimiter, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert get(limiter, PlainTextResponse(), charge=lambda status, headers: value) == [COST]
    assert "charge: " in caplog.text


def test_options_of_the_check_apply_to_the_reservation(limiter: FakeLimiter) -> None:
    options = {"plan": "gold", "resource": "pages", "ttl_ms": 9_000, "on_unavailable": "deny"}
    assert get(limiter, PlainTextResponse(), **options) == [200]
    assert limiter.checks == [Check("alice", COST, "gold", "pages")]
    assert (limiter.ttls, limiter.fail_closed) == ([9_000], [True])


async def test_response_is_settled_when_it_has_ended_and_before_background_tasks(
    limiter: FakeLimiter,
) -> None:
    seen: list[list[int]] = []

    async def pages() -> AsyncIterator[str]:
        for page in ("one", "two"):
            await asyncio.sleep(0)
            seen.append(charged(limiter))
            yield page

    async def afterwards() -> None:
        await limiter.has_settled.wait()
        seen.append(charged(limiter))

    response = StreamingResponse(pages(), background=BackgroundTask(afterwards))
    async with asyncio.timeout(20):
        await call(behind(limiter, response), asgi={"spec_version": "2.4"})
    assert seen == [[], [], [200]]
    assert charged(limiter) == [200]


@pytest.mark.parametrize("begun", [False, True])
def test_application_that_raises_is_charged_as_an_error(limiter: FakeLimiter, begun: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-cost", b"3")]})
        raise ZeroDivisionError

    asked: list[tuple[int, list[tuple[str, str]]]] = []

    def charge(status: int, headers: Headers) -> int:
        asked.append((status, headers.items()))
        return 9

    assert get(limiter, app, charge=charge) == [9]
    assert asked == [(500, [])]


def test_exception_of_a_route_is_charged_as_the_response_that_its_handler_makes(limiter: FakeLimiter) -> None:
    async def route(request: Request) -> Response:
        raise HTTPException(404)

    assert get(limiter, Starlette(routes=[Route("/", route)])) == [404]


@pytest.mark.parametrize("error", [OSError, ClientDisconnect])
async def test_response_that_its_caller_cuts_off_is_charged_by_its_beginning(
    limiter: FakeLimiter, error: type[Exception]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 206})
        try:
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        except OSError as exc:
            raise error from exc

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has left")

    with pytest.raises(error):
        await call(behind(limiter, app), send)
    assert charged(limiter) == [206]


async def test_caller_that_leaves_before_the_response_is_charged_the_whole_cost(limiter: FakeLimiter) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    with pytest.raises(ClientDisconnect):
        await call(behind(limiter, app))
    assert charged(limiter) == [COST]


@pytest.mark.parametrize(("begun", "expected"), [(False, COST), (True, 200)])
async def test_cancelled_request_is_settled(limiter: FakeLimiter, begun: bool, expected: int) -> None:
    working = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200})
        working.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(call(behind(limiter, app)))
    async with asyncio.timeout(20):
        await working.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await limiter.has_settled.wait()
    assert charged(limiter) == [expected]


async def test_second_cancellation_does_not_prevent_the_settlement(
    limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling, store = asyncio.Event(), asyncio.Event()
    settle = limiter.settle

    async def settle_slowly(id_: str, used: int) -> Any:
        settling.set()
        await store.wait()
        return await settle(id_, used)

    monkeypatch.setattr(limiter, "settle", settle_slowly)
    task = asyncio.create_task(call(behind(limiter, PlainTextResponse())))
    async with asyncio.timeout(20):
        await settling.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.set()
        await limiter.has_settled.wait()
    assert charged(limiter) == [200]


def test_denied_request_reserves_nothing_and_never_reaches_the_application(limiter: FakeLimiter) -> None:
    async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    limiter.answer = DENIED
    response = TestClient(behind(limiter, unreachable)).get("/", headers=KEY)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert limiter.settled == []


def test_request_that_is_not_limited_reserves_nothing(limiter: FakeLimiter) -> None:
    assert TestClient(behind(limiter, PlainTextResponse("hello"))).get("/").text == "hello"
    assert (limiter.checks, limiter.settled) == ([], [])


def test_degraded_request_passes_and_is_settled_because_the_store_may_still_grant_it(
    limiter: FakeLimiter,
) -> None:
    limiter.answer = FAIL_OPEN[DEADLINE]
    assert get(limiter, PlainTextResponse()) == [200]


def test_request_that_fails_closed_never_reaches_the_application_and_returns_its_cost(
    limiter: FakeLimiter,
) -> None:
    limiter.answer = FAIL_CLOSED[DEADLINE]
    app = behind(limiter, starlette_app(FakeLimiter()), on_unavailable="deny")
    assert TestClient(app).get("/", headers=KEY).status_code == 503
    assert charged(limiter) == [0]


def test_failing_reservation_fails_open_and_settles_nothing(limiter: FakeLimiter) -> None:
    limiter.error = RuntimeError("a bug")
    app = behind(limiter, PlainTextResponse("hello"))
    assert TestClient(app).get("/", headers=KEY).text == "hello"
    assert limiter.settled == []


def test_failing_settlement_is_logged_and_fails_no_request(
    limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    def charge(status: int, headers: Headers) -> int:
        limiter.error = RuntimeError("a bug")
        return 1

    app = behind(limiter, PlainTextResponse("hello"), charge=charge)
    assert TestClient(app).get("/", headers=KEY).text == "hello"
    assert caplog.messages == ["a request was not settled, so its whole cost will be charged: a bug"]


@pytest.mark.parametrize("field", ["charge", "ttl_ms"])
def test_invalid_option_is_refused_at_once(limiter: FakeLimiter, field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        behind(limiter, PlainTextResponse(), **{field: 0})


def test_websocket_is_settled_when_it_is_closed(limiter: FakeLimiter) -> None:
    client = TestClient(starlette_app(limiter, cost=COST, charge=x_cost))
    with client.websocket_connect("/socket", headers=KEY) as socket:
        assert socket.receive_text() == "hello"
    assert charged(limiter) == [101]


# --- the dependency -----------------------------------------------------------------------------


def fastapi_app(limiter: FakeLimiter, route: Callable[..., Any], **options: Any) -> FastAPI:
    app = FastAPI()
    limited = RateLimit(limiter, api_key, cost=COST, charge=x_cost)
    app.get("/", dependencies=[Depends(limited)], **options)(route)
    return app


def serve(limiter: FakeLimiter, route: Callable[..., Any], **options: Any) -> list[int]:
    app = fastapi_app(limiter, route, **options)
    TestClient(app, raise_server_exceptions=False).get("/", headers=KEY)
    assert limiter.checks == [Check("alice", COST)]
    return charged(limiter)


def test_dependency_charges_by_what_the_route_sets(limiter: FakeLimiter) -> None:
    async def route(response: Response) -> str:
        assert limiter.settled == []
        response.headers["X-Cost"] = "7"
        return "hello"

    assert serve(limiter, route) == [7]


def test_dependency_charges_by_the_status_of_the_response_or_of_the_route(limiter: FakeLimiter) -> None:
    async def route(response: Response, other: bool = False) -> str:
        if other:
            response.status_code = 202
        return "hello"

    client = TestClient(fastapi_app(limiter, route, status_code=201))
    statuses = [client.get(path, headers=KEY).status_code for path in ("/", "/?other=1")]
    assert charged(limiter) == statuses == [201, 202]
    limiter.settled.clear()
    limiter.checks.clear()
    assert serve(limiter, lambda: "hello") == [200]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (HTTPException(404), 404),
        (HTTPException(503, headers={"X-Cost": "3"}), 3),
        (ZeroDivisionError(), 0),
        (ClientDisconnect(), COST),
    ],
    ids=repr,
)
def test_dependency_charges_by_the_exception_of_the_route(
    limiter: FakeLimiter, error: Exception, expected: int
) -> None:
    async def route(response: Response) -> str:
        response.headers["X-Cost"] = "8"  # of a response that is never sent
        raise error

    assert serve(limiter, route) == [expected]


def test_dependency_charges_an_invalid_request_by_its_status(limiter: FakeLimiter) -> None:
    async def route(number: int) -> int:
        return number

    assert serve(limiter, route) == [422]


def test_dependency_settles_a_websocket_when_it_is_closed(limiter: FakeLimiter) -> None:
    app = FastAPI()

    @app.websocket("/socket", dependencies=[Depends(RateLimit(limiter, api_key, cost=COST, charge=x_cost))])
    async def route(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_text(await socket.receive_text())

    with (
        suppress(WebSocketDisconnect),
        TestClient(app).websocket_connect("/socket", headers=KEY) as socket,
    ):
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
        assert limiter.settled == []
    assert charged(limiter) == [101]


def test_dependency_charges_a_websocket_that_the_route_refuses_as_forbidden(limiter: FakeLimiter) -> None:
    app = FastAPI()

    @app.websocket("/socket", dependencies=[Depends(RateLimit(limiter, api_key, cost=COST, charge=x_cost))])
    async def route(socket: WebSocket) -> None:
        raise WebSocketException(1008)

    with (
        pytest.raises(WebSocketDisconnect),
        TestClient(app).websocket_connect("/socket", headers=KEY),
    ):
        raise AssertionError
    assert charged(limiter) == [403]


def test_dependency_denies_before_the_route_and_settles_nothing(limiter: FakeLimiter) -> None:
    limiter.answer = DENIED
    assert serve(limiter, lambda: pytest.fail("the route runs")) == []
