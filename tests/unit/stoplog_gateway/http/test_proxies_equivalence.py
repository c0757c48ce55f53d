"""For arbitrary requests of proxies, the fast path sends the same bytes as the routes."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st
from stoplog_gateway.envoy.mapping import DescriptorMapping, Rule

from tests.support.access import access_control
from tests.support.envoy_bodies import envoy_bodies
from tests.support.fast_path_equivalence import compare_with_routes
from tests.support.protocol_connection import Request, plain_request

ALICE = (b"x-client-id", b"alice")
TOKEN = (b"stoplog-token", b"good")

METHODS = ["GET"] * 5 + ["HEAD", "HEAD", "POST", "PROPFIND", "OPTIONS", "DELETE", "CONNECT"]
PARTS = [
    *("cost=2", "cost=0", "cost=1001", "cost=", "cost=x", "cost=1.5", "cost=%31"),
    *("plan=gold", "plan=", "plan=a%2Fb", "plan=%ff", "plan=%C3%A9", "plan=\xc3\xa9"),
    *("resource=login", "resource=a+b", "resource=%0a", "resource=a?b", "resource"),
    *("unavailable=deny", "unavailable=allow", "unavailable=no", "unavailable=", "UNAVAILABLE=deny"),
    *("other=1", "", "#", "plan=a#b", "a b", "cost=2;plan=x", '"', "%", "\xe9"),
]
queries = st.lists(st.sampled_from(PARTS), max_size=3).map("&".join)
below = st.text(st.sampled_from('/a%2fé?#.\\" ~:@'), max_size=6)
OTHER_TARGETS = [
    *("/v1/authorized", "/v1/%61uthorize", "/v1/Authorize", "//v1/authorize", "/v1/authorize;a"),
    *("http://localhost/v1/authorize", "http://localhost/v1/authorize/a?cost=2", "*"),
]
targets = (
    st.sampled_from(["/v1/authorize"] * 3)
    | queries.map("/v1/authorize?{}".format)
    | below.map("/v1/authorize/{}".format)
    | st.builds("/v1/authorize/{}?{}".format, below, queries)
    | st.sampled_from(OTHER_TARGETS)
)
CLIENTS = [
    *(b"alice", b"\xc3\xa9", b"192.0.2.1, 198.51.100.2", b" a ", b"a" * 256),
    *(b"", b"\xff", b"a" * 257, b"a\tb", b"\xe2\x80\xa8"),
]
FIELDS = [
    *((b"X-CLIENT-ID", b"bob"), (b"client-id", b"bob")),
    *((b"stoplog-unavailable", value) for value in (b"deny", b"allow", b"no", b"", b"\xff")),
    *((b"stoplog-token", value) for value in (b"good", b" good ", b"bad", b"", b"reader")),
    *((b"authorization", b"Bearer x"), (b"origin", b"http://elsewhere"), (b"x-forwarded-for", b"10.0.0.1")),
    *((b"connection", value) for value in (b"close", b"keep-alive", b"upgrade")),
    *((b"expect", b"100-continue"), (b"transfer-encoding", b"chunked"), (b"te", b"trailers")),
    *((b"content-length", value) for value in (b"0", b"00", b"3", b"x")),
    *((b"content-type", b"text/plain"), (b"x y", b"1"), (b"", b"1"), (b"cookie", b"a=b; c=d")),
]


def envoy_request(content: bytes, *fields: tuple[bytes, bytes], target: str = "/json") -> Request:
    """Return a request to Envoy's rate limit service."""
    request = plain_request(target, content)
    return request._replace(headers=(*request.headers, *fields))


