"""In overload, every request but a probe is answered at once, without the framework."""

from __future__ import annotations

import json
import logging

import pytest
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.connections import Connections
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.overload import OverloadRefusals
from stoplog_gateway.settings import GatewaySettings

from stoplog.client.reservations import ReservationId, encode_id
from stoplog.wire.checks import Check
from tests.support.access import access_control
from tests.support.fake_limiter import FakeLimiter
from tests.support.late_turns import LateTurns
from tests.support.protocol_connection import JSON, Connection, Request, forbidden_app, status_of

CHECK = b'{"client_id": "alice"}'
ID = encode_id(ReservationId(1, 7, 1 << 63, "alice", "", "", 1_000))
CHUNKED = (b"transfer-encoding", b"chunked")


def in_overload(
    limiter: FakeLimiter,
    app: object = forbidden_app,
    access: AccessControl | None = None,
    refusals: OverloadRefusals | None = None,
) -> Connection:
    turns = LateTurns()
    fast_path = FastPath(
        limiter, legacy_headers=False, turns=turns, access=access or access_control(), refusals=refusals
    )
    return Connection(app, fast_path, connections=Connections(turns=turns))  # type: ignore[arg-type]


def refused(refusals: OverloadRefusals) -> dict[str, float]:
    [family] = refusals.collect()
    return {sample.labels["what"]: sample.value for sample in family.samples}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_request_without_time_is_refused_counted_and_logged_once(
    method: str, version: str, limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = OverloadRefusals()
    for _ in range(2):
        connection = in_overload(limiter, refusals=refusals)
        for _ in range(2 if version == "1.1" else 1):  # the connection is kept
            body = () if method in ("GET", "HEAD") else ((b"content-length", b"2"),)
            pieces = (b"{}",) if body else (b"",)
            request = Request(method, "/v1/limits", body, pieces, version=version).data()
            response = await connection.send(*request)
            assert status_of(response) == 503
            assert b"retry-after: 1\r\n" in response
            assert response.endswith(b"\r\n\r\n") == (method == "HEAD")
        assert connection.wire.is_closing() == (version == "1.0")
        await connection.disconnect()
    assert refused(refusals) == {"request": 4 if version == "1.1" else 2, "list": 0}
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "overload: requests other than checks and reservations are refused" in record.getMessage()


async def test_probe_is_served_without_time(limiter: FakeLimiter) -> None:
    connection = in_overload(limiter, create_app(GatewaySettings(), limiter))
    for method in ("GET", "HEAD"):
        for path in ("/healthz", "/readyz?strict=1", "/metrics"):
            assert status_of(await connection.send(*Request(method, path).data())) == 200
    assert status_of(await connection.send(*Request("POST", "/healthz").data())) == 503
    await connection.disconnect()


@pytest.mark.parametrize(
    "request_",
    [
        Request(headers=(JSON, CHUNKED), pieces=(b"16\r\n" + CHECK + b"\r\n", b"0\r\n\r\n")),
        Request(headers=(JSON, (b"content-length", b"22"), (b"connection", b"close")), pieces=(CHECK,)),
        Request(headers=(JSON, (b"content-length", b"22")), pieces=(CHECK,), version="1.0"),
        Request(path="/v1/check?", headers=(JSON, (b"content-length", b"22")), pieces=(CHECK,)),
        Request(path="/v1/%63heck", headers=(JSON, (b"content-length", b"22")), pieces=(CHECK,)),
    ],
    ids=["chunked", "close", "1.0", "query", "encoded"],
)
async def test_check_off_the_fast_path_fails_open_at_once(request_: Request, limiter: FakeLimiter) -> None:
    connection = in_overload(limiter)
    response = await connection.send(*request_.data())
    answer = json.loads(response.partition(b"\r\n\r\n")[2])
    assert (answer["allowed"], answer["degraded"], answer["reason"]) == (True, True, "overload")
    assert limiter.checks == [Check("alice")]
    await connection.disconnect()


async def test_check_that_waits_to_be_asked_for_its_body_is_asked(limiter: FakeLimiter) -> None:
    connection = in_overload(limiter)
    fields = (JSON, (b"content-length", b"%d" % len(CHECK)), (b"expect", b"100-continue"))
    [head] = Request(headers=fields).data()
    connection.protocol.data_received(head)
    assert connection.wire.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    assert status_of(await connection.send(CHECK)) == 200
    await connection.disconnect()


@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [
        (((b"content-type", b"text/plain"),), CHECK, 415),
        ((JSON,), b"{", 400),
        ((JSON,), b'{"client_id": ""}', 422),
    ],
)
async def test_invalid_check_off_the_fast_path_gets_the_response_of_the_route(
    fields: tuple[tuple[bytes, bytes], ...], body: bytes, status: int, limiter: FakeLimiter
) -> None:
    request = Request(
        path="/v1/check?", headers=(*fields, (b"content-length", b"%d" % len(body))), pieces=(body,)
    ).data()
    response = await in_overload(limiter).send(*request)
    assert status_of(response) == status
    assert response == await Connection(create_app(GatewaySettings(), limiter), None).send(*request)


