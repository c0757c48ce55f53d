"""The economy of leases: who gets one, how large it is, when it is renewed and given back.

That leases are strict is tested with the fold (``tests/unit/stoplog_worker/algorithm/test_holds_*.py``).
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

import pytest

from stoplog.client import lease_cache
from stoplog.client.answer import Answer
from stoplog.client.demand import KNOWN_S, Demand
from stoplog.client.lease_cache import (
    FEW,
    FIRST_TTL_S,
    LAST_PAUSE_S,
    MAX_FIRST_RETRY_S,
    MAX_ROWS,
    MIN_CHECKS,
    MIN_WANT,
    PAUSE_S,
    RETRY_S,
    SEVERAL_PLANS_S,
    SURPLUS,
    LeaseCache,
)
from stoplog.client.lease_table import LOW_TIME_S, SentAsk
from stoplog.client.metrics import Metrics
from stoplog.wire.checks import Check
from stoplog.wire.holds import Ask, Grant, HoldRow, Settlement, SettlementRow
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import Decision, HeldDecision, Reply

ALICE = Check("alice")
HOLDER = 77
TTL_MS = 3_100
"""A lease of this length ends here after 3.0 s, less 5 ms."""


class Bench:
    """A cache of two partitions, with a clock that the test sets and, by default, always with proof."""

    def __init__(self, max_ms: int = 10_000) -> None:
        self.now = 500.0
        self.metrics = Metrics()
        self.cache = LeaseCache(self.metrics, 2, HOLDER, max_ms, lambda: self.now)
        self.cache.enable([0, 1])
        self.cache.on_proof([0, 1], self.now)
        self.sent: list[SentAsk] = []

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.cache.on_proof([0, 1], self.now)

    def send(self, *checks: Check, waits: bool = True) -> list[HoldRow]:
        """Send checks in one batch; return its rows."""
        marked = [index for index, check in enumerate(checks) if self.cache.note(0, check)]
        rows, self.sent = self.cache.rows(0, checks, marked, waits)
        assert rows is not None
        return rows

    def reply(self, grant: Grant | None, *, applied: int = -1, sent_at: float | None = None) -> None:
        """Answer the last batch, of one check."""
        decision = HeldDecision(True, 100, 40, 60_000, 0, 3, 0, grant)
        answers: list[Decision | str | None] = [decision] * (self.sent[-1].position + 1)
        reply = Reply(HOLDER, 1, 1, applied, answers)
        self.cache.learn(0, self.sent, reply, self.now if sent_at is None else sent_at)
        self.sent = []

    def ask_for_renewal(self) -> tuple[Ask, Ask]:
        """Use most permits of a lease and send the ask for the next one; return both asks."""
        first = self.lease(16)
        for _ in range(12):
            self.hit()
        second = self.send(ALICE)[0].ask
        assert second is not None
        return first, second

    def ask(self, check: Check = ALICE, *, per_s: float = 20.0) -> Ask:
        """Have *check* sent at a steady pace until an ask goes with it; return the ask.

        An ask for few permits is refused before, as under limits that are not generous.
        """
        for _ in range(100):
            for row in self.send(check):
                if row.ask is not None and row.ask.want > FEW:
                    return row.ask
                if row.ask is not None:
                    self.reply(None)
            self.after(1 / per_s)
        raise AssertionError("nothing was asked for")

    def lease(self, units: int = 16, check: Check = ALICE, *, ttl_ms: int = TTL_MS) -> Ask:
        ask = self.ask(check)
        self.reply(Grant(units, ttl_ms))
        return ask

    def hit(self, check: Check = ALICE) -> bool:
        return self.cache.get(check) is not None

    def settled(self) -> list[SettlementRow]:
        return [row for partition, rows in self.cache.take_settlements() for row in rows if partition == 0]

    def permits(self) -> tuple[int, int, int, int]:
        metrics = self.metrics
        return (
            metrics.lease_granted,
            metrics.lease_used,
            metrics.lease_returned,
            metrics.lease_expired,
        )


@contextmanager
def tracing_memory() -> Iterator[Callable[[], int]]:
    """Trace memory; yield a function that returns the bytes allocated since then."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


