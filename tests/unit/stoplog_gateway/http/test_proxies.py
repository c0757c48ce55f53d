"""Proxies get their answers without the framework; in overload, their checks fail open or closed at once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import NoReturn

import pytest
from opentelemetry import trace
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.envoy.mapping import DescriptorMapping, Entries, Rule, load_mapping
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.fast_cycle import FastCycle
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.proxies import Proxies
from stoplog_gateway.http.tracing import RequestTracing
from stoplog_gateway.http.turns import Turns
from stoplog_gateway.settings import GatewaySettings

from stoplog.client.answer import Answer
from stoplog.client.fail_open import INTERNAL_ERROR, OVERLOAD
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput
from stoplog.wire.checks import Check
from tests.support.access import access_control
from tests.support.fake_kafka import running_limiter
from tests.support.fake_limiter import FakeLimiter
from tests.support.late_turns import LateTurns
from tests.support.protocol_connection import (
    JSON,
    Connection,
    Request,
    forbidden_app,
    plain_request,
    status_of,
)

ALICE = (b"x-client-id", b"alice")
DENY = (b"stoplog-unavailable", b"deny")
ENVOY = b'{"domain": "edge", "descriptors": [{"entries": [{"key": "user", "value": "alice"}]}]}'
MAPPING = """
login:
  - client: "{user}"
    on_unavailable: deny
  - client: "{address}"