async def test_check_without_its_token_is_refused_at_once(limiter: FakeLimiter) -> None:
    access = access_control({"good": "check"}, check_needs_token=True)
    connection = in_overload(limiter, access=access)
    request = Request(headers=(JSON, (b"content-length", b"22")), pieces=(CHECK,)).data()
    connection.protocol.data_received(*request)
    [response] = connection.wire.written
    assert status_of(response) == 401
    app = create_app(GatewaySettings(), limiter, access)
    assert response == await Connection(app, None).send(*request)
    await connection.disconnect()


async def test_list_without_time_fails_open_at_once_if_it_is_short_and_is_refused_otherwise(
    limiter: FakeLimiter,
) -> None:
    refusals = OverloadRefusals()
    connection = in_overload(limiter, refusals=refusals)
    for chunked in (False, True):
        for checks, status in ((20, 200), (400, 503)):
            body = json.dumps([{"client_id": f"client-{number}"} for number in range(checks)]).encode()
            if not chunked and status == 503:
                continue  # the fast path divides it
            fields = CHUNKED if chunked else (b"content-length", b"%d" % len(body))
            pieces = (b"%x\r\n%s\r\n" % (len(body), body), b"0\r\n\r\n") if chunked else (body,)
            response = await connection.send(
                *Request(path="/v1/checks", headers=(JSON, fields), pieces=pieces).data()
            )
            assert status_of(response) == status
            assert response.count(b'"reason":"overload"') == (checks if status == 200 else 0)
    assert refused(refusals) == {"request": 0, "list": 1}
    assert len(limiter.checks) == 40
    await connection.disconnect()


def reservation(method: str, path: str, body: bytes = b"", *fields: tuple[bytes, bytes]) -> list[bytes]:
    length = ((b"content-length", b"%d" % len(body)),) if body else ()
    return Request(method, path, (*fields, *length), (body,)).data()


async def test_reservation_without_time_fails_open_or_closed_at_once_with_an_id(limiter: FakeLimiter) -> None:
    refusals = OverloadRefusals()
    connection = in_overload(limiter, refusals=refusals)
    for extra, allowed, retry_after in ((b"", True, False), (b', "on_unavailable": "deny"', False, True)):
        body = b'{"client_id": "alice", "cost": 40, "ttl_ms": 9000, "plan": "gold"%s}' % extra
        response = await connection.send(*reservation("POST", "/v1/reservations", body, JSON))
        assert status_of(response) == 200
        answer = json.loads(response.partition(b"\r\n\r\n")[2])
        assert (answer["allowed"], answer["degraded"], answer["reason"]) == (allowed, True, "overload")
        assert (answer["id"], answer["held"], answer["ttl_ms"]) == ("id", 0, 0)
        assert (b"retry-after: 1\r\n" in response) == retry_after
    assert limiter.checks == [Check("alice", 40, "gold")] * 2
    assert (limiter.ttls, limiter.fail_closed) == ([9_000] * 2, [False, True])
    assert refused(refusals) == {"request": 0, "list": 0}
    await connection.disconnect()


