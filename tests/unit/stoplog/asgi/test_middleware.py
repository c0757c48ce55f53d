"""The middleware in real applications. The limiter is a fake without a store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import Request
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send

import stoplog.asgi.request_check
from stoplog import Limiter, RateLimitMiddleware
from stoplog.asgi.rate_limit_headers import EXPOSE
from stoplog.client.answer import Answer
from stoplog.client.fail_open import BROKER, DEADLINE, FAIL_CLOSED, FAIL_OPEN, INTERNAL_ERROR
from stoplog.errors import InvalidId, InvalidInput, SettingsError, TopicError
from stoplog.policy import usable_id
from stoplog.wire.checks import Check
from tests.support.fake_kafka import Kafka
from tests.support.fake_limiter import ALLOWED, FakeLimiter
from tests.support.web_apps import DENIED, KEY, ROUTES, api_key, starlette_app

NEVER = Answer(False, 2, 2, 0, None, 7)


@pytest.fixture
def limiter() -> FakeLimiter:
    return FakeLimiter()


def test_allowed_request_gets_its_response_with_rate_limit_headers(limiter: FakeLimiter) -> None:
    response = TestClient(starlette_app(limiter)).get("/", headers=KEY)
    assert (response.status_code, response.text) == (200, "hello")
    assert response.headers["ratelimit"] == '"default";r=99;t=60'
    assert response.headers["ratelimit-policy"] == '"default";q=100'
    assert limiter.checks == [Check("alice")]


@pytest.mark.parametrize(
    ("answer", "told", "after"),
    [
        (DENIED, {"detail": "the limit of 100 is used up", "remedy": "try again in 3 s"}, "3"),
        (NEVER, {"detail": "the cost exceeds the limit of 2"}, None),
    ],
    ids=["used up", "never"],
)
def test_denied_request_gets_429_and_never_reaches_the_application(
    limiter: FakeLimiter, answer: Answer, told: dict[str, str], after: str | None
) -> None:
    async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    limiter.answer = answer
    app = RateLimitMiddleware(unreachable, limiter=limiter, identify=api_key)
    response = TestClient(app).get("/", headers=KEY)
    assert response.status_code == 429
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers.get("retry-after") == after
    assert response.json() == {
        "type": "urn:stoplog:problem:rate-limited",
        "title": "Too many requests",
        "status": 429,
        "field": None,
        "remedy": None,
        **told,
    }


def test_request_without_a_client_id_is_not_limited(limiter: FakeLimiter) -> None:
    limiter.answer = DENIED
    response = TestClient(starlette_app(limiter)).get("/")
    assert (response.status_code, response.text) == (200, "hello")
    assert "ratelimit" not in response.headers
    assert limiter.checks == []


def test_options_may_be_sync_or_async_functions_of_the_request(limiter: FakeLimiter) -> None:
    async def who(connection: HTTPConnection) -> str:
        return connection.headers["x-api-key"]

    async def plan(connection: HTTPConnection) -> str:
        return connection.headers["x-plan"]

    def cost(connection: HTTPConnection) -> int:
        return int(connection.query_params["n"])

    app = starlette_app(limiter, who, cost=cost, plan=plan, resource="export")
    assert TestClient(app).get("/?n=7", headers={**KEY, "x-plan": "gold"}).status_code == 200
    assert limiter.checks == [Check("alice", 7, "gold", "export")]


@pytest.mark.parametrize("text", ["x" * 257, "mallory\x80", "a\nb", "\ud800"])
def test_invalid_id_is_replaced_by_its_digest(limiter: FakeLimiter, text: str) -> None:
    limiter.answer = DENIED
    app = starlette_app(limiter, lambda _: text, plan=lambda _: text, resource=lambda _: text)
    assert TestClient(app).get("/").status_code == 429
    digest = usable_id(text)
    assert digest.startswith("sha256:")
    assert limiter.checks == [Check(digest, 1, digest, digest)]


def test_empty_client_is_a_client_and_an_empty_plan_is_none(limiter: FakeLimiter) -> None:
    assert TestClient(starlette_app(limiter)).get("/", headers={"x-api-key": ""}).status_code == 200
    assert limiter.checks == [Check(usable_id(""))]


def test_exception_of_identify_reaches_the_application(limiter: FakeLimiter) -> None:
    with pytest.raises(KeyError):
        TestClient(starlette_app(limiter, lambda connection: connection.headers["nobody"])).get("/")


def test_degraded_answer_fails_open_without_headers(limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_OPEN[BROKER]
    response = TestClient(starlette_app(limiter)).get("/", headers=KEY)
    assert response.status_code == 200
    assert "ratelimit" not in response.headers


@pytest.mark.parametrize(
    "error", [InvalidId("client_id", "empty", "give one"), RuntimeError("a bug"), TypeError("another")]
)
def test_failing_check_fails_open_and_is_logged_once_a_minute(
    limiter: FakeLimiter, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    now = 1_000.0
    monkeypatch.setattr(stoplog.asgi.request_check, "monotonic", lambda: now)
    limiter.error = error
    client = TestClient(starlette_app(limiter))
    for _ in range(3):
        assert client.get("/", headers=KEY).text == "hello"
    now += 60
    assert client.get("/", headers=KEY).text == "hello"
    first, second = (r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    assert first == f"a request failed open and was not counted: {error}"
    assert second == f"{first} (similar lines suppressed: 2)"


def test_request_that_fails_closed_gets_503_and_never_reaches_the_application(limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_CLOSED[DEADLINE]
    app = starlette_app(limiter, on_unavailable="deny")
    response = TestClient(app).get("/", headers=KEY)
    assert limiter.fail_closed == [True]
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json() == {
        "type": "urn:stoplog:problem:store-unavailable",
        "title": "The store does not answer",
        "status": 503,
        "detail": "the store did not decide the check (deadline)",
        "field": None,
        "remedy": "try again in 1 s",
    }


@pytest.mark.parametrize("error", [InvalidId("client_id", "empty", "give one"), RuntimeError("a bug")])
def test_failing_check_fails_closed_if_it_asked_for_it(
    limiter: FakeLimiter, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    limiter.error = error
    app = starlette_app(limiter, on_unavailable="deny")
    response = TestClient(app).get("/", headers=KEY)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["detail"] == "the store did not decide the check (internal_error)"
    assert caplog.messages == [f"a request failed closed and was not counted: {error}"]
    counted = limiter.metrics
    assert (counted.failed_closed[INTERNAL_ERROR], counted.degraded[INTERNAL_ERROR]) == (1, 0)
    TestClient(starlette_app(limiter)).get("/", headers=KEY)
    assert (counted.failed_closed[INTERNAL_ERROR], counted.degraded[INTERNAL_ERROR]) == (1, 1)


def test_each_request_may_choose_to_fail_closed(limiter: FakeLimiter) -> None:
    async def by_path(connection: HTTPConnection) -> str:
        return "deny" if connection.query_params.get("login") else "allow"

    client = TestClient(starlette_app(limiter, on_unavailable=by_path))
    client.get("/?login=1", headers=KEY)
    client.get("/", headers=KEY)
    assert limiter.fail_closed == [True, False]


def test_wrong_value_for_failing_closed_is_refused_at_once_or_fails_closed(limiter: FakeLimiter) -> None:
    with pytest.raises(InvalidInput, match="on_unavailable"):
        RateLimitMiddleware(
            starlette_app(limiter),
            limiter=limiter,
            identify=api_key,
            on_unavailable="denied",  # type: ignore[arg-type]
        )
    app = starlette_app(limiter, on_unavailable=lambda _: "denied")
    assert TestClient(app).get("/", headers=KEY).status_code == 503


def test_websocket_that_fails_closed_is_denied(limiter: FakeLimiter) -> None:
    limiter.answer = FAIL_CLOSED[DEADLINE]
    client = TestClient(starlette_app(limiter, on_unavailable="deny"))
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("/socket", headers=KEY),
    ):
        raise AssertionError
    assert (denied.value.status_code, denied.value.headers["retry-after"]) == (503, "1")


def test_ratelimit_field_of_the_application_is_kept(limiter: FakeLimiter) -> None:
    async def route(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello", headers={"RateLimit": '"mine";r=1'})

    app = Starlette(routes=[Route("/", route)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=api_key)
    response = TestClient(app).get("/", headers=KEY)
    assert response.headers.get_list("ratelimit") == ['"mine";r=1']
    assert "ratelimit-policy" not in response.headers


def test_legacy_header_fields_are_sent_on_demand(limiter: FakeLimiter) -> None:
    client = TestClient(starlette_app(limiter, legacy_headers=True))
    for limiter.answer in (Answer(True, 100, 99, 60_000, 0, -1), DENIED):
        assert client.get("/", headers=KEY).headers["x-ratelimit-limit"] == "100"
    assert "x-ratelimit-limit" not in TestClient(starlette_app(limiter)).get("/", headers=KEY).headers


# --- WebSockets ---------------------------------------------------------------------------------


def test_websocket_is_checked_once(limiter: FakeLimiter) -> None:
    with TestClient(starlette_app(limiter)).websocket_connect("/socket", headers=KEY) as socket:
        assert socket.receive_text() == "hello"
        assert (b"ratelimit", b'"default";r=99;t=60') in (socket.extra_headers or [])
    assert limiter.checks == [Check("alice")]


def test_denied_websocket_gets_429(limiter: FakeLimiter) -> None:
    limiter.answer = DENIED
    client = TestClient(starlette_app(limiter))
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("/socket", headers=KEY),
    ):
        raise AssertionError
    assert denied.value.status_code == 429
    assert denied.value.headers["retry-after"] == "3"
    assert denied.value.json()["title"] == "Too many requests"


async def test_denied_websocket_is_closed_if_the_server_cannot_send_a_response(
    limiter: FakeLimiter,
) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    limiter.answer = DENIED
    scope = {"type": "websocket", "path": "/socket", "headers": [(b"x-api-key", b"alice")]}
    await starlette_app(limiter)(scope, None, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1013, "reason": "the limit of 100 is used up"}]


# --- lifespan -----------------------------------------------------------------------------------


def test_middleware_starts_and_stops_the_limiter(limiter: FakeLimiter) -> None:
    app = starlette_app(limiter)
    for _ in range(2):  # as tests of an application do
        with TestClient(app):
            assert limiter.running
        assert not limiter.running


async def test_lifespan_messages_are_sent_after_the_limiter_has_started_or_stopped(
    limiter: FakeLimiter,
) -> None:
    heard: list[tuple[str, bool]] = []
    asked = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> Message:
        return {"type": next(asked)}

    async def send(message: Message) -> None:
        heard.append((message["type"], limiter.running))

    await starlette_app(limiter)({"type": "lifespan"}, receive, send)
    assert heard == [("lifespan.startup.complete", True), ("lifespan.shutdown.complete", False)]


@asynccontextmanager
async def running(app: Starlette) -> AsyncIterator[None]:
    limiter: FakeLimiter = app.state.limiter
    async with limiter:
        yield
        assert limiter.running


def test_limiter_that_the_application_starts_is_left_alone(limiter: FakeLimiter) -> None:
    app = Starlette(routes=ROUTES, lifespan=running)
    app.state.limiter = limiter
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=api_key)
    with TestClient(app):
        assert limiter.running
    assert not limiter.running


def test_two_middlewares_share_one_limiter(limiter: FakeLimiter) -> None:
    app = starlette_app(limiter)
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=lambda _: "all", resource="all")
    with TestClient(app) as client:
        response = client.get("/", headers=KEY)
    assert not limiter.running
    assert limiter.checks == [Check("all", 1, "", "all"), Check("alice")]
    assert len(response.headers.get_list("ratelimit")) == 1


def test_contradicting_topics_fail_the_startup(limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[bool] = []

    async def refuse(_: FakeLimiter) -> FakeLimiter:
        raise TopicError("4 partitions instead of 64")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            cleaned.append(True)

    monkeypatch.setattr(FakeLimiter, "__aenter__", refuse)
    app = Starlette(lifespan=lifespan)
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=api_key)
    with pytest.raises(TopicError, match="4 partitions instead of 64"), TestClient(app):
        raise AssertionError
    assert cleaned


# --- without a lifespan -------------------------------------------------------------------------


def limited_app() -> Starlette:
    """Return an application with a real limiter, whose store denies every request."""
    return starlette_app(Limiter("kafka:9092", deadline_ms=60_000), cost=3)


def test_requests_outside_a_lifespan_are_limited(kafka: type[Kafka]) -> None:
    client = TestClient(limited_app())
    assert [client.get("/", headers=KEY).status_code for _ in range(2)] == [429, 429]


def test_requests_to_a_mounted_application_are_limited(kafka: type[Kafka]) -> None:
    app = Starlette(routes=[Mount("/v1", app=limited_app())])
    with TestClient(app) as client:
        assert [client.get("/v1/", headers=KEY).status_code for _ in range(2)] == [429, 429]


async def test_requests_through_an_asgi_transport_are_limited(kafka: type[Kafka]) -> None:
    transport = httpx.ASGITransport(app=limited_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        answers = await asyncio.gather(*(client.get("/", headers=KEY) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [429] * 5


# --- CORS ---------------------------------------------------------------------------------------

ORIGIN = {"origin": "https://page.example"}
PREFLIGHT = {**ORIGIN, "access-control-request-method": "GET"}


def cors_app(limiter: FakeLimiter, **options: Any) -> Starlette:
    app = starlette_app(limiter)
    app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN["origin"]], **options)
    return app


@pytest.mark.parametrize("headers", [PREFLIGHT, {name.upper(): value for name, value in PREFLIGHT.items()}])
def test_preflight_is_not_charged(limiter: FakeLimiter, headers: dict[str, str]) -> None:
    limiter.answer = DENIED
    assert TestClient(cors_app(limiter)).options("/", headers={**KEY, **headers}).status_code == 200
    assert TestClient(starlette_app(limiter)).options("/", headers={**KEY, **headers}).status_code == 405
    assert limiter.checks == []


@pytest.mark.parametrize("missing", PREFLIGHT)
def test_other_options_requests_are_charged(limiter: FakeLimiter, missing: str) -> None:
    headers = {name: value for name, value in {**KEY, **PREFLIGHT}.items() if name != missing}
    TestClient(starlette_app(limiter)).options("/", headers=headers)
    TestClient(starlette_app(limiter)).get("/", headers={**KEY, **PREFLIGHT})
    assert limiter.checks == [Check("alice")] * 2


@pytest.mark.parametrize("answer", [ALLOWED, DENIED], ids=["allowed", "denied"])
def test_script_of_another_origin_can_read_the_limit(limiter: FakeLimiter, answer: Answer) -> None:
    limiter.answer = answer
    response = TestClient(cors_app(limiter)).get("/", headers={**KEY, **ORIGIN})
    assert response.status_code == (200 if answer.allowed else 429)
    assert response.headers["access-control-allow-origin"] == ORIGIN["origin"]
    assert response.headers["access-control-expose-headers"] == "RateLimit, RateLimit-Policy, Retry-After"
    assert "ratelimit" in response.headers
    assert EXPOSE.decode() not in TestClient(cors_app(limiter)).get("/", headers=KEY).headers


def test_fields_that_the_application_exposes_are_kept(limiter: FakeLimiter) -> None:
    app = cors_app(limiter, expose_headers=["X-Mine"])
    response = TestClient(app).get("/", headers={**KEY, **ORIGIN})
    assert response.headers.get_list("access-control-expose-headers") == ["X-Mine"]


def test_cors_middleware_within_the_limit_is_refused_at_the_start(limiter: FakeLimiter) -> None:
    app = Starlette(routes=ROUTES)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(GZipMiddleware)
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=api_key)
    with pytest.raises(SettingsError, match="after RateLimitMiddleware"), TestClient(app):
        raise AssertionError