# --- who gets a lease ---


def test_client_that_is_checked_often_gets_a_lease_for_its_demand() -> None:
    bench = Bench()
    ask = bench.ask(per_s=20)
    assert ask.id == (HOLDER, ask.number, 0)
    assert (ask.kind, ask.ttl_ms, ask.keep) == (0, 10_000, ())
    assert ask.want == ceil(MIN_CHECKS * FIRST_TTL_S * SURPLUS)  # MIN_CHECKS within the shortest span


def test_client_that_is_checked_seldom_gets_few_permits_if_its_limits_are_generous() -> None:
    bench = Bench()
    assert bench.send(ALICE) == []
    bench.after(KNOWN_S)
    [row] = bench.send(ALICE)
    assert row.ask is not None
    assert row.ask.want == FEW < MIN_WANT
    bench.reply(Grant(FEW, 10_000))
    bench.after(8.0)
    assert [bench.hit() for _ in range(FEW + 1)] == [True] * FEW + [False], "not renewed by time"
    [row] = bench.send(ALICE)
    assert row.ask is not None
    assert row.ask.want == FEW, "3 checks in 8 s"


def test_client_that_is_checked_seldom_gets_none_if_its_limits_are_not_generous() -> None:
    bench, pause_s = Bench(), 1.01 * FIRST_TTL_S / (MIN_CHECKS - 1)
    bench.send(ALICE)
    bench.after(pause_s)
    [row] = bench.send(ALICE)
    assert row.ask is not None
    bench.reply(None)
    for _ in range(100):
        bench.after(pause_s)
        assert bench.send(ALICE) == []


def test_refusal_of_few_permits_does_not_delay_the_ask_of_a_client_that_is_checked_often() -> None:
    bench = Bench()
    bench.send(ALICE)
    bench.send(ALICE)
    bench.reply(None)
    asks = [row.ask for _ in range(MIN_CHECKS - 2) for row in bench.send(ALICE)]
    assert [ask.want for ask in asks if ask is not None] == [ceil(MIN_CHECKS * FIRST_TTL_S * SURPLUS)]


@pytest.mark.parametrize("other", [Check("alice", 2), Check("alice", plan="gold"), Check("bob")])
def test_no_few_permits_are_requested_for_other_costs_plans_or_clients(other: Check) -> None:
    bench = Bench()
    assert bench.send(ALICE) == bench.send(other) == []


def test_client_that_was_not_checked_for_long_is_not_known() -> None:
    bench = Bench()
    bench.send(ALICE)
    bench.after(2 * KNOWN_S)
    assert bench.send(ALICE) == []


def test_costs_are_part_of_the_demand() -> None:
    dear = Bench().ask(Check("alice", 10)).want
    assert dear == ceil(10 * MIN_CHECKS * FIRST_TTL_S * SURPLUS)


def test_checks_of_cost_0_are_neither_counted_nor_answered() -> None:
    bench = Bench()
    bench.lease()
    assert not bench.hit(Check("alice", 0))
    assert bench.send(Check("alice", 0)) == []
    peeks = Bench()
    assert all(peeks.send(Check("alice", 0)) == [] for _ in range(100))


def test_client_seen_under_two_plans_gets_no_lease() -> None:
    bench = Bench()
    for _ in range(50):
        assert bench.send(ALICE, Check("alice", plan="gold")) == []
        bench.after(0.02)


def test_check_under_another_plan_ends_the_lease_and_further_asks() -> None:
    bench = Bench()
    lease = bench.lease()
    gold = Check("alice", plan="gold")
    assert not bench.hit(gold)
    assert bench.send(gold) == [HoldRow(0, None, (Settlement(lease.id, 0),))]
    for _ in range(int(SEVERAL_PLANS_S / 0.1) - 1):
        bench.after(0.1)
        assert bench.send(gold) == []
    assert bench.ask(gold).number == lease.number + 1


def test_resources_have_leases_of_their_own() -> None:
    bench = Bench()
    bench.lease(check=Check("alice", resource="login"))
    assert bench.hit(Check("alice", resource="login"))
    assert not bench.hit(ALICE)
    assert not bench.hit(Check("bob", resource="login"))