"""


def in_overload(
    limiter: Limiter,
    access: AccessControl | None = None,
    mapping: DescriptorMapping | None = None,
) -> Connection:
    """Return a connection to a gateway that has no time for requests of the application."""
    return connect(limiter, access, mapping, LateTurns())


def connect(
    limiter: Limiter,
    access: AccessControl | None = None,
    mapping: DescriptorMapping | None = None,
    turns: Turns | None = None,
    tracing: RequestTracing | None = None,
) -> Connection:
    """Return a connection to a gateway in which no request reaches the application."""
    turns = turns or Turns()
    proxies = Proxies(
        limiter,
        access or access_control(),
        turns,
        mapping or DescriptorMapping(),
        client_header="X-Client-Id",
        legacy_headers=False,
    )
    fast_path = FastPath(limiter, legacy_headers=False, turns=turns, proxies=proxies, tracing=tracing)
    return Connection(forbidden_app, fast_path, connections=Connections(turns=turns))


def envoy_request(body: bytes, *fields: tuple[bytes, bytes], path: str = "/json") -> list[bytes]:
    return Request("POST", path, (JSON, (b"content-length", b"%d" % len(body)), *fields), (body,)).data()


def envoy_body(domain: str, *each: dict[str, str]) -> bytes:
    """Return a ``RateLimitRequest`` with descriptors that have the entries of a dict each."""
    descriptors = [{"entries": [{"key": key, "value": value} for key, value in one.items()]} for one in each]
    return json.dumps({"domain": domain, "descriptors": descriptors}, separators=(",", ":")).encode()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PROPFIND"])
@pytest.mark.parametrize(
    ("target", "fields", "check", "closed"),
    [
        ("/v1/authorize", (ALICE,), Check("alice", 1), False),
        ("/v1/authorize?cost=2&plan=p&resource=a+b", (ALICE,), Check("alice", 2, "p", "a b"), False),
        ("/v1/authorize?unavailable=deny", (ALICE,), Check("alice", 1), True),
        ("/v1/authorize/orders?cost=x&unavailable=deny", (ALICE,), Check("alice", 1), False),
        ("/v1/authorize/orders", (ALICE, DENY, (b"content-length", b"0")), Check("alice", 1), True),
    ],
)
async def test_plain_request_of_a_proxy_does_not_reach_the_application(
    method: str,
    target: str,
    fields: tuple[tuple[bytes, bytes], ...],
    check: Check,
    closed: bool,
    limiter: FakeLimiter,
) -> None:
    access = access_control({"good": "check"}, check_needs_token=True)
    connection = connect(limiter, access)
    foreign = ((b"x-forwarded-for", b"192.0.2.1"), (b"authorization", b"Bearer x"))
    request = Request(method, target, (*fields, *foreign, (b"stoplog-token", b"good")))
    for _ in range(2):
        response = await connection.send(*request.data())
        assert status_of(response) == 200
        assert response.endswith(b"\r\n\r\n") == (method == "HEAD")
    assert (limiter.checks, limiter.fail_closed) == ([check] * 2, [closed] * 2)
    await connection.disconnect()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/authorize/orders?x=1 HTTP/1.1\r\nhost: 127.0.0.1:8000\r\ncontent-length: 0\r\n"
        b"x-client-id: alice\r\nx-envoy-internal: true\r\nx-envoy-expected-rq-timeout-ms: 500\r\n\r\n",
        b"GET /v1/authorize HTTP/1.1\r\nX-Client-Id: alice\r\nHost: stoplog\r\nUser-Agent: curl/8.5.0\r\n"
        b"Accept: */*\r\n\r\n",
    ],
    ids=["envoy-ext-authz", "nginx-auth-request"],
)
async def test_request_as_proxies_send_it_does_not_reach_the_application(
    data: bytes, limiter: FakeLimiter
) -> None:
    connection = connect(limiter)
    for _ in range(2):
        assert status_of(await connection.send(data)) == 200
    assert limiter.checks == [Check("alice")] * 2
    await connection.disconnect()


@pytest.mark.parametrize(
    "target", ["/v1/authorize/%ff", "/v1/authorize/%FF/%C3?a=%ff", "/v1/authorize/%c3%28"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_path_that_is_not_utf8_is_checked_and_the_connection_stays(
    method: str, target: str, limiter: FakeLimiter
) -> None:
    connection = connect(limiter)
    for request in (Request(method, target, (ALICE,)), Request("GET", "/v1/authorize", (ALICE,))) * 2:
        assert status_of(await connection.send(*request.data())) == 200
    assert not connection.wire.is_closing()
    assert limiter.checks == [Check("alice")] * 4
    await connection.disconnect()


async def test_plain_request_of_envoy_does_not_reach_the_application(limiter: FakeLimiter) -> None:
    access = access_control({"good": "check"}, check_needs_token=True)
    connection = connect(limiter, access, DescriptorMapping({"edge": [Rule("{user}", "{plan}")]}))
    token, foreign = (b"stoplog-token", b"good"), (b"via", b"1.1 proxy")
    for target, fields, closed in (
        ("/json", (), False),
        ("/json?unavailable=deny", (), True),
        ("/json?other=1", (DENY,), True),
    ):
        body = envoy_body("edge", {"user": "alice", "plan": "gold"}, {"user": "bob", "plan": '"'})
        for _ in range(2):  # the second head is known
            response = await connection.send(*envoy_request(body, token, foreign, *fields, path=target))
            assert status_of(response) == 200
            assert limiter.checks == [Check("alice", plan="gold"), Check("bob", plan='"')]
            assert limiter.fail_closed == [closed] * 2
            limiter.checks.clear()
            limiter.fail_closed.clear()
    assert b"malformed-json" in await connection.send(*envoy_request(b"{", token))
    await connection.disconnect()


async def test_request_of_envoy_is_answered_once_all_its_checks_are(
    limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = [asyncio.get_running_loop().create_future() for _ in range(3)]
    each = iter(pending)
    monkeypatch.setattr(limiter, "ask", lambda *_: next(each))
    connection = connect(limiter)
    connection.protocol.data_received(*envoy_request(envoy_body("edge", USER, USER, USER)))
    for number in (2, 0, 1):
        assert not connection.wire.written
        pending[number].set_result(Answer(True, 100, number, 60_000, 0, 7))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    [response] = connection.wire.written
    statuses = json.loads(response.partition(b"\r\n\r\n")[2])["statuses"]
    assert [status.get("limitRemaining", 0) for status in statuses] == [0, 1, 2]
    await connection.disconnect()


async def test_check_of_envoy_that_a_worker_refuses_is_a_400(
    limiter: FakeLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(limiter, "ask", lambda *_: pending)
    app = create_app(GatewaySettings(), limiter, access_control())
    responses = []
    for connection in (connect(limiter), Connection(app, None)):
        connection.protocol.data_received(*envoy_request(ENVOY))
        if not pending.done():
            pending.set_result(InvalidInput("client_id", "too long", "use a shorter one"))
        responses.append(await connection.send())
        await connection.disconnect()
    assert status_of(responses[0]) == 400
    assert responses[0] == responses[1]


async def test_with_tracing_the_request_of_a_proxy_continues_its_trace(limiter: FakeLimiter) -> None:
    seen: list[int] = []

    def ask(check: Check, fails_closed: bool = False) -> Answer:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        return limiter.answer

    limiter.ask = ask  # type: ignore[method-assign]
    connection = connect(limiter, tracing=RequestTracing())
    for fields in ((ALICE, (b"traceparent", b"00-%032x-%016x-01" % (7, 9))), (ALICE,)):
        assert status_of(await connection.send(*Request("GET", "/v1/authorize", fields).data())) == 200
    assert seen == [7, 0]
    await connection.disconnect()


def bug_cases() -> list[tuple[Request, int]]:
    """Return requests, with the status that they get if there is a bug."""
    return [
        (Request("GET", "/v1/authorize", (ALICE,)), 500),
        (Request("HEAD", "/v1/authorize", (ALICE,)), 500),
        (Request("GET", "/v1/authorize/%C3%A9", (ALICE,)), 500),
        (Request("GET", "/v1/authorize?unavailable=deny", (ALICE,)), 429),
        (Request("HEAD", "/v1/authorize/orders", (ALICE, DENY)), 429),
        (plain_request("/json", envoy_body("edge", {"user": "alice"})), 500),
        (plain_request("/json?unavailable=deny", envoy_body("edge", {"user": "alice"})), 429),
        (plain_request("/json", envoy_body("login", {"user": "alice"})), 429),
    ]


@pytest.mark.parametrize(("request_", "status"), bug_cases())
async def test_bug_gets_the_response_and_the_log_entry_of_the_route(
    request_: Request,
    status: int,
    limiter: FakeLimiter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter.error = ZeroDivisionError("secret")
    mapping = DescriptorMapping({"login": [Rule("{user}", on_unavailable="deny")]})
    app = create_app(GatewaySettings(), limiter, access_control())
    app.state.mapping = mapping
    responses = []
    for connection in (connect(limiter, mapping=mapping), Connection(app, None)):
        responses.append(await connection.send(*request_.data()))
        await connection.disconnect()
    assert status_of(responses[0]) == status
    assert responses[0] == responses[1]
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2
    assert logged[0] == logged[1]
    assert limiter.metrics.failed_closed[INTERNAL_ERROR] == 2 * (status == 429)


@pytest.mark.usefixtures("kafka")
async def test_check_of_a_proxy_without_time_fails_open_at_once_and_is_published() -> None:
    async with running_limiter() as (limiter, log):
        connection = in_overload(limiter)
        connection.protocol.data_received(Request("GET", "/v1/authorize?cost=3", (ALICE,)).data()[0])
        [response] = connection.wire.written
        assert status_of(response) == 200
        answer = json.loads(response.partition(b"\r\n\r\n")[2])
        assert (answer["allowed"], answer["degraded"], answer["reason"]) == (True, True, OVERLOAD)
        await connection.send()
        assert [check for check in log.checks if check.client] == [Check("alice", 3)]
        assert limiter.metrics.degraded[OVERLOAD] == limiter.metrics.received == 1
        assert limiter.metrics.in_flight == limiter.metrics.uncounted == 0
        await connection.disconnect()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PROPFIND"])
@pytest.mark.parametrize("path", ["/v1/authorize", "/v1/authorize/orders?cost=x&unavailable=x"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_proxy_in_overload_gets_the_check_of_every_method_path_and_version(
    method: str, path: str, version: str, limiter: FakeLimiter
) -> None:
    connection = in_overload(limiter)
    request = Request(method, path, (ALICE, (b"content-length", b"0")), version=version)
    response = await connection.send(*request.data())
    assert status_of(response) == 200
    assert limiter.checks == [Check("alice", 1)]
    assert connection.wire.is_closing() == (version == "1.0")
    assert response.endswith(b"\r\n\r\n") == (method == "HEAD")
    await connection.disconnect()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/authorize?unavailable=deny", (ALICE,)),
        ("/v1/authorize", (ALICE, DENY)),
        ("/v1/authorize/orders", (ALICE, DENY)),
    ],
)
async def test_proxy_in_overload_that_asks_to_fail_closed_gets_429_and_no_5xx(
    path: str, fields: tuple[tuple[bytes, bytes], ...], limiter: FakeLimiter
) -> None:
    connection = in_overload(limiter)
    response = await connection.send(*Request("GET", path, fields).data())
    assert status_of(response) == 429
    assert b"store-unavailable" in response
    assert b"retry-after: 1\r\n" in response
    assert limiter.fail_closed == [True]
    await connection.disconnect()


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/v1/authorize", (), 403),
        ("/v1/authorize?cost=-1", (), 403),
        ("/v1/authorize", (ALICE, ALICE), 403),
        ("/v1/authorize", ((b"x-client-id", b""),), 403),
        ("/v1/authorize", (ALICE, (b"stoplog-unavailable", b"no")), 422),
        ("/v1/authorize?cost=-1", (ALICE,), 422),
        ("/v1/authorize?cots=1", (ALICE,), 422),
        ("/v1/authorize?unavailable=never", (ALICE,), 422),
        ("/v1/authorize?plan=%ff", (ALICE,), 422),
        ("/v1/authorize?plan=" + "p" * 300, (ALICE,), 422),
    ],
)
async def test_invalid_request_of_a_proxy_in_overload_gets_the_response_of_the_route(
    path: str, fields: tuple[tuple[bytes, bytes], ...], status: int, limiter: FakeLimiter
) -> None:
    app = create_app(GatewaySettings(), limiter, access_control())
    request = Request("GET", path, fields).data()
    response = await in_overload(limiter).send(*request)
    assert status_of(response) == status
    assert response == await Connection(app, None).send(*request)
    assert not limiter.checks


@pytest.mark.parametrize(
    ("target", "fields", "pieces"),
    [
        ("/v1/authorize", ((b"transfer-encoding", b"chunked"),), (b"3\r\nabc\r\n", b"0\r\n\r\n")),
        ("/v1/authorize", ((b"content-length", b"40000"),), (b"x" * 20_000, b"x" * 20_000)),
        ("/v1/%61uthorize/", (), (b"",)),
        ("http://localhost/v1/authorize/x?a=b", (), (b"",)),
    ],
)
async def test_request_of_a_proxy_in_overload_is_answered_whatever_its_body_and_target(
    target: str, fields: tuple[tuple[bytes, bytes], ...], pieces: tuple[bytes, ...], limiter: FakeLimiter
) -> None:
    connection = in_overload(limiter)
    for _ in range(2):  # the connection is kept
        response = await connection.send(*Request("POST", target, (ALICE, *fields), pieces).data())
        assert status_of(response) == 200
    assert limiter.checks == [Check("alice", 1)] * 2
    await connection.disconnect()


async def test_body_of_a_proxy_in_overload_is_asked_for_if_it_waits(limiter: FakeLimiter) -> None:
    connection = in_overload(limiter)
    fields = (JSON, (b"content-length", b"%d" % len(ENVOY)), (b"expect", b"100-continue"))
    [head] = Request("POST", "/json", fields).data()
    connection.protocol.data_received(head)
    assert connection.wire.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    assert status_of(await connection.send(ENVOY)) == 200
    await connection.disconnect()


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [("/v1/authorize", (ALICE,), 200), ("/v1/authorize", (ALICE, DENY), 429), ("/json", (JSON,), 413)],
)
async def test_long_body_of_a_proxy_in_overload_is_not_awaited(
    path: str, fields: tuple[tuple[bytes, bytes], ...], status: int, limiter: FakeLimiter
) -> None:
    length, chunked = (b"content-length", b"100000"), (b"transfer-encoding", b"chunked")
    for field, pieces in (
        (length, (b"",)),
        (chunked, (b"c350\r\n" + b"x" * 50_000 + b"\r\n",) * 2),
    ):
        for expect in ((), ((b"expect", b"100-continue"),)) if field == length else ((),):
            connection = in_overload(limiter)
            response = await connection.send(*Request("POST", path, (*fields, field, *expect), pieces).data())
            assert status_of(response) == status
            assert response.count(b"HTTP/1.1") == response.count(b"connection: close\r\n") == 1
            cycle = connection.protocol.cycle
            assert isinstance(cycle, FastCycle)
            assert not cycle.pieces
            await connection.disconnect()


@pytest.fixture
def mapping(tmp_path: Path) -> DescriptorMapping:
    file = tmp_path / "mapping.yaml"
    file.write_text(MAPPING)
    return load_mapping(file)


USER, ADDRESS = {"user": "alice"}, {"address": "192.0.2.1"}
LARGE = {"padding": "x" * 4_096}


@pytest.mark.parametrize(
    ("each", "codes"),
    [
        ([USER], ["OVER_LIMIT"]),
        ([ADDRESS], ["OK"]),
        ([ADDRESS, USER, ADDRESS], ["OK", "OVER_LIMIT", "OK"]),
    ],
)
async def test_only_descriptors_whose_rule_says_so_fail_closed_in_overload(
    each: list[dict[str, str]], codes: list[str], limiter: FakeLimiter, mapping: DescriptorMapping
) -> None:
    connection = in_overload(limiter, mapping=mapping)
    body = envoy_body("login", *each)
    for request in (envoy_request(body), envoy_request(body.replace(b"}]}]}", b'}], "limit": {}}]}'))):
        response = await connection.send(*request)
        assert status_of(response) == (429 if "OVER_LIMIT" in codes else 200)
        statuses = json.loads(response.partition(b"\r\n\r\n")[2])["statuses"]
        assert [status["code"] for status in statuses] == codes
    # The first request is published. Only protobuf could parse the second one.
    assert len(limiter.checks) == len(codes)
    assert limiter.fail_closed == [code == "OVER_LIMIT" for code in codes]
    assert limiter.metrics.failed_closed[OVERLOAD] == codes.count("OVER_LIMIT")
    assert limiter.metrics.degraded[OVERLOAD] == codes.count("OK")
    assert limiter.metrics.uncounted == limiter.metrics.received == len(codes)
    await connection.disconnect()


async def test_large_request_of_envoy_in_overload_fails_closed_if_a_rule_of_its_domain_does(
    limiter: FakeLimiter, mapping: DescriptorMapping
) -> None:
    connection = in_overload(limiter, mapping=mapping)
    for domain, status in (("login", 429), ("edge", 200)):
        request = envoy_request(envoy_body(domain, ADDRESS, LARGE, {}))
        response = await connection.send(*request)
        assert status_of(response) == status
        assert len(json.loads(response.partition(b"\r\n\r\n")[2])["statuses"]) == 3
    assert limiter.metrics.failed_closed[OVERLOAD] == limiter.metrics.degraded[OVERLOAD] == 3
    assert limiter.metrics.uncounted == limiter.metrics.received == 6
    await connection.disconnect()


async def test_request_of_envoy_in_overload_that_asks_to_fail_closed_does(
    limiter: FakeLimiter, mapping: DescriptorMapping
) -> None:
    connection = in_overload(limiter, mapping=mapping)
    for each in (USER, LARGE):
        body = envoy_body("edge", each)
        for request, status in (
            (envoy_request(body), 200),
            (envoy_request(body, path="/json?unavailable=deny"), 429),
            (envoy_request(body, DENY), 429),
        ):
            for _ in range(2):  # the head must not be remembered
                assert status_of(await connection.send(*request)) == status
    await connection.disconnect()


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"domain": null, "descriptors": null}',
        b'{"domain": "edge"}',
        b'{"domain": "edge", "descriptors": [{"entries": []}]}',
        envoy_body("", USER),
        envoy_body("edge", *[{"a": "b"}] * 101),
        envoy_body("edge", *[{"address": "192.0.2.1"}] * 101),
        envoy_body("", LARGE),
    ],
)
async def test_request_of_envoy_in_overload_without_valid_descriptors_gets_the_response_of_the_route(
    body: bytes, limiter: FakeLimiter
) -> None:
    app = create_app(GatewaySettings(), limiter, access_control())
    response = await in_overload(limiter).send(*envoy_request(body))
    assert status_of(response) == 400
    assert response == await Connection(app, None).send(*envoy_request(body))
    assert limiter.metrics.received == 0


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"null",
        b'{"domain": 1}',
        b'{"descriptors": [null]}',
        b'{"domain": "\\ud800"}',
        b'{"domain": "\xff"}',
    ],
)
async def test_malformed_request_of_envoy_in_overload_gets_the_status_of_the_route(
    body: bytes, limiter: FakeLimiter
) -> None:
    app = create_app(GatewaySettings(), limiter, access_control())
    for connection in (in_overload(limiter), Connection(app, None)):
        response = await connection.send(*envoy_request(body))
        assert status_of(response) == 400
        assert b"malformed-json" in response


class BrokenMapping(DescriptorMapping):
    """A mapping with a bug."""

    def resolve(self, domain: str | bytes, entries: Entries) -> NoReturn:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Request("GET", "/v1/authorize", (ALICE,)), 500),
        (Request("GET", "/v1/authorize", (ALICE, DENY)), 429),
        (Request("GET", "/v1/authorize?unavailable=deny", (ALICE,)), 429),
        (Request("GET", "/v1/authorize/orders", (ALICE, DENY)), 429),
        (plain_request("/json", envoy_body("edge", USER)), 500),
        (plain_request("/json?unavailable=deny", envoy_body("edge", USER)), 429),
        (plain_request("/json", envoy_body("login", USER)), 429),
    ],
)
async def test_bug_in_overload_gets_the_response_of_the_route_and_is_logged(
    request_: Request, status: int, limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.error = ZeroDivisionError()
    mapping = BrokenMapping({"login": [Rule("{user}", on_unavailable="deny")]})
    app = create_app(GatewaySettings(), limiter, access_control())
    app.state.mapping = mapping
    responses = []
    for number, connection in enumerate((in_overload(limiter, mapping=mapping), Connection(app, None)), 1):
        responses.append(await connection.send(*request_.data()))
        assert not connection.wire.is_closing()
        [record] = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError
        assert limiter.metrics.failed_closed[INTERNAL_ERROR] == (number if status == 429 else 0)
        caplog.clear()
        await connection.disconnect()
    assert status_of(responses[0]) == status
    assert responses[0] == responses[1]


@pytest.mark.parametrize(("fields", "status"), [((ALICE,), 500), ((ALICE, DENY), 429)])
async def test_bug_in_overload_after_the_check_was_asked_is_logged_and_fails_closed_if_asked(
    fields: tuple[tuple[bytes, bytes], ...],
    status: int,
    limiter: FakeLimiter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pending: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(limiter, "answer_at_once", lambda *_: pending)
    connection = in_overload(limiter)
    connection.protocol.data_received(*Request("GET", "/v1/authorize", fields).data())
    pending.set_exception(ZeroDivisionError())
    assert status_of(await connection.send()) == status
    assert "ZeroDivisionError" in caplog.text
    assert limiter.metrics.failed_closed[INTERNAL_ERROR] == (status == 429)
    await connection.disconnect()


async def test_proxy_without_its_token_is_refused_at_once_in_overload_too(limiter: FakeLimiter) -> None:
    access = access_control({"good": "check"}, check_needs_token=True)
    app = create_app(GatewaySettings(), limiter, access)
    connection = in_overload(limiter, access)
    for token in ((), ((b"stoplog-token", b"bad"),)):
        request = Request("GET", "/v1/authorize", (ALICE, *token)).data()
        connection.protocol.data_received(*request)
        response = connection.wire.written[-1]
        assert status_of(response) == 403
        assert response == await Connection(app, None).send(*request)
    counted = [s.value for s in next(iter(access.refusals.collect())).samples]
    assert sum(counted) == 4
    with_token = Request("GET", "/v1/authorize", (ALICE, (b"stoplog-token", b"good")))
    assert status_of(await connection.send(*with_token.data())) == 200
    assert limiter.checks == [Check("alice", 1)]
    await connection.disconnect()