ENVOY = b'{"domain":"edge","descriptors":[{"entries":[{"key":"user","value":"a"}],"hitsAddend":%d}]}'
envoy_targets = st.sampled_from(["/json"] * 5 + ["/jso", "/json/", "/%6Ason", "http://localhost/json"])
envoy_requests = st.builds(
    lambda content, fields, method, target, query, cut, version: envoy_request(
        content, *fields, target=target + query
    )._replace(method=method, pieces=(content[:cut], content[cut:]), version=version),
    envoy_bodies,
    st.just([TOKEN]) | st.lists(st.sampled_from([TOKEN, *FIELDS]), max_size=3),
    st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT"]),
    envoy_targets,
    st.just("") | queries.map("?{}".format),
    st.sampled_from([0, 0, 7]),
    st.sampled_from(["1.1"] * 8 + ["1.0"]),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    clients = draw(st.just([b"alice"]) | st.lists(st.sampled_from(CLIENTS), max_size=2))
    fields = [(b"x-client-id", client) for client in clients]
    fields += draw(st.just([]) | st.lists(st.sampled_from(FIELDS), max_size=3))
    if draw(st.booleans()):
        return draw(envoy_requests)
    return Request(
        draw(st.sampled_from(METHODS)),
        draw(targets),
        tuple(draw(st.permutations(fields))),
        draw(st.sampled_from([(b"",)] * 5 + [(b"abc",), (b"0\r\n\r\n",)])),
        version=draw(st.sampled_from(["1.1"] * 8 + ["1.0"])),
    )


parseable = st.builds(
    lambda method, target, fields: Request(method, target, fields),
    st.sampled_from(["GET", "HEAD", "POST"]),
    st.sampled_from(
        [
            "/v1/authorize",
            "/v1/authorize?cost=x",
            "/v1/authorize/orders?cost=x",
            "/v1/authorize/%ff",
            "/healthz",
        ]
    ),
    st.sampled_from(
        [(ALICE,), (TOKEN, ALICE), (ALICE, TOKEN, (b"connection", b"close")), (), (ALICE, ALICE, TOKEN)]
    ),
) | st.builds(
    envoy_request,
    envoy_bodies,
    st.sampled_from([TOKEN, (b"stoplog-unavailable", b"deny"), (b"connection", b"close")]),
)
"""Requests without a syntax error. After one, uvicorn can lose the response to the request before it."""

CASES = [
    Request(method, target, (ALICE, TOKEN))
    for method in ("GET", "HEAD", "POST")
    for target in ("/v1/authorize", "/v1/authorize?cost=2&plan=a&resource=b", "/v1/authorize/a/b?cost=x")
] + [
    envoy_request(ENVOY % 2, TOKEN),
    envoy_request(ENVOY % 1, TOKEN, target="/json?unavailable=deny"),
    envoy_request(ENVOY % 2, TOKEN, (b"stoplog-unavailable", b"no")),
    envoy_request(ENVOY % 2 + b" " * 4_096, TOKEN),
    envoy_request(ENVOY % 2 + b" " * 40_000, TOKEN),
    envoy_request(ENVOY % 2)._replace(headers=((b"content-length", b"%d" % len(ENVOY % 2)), TOKEN)),
    envoy_request(b"{}", TOKEN),
    envoy_request(b"{", TOKEN),
    envoy_request(ENVOY % 2),
    Request("GET", "/v1/authorize?cost=1001", (ALICE, TOKEN)),
    Request("GET", "/v1/authorize?plan=a#b", (ALICE, TOKEN)),
    Request("GET", "/v1/authorize", (TOKEN,)),
    Request("GET", "/v1/authorize?cost=x", (ALICE, TOKEN)),
    Request("POST", "/v1/authorize", (ALICE, TOKEN, (b"content-length", b"3")), (b"abc",)),
]


ADDRESSES = [
    *(b"192.0.2.1", b"192.0.2.1:80", b"198.51.100.9", b"203.0.113.5", b"10.0.0.7", b"::ffff:192.0.2.1"),
    *(
        b"2001:db8::1",
        b"[2001:DB8:0::2]:443",
        b"fe80::1%eth0",
        b"unknown",
        b"",
        b"for=192.0.2.1",
        b'"',
        b"\xff",
    ),
    *(b'for="[2001:db8::1]:9";proto=http', b'for="192.0.2.1', b"For=10.0.0.7", b"x" * 300, b"a, b"),
]
OF_ADDRESS = ENVOY.replace(b"user", b"remote_address").replace(b'"a"', b'"%b"') % (b"%b", 2)
IDENTITIES = [
    {"identify": "header:X-Api-Key,address", "trusted_proxies": "127.0.0.1,10.0.0.0/8"},
    {"identify": "header:X-Api-Key", "trusted_proxies": "2", "exempt_addresses": "203.0.113.0/24"},
    {
        "blocked_addresses": "198.51.100.0/24",
        "exempt_addresses": "203.0.113.5",
        "trusted_proxies": "127.0.0.1",
    },
]


@st.composite
def forwarded_requests(draw: st.DrawFn) -> Request:
    """Return a request of a proxy with fields, or descriptors, that name an address or a client."""
    if draw(st.booleans()):
        keys = st.sampled_from(["remote_address", "masked_remote_address", "x-api-key", "path"])
        address = st.sampled_from(ADDRESSES).map(lambda value: value.decode("latin-1"))
        entries = draw(st.lists(st.lists(st.tuples(keys, address), max_size=3), max_size=2))
        descriptors = [{"entries": [{"key": k, "value": v} for k, v in each]} for each in entries]
        body = {"domain": "edge", "hitsAddend": draw(st.integers(1, 2)), "descriptors": descriptors}
        return envoy_request(json.dumps(body).encode())
    names = st.sampled_from([b"X-Forwarded-For", b"Forwarded", b"X-Real-IP", b"X-Api-Key", b"X-Client-Id"])
    values = st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=3).map(b", ".join)
    fields = draw(st.lists(st.tuples(names, values), max_size=4))
    target = draw(
        st.sampled_from(
            [
                "/v1/authorize",
                "/v1/authorize/a?b",
                "/v1/authorize?cost=2",
                "/v1/authorize?cost=1001",
                "/v1/authorize?cost=x",
            ]
        )
    )
    return Request(draw(st.sampled_from(["GET", "HEAD", "POST"])), target, tuple(fields))


