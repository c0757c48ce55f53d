"""Heads are recognized without the fields that nothing depends on, if the parser would accept them."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.known_heads import MAX_HEADS, MAX_SIZE, KnownHeads, matters

from tests.support.fake_limiter import FakeLimiter
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