def test_nothing_is_asked_before_holds_are_enabled_or_with_leases_switched_off() -> None:
    for bench in (Bench(), Bench(max_ms=0)):
        if bench.metrics is not None and bench.cache._max_ms:
            bench.cache.enable([1])
        for _ in range(100):
            assert not bench.cache.note(0, ALICE)
        assert not bench.cache.rows(0, [ALICE], [], True)[1]
    assert Bench().cache.rows(0, [ALICE], [], True) == ([], [])
    disabled = Bench()
    disabled.cache.enable([])
    assert disabled.cache.rows(0, [ALICE], [], True) == (None, [])


def test_partition_that_refuses_a_batch_with_holds_gets_no_more_of_them() -> None:
    bench = Bench()
    bench.cache.learn(0, [], Reply(HOLDER, 1, 1, -1, [], "holds are not enabled"), bench.now)
    assert bench.cache.rows(0, [ALICE], [], True) == (None, [])
    assert bench.cache.rows(1, [ALICE], [], True) == ([], [])


# --- what a lease answers ---


def test_lease_answers_with_the_numbers_of_its_grant() -> None:
    bench = Bench()
    bench.lease(16)
    assert bench.cache.get(ALICE) == Answer(True, 100, 40 + 15, 60_000, 0, 3)
    bench.after(0.5)
    assert bench.cache.get(Check("alice", 3)) == Answer(True, 100, 40 + 12, 59_500, 0, 3)
    assert bench.permits() == (16, 4, 0, 0)
    assert bench.metrics.lease_hits == 2


def test_reply_of_the_log_is_shown_with_the_permits_that_are_left_here() -> None:
    bench = Bench()
    bench.ask()
    decision = HeldDecision(True, 100, 40, 60_000, 0, 3, 0, Grant(16, TTL_MS))
    asked = Reply(HOLDER, 1, 1, -1, [decision])
    shown = bench.cache.show([ALICE], bench.sent, asked).answers[0]
    assert isinstance(shown, HeldDecision)
    assert shown.remaining == 40 + 16
    bench.reply(Grant(16, TTL_MS))
    assert bench.hit()
    denied = HeldDecision(False, 100, 40, 60_000, 9, 3, 0)
    other = HeldDecision(True, 100, 40, 60_000, 0, 3, 0)
    reply = Reply(HOLDER, 1, 1, -1, [other, denied, "fault", None, other])
    looks = [Check("alice", 0)] * 4 + [Check("bob", 0)]
    under_plan = Reply(HOLDER, 1, 1, -1, [other])
    assert bench.cache.show([Check("alice", 0, "gold")], [], under_plan) == under_plan
    answers = bench.cache.show(looks, [], reply).answers
    assert [one.remaining if isinstance(one, HeldDecision) else one for one in answers] == [
        *(40 + 15, 40, "fault", None, 40)
    ]
    bench.after(3.0)
    assert bench.cache.show(looks, [], reply) == reply, "the lease has ended"


def test_lease_ends_a_little_earlier_than_in_the_log() -> None:
    for seconds, hits in ((2.99, True), (3.0, False)):
        bench = Bench()
        bench.ask()
        sent_at = bench.now
        bench.after(0.5)
        bench.reply(Grant(16, TTL_MS), sent_at=sent_at)
        bench.after(seconds - 0.5)
        assert (bench.cache.get(ALICE, renew=False) is not None) is hits


def test_lease_is_used_only_with_proof() -> None:
    bench = Bench()
    bench.lease()
    bench.now += 0.21
    assert bench.cache.wants_proof
    assert not bench.hit()
    bench.after(0)
    assert bench.hit()


def test_update_ends_the_wait_after_a_refusal() -> None:
    for update, asks in ((UpdateKey("client", "bob"), False), (UpdateKey("client", "alice"), True)):
        bench = Bench()
        bench.ask()
        bench.reply(None)
        assert bench.send(ALICE) == []
        bench.cache.on_update(0, update, 5)
        assert (bench.send(ALICE) != []) is asks