@pytest.mark.parametrize("identity", IDENTITIES, ids=["chain", "hops", "lists"])
def test_identified_clients_get_equal_bytes_from_fast_path_and_routes(
    monkeypatch: pytest.MonkeyPatch, identity: dict[str, str]
) -> None:
    seen, _ = compare_with_routes(
        monkeypatch,
        access_control(),
        forwarded_requests(),
        [
            Request("GET", "/v1/authorize", ((b"x-forwarded-for", b"198.51.100.9"), ALICE)),
            Request("GET", "/v1/authorize?cost=2", ((b"x-forwarded-for", b"198.51.100.9"), ALICE)),
            Request("GET", "/v1/authorize", ((b"x-forwarded-for", b"203.0.113.5"), (b"x-api-key", b"a"))),
            *(envoy_request(body) for body in (ENVOY % 1, b"{}")),
            *(envoy_request(ENVOY % 2 if at is None else OF_ADDRESS % at) for at in (None, b"198.51.100.9")),
            Request(
                "GET", "/v1/authorize?cost=x", ((b"x-forwarded-for", b"203.0.113.5"), (b"x-api-key", b"a"))
            ),
        ],
        forwarded_requests(),
        legacy=False,
        identity=identity,
        examples=60,
    )
    refused = set() if identity is IDENTITIES[0] else {403}
    assert {status for path, status in seen if path.startswith("/v1")} >= {200, 422} | refused
    blocked = {403} if "blocked_addresses" in identity else set()
    assert {status for path, status in seen if path == "/json"} >= {200, 400, 429} | blocked


@pytest.mark.parametrize("needs_token", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_proxies_get_equal_bytes_from_fast_path_and_routes(
    monkeypatch: pytest.MonkeyPatch, legacy: bool, needs_token: bool
) -> None:
    access = access_control({"good": "check", "reader": "read"}, check_needs_token=needs_token)
    mapping = DescriptorMapping({"login": [Rule("{user}", on_unavailable="deny")]})
    seen, fields = compare_with_routes(
        monkeypatch, access, requests(), CASES, parseable, mapping=mapping, legacy=legacy
    )
    assert (b"x-ratelimit-reset" in fields) == legacy
    assert {status for path, status in seen if path.startswith("/v1/authorize")} >= {200, 403, 422, 429}
    assert {status for path, status in seen if path.startswith("/json")} >= {200, 400, 413, 415, 422, 429}
