from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.answer import LET_THROUGH, Answer
from gateway.headers import MAX_INTEGER, rate_limit_headers
from streams.contract.policy import MAX_LIMIT, MAX_WINDOW_MS

POLICY = re.compile(rb'"default";q=(\d{1,15})')
LIMIT = re.compile(rb'"default";r=(\d{1,15});t=(\d{1,15})')
milliseconds = st.integers(0, MAX_WINDOW_MS)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    allowed = draw(st.booleans())
    limit = draw(st.integers(0, MAX_LIMIT))
    retry = 0 if allowed else draw(st.none() | milliseconds)
    return Answer(allowed, limit, draw(st.integers(0, limit)), draw(milliseconds), retry, -1)


@given(answers())
def test_values_are_structured_fields_that_never_promise_too_early(answer: Answer) -> None:
    headers = dict(rate_limit_headers(answer))
    assert all(name == name.lower() for name in headers)
    policy, limit = POLICY.fullmatch(headers[b"ratelimit-policy"]), LIMIT.fullmatch(headers[b"ratelimit"])
    assert policy is not None
    assert limit is not None
    assert answer.limit is not None
    assert answer.remaining is not None
    assert int(policy[1]) == min(answer.limit, MAX_INTEGER)
    assert int(limit[1]) == min(answer.remaining, MAX_INTEGER)
    waits = not answer.allowed and answer.retry_after_ms is not None
    assert (b"retry-after" in headers) == waits
    ms = answer.retry_after_ms if waits else answer.reset_after_ms
    assert ms is not None
    assert 0 <= int(limit[2]) * 1_000 - ms < 1_000
    if waits:
        assert headers[b"retry-after"] == limit[2]


def test_nothing_is_said_of_what_is_not_counted() -> None:
    assert rate_limit_headers(Answer(True, None, None, 0, 0, 7)) == []
    for answer in LET_THROUGH.values():
        assert rate_limit_headers(answer) == []


def test_a_cost_that_can_never_pass_has_no_retry_after() -> None:
    names = [name for name, _ in rate_limit_headers(Answer(False, 10, 10, 0, None, 7))]
    assert names == [b"ratelimit-policy", b"ratelimit"]