@pytest.mark.parametrize(
    ("update", "hits"),
    [
        (UpdateKey("client", "alice"), False),
        (UpdateKey("reset", "alice"), False),
        (UpdateKey("plan", "gold"), False),
        (UpdateKey("default"), False),
        (UpdateKey("client", "bob"), True),
    ],
)
def test_update_ends_the_leases_that_it_may_concern(update: UpdateKey, hits: bool) -> None:
    bench = Bench()
    lease = bench.lease()
    assert bench.hit()
    bench.cache.on_update(0, update, 5)
    bench.after(0)
    assert bench.hit() is hits
    assert bench.settled() == ([] if hits else [SettlementRow("alice", "", (Settlement(lease.id, 1),))])


def test_update_of_a_client_ends_its_leases_of_all_resources() -> None:
    bench = Bench()
    bench.lease(check=ALICE)
    bench.lease(check=Check("alice", resource="login"))
    bench.lease(check=Check("bob", resource="login"))
    bench.cache.on_update(0, UpdateKey("client", "alice"), 5)
    assert bench.metrics.leases == 1
    assert bench.hit(Check("bob", resource="login"))


def test_grant_is_accepted_only_from_a_worker_that_had_applied_every_update_read() -> None:
    for applied, hits in ((4, False), (5, True)):
        bench = Bench()
        ask = bench.ask()
        bench.cache.on_update(0, UpdateKey("client", "alice"), 5)
        bench.reply(Grant(16, TTL_MS), applied=applied)
        assert bench.hit() is hits
        returned = [] if hits else [SettlementRow("alice", "", (Settlement(ask.id, 0),))]
        assert bench.settled() == returned


def test_permits_without_proof_are_spent_before_a_check_fails_open_uncounted() -> None:
    bench = Bench()
    bench.lease(2)
    bench.now += 1.0
    assert [bench.cache.spend(ALICE) for _ in range(3)] == [True, True, False]
    bench.now += 3.0
    assert not bench.cache.spend(ALICE)
    assert bench.permits() == (2, 2, 0, 0)


# --- renewal ---


def test_lease_is_renewed_when_a_quarter_of_its_permits_is_left() -> None:
    bench = Bench()
    lease = bench.lease(16)
    for _ in range(12):
        assert bench.hit()
        bench.after(0.05)
    assert not bench.hit()
    [row] = bench.send(ALICE)
    assert row.ask is not None
    assert row.ask.keep == (lease.id,)
    assert row.settlements == (Settlement(lease.id, 12, True),)
    assert [bench.hit() for _ in range(5)] == [True] * 4 + [False], "the rest is used meanwhile"
    assert bench.send(ALICE) == [], "one ask at a time"


@pytest.mark.parametrize(("pause_s", "left_s"), [(0.4, LOW_TIME_S), (0.6, 0.0)])
def test_long_lease_is_renewed_one_second_before_its_end_for_a_client_that_needs_it(
    pause_s: float, left_s: float
) -> None:
    bench = Bench()
    bench.lease(400, ttl_ms=9_300)
    until = bench.now + 9.0 - 0.005
    while bench.hit():
        bench.after(pause_s)
    assert 0 <= left_s - (until - bench.now) < pause_s


def test_lease_is_renewed_when_a_third_of_its_time_is_left() -> None:
    bench = Bench()
    bench.lease(80)
    for _ in range(19):
        assert bench.hit()
        bench.after(0.1)
    bench.after(0.1)
    assert not bench.hit()
    [row] = bench.send(ALICE)
    assert row.ask is not None


def test_lease_that_is_seldom_used_is_not_renewed() -> None:
    bench = Bench()
    bench.lease(16)
    bench.after(2.5)
    assert bench.hit(), "no check is delayed for an ask that is not worth it"


def test_new_lease_ends_the_one_before_it() -> None:
    bench = Bench()
    first = bench.lease(16)
    for _ in range(12):
        bench.hit()
    bench.send(ALICE)
    bench.hit()
    bench.reply(Grant(20, TTL_MS))
    assert bench.permits() == (36, 13, 3, 0)
    assert bench.settled() == [SettlementRow("alice", "", (Settlement(first.id, 1),))]


