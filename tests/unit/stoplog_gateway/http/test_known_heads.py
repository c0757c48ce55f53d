"""Heads are recognized without the fields that nothing depends on, if the parser would accept them."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.known_heads import MAX_HEADS, MAX_SIZE, KnownHeads, KnownProxyHeads, matters
from stoplog_gateway.settings import GatewaySettings

from tests.support.access import access_control
from tests.support.fake_limiter import FakeLimiter
from tests.support.fast_path_equivalence import whole_fast_path
from tests.support.protocol_connection import Connection, forbidden_app, status_of

START = b"POST /v1/check HTTP/1.1"
FIELDS = (b"Host: localhost", b"Content-Type: application/json", b"Content-Length: 18", b"X-Request-Id: 1")


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((*lines, b"", b""))


def known(*lines: bytes) -> KnownHeads[int]:
    heads = KnownHeads[int]()
    heads.remember(head(*lines), 7)
    return heads


@pytest.mark.parametrize(
    "line", [b"X-Request-Id: 2", b"x-request-id:", b"traceparent: 00-1-2-01", b"A:\tb ", b"b3: Host: x"]
)
def test_head_with_another_field_that_does_not_matter_is_recognized(line: bytes) -> None:
    heads = known(START, *FIELDS)
    for lines in ((*FIELDS[:3], line), (line, *FIELDS[:3]), (*FIELDS, line), FIELDS[:3]):
        assert heads.find(head(START, *lines)) == 7


@pytest.mark.parametrize(
    "lines",
    [
        (*FIELDS, b"Content-Length: 5"),
        (*FIELDS, b"Transfer-Encoding: chunked"),
        (*FIELDS, b"CONNECTION: close"),
        (*FIELDS, b"Expect: 100-continue"),
        (*FIELDS, b"Origin: http://elsewhere"),
        (*FIELDS, b"X-Forwarded-For: 10.0.0.1"),
        (*FIELDS, b"Authorization: Bearer x"),
        (*FIELDS, b" folded"),
        (*FIELDS, b"X-Id : 1"),
        (*FIELDS, b"X-Id: a\0b"),
        (*FIELDS, b"X-Id: a\nb: c"),
        (*FIELDS, b"X-Id: a\rb: c"),
        (*FIELDS, b"X-Id: \xff"),
        (*FIELDS, b"no field"),
        (*FIELDS, b": nameless"),
        FIELDS[1:],
        (FIELDS[0], *FIELDS),
        (FIELDS[1], FIELDS[0], *FIELDS[2:]),
    ],
)
def test_head_that_differs_in_anything_else_is_parsed(lines: tuple[bytes, ...]) -> None:
    assert known(START, *FIELDS).find(head(START, *lines)) is None


def test_request_line_that_looks_like_a_field_is_parsed() -> None:
    assert known(START, *FIELDS).find(head(b"A: b", START, *FIELDS)) is None


def test_number_and_size_of_remembered_heads_are_bounded() -> None:
    heads = KnownHeads[int]()
    for number in range(MAX_HEADS + 1):
        heads.remember(head(START, b"Content-Length: %d" % number), number)
    assert heads.find(head(START, b"Content-Length: 0")) is None
    assert heads.find(head(START, b"Content-Length: %d" % MAX_HEADS)) == MAX_HEADS
    long = head(START, *FIELDS, b"X: " + b"x" * MAX_SIZE)
    heads.remember(long, 1)
    assert heads.find(long) is None


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_fields_that_are_left_out_are_valid_and_do_not_matter(name: bytes, value: bytes) -> None:
    parsed: list[tuple[bytes, bytes]] = []

    class Recorder:
        def on_header(self, name: bytes, value: bytes) -> None:
            parsed.append((name, value))

    data = head(START, *FIELDS, name + b":" + value)
    if known(START, *FIELDS).find(data) is not None:
        httptools.HttpRequestParser(Recorder()).feed_data(data)
        assert len(parsed) == len(FIELDS) + 1
        assert not matters(parsed[-1][0].lower())


async def test_each_request_id_and_body_of_a_recognized_head_is_its_own(limiter: FakeLimiter) -> None:
    connection = Connection(forbidden_app, FastPath(limiter, legacy_headers=False))
    for number in range(5):
        lines = (START, *FIELDS[:3], b"X-Request-Id: %d" % number)
        body = b'{"client_id": "%c"}' % b"abcde"[number]
        assert status_of(await connection.send(head(*lines) + body)) == 200
    assert "".join(check.client for check in limiter.checks) == "abcde"
    await connection.disconnect()


GET = b"GET /v1/authorize?cost=2 HTTP/1.1"
PROXY_FIELDS = (b"Host: localhost", b"X-Client-Id: alice", b"Stoplog-Token: a", b"X-Request-Id: 1")


def known_to_proxies(*lines: bytes, client_header: str = "X-Client-Id") -> KnownProxyHeads[int]:
    heads = KnownProxyHeads[int](client_header)
    heads.remember(head(*lines), 7)
    return heads


@pytest.mark.parametrize(
    "line", [b"Cookie: a=b", b"X-Forwarded-For: 10.0.0.1", b"Authorization: x", b"Origin: x", b"X-Id:"]
)
def test_head_of_a_proxy_with_another_client_or_callers_field_is_recognized(line: bytes) -> None:
    heads = known_to_proxies(GET, *PROXY_FIELDS)
    for lines in ((*PROXY_FIELDS, line), (line, *PROXY_FIELDS[:3])):
        assert heads.find(head(GET, *lines)) == (7, b"alice")
    assert heads.find(head(GET, b"Host: localhost", b"x-client-ID:\t b c ", PROXY_FIELDS[2])) == (7, b"b c ")


@pytest.mark.parametrize(
    "lines",
    [
        (*PROXY_FIELDS, b"X-Client-Id: bob"),
        (PROXY_FIELDS[0], *PROXY_FIELDS[2:]),
        (PROXY_FIELDS[0], b"X-Client-Id: \xc3\xa9", *PROXY_FIELDS[2:]),
        (*PROXY_FIELDS, b"Content-Length: 3"),
        (*PROXY_FIELDS, b"Transfer-Encoding: chunked"),
        (*PROXY_FIELDS, b"Connection: close"),
        (*PROXY_FIELDS, b"Upgrade: h2c"),
        (*PROXY_FIELDS, b"Expect: 100-continue"),
        (*PROXY_FIELDS, b"Stoplog-Unavailable: deny"),
        (*PROXY_FIELDS[:2], b"Stoplog-Token: b"),
        (*PROXY_FIELDS[:2],),
        (*PROXY_FIELDS[1:],),
        (*PROXY_FIELDS, b"no field"),
        (*PROXY_FIELDS, b" folded"),
        (*PROXY_FIELDS, b"X-Id: a\nb: c"),
        (*PROXY_FIELDS, b"X: " + b"x" * MAX_SIZE),
    ],
)
def test_head_of_a_proxy_that_differs_in_anything_else_is_parsed(lines: tuple[bytes, ...]) -> None:
    assert known_to_proxies(GET, *PROXY_FIELDS).find(head(GET, *lines)) is None


@pytest.mark.parametrize("start", [b"POST /v1/authorize HTTP/1.1", b"GET /v1/authorize/a HTTP/1.1"])
def test_other_requests_of_proxies_are_not_remembered(start: bytes) -> None:
    assert known_to_proxies(start, *PROXY_FIELDS).find(head(start, *PROXY_FIELDS)) is None


@pytest.mark.parametrize(
    "lines",
    [
        (PROXY_FIELDS[0], b"X-Client-Id: zo\xc3\xab"),
        (PROXY_FIELDS[0], b"X-Client-Id: zo\xc3\xab", b"Referer: \xff"),
        (*PROXY_FIELDS, b"Referer: \xff"),
        (PROXY_FIELDS[0],),
        (*PROXY_FIELDS, b"X-Client-Id: bob"),
    ],
)
def test_head_whose_only_client_id_is_not_certain_is_not_remembered(lines: tuple[bytes, ...]) -> None:
    heads = known_to_proxies(GET, *lines)
    assert heads.find(head(GET, *lines)) is None
    assert heads.find(head(GET, b"X-Client-Id: victim", *lines)) is None
    assert heads.find(head(GET, *lines, b"X-Client-Id: victim")) is None


_LINES = st.sampled_from(
    [
        *PROXY_FIELDS,
        b"X-Client-Id: bob",
        b"x-client-id:carol",
        b"X-Client-Id: \xc3\xa9",
        b"X-Client-Id : dave",
        b"Cookie: a=b",
        b"Connection: close",
        b" folded",
        b"",
        GET,
    ]
)


@given(st.lists(st.lists(_LINES, max_size=6), max_size=3), st.lists(_LINES, max_size=6))
def test_head_that_differs_only_in_its_client_is_recognized_as_by_its_parts(
    remembered: list[list[bytes]], lines: list[bytes]
) -> None:
    heads, parts = KnownProxyHeads[int]("X-Client-Id"), KnownProxyHeads[int]("X-Client-Id")
    for number, others in enumerate([[*PROXY_FIELDS], *remembered]):
        heads.remember(head(GET, *others), number)
        parts.remember(head(GET, *others), number)
    parts._others.clear()
    assert heads.find(head(GET, *lines)) == parts.find(head(GET, *lines))


def test_head_is_not_remembered_if_its_end_depends_on_the_client_id() -> None:
    heads = known_to_proxies(GET, b"Host: localhost", client_header="Host")
    assert heads.find(head(GET, b"Host: localhost")) is None


def test_number_of_remembered_heads_of_proxies_is_bounded() -> None:
    heads = KnownProxyHeads[int]("X-Client-Id")
    for number in range(MAX_HEADS + 1):
        heads.remember(head(GET, *PROXY_FIELDS, b"Host: %d" % number), number)
    assert heads.find(head(GET, *PROXY_FIELDS, b"Host: 0")) is None
    assert heads.find(head(GET, *PROXY_FIELDS, b"Host: %d" % MAX_HEADS)) == (MAX_HEADS, b"alice")


async def test_each_client_of_a_recognized_head_is_its_own_and_a_new_token_list_is_obeyed(
    limiter: FakeLimiter,
) -> None:
    access = access_control({"a": "check"}, check_needs_token=True)
    fast_path = whole_fast_path(limiter, access)
    connection = Connection(forbidden_app, fast_path)
    for client in (b"a", b"b", b"c"):
        data = head(GET, b"Host: localhost", b"X-Client-Id: " + client, PROXY_FIELDS[2])
        assert status_of(await connection.send(data)) == 200
    assert [check.client for check in limiter.checks] == ["a", "b", "c"]
    await connection.disconnect()
    assert access.tokens is not None
    access.tokens.replace([])
    app = create_app(GatewaySettings(), limiter, access)
    connection = Connection(app, fast_path)
    assert status_of(await connection.send(data)) == 403
    await connection.disconnect()
