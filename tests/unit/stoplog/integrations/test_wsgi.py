"""The WSGI middleware around a Flask application. The limiter is real, its store a fake."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from stoplog import BlockingLimiter, InvalidInput
from stoplog.client import green_threads
from stoplog.client.engine import wall_ms
from stoplog.errors import GreenThreads
from stoplog.integrations.wsgi import RateLimitMiddleware, client_address, header
from stoplog.policy import usable_id
from stoplog.wire.checks import Check
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat
from tests.support.fake_kafka import Kafka

KEY = {"X-Api-Key": "alice"}
PREFLIGHT = {"Origin": "https://page.example", "Access-Control-Request-Method": "GET"}
DENIED_COST = 3
"""The fake store denies odd costs."""


@pytest.fixture
def limiter(kafka: type[Kafka]) -> Iterator[BlockingLimiter]:
    limiter = BlockingLimiter("kafka:9092", deadline_ms=60_000)
    yield limiter
    limiter.stop()


def log_of(limiter: BlockingLimiter) -> Any:
    return limiter._limiter._engine.transport


def client(limiter: BlockingLimiter, cost: Any = 2, **options: Any) -> Any:
    app: Any = Flask("hello")
    app.add_url_rule("/", "hello", view_func=lambda: "hello")
    app.add_url_rule("/mine", "mine", view_func=lambda: ("hello", {"RateLimit": '"mine";r=1'}))
    options = {"identify": header("X-Api-Key"), **options}
    app.wsgi_app = RateLimitMiddleware(app.wsgi_app, limiter=limiter, cost=cost, **options)
    return app.test_client()


def test_allowed_request_gets_its_response_with_the_limit(limiter: BlockingLimiter) -> None:
    web = client(limiter, plan=lambda _: "gold", resource="export")
    response = web.get("/", headers=KEY)
    assert (response.status_code, response.text) == (200, "hello")
    assert response.headers["RateLimit"] == '"default";r=2;t=1'
    assert "X-RateLimit-Limit" not in response.headers
    assert log_of(limiter).checks == [Check("alice", 2, "gold", "export")]
    assert web.get("/mine", headers=KEY).headers.getlist("RateLimit") == ['"mine";r=1']


def test_denied_request_gets_429_and_never_reaches_the_application(limiter: BlockingLimiter) -> None:
    web = client(limiter, DENIED_COST, legacy_headers=True)
    response = web.get("/", headers={**KEY, "Origin": "https://page.example"})
    assert response.status == "429 Too Many Requests"
    assert response.content_type == "application/problem+json"
    assert response.json["type"] == "urn:stoplog:problem:rate-limited"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["X-RateLimit-Limit"] == "100"
    assert response.headers["Access-Control-Expose-Headers"] == "RateLimit, RateLimit-Policy, Retry-After"


def test_request_without_a_client_and_preflight_are_not_charged(limiter: BlockingLimiter) -> None:
    web = client(limiter, DENIED_COST)
    assert web.get("/").status_code == 200
    assert web.options("/", headers={**KEY, **PREFLIGHT}).status_code == 200
    assert web.options("/", headers=KEY).status_code == 429


def test_id_is_decoded_as_utf8_and_replaced_by_its_digest_if_invalid(limiter: BlockingLimiter) -> None:
    web = client(limiter)
    for raw in ("élise".encode().decode("latin-1"), "x" * 300):
        web.get("/", headers={"X-Api-Key": raw})
    assert [check.client for check in log_of(limiter).checks] == ["élise", usable_id("x" * 300)]


def test_failing_check_fails_open_or_closed_and_is_logged(
    limiter: BlockingLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    web = client(limiter, -1, on_unavailable=lambda environ: environ["QUERY_STRING"] or "allow")
    assert [web.get(path, headers=KEY).status_code for path in ("/", "/?deny", "/?no")] == [200, 503, 503]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("a request failed open and was not counted: cost: ")
    assert limiter.metrics.failed_closed["internal_error"] == 2
    with pytest.raises(InvalidInput, match="on_unavailable"):
        client(limiter, on_unavailable="never")


def test_exception_of_identify_reaches_the_server(limiter: BlockingLimiter) -> None:
    with pytest.raises(KeyError):
        client(limiter, identify=lambda environ: environ["nobody"]).get("/")


def test_request_without_a_client_of_the_chain_is_denied_but_no_preflight(kafka: type[Kafka]) -> None:
    limiter = BlockingLimiter("kafka:9092", identify="header:X-Api-Key")
    web = client(limiter, identify=None)
    denied = web.get("/", headers=[("X-Api-Key", "a"), ("X-Api-Key", "b")])
    assert denied.status == "403 Forbidden"
    assert denied.json["type"] == "urn:stoplog:problem:no-client"
    assert web.get("/").status_code == 403
    assert web.options("/", headers=PREFLIGHT).status_code == 200
    limiter.stop()


def test_identifier_denies_several_values_and_trusts_the_proxies_of_the_lists(
    limiter: BlockingLimiter, kafka: type[Kafka]
) -> None:
    assert client(limiter).get("/", headers={"X-Api-Key": "a, b"}).status_code == 403
    proxied = {"environ_base": {"REMOTE_ADDR": "10.0.0.1"}, "headers": {"X-Real-IP": "9.9.9.9"}}
    client(limiter, identify=client_address("10.0.0.0/8", field="X-Real-IP")).get("/", **proxied)
    assert [check.client for check in log_of(limiter).checks] == ["9.9.9.9"]
    lists = BlockingLimiter("kafka:9092", exempt_addresses="10.0.0.0/8")
    with pytest.raises(InvalidInput, match="set STOPLOG_TRUSTED_PROXIES to the same proxies"):
        client(lists, identify=client_address("10.0.0.0/8"))


def test_settings_name_the_client_and_block_or_exempt_addresses(kafka: type[Kafka]) -> None:
    limiter = BlockingLimiter(
        "kafka:9092",
        deadline_ms=60_000,
        identify="header:X-Api-Key,address",
        trusted_proxies="10.0.0.0/8",
        blocked_addresses="9.9.9.9",
        exempt_addresses="8.8.8.8",
    )
    web = client(limiter, DENIED_COST, identify=None)
    proxied = {"environ_base": {"REMOTE_ADDR": "10.0.0.1"}}
    for address, status in (("9.9.9.9", 403), ("8.8.8.8", 200), ("2001:db8::5", 429)):
        assert (
            web.get("/", headers={"X-Forwarded-For": f"1.1.1.1, {address}"}, **proxied).status_code == status
        )
    assert web.get("/", headers=KEY, **proxied).status_code == 429
    assert [check.client for check in log_of(limiter).checks] == ["2001:db8::/64", "alice"]
    limiter.stop()
    with pytest.raises(InvalidInput, match="identify: missing"):
        client(BlockingLimiter("kafka:9092"), identify=None)


def test_node_with_another_form_of_ids_has_requests_fail_open(
    limiter: BlockingLimiter,
    kafka: type[Kafka],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    send = kafka.send_heartbeat

    def send_behind_other(self: Kafka, key: bytes, value: bytes) -> None:
        other = Heartbeat("other", "gateway", "0.3.0", "host", wall_ms(), id_form="nfc")
        self.loop.call_soon(self.listener.on_heartbeats, [StampedHeartbeat(other, other.at_ms)])
        send(self, key, value)

    monkeypatch.setattr(kafka, "send_heartbeat", send_behind_other)
    assert client(limiter).get("/", headers=KEY).status_code == 200
    assert "a request failed open and was not counted: STOPLOG_ID_NORMALIZATION=none" in caplog.text
    assert "Traceback" not in caplog.text
    assert client(limiter, on_unavailable="deny").get("/", headers=KEY).status_code == 503


def test_green_threads_fail_each_request(limiter: BlockingLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    web = client(limiter)
    web.application.testing = True
    monkeypatch.setattr(green_threads, "_patched_by", lambda: "gevent")
    with pytest.raises(GreenThreads, match="gevent has replaced the threads"):
        web.get("/", headers=KEY)