def test_further_lease_is_as_large_as_the_use_of_the_one_before() -> None:
    bench = Bench()
    bench.lease(40)
    for _ in range(30):
        bench.hit()
        bench.after(0.05)
    [row] = bench.send(ALICE)
    assert row.ask is not None
    seconds = TTL_MS / 1_000
    assert row.ask.want == pytest.approx(20 * seconds * SURPLUS, rel=0.4)


def test_ask_that_is_refused_is_repeated_later_and_later() -> None:
    bench = Bench()
    waits = []
    bench.ask()
    for _ in range(9):
        began = bench.now
        bench.reply(None)
        while not bench.sent:
            bench.after(0.01)
            bench.send(ALICE)
        waits.append(bench.now - began)
    assert waits[0] == pytest.approx(RETRY_S, abs=0.02)
    assert waits[1] == pytest.approx(2 * RETRY_S, abs=0.02)
    assert waits == sorted(waits)


def test_client_without_leases_is_asked_for_seldom() -> None:
    bench = Bench()
    bench.ask()
    bench.reply(None)
    asks = 0
    for _ in range(int(10 * MAX_FIRST_RETRY_S / 0.1)):
        bench.after(0.1)
        rows = bench.send(ALICE, ALICE)
        asks += len(rows)
        if rows:
            bench.reply(None)
    assert asks < 20


# --- what goes back to the log ---


def test_check_that_costs_more_than_is_left_gives_everything_back_first() -> None:
    bench = Bench()
    lease = bench.lease(8)
    bench.hit()
    assert not bench.hit(Check("alice", 8))
    rows = bench.send(Check("bob"), Check("alice", 8))
    assert [row.index for row in rows] == [1]
    assert rows[0].settlements == (Settlement(lease.id, 1),)
    assert not bench.hit(), "what a record gave back is never used again"
    assert bench.permits() == (8, 1, 7, 0)


def reserve(bench: Bench) -> list[HoldRow]:
    """Send a check of alice that asks for a reservation; return what goes with it."""
    marked = [0] if bench.cache.give_back(ALICE) else []
    rows, asks = bench.cache.rows(0, [ALICE], marked, True, [0])
    assert not asks
    assert rows is not None
    return rows


def test_reservation_gives_back_a_lease_that_is_being_granted() -> None:
    bench = Bench()
    ask = bench.ask()
    assert reserve(bench) == [HoldRow(0, None, (Settlement(ask.id, 0),))]
    assert reserve(bench) == [], "it is given back already"
    bench.reply(Grant(16, TTL_MS))
    assert not bench.hit(), "what a record gave back is never used again"
    assert bench.settled() == [SettlementRow("alice", "", (Settlement(ask.id, 0),))]
    bench.after(RETRY_S - 0.05)
    assert bench.send(ALICE) == [], "the next ask waits, so that the reservation is judged before it"
    assert bench.ask().number == ask.number + 1
    assert bench.permits() == (0, 0, 0, 0)


def test_reservation_does_not_report_the_use_of_a_lease_twice() -> None:
    bench = Bench()
    lease = bench.lease(16)
    for _ in range(12):
        bench.hit()
    [row] = bench.send(ALICE)
    assert row.settlements == (Settlement(lease.id, 12, True),)
    assert row.ask is not None
    while bench.hit():
        pass
    assert reserve(bench) == [HoldRow(0, None, (Settlement(row.ask.id, 0),))]
    bench.reply(Grant(16, TTL_MS))
    [after] = reserve(bench)
    assert after.settlements == (Settlement(lease.id, 4),), "the reply has confirmed the other 12"


def test_permits_that_are_used_up_before_the_record_is_sent_are_not_reported_twice() -> None:
    bench = Bench()
    bench.lease(16)
    for _ in range(12):
        bench.hit()
    [row] = bench.send(ALICE)
    assert row.ask is not None
    dear = Check("alice", 5)
    assert bench.cache.note(0, dear)
    while bench.hit():
        pass
    assert bench.cache.rows(0, [dear], [0], True) == ([], [])


