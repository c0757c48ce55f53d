"""A response is the message that protobuf reads, and its JSON has the same bytes as protobuf's."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st
from stoplog_gateway.envoy.messages import OK, OVER_LIMIT, RateLimitResponse
from stoplog_gateway.envoy.response import encode_answers, render_answers

from stoplog.asgi.rate_limit_headers import Headers, rate_limit_headers, reset_s
from stoplog.client.answer import Answer
from stoplog.client.fail_open import FAIL_CLOSED, FAIL_OPEN

numbers = st.integers(0, 3) | st.sampled_from([100, 2**32 - 1, 2**32, 2**53])
answers = st.builds(
    Answer,
    st.booleans(),
    numbers,
    numbers,
    st.integers(0, 2_001),
    st.integers(0, 2_001) | st.none(),
    st.just(7),
    st.just(False),
    st.none(),
) | st.sampled_from([*FAIL_OPEN.values(), *FAIL_CLOSED.values(), Answer(True, None, None, 0, 0, 7)])


def message_of(each: list[Answer], fields: Headers) -> Any:
    """Return a ``RateLimitResponse`` with the answers, and the header fields *fields*."""
    message = RateLimitResponse(overall_code=OK if all(answer.allowed for answer in each) else OVER_LIMIT)
    for answer in each:
        status = message.statuses.add()
        status.code = OK if answer.allowed else OVER_LIMIT
        if answer.limit is not None and answer.remaining is not None:
            status.current_limit.requests_per_unit = min(answer.limit, 2**32 - 1)
            status.limit_remaining = min(answer.remaining, 2**32 - 1)
            status.duration_until_reset.seconds = reset_s(answer)
    for name, value in fields:
        message.response_headers_to_add.add(key=name.decode(), value=value.decode())
    return message


@given(st.lists(answers, min_size=1, max_size=4), st.booleans())
def test_response_is_what_protobuf_writes(each: list[Answer], legacy: bool) -> None:
    status, headers, content = render_answers(each, legacy=legacy)
    assert headers[:2] == [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
    ]
    message = message_of(each, headers[2:])
    assert any(headers[2:] == rate_limit_headers(answer, legacy=legacy) for answer in each)
    assert content == MessageToJson(message, indent=None).encode()
    assert status == (200 if all(answer.allowed for answer in each) else 429)
    assert RateLimitResponse.FromString(encode_answers(each, legacy=legacy)) == message
