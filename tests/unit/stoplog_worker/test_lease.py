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
    """A lease of 3.4 s from the sending of a heartbeat: 6 s less a tenth, less 2 s."""
    return Lease(6_000, 2_000, clock)


def test_lease_does_not_hold_before_the_first_confirmed_heartbeat(lease: Lease) -> None:
    assert not lease.holds()


def test_lease_lasts_from_the_sending_of_the_heartbeat(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now - 1.0)
    clock.now += 2.39
    assert lease.holds()
    clock.now += 0.02
    assert not lease.holds()


def test_lease_tells_for_how_long_it_has_been_over(lease: Lease, clock: Clock) -> None:
    assert lease.over_for_s() == float("inf")
    lease.extend(clock.now)
    clock.now += 3.3
    assert lease.over_for_s() == 0
    clock.now += 2.1
    assert lease.over_for_s() == pytest.approx(2.0)
    lease.end()
    assert lease.over_for_s() == float("inf")


def test_heartbeat_confirmed_too_late_extends_nothing(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now - 3.5)
    assert not lease.holds()


def test_older_heartbeat_never_shortens_the_lease(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now)
    lease.extend(clock.now - 2.0)
    clock.now += 3.3
    assert lease.holds()


def test_ended_lease_begins_again_with_the_next_heartbeat(lease: Lease, clock: Clock) -> None:
    lease.extend(clock.now)
    lease.end()
    assert not lease.holds()
    lease.extend(clock.now)
    assert lease.holds()


@pytest.mark.parametrize("session_ms", [1_000, 6_000, 300_000])
def test_record_sent_under_the_lease_arrives_before_partitions_move(clock: Clock, session_ms: int) -> None:
    send_ms = session_ms // 3
    lease = Lease(session_ms, send_ms, clock)
    lease.extend(clock.now)
    clock.now += (session_ms - send_ms) / 1_000
    assert not lease.holds()