def test_reservation_prevents_an_ask_that_an_earlier_batch_would_carry() -> None:
    bench = Bench()
    bench.ask()
    bench.reply(None)
    bench.after(RETRY_S)
    assert bench.cache.note(0, ALICE), "the batch is not sent yet"
    assert not bench.cache.give_back(ALICE), "the mark of the earlier batch is enough"
    assert bench.cache.rows(0, [ALICE], [0], True) == ([], [])


@pytest.mark.parametrize(("cost", "costly"), [(1, False), (5, False), (6, True)])
def test_only_a_costly_check_gives_back_a_lease_that_is_being_granted(cost: int, costly: bool) -> None:
    bench = Bench()
    ask = bench.ask()
    assert ask.want == 23
    rows = bench.send(Check("alice", cost))
    assert rows == ([HoldRow(0, None, (Settlement(ask.id, 0),))] if costly else [])


def test_check_under_another_plan_gives_back_a_lease_that_is_being_granted() -> None:
    bench = Bench()
    ask = bench.ask()
    assert bench.send(Check("alice", plan="gold")) == [HoldRow(0, None, (Settlement(ask.id, 0),))]


def test_plain_check_leaves_what_a_reservation_gives_back() -> None:
    bench = Bench()
    lease = bench.lease(16)
    for _ in range(12):
        bench.hit()
    [row] = bench.send(ALICE)
    assert row.ask is not None
    assert bench.cache.give_back(ALICE)
    assert not bench.cache.note(0, Check("alice", 5))
    rows, _ = bench.cache.rows(0, [ALICE, Check("alice", 5)], [0], True, [0])
    assert rows == [HoldRow(0, None, (Settlement(lease.id, 12), Settlement(row.ask.id, 0)))]


def test_reservation_gives_back_a_lease_whose_settlement_waits_for_the_timer() -> None:
    bench = Bench()
    first, second = bench.ask_for_renewal()
    assert bench.hit()
    bench.reply(Grant(20, TTL_MS))
    assert bench.cache.give_back(ALICE)
    rows, _ = bench.cache.rows(0, [ALICE], [0], True, [0])
    assert rows == [HoldRow(0, None, (Settlement(first.id, 1), Settlement(second.id, 0)))]


def test_ask_goes_with_the_last_check_of_its_client_and_settlements_with_the_first() -> None:
    bench = Bench()
    lease = bench.lease(8)
    dear = Check("alice", 9)
    rows = bench.send(dear, ALICE, Check("bob"))
    assert rows == [
        HoldRow(0, None, (Settlement(lease.id, 0),)),
        HoldRow(1, bench.sent[0].ask, ()),
    ]


def test_used_up_lease_is_settled_with_the_next_ask() -> None:
    bench = Bench()
    lease = bench.lease(4)
    while bench.cache.get(ALICE, renew=False):
        pass
    [row] = bench.send(ALICE)
    assert row.settlements == (Settlement(lease.id, 4),)
    assert row.ask is not None
    assert row.ask.keep == ()


def test_settlement_is_repeated_with_asks_until_a_reply_or_the_end_of_the_lease() -> None:
    bench = Bench()
    first = bench.lease(8)
    again = Settlement(first.id, 0)
    [row] = bench.send(Check("alice", 9))
    assert again in row.settlements
    bench.cache.abandon(bench.sent)
    bench.after(RETRY_S)
    [row] = bench.send(ALICE)
    assert row.settlements == (again,)
    bench.cache.abandon(bench.sent)
    bench.after(TTL_MS / 1_000 * 31 / 30)
    assert bench.ask().number == first.number + 3
    assert bench.sent[0].ended == ()


def test_settlements_of_several_leases_are_repeated_until_a_reply() -> None:
    bench = Bench()
    first, second = bench.ask_for_renewal()
    bench.reply(Grant(20, TTL_MS))
    both = {Settlement(first.id, 0), Settlement(second.id, 0)}
    [row] = bench.send(Check("alice", 30))
    assert set(row.settlements) == both
    bench.cache.abandon(bench.sent)
    bench.after(RETRY_S)
    [row] = bench.send(ALICE)
    assert set(row.settlements) == both
    bench.reply(Grant(16, TTL_MS))
    while bench.hit():
        pass
    [row] = bench.send(ALICE)
    assert not both & set(row.settlements)


