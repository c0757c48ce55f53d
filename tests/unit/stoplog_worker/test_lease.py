from __future__ import annotations

import pytest
from stoplog_worker.lease import Lease


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(clock: Clock) -> Lease:
    """Worth 6 s less a tenth, less 2 s: 3.4 s from the sending of a heartbeat."""
    return Lease(6_000, 2_000, clock)


def test_nothing_holds_before_the_first_answer(lease: Lease) -> None:
    assert not lease.holds()


def test_it_holds_from_the_sending_of_the_heartbeat(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now - 1.0)
    clock.now += 2.39
    assert lease.holds()
    clock.now += 0.02
    assert not lease.holds()


def test_an_answer_that_comes_too_late_is_worth_nothing(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now - 3.5)
    assert not lease.holds()


def test_answers_out_of_order_never_shorten_it(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now)
    lease.extend(clock.now - 2.0)
    clock.now += 3.3
    assert lease.holds()


def test_it_ends_at_once_and_begins_again(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now)
    lease.end()
    assert not lease.holds()
    lease.extend(clock.now)
    assert lease.holds()


@pytest.mark.parametrize("session_ms", [1_000, 6_000, 300_000])
def test_what_is_sent_under_it_arrives_before_the_partitions_move(clock: Clock, session_ms: int) -> None:
    send_ms = session_ms // 3
    lease = Lease(session_ms, send_ms, clock)
    lease.extend(clock.now)
    clock.now += (session_ms - send_ms) / 1_000
    assert not lease.holds()