async def test_settlement_without_time_is_unconfirmed(limiter: FakeLimiter) -> None:
    connection = in_overload(limiter)
    settle = reservation("POST", f"/v1/reservations/{ID}/settle", b'{"used": 7}', JSON)
    for request in (settle, reservation("DELETE", f"/v1/reservations/{ID}")):
        response = await connection.send(*request)
        assert status_of(response) == 200
        answer = json.loads(response.partition(b"\r\n\r\n")[2])
        expected = {"id": ID, "state": "unconfirmed", "used": None, "repeated": False, "reason": "overload"}
        assert answer == expected
    assert limiter.settled == [(ID, 7), (ID, 0)]
    await connection.disconnect()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (reservation("POST", "/v1/reservations", b'{"client_id": ""}', JSON), 422),
        (reservation("POST", "/v1/reservations", b'{"client_id": "a", "ttl_ms": 0}', JSON), 422),
        (reservation("POST", "/v1/reservations", b"{", JSON), 400),
        (reservation("POST", "/v1/reservations", b'{"client_id": "a"}'), 415),
        (reservation("POST", "/v1/reservations/none/settle", b'{"used": 1}', JSON), 422),
        (reservation("POST", f"/v1/reservations/{ID}/settle", b'{"used": -1}', JSON), 422),
        (reservation("DELETE", f"/v1/reservations/{ID[:-1]}"), 422),
    ],
)
async def test_invalid_reservation_without_time_gets_the_response_of_the_route(
    request_: list[bytes], status: int, limiter: FakeLimiter
) -> None:
    response = await in_overload(limiter).send(*request_)
    assert status_of(response) == status
    assert response == await Connection(create_app(GatewaySettings(), limiter), None).send(*request_)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/reservations"),
        ("PUT", f"/v1/reservations/{ID}/settle"),
        ("DELETE", f"/v1/reservations/{ID}/settle"),
        ("POST", f"/v1/reservations/{ID}"),
        ("POST", f"/v1/reservations/{ID}/settled"),
        ("DELETE", "/v1/reservations/"),
        ("POST", "/v1/reservationsx"),
    ],
)
async def test_other_request_near_reservations_is_refused(
    method: str, path: str, limiter: FakeLimiter
) -> None:
    assert status_of(await in_overload(limiter).send(*reservation(method, path))) == 503
    assert not limiter.settled


async def test_reservation_without_its_token_is_refused_at_once(limiter: FakeLimiter) -> None:
    access = access_control({"good": "check"}, check_needs_token=True)
    for request in (
        reservation("POST", "/v1/reservations", b'{"client_id": "a"}', JSON),
        reservation("DELETE", f"/v1/reservations/{ID}"),
    ):
        response = await in_overload(limiter, access=access).send(*request)
        assert status_of(response) == 401
        app = create_app(GatewaySettings(), limiter, access)
        assert response == await Connection(app, None).send(*request)
    assert not limiter.checks
    assert not limiter.settled


async def test_bug_in_a_reservation_without_time_is_a_500_unless_it_asks_for_a_denial(
    limiter: FakeLimiter, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.error = ZeroDivisionError("a bug")
    opened = reservation("POST", "/v1/reservations", b'{"client_id": "a"}', JSON)
    denied = reservation("POST", "/v1/reservations", b'{"client_id": "a", "on_unavailable": "deny"}', JSON)
    given_back = reservation("DELETE", f"/v1/reservations/{ID}")
    for request, status in ((opened, 500), (denied, 200), (given_back, 500)):
        assert status_of(await in_overload(limiter).send(*request)) == status
    assert caplog.text.count("ZeroDivisionError: a bug") == 3