def test_report_without_reply_is_repeated() -> None:
    bench = Bench()
    lease = bench.lease(16)
    for _ in range(12):
        bench.hit()
    bench.send(ALICE)
    bench.cache.abandon(bench.sent)
    bench.hit()
    bench.cache.close()
    [row] = bench.settled()
    assert Settlement(lease.id, 13) in row.settlements


def test_ask_without_reply_is_given_back() -> None:
    bench = Bench()
    ask = bench.ask()
    bench.cache.abandon(bench.sent)
    assert bench.settled() == [SettlementRow("alice", "", (Settlement(ask.id, 0),))]
    sent_at = bench.now
    bench.after(RETRY_S)
    bench.reply(Grant(16, TTL_MS), sent_at=sent_at)
    assert not bench.hit(), "the grant of an ask that was given up is not accepted"


def test_check_whose_answer_was_lost_brings_no_lease() -> None:
    bench = Bench()
    ask = bench.ask()
    bench.cache.learn(0, bench.sent, Reply(HOLDER, 1, 1, -1, [None]), bench.now)
    assert not bench.hit()
    assert bench.settled() == [SettlementRow("alice", "", (Settlement(ask.id, 0),))]


def test_batch_without_waiting_callers_asks_for_nothing() -> None:
    bench = Bench()
    lease = bench.lease(8)
    assert bench.send(Check("alice", 9), waits=False) == [HoldRow(0, None, (Settlement(lease.id, 0),))]


# --- the timer ---


def test_unused_lease_is_given_back_before_its_end() -> None:
    bench = Bench()
    lease = bench.lease(16)
    bench.hit()
    rows: list[SettlementRow] = []
    while not rows:
        bench.after(bench.cache.pause_s)
        rows = bench.settled()
    assert rows == [SettlementRow("alice", "", (Settlement(lease.id, 1),))]
    assert bench.permits() == (16, 1, 15, 0)


@pytest.mark.parametrize("phase", range(10))
def test_lease_whose_ask_gets_no_reply_answers_until_shortly_before_its_end(phase: int) -> None:
    """No worker replies anymore. *phase* is when the timer runs first, in tenths of a second."""
    bench = Bench()
    lease = bench.lease(400)
    until, due_at = bench.now + 3.0 - 0.005, bench.now + phase / 10
    settled: list[SettlementRow] = []
    while bench.now < until:
        if bench.cache.get(ALICE) is None:
            bench.send(ALICE)
            if bench.sent:
                bench.after(0.25)  # the deadline
                bench.cache.abandon(bench.sent)
            if bench.cache.get(ALICE, renew=False) is None:
                break
        if bench.now >= due_at:
            settled += bench.settled()
            due_at = bench.now + bench.cache.pause_s
        bench.after(0.01)
    assert until - bench.now < 1.1 * LAST_PAUSE_S + 0.02
    _, used, returned, expired = bench.permits()
    assert (used + returned, expired) == (400, 0)
    assert Settlement(lease.id, used) in [one for row in settled for one in row.settlements]
    bench.after(LAST_PAUSE_S)
    bench.settled()
    assert bench.cache.pause_s == PAUSE_S


def test_hot_client_keeps_its_lease_until_the_renewal() -> None:
    bench = Bench()
    lease = bench.lease(100)
    for _ in range(30):
        bench.after(0.065)
        assert bench.hit()
    assert bench.settled() == []  # it ends in 1.04 s, and is renewed in 0.01 s
    bench.after(0.06)
    assert not bench.hit()
    [row] = bench.send(ALICE)
    assert row.ask is not None
    assert row.ask.keep == (lease.id,)


def test_short_lease_is_given_back_before_its_end() -> None:
    bench = Bench()
    bench.lease(16, ttl_ms=150)
    assert bench.cache.pause_s < 0.1
    while bench.metrics.leases:
        bench.after(bench.cache.pause_s)
        bench.settled()
    assert bench.permits() == (16, 0, 16, 0)
    bench.after(20.0)
    bench.settled()
    assert bench.cache.pause_s == lease_cache.PAUSE_S


