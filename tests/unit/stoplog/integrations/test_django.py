"""The middleware and the decorator in Django. The store of the limiter is a fake that denies odd costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import path
from django.views import View

from stoplog import BlockingLimiter, InvalidInput
from stoplog.integrations.django import RateLimitMiddleware, client_address, header, rate_limit
from stoplog.wire.checks import Check
from tests.support.django_site import configure_django
from tests.support.fake_kafka import Kafka

KEY = {"X-Api-Key": "alice"}
PREFLIGHT = {"Origin": "https://page.example", "Access-Control-Request-Method": "GET"}

configure_django()


@pytest.fixture
def limiter(kafka: type[Kafka]) -> Iterator[BlockingLimiter]:
    limiter = BlockingLimiter("kafka:9092", deadline_ms=60_000)
    yield limiter
    limiter.stop()


def checks(limiter: BlockingLimiter) -> list[Check]:
    transport: Any = limiter._limiter._engine.transport
    found: list[Check] = transport.checks
    return found


def client(limiter: BlockingLimiter, view: Any = lambda _: HttpResponse("hello"), **options: Any) -> Any:
    """Return a client of a site with one view behind the middleware."""
    options = {"limiter": limiter, "identify": header("X-Api-Key"), "cost": 2, **options}
    urls = type("urls", (), {"urlpatterns": [path("", view)]})
    context = override_settings(STOPLOG=options, ROOT_URLCONF=urls)
    context.enable()
    made: Any = Client()
    made.close = context.disable
    return made


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Undo the settings of each client."""
    wrapped = settings._wrapped
    yield
    settings._wrapped = wrapped


def test_allowed_request_gets_its_response_with_the_limit(limiter: BlockingLimiter) -> None:
    web = client(limiter, plan=lambda request: request.GET["plan"], resource="export")
    response = web.get("/?plan=gold", headers=KEY)
    assert (response.status_code, response.content) == (200, b"hello")
    assert response.headers["RateLimit"] == '"default";r=2;t=1'
    assert "Access-Control-Expose-Headers" not in response.headers
    assert checks(limiter) == [Check("alice", 2, "gold", "export")]


def test_denied_request_gets_429_and_never_reaches_the_view(limiter: BlockingLimiter) -> None:
    def unreachable(request: Any) -> HttpResponse:
        raise AssertionError

    response = client(limiter, unreachable, cost=3).get("/", headers={**KEY, **PREFLIGHT})
    assert response.status_code == 429
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Access-Control-Expose-Headers"] == "RateLimit, RateLimit-Policy, Retry-After"
    assert response.json()["type"] == "urn:stoplog:problem:rate-limited"


def test_request_without_a_client_and_preflight_are_not_charged(limiter: BlockingLimiter) -> None:
    web = client(limiter, cost=3)
    assert web.get("/").status_code == 200
    assert web.options("/", headers={**KEY, **PREFLIGHT}).status_code == 200
    assert web.options("/", headers=KEY).status_code == 429


def test_decorated_view_has_a_limit_of_its_own_and_shows_it(limiter: BlockingLimiter) -> None:
    cost = 4

    @rate_limit(
        limiter=limiter,
        identify=header("X-Api-Key"),
        cost=lambda _: cost,
        resource="view",
        legacy_headers=True,
    )
    def view(request: Any) -> HttpResponse:
        return HttpResponse("hello")

    web = client(limiter, view)
    response = web.get("/", headers=KEY)
    assert checks(limiter) == [Check("alice", 2), Check("alice", 4, "", "view")]
    assert response.headers["RateLimit"] == '"default";r=4;t=1'
    assert response.headers["X-RateLimit-Limit"] == "100"
    cost = 3
    assert web.get("/", headers=KEY).status_code == 429
    assert view.__name__ == "view"


def test_failing_check_fails_closed_if_asked_to(limiter: BlockingLimiter) -> None:
    web = client(limiter, cost=-1, on_unavailable="deny")
    assert web.get("/", headers=KEY).status_code == 503


def test_identifier_that_trusts_proxies_needs_the_same_for_the_lists(
    limiter: BlockingLimiter, kafka: type[Kafka]
) -> None:
    web = client(limiter, identify=client_address("10.0.0.0/8", field="X-Real-IP"))
    web.get("/", REMOTE_ADDR="10.0.0.1", headers={"X-Real-IP": "9.9.9.9", "X-Forwarded-For": "8.8.8.8"})
    assert checks(limiter) == [Check("9.9.9.9", 2)]
    lists = BlockingLimiter("kafka:9092", blocked_addresses="10.0.0.0/8")
    with pytest.raises(InvalidInput, match="set STOPLOG_TRUSTED_PROXIES to the same proxies"):
        rate_limit(limiter=lists, identify=client_address("1"))


def test_wrong_settings_and_views_are_refused_at_the_start(limiter: BlockingLimiter) -> None:
    for wrong in ({}, {"limiter": limiter, "identify": header("a"), "price": 1}):
        with override_settings(STOPLOG=wrong), pytest.raises(ImproperlyConfigured, match="setting STOPLOG"):
            RateLimitMiddleware(lambda _: HttpResponse())
    with pytest.raises(ImproperlyConfigured, match="setting STOPLOG"):
        RateLimitMiddleware(lambda _: HttpResponse())
    with pytest.raises(InvalidInput, match="on_unavailable"):
        rate_limit(limiter=limiter, identify=header("a"), on_unavailable="never")

    async def view(request: Any) -> HttpResponse:
        return HttpResponse()

    class ClassBased(View):  # type: ignore[misc]
        async def get(self, request: Any) -> HttpResponse:
            return HttpResponse()

    for one in (view, ClassBased.as_view()):
        with pytest.raises(TypeError, match="is async"):
            rate_limit(limiter=limiter, identify=header("a"))(one)
