from __future__ import annotations

import pytest

from stoplog.client.answer import Answer
from stoplog.client.deny_cache import MAX_COSTS, MAX_HOLD_S, MAX_ROWS, WANTED_S, DenyCache
from stoplog.client.metrics import Metrics
from stoplog.client.update_proofs import PROOF_S
from stoplog.wire.checks import Check, Denied
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import Decision, HeldDecision, Reply

ALICE = Check("alice")
ALL = range(2)


class Bench:
    """A cache of two partitions, with a clock that the test sets."""

    def __init__(self, capacity: int = 100) -> None:
        self.now = 500.0
        self.metrics = Metrics()
        self.cache = DenyCache(self.metrics, len(ALL), capacity, lambda: self.now)
        self.cache.on_proof(ALL, self.now)

    def deny(
        self,
        *checks: Check,
        retry_ms: int | None = 6_100,
        applied: int = -1,
        partition: int = 0,
        limit: int = 10,
        latency_s: float = 0.0,
    ) -> None:
        sent_at = self.now
        if latency_s:
            self.after(latency_s)
        decision = Decision(False, limit, 0, 9_000, retry_ms, 3)
        reply = Reply(7, 1, 0, applied, [decision] * len(checks))
        self.cache.learn(partition, checks, reply, sent_at)

    def allow(self, *checks: Check) -> None:
        reply = Reply(7, 2, 1, -1, [Decision(True, 10, 3, 9_000, 0, 3)] * len(checks))
        self.cache.learn(0, checks, reply, self.now)

    def after(self, seconds: float) -> None:
        """Let time pass, and prove that every update has been read."""
        self.now += seconds
        self.cache.on_proof(ALL, self.now)

    def denies(self, check: Check) -> bool:
        return self.cache.get(check) is not None


def test_denial_counts_down_until_it_ends() -> None:
    bench = Bench()
    bench.deny(ALICE)
    assert bench.cache.get(ALICE) == Answer(False, 10, 0, 9_000, 6_100, 3)
    bench.after(1.5)
    assert bench.cache.get(ALICE) == Answer(False, 10, 0, 7_500, 4_600, 3)
    bench.after(4.49)
    assert bench.cache.get(ALICE) == Answer(False, 10, 0, 3_010, 110, 3)
    bench.after(0.02)  # 6.1 s less one part in 61
    assert bench.cache.get(ALICE) is None


def test_times_of_denial_count_from_arrival_and_its_end_from_sending() -> None:
    bench = Bench()
    bench.deny(ALICE, latency_s=2.0)
    assert bench.cache.get(ALICE) == Answer(False, 10, 0, 9_000, 6_100, 3)
    bench.after(3.75)
    assert bench.cache.get(ALICE) == Answer(False, 10, 0, 5_250, 2_350, 3)
    bench.after(0.3)
    assert bench.cache.get(ALICE) is None


def test_denial_that_only_an_update_ends_holds_for_the_maximum_time() -> None:
    bench = Bench()
    bench.deny(ALICE, Check("alice", 2), retry_ms=None, limit=0)
    bench.deny(Check("bob"), retry_ms=86_400_000)
    bench.after(MAX_HOLD_S - 0.1)
    assert bench.cache.get(ALICE) == Answer(False, 0, 0, 0, None, 3)
    assert bench.denies(Check("alice", 2))
    assert bench.denies(Check("bob"))
    bench.after(0.1)
    assert not bench.denies(ALICE)
    assert not bench.denies(Check("bob"))


def test_denial_of_higher_cost_holds_while_its_numbers_are_new() -> None:
    """Meanwhile a check of a lower cost may pass at another gateway."""
    bench = Bench()
    bench.deny(Check("alice", 2), Check("bob", 11), retry_ms=None)
    bench.after(PROOF_S - 0.01)
    assert bench.denies(Check("alice", 2))
    assert bench.denies(Check("bob", 11))
    bench.after(0.01)
    assert not bench.denies(Check("alice", 2))
    assert not bench.denies(Check("bob", 11))
    bench.after(MAX_HOLD_S - 1)
    assert bench.cache.get(Check("bob", 11), failing_open=True) is not None
    bench.after(1)
    assert bench.cache.get(Check("bob", 11), failing_open=True) is None


def test_denial_serves_its_own_cost_only() -> None:
    """A lower cost may pass, and a higher cost may have to wait longer."""
    bench = Bench()
    bench.deny(Check("alice", 2))
    bench.deny(Check("alice", 3), retry_ms=9_150)
    assert [cost for cost in range(6) if bench.denies(Check("alice", cost))] == [2, 3]
    larger = bench.cache.get(Check("alice", 3))
    assert larger is not None
    assert larger.retry_after_ms == 9_150
    assert bench.metrics.deny_entries == 2


