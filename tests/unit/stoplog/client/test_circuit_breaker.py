from __future__ import annotations

from collections.abc import Callable

import pytest

from stoplog.client.circuit_breaker import BreakerState, CircuitBreaker

CLOSED, NO_REPLIES, NO_BROKER = BreakerState.CLOSED, BreakerState.NO_REPLIES, BreakerState.NO_BROKER
MAX_MISSES = 2

Event = Callable[[CircuitBreaker], bool]


def breaker_in(state: BreakerState) -> CircuitBreaker:
    breaker = CircuitBreaker(MAX_MISSES)
    if state is NO_REPLIES:
        for _ in range(MAX_MISSES):
            breaker.on_miss()
    elif state is NO_BROKER:
        breaker.on_broker_down()
    assert breaker.state is state
    return breaker


def last_miss(breaker: CircuitBreaker) -> bool:
    """The miss that makes the number of misses in a row reach the limit."""
    breaker.misses = MAX_MISSES - 1
    return breaker.on_miss()


@pytest.mark.parametrize(
    ("before", "event", "after", "changes"),
    [
        (CLOSED, CircuitBreaker.on_miss, CLOSED, False),
        (CLOSED, last_miss, NO_REPLIES, True),
        (CLOSED, CircuitBreaker.on_broker_down, NO_BROKER, True),
        (CLOSED, CircuitBreaker.on_reply, CLOSED, False),
        (NO_REPLIES, CircuitBreaker.on_miss, NO_REPLIES, False),
        (NO_REPLIES, last_miss, NO_REPLIES, False),
        (NO_REPLIES, CircuitBreaker.on_broker_down, NO_REPLIES, False),
        (NO_REPLIES, CircuitBreaker.on_reply, CLOSED, True),
        (NO_BROKER, CircuitBreaker.on_miss, NO_BROKER, False),
        (NO_BROKER, last_miss, NO_BROKER, False),
        (NO_BROKER, CircuitBreaker.on_broker_down, NO_BROKER, False),
        (NO_BROKER, CircuitBreaker.on_reply, CLOSED, True),
    ],
)
def test_breaker_on_every_edge_enters_its_state_and_reports_a_change(
    before: BreakerState, event: Event, after: BreakerState, changes: bool
) -> None:
    breaker = breaker_in(before)
    assert event(breaker) is changes
    assert breaker.state is after


def test_breaker_opens_after_misses_in_a_row_and_reports_it_once() -> None:
    breaker = CircuitBreaker(3)
    assert [breaker.on_miss() for _ in range(5)] == [False, False, True, False, False]
    assert breaker.state == "breaker_open"


def test_timely_reply_between_misses_restarts_the_count() -> None:
    breaker = CircuitBreaker(2)
    assert not breaker.on_miss()
    assert not breaker.on_reply()
    assert not breaker.on_miss()
    assert breaker.state is CLOSED


def test_timely_reply_closes_breaker_and_reports_it_once() -> None:
    breaker = CircuitBreaker(1)
    breaker.on_miss()
    assert [breaker.on_reply(), breaker.on_reply()] == [True, False]
    assert breaker.state is CLOSED
    assert breaker.on_miss()


def test_breaker_opened_without_broker_keeps_its_reason() -> None:
    breaker = CircuitBreaker(1)
    assert breaker.on_broker_down()
    assert not breaker.on_broker_down()
    assert not breaker.on_miss()
    assert breaker.state == "broker"


def test_has_replied_is_true_after_first_reply_whatever_follows() -> None:
    breaker = CircuitBreaker(1)
    assert not breaker.has_replied
    breaker.on_reply()
    breaker.on_miss()
    assert breaker.has_replied