def test_late_timer_counts_the_permits_as_expired() -> None:
    bench = Bench()
    bench.lease(16)
    bench.after(4.0)
    bench.settled()
    assert bench.permits() == (16, 0, 0, 16)


def test_settlements_of_many_clients_are_divided_into_records() -> None:
    bench = Bench()
    for number in range(MAX_ROWS + 5):
        check = Check(f"client-{number}")
        bench.send(check)
        bench.send(check)
        bench.reply(Grant(4, TTL_MS))
    bench.cache.close()
    assert [len(rows) for _, rows in bench.cache.take_settlements()] == [MAX_ROWS, 5]


def test_close_gives_everything_back() -> None:
    bench = Bench()
    lease = bench.lease(16)
    bench.hit()
    bob = bench.ask(Check("bob"))
    bench.cache.close()
    assert bench.settled() == [
        SettlementRow("alice", "", (Settlement(lease.id, 1),)),
        SettlementRow("bob", "", (Settlement(bob.id, 0),)),
    ]
    assert bench.metrics.leases == 0
    assert not bench.hit()
    assert bench.send(ALICE) == []


# --- memory ---


def test_lease_takes_at_most_400_bytes() -> None:
    """With the client's id, and without the estimates of demand, whose memory is bounded."""
    bench, leases = Bench(), 8_192
    with tracing_memory() as allocated:
        for number in range(leases):
            bench.ask(Check(f"client-{number}", plan="gold" * (number % 2)), per_s=10_000)
            bench.reply(Grant(16, TTL_MS))
        bench.cache._demand = Demand()
        assert bench.metrics.leases == leases
        per_lease = allocated() / leases
    assert 100 < per_lease < 400


MEMORY = """
import psutil
from stoplog.client.lease_cache import LeaseCache
from stoplog.client.metrics import Metrics
from stoplog.wire.checks import Check
from stoplog.wire.holds import Grant
from stoplog.wire.replies import HeldDecision, Reply

now, metrics = 500.0, Metrics()
cache = LeaseCache(metrics, 1, 77, 10_000, lambda: now)
cache.enable([0])
before = psutil.Process().memory_info().rss
for first in range(0, 100_000, 100):
    for _ in range(7):
        now += 0.001
        cache.on_proof([0], now)
        checks = [Check(f"client-{number:08}") for number in range(first, first + 100)]
        checks = [check for check in checks if cache.get(check) is None]
        marked = [index for index, check in enumerate(checks) if cache.note(0, check)]
        _, sent = cache.rows(0, checks, marked, True)
        answers = [HeldDecision(True, 1_000, 400, 60_000, 0, 3, 0, Grant(40, 10_000)) for _ in checks]
        cache.learn(0, sent, Reply(77, 1, 1, -1, answers), now)
    if not first % 10_000:
        cache.take_settlements()
print(metrics.leases, psutil.Process().memory_info().rss - before)
"""


def test_process_with_100_000_leases_takes_at_most_40_mb_for_them() -> None:
    """Measured from outside of the allocator, in a process of its own: gaps in its memory count as well."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    leases, grown = map(int, done.stdout.split())
    assert leases == 100_000
    assert 20e6 < grown <= 40e6


def test_clients_without_use_are_forgotten() -> None:
    bench = Bench()
    for number in range(50):
        bench.ask(Check(f"client-{number}", resource="login" * (number % 2)))
        bench.reply(None)
    assert len(bench.cache._rows) == 50
    for _ in range(100):
        bench.after(bench.cache.pause_s)
        bench.settled()
    assert not bench.cache._rows
    assert not bench.cache._resources
    assert not bench.cache._looks
    assert not bench.cache.wants_proof


def test_number_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_cache, "MAX_ENTRIES", 2)
    bench = Bench()
    bench.ask(Check("a"))
    bench.ask(Check("b"))
    assert not any(bench.send(Check("c")) for _ in range(50))
