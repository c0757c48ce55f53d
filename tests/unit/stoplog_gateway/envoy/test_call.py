"""The parser of plain JSON finds the same call as protobuf, and leaves every other form to it."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from stoplog_gateway.envoy.call import RateLimitCall, call_of, parse_plain
from stoplog_gateway.http.problems import ProblemError
from stoplog_gateway.http.routes.envoy_json import parse_message

from stoplog.errors import InvalidInput
from tests.support.envoy_bodies import envoy_bodies

PLAIN = b'{"domain": "edge", "descriptors": [{"entries": [{"key": "user", "value": "a"}]}]}'


def outcome(body: bytes) -> RateLimitCall | str:
    """Return what protobuf finds in *body*, or the text of the error."""
    try:
        return call_of(parse_message(body))
    except (ProblemError, InvalidInput) as exc:
        return str(exc)


@given(envoy_bodies)
@example(PLAIN.replace(b'"value": "a"', b'"value": "b", "value": "a"'))
@example(PLAIN.replace(b'"a"', b'"\\u0041\\""'))
def test_plain_form_is_the_same_call_as_with_protobuf(body: bytes) -> None:
    try:
        call: RateLimitCall | str | None = parse_plain(body)
    except InvalidInput as exc:
        call = str(exc)
    assert call is None or call == outcome(body)


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        PLAIN.replace(b" ", b""),
        PLAIN.replace(b'"a"', b'"z\xc3\xb6\\u00eb\\\\"'),
        PLAIN.replace(b"}]}]}", b'}], "hitsAddend": 2, "isNegativeHits": true}], "hitsAddend": 3}'),
        json.dumps(
            {"domain": "edge", "descriptors": [{"entries": [{"key": "a", "value": "b"}] * 9}] * 9}
        ).encode(),
    ],
)
def test_usual_request_needs_no_protobuf(body: bytes) -> None:
    assert parse_plain(body) == outcome(body)


@pytest.mark.parametrize(
    "body",
    [
        PLAIN.replace(b'"value": "a"', b'"value": "b", "value": "a"'),
        PLAIN.replace(b'{"domain": "edge"', b'{"domain": "edge", "domain": "edge"'),
        PLAIN.replace(b'"a"', b'"\\""'),
        PLAIN.replace(b"}]}]}", b'}]}], "hits_addend": 3}'),
        PLAIN.replace(b"}]}]}", b'}]}], "hitsAddend": "3"}'),
        PLAIN.replace(b"}]}]}", b'}], "limit": {}}]}'),
        PLAIN.replace(b'"a"', b"null"),
        PLAIN + b"x",
        b"[" * 100_000,
    ],
)
def test_other_forms_are_left_to_protobuf(body: bytes) -> None:
    assert parse_plain(body) is None
