from __future__ import annotations

from typing import Any, cast

import http_sf
from hypothesis import given
from hypothesis import strategies as st

from stoplog.asgi.rate_limit_headers import MAX_INTEGER, rate_limit_headers
from stoplog.client.answer import Answer
from stoplog.client.fail_open import FAIL_OPEN
from stoplog.policy import MAX_LIMIT, MAX_WINDOW_MS

milliseconds = st.integers(0, MAX_WINDOW_MS)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    allowed = draw(st.booleans())
    limit = draw(st.integers(0, MAX_LIMIT))
    retry = 0 if allowed else draw(st.none() | milliseconds)
    return Answer(allowed, limit, draw(st.integers(0, limit)), draw(milliseconds), retry, -1)


def item(value: bytes) -> tuple[str, dict[str, int]]:
    """Return the only policy in a field, which is a List of Strings (policy names) with parameters."""
    [(name, parameters)] = cast(Any, http_sf.parse(value, tltype="list"))
    assert type(name) is str  # not a Token
    return name, parameters


@given(answers())
def test_headers_are_structured_fields_whose_seconds_are_enough(answer: Answer) -> None:
    headers = dict(rate_limit_headers(answer))
    assert all(name == name.lower() for name in headers)
    policy, quota = item(headers[b"ratelimit-policy"])
    limit, service = item(headers[b"ratelimit"])
    assert policy == limit == "default"
    assert answer.limit is not None
    assert answer.remaining is not None
    assert quota == {"q": min(answer.limit, MAX_INTEGER)}
    waits = not answer.allowed and answer.retry_after_ms is not None
    ms = answer.retry_after_ms if waits else answer.reset_after_ms
    assert ms is not None
    assert service == {"r": min(answer.remaining, MAX_INTEGER), "t": -(-ms // 1_000)}
    assert (b"retry-after" in headers) == waits
    if waits:
        assert int(headers[b"retry-after"]) == service["t"]


@given(answers())
def test_legacy_fields_equal_the_standard_ones(answer: Answer) -> None:
    headers = rate_limit_headers(answer)
    added = rate_limit_headers(answer, legacy=True)[len(headers) :]
    (_, quota), (_, service) = item(headers[0][1]), item(headers[1][1])
    assert {name: int(value) for name, value in added} == {
        b"x-ratelimit-limit": quota["q"],
        b"x-ratelimit-remaining": service["r"],
        b"x-ratelimit-reset": service["t"],
    }


def test_unlimited_and_degraded_answers_have_no_headers() -> None:
    assert rate_limit_headers(Answer(True, None, None, 0, 0, 7)) == []
    for answer in FAIL_OPEN.values():
        assert rate_limit_headers(answer, legacy=True) == []


def test_denial_without_a_window_that_waiting_cannot_help_has_no_headers() -> None:
    assert rate_limit_headers(Answer(False, None, None, 0, None, 7)) == []


def test_cost_above_the_limit_has_no_retry_after() -> None:
    names = [name for name, _ in rate_limit_headers(Answer(False, 10, 10, 0, None, 7))]
    assert names == [b"ratelimit-policy", b"ratelimit"]