def test_allowed_check_removes_denials_of_same_client_and_resource() -> None:
    bench = Bench()
    login = Check("alice", 2, resource="login")
    bench.deny(Check("alice", 5), Check("alice", 1, "gold"), login, Check("bob", 5))
    bench.allow(Check("alice", 0), Check("carol", 2))
    assert bench.metrics.deny_entries == 4
    bench.allow(Check("alice", 2))
    assert not bench.denies(Check("alice", 5))
    assert not bench.denies(Check("alice", 1, "gold"))
    assert bench.denies(login)
    assert bench.denies(Check("bob", 5))
    assert bench.metrics.deny_entries == 2


def test_denials_of_many_costs_remove_the_oldest_of_their_client() -> None:
    bench = Bench()
    bench.deny(Check("bob"), *(Check("alice", cost) for cost in range(1, MAX_COSTS + 1)))
    bench.deny(Check("alice", 1), Check("alice", MAX_COSTS + 1))
    assert [cost for cost in range(1, 5) if bench.denies(Check("alice", cost))] == [1, 3, 4]
    assert bench.denies(Check("bob"))
    assert bench.metrics.deny_entries == MAX_COSTS + 1


@pytest.mark.parametrize(
    "other", [Check("bob"), Check("alice", plan="gold"), Check("alice", resource="login")]
)
def test_denial_applies_to_same_client_plan_and_resource_only(other: Check) -> None:
    bench = Bench()
    bench.deny(ALICE)
    assert not bench.denies(other)
    bench.deny(other)
    assert bench.denies(other)
    assert bench.denies(ALICE)


def test_peeks_and_answers_other_than_denials_are_not_stored() -> None:
    bench = Bench()
    bench.deny(Check("alice", 0))
    allowed = Decision(True, 10, 1, 9_000, 0, 3)
    bench.cache.learn(0, [ALICE, ALICE, ALICE], Reply(7, 1, 0, -1, [allowed, None, "unfit"]), bench.now)
    bench.cache.learn(0, [ALICE], Reply(7, 1, 0, -1, [], "broken"), bench.now)
    bench.deny(ALICE, retry_ms=0)
    assert not bench.metrics.deny_stores


@pytest.mark.parametrize("kind", ["client", "reset"])
def test_update_of_client_removes_its_denials(kind: str) -> None:
    bench = Bench()
    bench.deny(ALICE, Check("alice", 2, resource="login"), Check("bob"))
    bench.cache.on_update(0, UpdateKey(kind, "alice", "login"), 0)
    assert not bench.denies(ALICE)
    assert not bench.denies(Check("alice", 2, resource="login"))
    assert bench.denies(Check("bob"))
    assert bench.metrics.deny_entries == 1


@pytest.mark.parametrize("key", [UpdateKey("plan", "gold"), UpdateKey("default")])
def test_update_of_plan_or_default_removes_denials_of_partition(key: UpdateKey) -> None:
    bench = Bench()
    bench.deny(ALICE)
    bench.deny(Check("bob"), partition=1)
    bench.cache.on_update(0, key, 0)
    assert not bench.denies(ALICE)
    assert bench.denies(Check("bob"))
    bench.after(1)
    assert not bench.denies(ALICE)
    bench.deny(ALICE, applied=0)
    assert bench.denies(ALICE), "a denial decided after the update is used, and the proof still holds"


def test_denial_decided_before_update_is_not_stored_after_it() -> None:
    bench = Bench()
    bench.cache.on_update(0, UpdateKey("client", "bob"), 7)
    bench.deny(ALICE, applied=6)
    assert not bench.metrics.deny_stores
    bench.deny(ALICE, applied=7)
    assert bench.denies(ALICE)
    bench.deny(Check("carol"), partition=1)
    assert bench.denies(Check("carol")), "each partition has its own versions"


def test_denial_without_proof_is_not_used() -> None:
    bench = Bench()
    bench.deny(ALICE)
    bench.now += PROOF_S
    assert not bench.denies(ALICE)
    bench.cache.on_proof([1], bench.now)
    assert not bench.denies(ALICE)
    bench.cache.on_proof([0], bench.now - PROOF_S / 2)
    assert bench.denies(ALICE)
    bench.now += PROOF_S / 2
    assert not bench.denies(ALICE)


def test_denial_before_first_proof_is_not_stored() -> None:
    bench = Bench()
    bench.cache = DenyCache(bench.metrics, len(ALL), 10, lambda: bench.now)
    bench.deny(ALICE)
    bench.after(0)
    assert not bench.metrics.deny_stores


def test_proof_is_wanted_only_while_denials_are_in_use() -> None:
    bench = Bench()
    assert not bench.cache.wants_proof
    bench.deny(ALICE)
    assert bench.cache.wants_proof
    bench.now += WANTED_S
    assert not bench.cache.wants_proof
    assert not bench.denies(ALICE)
    assert bench.cache.wants_proof, "a proof would have been used"
    bench.now += WANTED_S
    bench.cache.get(Check("bob"))
    bench.cache.get(Check("alice", 2))
    assert not bench.cache.wants_proof


def test_full_cache_removes_oldest_client() -> None:
    bench = Bench(capacity=3)
    bench.deny(*(Check(name) for name in "abc"))
    bench.deny(Check("a"), Check("d"))
    assert [name for name in "abcd" if bench.denies(Check(name))] == ["a", "c", "d"]
    bench.deny(*(Check("e", resource=str(number)) for number in range(5)))
    assert bench.metrics.deny_entries <= 3


