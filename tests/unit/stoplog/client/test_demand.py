from __future__ import annotations

import pytest

from stoplog.client.demand import KNOWN_S, MAX_KEYS, MAX_KNOWN, PERIOD_S, Demand, Rate


def test_steady_checks_have_their_rate() -> None:
    demand, now = Demand(), 1_000.0
    for _ in range(200):
        now += 0.1
        rate = demand.add("alice", "", 3, now)
    assert rate is not None
    assert rate.checks == pytest.approx(10, rel=0.1)
    assert rate.units == pytest.approx(30, rel=0.1)


def test_old_checks_are_forgotten() -> None:
    demand = Demand()
    for _ in range(100):
        demand.add("alice", "", 1, 1_000.0)
    assert demand.add("alice", "", 1, 1_000.0 + PERIOD_S) == pytest.approx(Rate(101 / 3, 101 / 3))
    assert demand.add("alice", "", 1, 1_000.0 + 3 * PERIOD_S) == Rate(1, 1)


def test_few_checks_are_no_estimate() -> None:
    demand = Demand()
    assert [demand.add("alice", "", 1, 1_000.0, 3) for _ in range(3)] == [None, None, Rate(3, 3)]


def test_checks_under_two_plans_are_no_estimate_in_this_period_and_the_next() -> None:
    demand = Demand()
    assert demand.add("alice", "", 1, 1_000.0) is not None
    assert demand.add("alice", "gold", 1, 1_000.0) is None
    assert demand.add("alice", "gold", 1, 1_000.0) is None
    assert demand.add("alice", "gold", 1, 1_000.0 + PERIOD_S) is None
    assert demand.add("alice", "gold", 1, 1_000.0 + 2 * PERIOD_S) is not None


def test_memory_is_bounded_by_shorter_periods() -> None:
    demand = Demand()
    for number in range(5 * MAX_KEYS):
        demand.add(f"client-{number}", "", 1, 1_000.0 + number / 1e6)
        demand.add("busy", "", 1, 1_000.0 + number / 1e6)
    assert len(demand._now) + len(demand._before) <= 2 * MAX_KEYS
    rate = demand.add("busy", "", 1, 1_001.0)
    assert rate is not None
    assert rate.checks > 1_000


def test_client_is_known_after_a_check_under_one_plan() -> None:
    demand = Demand()
    assert [demand.is_known("alice", "", 1_000.0 + at) for at in (0, KNOWN_S, 2 * KNOWN_S)] == [
        False,
        True,
        True,
    ]
    assert not demand.is_known("alice", "", 1_000.0 + 4 * KNOWN_S)
    assert [demand.is_known("bob", plan, 1_050.0) for plan in ("", "gold", "gold", "")] == [False] * 4


def test_memory_of_known_clients_is_bounded() -> None:
    demand = Demand()
    for number in range(5 * MAX_KNOWN):
        demand.is_known(f"client-{number}", "", 1_000.0)
    assert len(demand._known) + len(demand._known_before) <= 2 * MAX_KNOWN
    assert demand.is_known(f"client-{5 * MAX_KNOWN - 1}", "", 1_000.0)
