"""The fast path sends the same bytes as the routes, for arbitrary requests and streams of requests."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st

from tests.support.access import access_control
from tests.support.check_bodies import check_bodies
from tests.support.fast_path_equivalence import compare_with_routes
from tests.support.protocol_connection import JSON, Request, plain_request

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
    seen, fields = compare_with_routes(
        monkeypatch, access_control(), requests(), CASES, parseable, legacy=legacy
    )
    assert (b"x-ratelimit-reset" in fields) == legacy
    assert seen >= {
        (path, status) for path in ("/v1/check", "/v1/checks") for status in (200, 400, 405, 413, 415, 422)
    }
