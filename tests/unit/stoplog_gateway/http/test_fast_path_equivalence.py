"""The fast path sends the same bytes as the routes, for arbitrary requests and streams of requests."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.settings import GatewaySettings

import stoplog.client.engine
from stoplog.client.limiter import Limiter
from tests.support.access import access_control
from tests.support.check_bodies import check_bodies
from tests.support.fake_kafka import Kafka
from tests.support.protocol_connection import (
    JSON,
    Request,
    plain_request,
    respond_once,
    respond_to_stream,
    status_of,
)

ids = st.text(max_size=5) | st.sampled_from(["alice", "a" * 256, "é" * 129, "a\x7f", "\u2028", "zoë 1"])
costs = st.integers(-2, 12) | st.sampled_from([1_000_000, 1_000_001, 10**30, 1.5, 3.0, 1e300, True, None])
checks = st.fixed_dictionaries(
    {"client_id": ids},
    optional={
        "cost": costs,
        "plan": ids | st.none(),
        "resource": ids | st.none(),
        "on_unavailable": st.sampled_from(["allow", "deny", "deny", "Deny", None]),
    },
)
contents = (
    (checks | st.lists(checks, max_size=4)).map(lambda value: json.dumps(value).encode())
    | checks.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    | check_bodies
)
media = st.sampled_from(
    [b"application/json", b"Application/JSON ; charset=utf-8", b"text/plain", b"", b"\xff"]
)
paths = ["/v1/check", "/v1/checks"] * 4 + ["/v1/check/", "/v1/Check", "/v1/checks/a", "", "/v1/check?a=b"]
OPTIONAL_HEADERS = [
    (b"connection", b"close"),
    (b"connection", b"keep-alive"),
    (b"connection", b"upgrade"),
    (b"expect", b"100-continue"),
    (b"transfer-encoding", b"chunked"),
    (b"Content-Encoding", b"gzip"),
]
own_fields = st.tuples(
    st.sampled_from([b"traceparent", b"X-Request-Id", b"x y", b"", b"X-Real-IP"]),
    st.binary(max_size=3) | st.integers().map(lambda number: b"%d" % number),
)
"""Fields that differ between requests. The fast path recognizes heads without most of them."""


@st.composite
def requests(draw: st.DrawFn) -> Request:
    content = draw(contents)
    at = draw(st.integers(0, len(content)))
    pieces = draw(st.sampled_from([(content,), (content[:at], content[at:])]))
    lengths = [b"%d" % len(content)] * 5 + [b"1048577", b"9" * 19, b"4194305", b"-1", b"x", b""]
    types = draw(st.just([b"application/json"]) | st.lists(media, max_size=2))
    announced = draw(st.just([b"%d" % len(content)]) | st.lists(st.sampled_from(lengths), max_size=2))
    headers = [(b"content-type", value) for value in types]
    headers += [(b"content-length", value) for value in announced]
    headers += [(b"authorization", b"Bearer x"), (b"origin", b"http://elsewhere")]
    headers += draw(st.just([]) | st.sampled_from(OPTIONAL_HEADERS).map(lambda field: [field]))
    headers += draw(st.just([]) | own_fields.map(lambda field: [field]))
    return Request(
        draw(st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT", "OPTIONS"])),
        draw(st.sampled_from(paths)),
        tuple(draw(st.permutations(headers))),
        pieces,
        draw(st.sampled_from([True] * 8 + [False])),
        draw(st.sampled_from(["1.1"] * 8 + ["1.0"])),
    )


def cases(path: str, good: bytes) -> list[Request]:
    """Return a request for every status, and requests with repeated header fields."""
    plain = plain_request(path, good)
    length = plain.headers[1]
    return [
        plain,
        plain_request(path, good[:-1]),
        plain_request(path, b"7"),
        plain._replace(method="PUT"),
        plain._replace(headers=((b"content-type", b"text/plain"), length)),
        plain._replace(headers=(JSON, (b"content-length", b"4194305"))),
        plain._replace(headers=((b"content-type", b""), JSON, length)),
        plain._replace(headers=(JSON, (b"content-length", b"4194305"), length)),
        plain._replace(headers=(*plain.headers, (b"connection", b"keep-alive")), version="1.0"),
        plain._replace(headers=(*plain.headers, (b"connection", b"upgrade"), (b"upgrade", b"h2c"))),
    ]


parseable = st.sampled_from(
    [
        Request("GET", "/healthz"),
        plain_request("/v1/check", b"{}")._replace(method="PUT"),
        plain_request("/v1/check", b"{}")._replace(headers=((b"content-length", b"2"),)),
        plain_request("/v1/check?a=b", b'{"client_id": "a"}'),
    ]
) | st.builds(plain_request, st.sampled_from(["/v1/check", "/v1/checks"]), contents).flatmap(
    lambda request: st.sampled_from(
        [request] * 5
        + [
            request._replace(headers=(*request.headers, (b"connection", b"close"))),
            request._replace(headers=(*request.headers, (b"connection", b"keep-alive")), version="1.0"),
        ]
    )
)
"""Requests without a syntax error. After one, uvicorn can lose the response to the request before it."""

CASES = cases("/v1/check", b'{"client_id": "alice"}') + cases("/v1/checks", b'[{"client_id": "alice"}]')


@pytest.mark.parametrize("legacy", [False, True])
def test_fast_path_and_the_routes_send_equal_bytes(monkeypatch: pytest.MonkeyPatch, legacy: bool) -> None:
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Kafka)
    gateway_settings = GatewaySettings(legacy_headers=legacy)
    limiter = Limiter(gateway_settings)
    routes = create_app(gateway_settings, limiter, access_control())
    fast_path = FastPath(limiter, legacy_headers=legacy)
    seen = set()
    fields: set[bytes] = set()

    with asyncio.Runner() as runner:
        runner.run(limiter.__aenter__())
        log: Kafka = limiter._engine.transport  # type: ignore[assignment]

        @given(requests())
        @settings(max_examples=250)
        def compare(request: Request) -> None:
            expected = runner.run(respond_once(routes, request))
            expected_checks, log.checks = log.checks, []
            assert runner.run(respond_once(routes, request, fast_path)) == expected
            assert log.checks == expected_checks
            log.checks = []
            seen.add((request.path, status_of(expected)))
            fields.update(line.partition(b":")[0] for line in expected.split(b"\r\n"))

        for case in CASES:
            compare = example(case)(compare)
        compare()

        @given(st.lists(parseable, min_size=2, max_size=4), st.data())
        @settings(max_examples=150)
        def compare_streams(requests: list[Request], data: st.DataObject) -> None:
            stream = b"".join(b"".join(request.data()) for request in requests)
            cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=4).map(sorted))
            pieces = [stream[at:to] for at, to in pairwise([0, *cuts, len(stream)]) if at < to]
            outcomes = []
            for path in (None, fast_path):
                outcomes.append((runner.run(respond_to_stream(routes, path, pieces)), log.checks))
                log.checks = []
            assert outcomes[0] == outcomes[1]

        compare_streams()
        runner.run(limiter.__aexit__(None, None, None))
    assert (b"x-ratelimit-reset" in fields) == legacy
    assert seen >= {
        (path, status) for path in ("/v1/check", "/v1/checks") for status in (200, 400, 405, 413, 415, 422)
    }