def test_cache_of_capacity_zero_stores_nothing() -> None:
    bench = Bench(capacity=0)
    bench.deny(ALICE)
    assert not bench.denies(ALICE)
    assert bench.metrics.deny_entries == 0


def test_sums_contain_each_denied_check_once() -> None:
    bench = Bench()
    bench.deny(ALICE, Check("alice", 5), Check("alice", 2, "gold", "login"))
    bench.deny(Check("carol"), partition=1)
    for check in (ALICE, Check("alice", 5), Check("alice", 2, "gold", "login"), Check("carol"), Check("bob")):
        bench.cache.get(check)
    bench.deny(Check("alice", 5))
    bench.cache.get(Check("alice", 5))
    bench.cache.on_update(0, UpdateKey("client", "alice"), 0)
    assert bench.cache.take_sums() == [
        (0, [Denied("alice", "", "", 3, 11), Denied("alice", "gold", "login", 1, 2)]),
        (1, [Denied("carol", "", "", 1, 1)]),
    ]
    assert bench.cache.take_sums() == []
    bench.cache.get(Check("carol"))
    assert bench.cache.take_sums() == [(1, [Denied("carol", "", "", 1, 1)])]
    counted = bench.metrics
    assert (counted.deny_hits, counted.received, counted.rejected, counted.allowed) == (6, 6, 6, 0)


def test_many_sums_are_split_into_several_records() -> None:
    bench = Bench(capacity=MAX_ROWS + 1)
    clients = [Check(f"client-{number}") for number in range(MAX_ROWS + 1)]
    bench.deny(*clients)
    assert all(map(bench.denies, clients))
    assert [len(rows) for _, rows in bench.cache.take_sums()] == [MAX_ROWS, 1]


def test_closed_cache_denies_and_stores_nothing_but_returns_its_sums() -> None:
    bench = Bench()
    bench.deny(ALICE)
    assert bench.denies(ALICE)
    bench.cache.close()
    bench.deny(ALICE)
    assert not bench.denies(ALICE)
    assert bench.cache.take_sums() == [(0, [Denied("alice", "", "", 1, 1)])]


@pytest.mark.parametrize(
    ("firm_ms", "denies"), [(-1, True), (None, True), (6_100, True), (900, False), (0, False)]
)
def test_denial_that_depends_on_held_units_is_kept_for_its_firm_time(
    firm_ms: int | None, denies: bool
) -> None:
    bench = Bench()
    decision = HeldDecision(False, 10, 0, 9_000, 6_100, 3, firm_ms)
    bench.cache.learn(0, [ALICE], Reply(7, 1, 0, -1, [decision]), bench.now)
    assert bench.denies(ALICE) is (firm_ms != 0)
    bench.after(1.0)
    answer = bench.cache.get(ALICE, failing_open=True)
    assert (answer is not None) is denies
    if answer is not None:
        assert answer.retry_after_ms == 5_100
    assert bench.denies(ALICE) is (firm_ms == -1), "a settlement may have charged more than was held"


def test_denial_without_firm_time_is_not_kept_where_units_may_be_held() -> None:
    for held in (False, True):
        bench = Bench()
        reply = Reply(7, 1, 0, -1, [Decision(False, 10, 0, 9_000, 6_100, 3)])
        bench.cache.learn(0, [ALICE], reply, bench.now, held=held)
        assert bench.denies(ALICE) is not held


def test_denials_are_shown_for_a_short_time_where_costs_are_charged_that_no_limit_judges() -> None:
    bench = Bench()
    bench.deny(ALICE)
    bench.deny(Check("bob"), partition=1)
    bench.deny(Check("carol"), retry_ms=None, limit=0)
    bench.cache.expect_unjudged({0})
    assert not bench.denies(ALICE), "the cost may have been charged before it was announced"
    assert bench.cache.get(ALICE, failing_open=True) is not None
    assert bench.denies(Check("carol")), "nothing changes the denial by a limit of 0"
    bench.deny(ALICE)
    bench.cache.expect_unjudged({0})
    bench.after(PROOF_S - 0.01)
    assert bench.denies(ALICE)
    bench.after(0.01)
    assert not bench.denies(ALICE)
    assert bench.denies(Check("bob"))
    bench.cache.expect_unjudged(set())
    bench.deny(ALICE)
    bench.after(1.0)
    assert bench.denies(ALICE)


def test_charge_or_settlement_removes_denials_of_same_client_and_resource() -> None:
    bench = Bench()
    login = Check("alice", resource="login")
    bench.deny(ALICE, login, Check("bob"))
    bench.cache.on_hold(ALICE)
    assert bench.denies(ALICE), "it reserves, and is denied as a check is"
    bench.cache.on_hold(Check("alice", 0))
    bench.cache.on_hold(Check("carol", 0))
    assert [bench.denies(check) for check in (ALICE, login, Check("bob"))] == [False, True, True]
    assert bench.metrics.deny_entries == 2
