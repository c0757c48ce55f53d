"""The order in which the batcher asks the lease cache, the deny cache and the log."""

from __future__ import annotations

import asyncio
from functools import partial

from stoplog.client.answer import Answer
from stoplog.client.fail_open import BROKER, FAIL_CLOSED, FAIL_OPEN
from stoplog.client.partition_queue import GATHER_S
from stoplog.client.update_proofs import PROOF_S
from stoplog.wire.checks import Check
from stoplog.wire.holds import Grant
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import Decision, HeldDecision, Reply
from tests.support.clockwork import Bench, costs_of

ALICE = Check("alice")


def bench_with_lease(units: int = 8) -> Bench:
    """Return a batcher whose client alice has a lease of *units*."""
    bench = Bench(lease_max_ms=10_000)
    bench.leases.enable([0])
    prove(bench)
    while True:
        future = bench.batcher.ask(ALICE)
        assert isinstance(future, asyncio.Future)
        bench.loop.turn()
        batch = bench.transport.last
        assert batch.hold_rows is not None
        grant = Grant(units, 3_000) if batch.hold_rows else None
        decision = HeldDecision(True, 100, 50, 60_000, 0, 3, 0, grant)
        bench.batcher.on_replies([Reply(7, batch.number, 0, -1, [decision])])
        assert future.done()
        bench.loop.turn()
        if grant is not None:
            return bench


def prove(bench: Bench) -> None:
    bench.leases.on_proof([0], bench.loop.now)
    bench.denials.on_proof([0], bench.loop.now)


def allowed(bench: Bench, cost: int = 1) -> bool:
    """Return whether a check is answered at once, by the store's rules, and allowed."""
    answer = bench.batcher.ask(Check("alice", cost))
    return isinstance(answer, Answer) and answer.allowed and not answer.degraded


def test_permits_answer_at_once_and_are_counted_as_allowed() -> None:
    bench = bench_with_lease()
    before = bench.metrics.received, bench.metrics.allowed, len(bench.transport.sent)
    assert allowed(bench)
    bench.loop.turn()
    assert (bench.metrics.received, bench.metrics.allowed) == (before[0] + 1, before[1] + 1)
    assert len(bench.transport.sent) == before[2]


def test_permits_come_before_a_known_denial() -> None:
    bench = bench_with_lease(8)
    denial = HeldDecision(False, 100, 0, 9_000, 6_100, 3, 6_100)
    bench.denials.learn(0, [ALICE], Reply(7, 1, 0, -1, [denial]), bench.loop.now, held=True)
    assert [allowed(bench) for _ in range(8)] == [True] * 8, "also those left when a renewal is due"
    answer = bench.batcher.ask(ALICE)
    assert isinstance(answer, Answer)
    assert not answer.allowed


def test_permits_answer_exactly_while_the_breaker_is_open() -> None:
    bench = bench_with_lease(8)
    bench.batcher.on_broker_down("no broker")
    assert [allowed(bench) for _ in range(8)] == [True] * 8
    assert bench.batcher.ask(ALICE) is FAIL_OPEN[BROKER]


def test_permits_without_proof_are_spent_instead_of_a_further_charge() -> None:
    bench = bench_with_lease(2)
    bench.batcher.on_broker_down("no broker")
    bench.loop.advance(1.0)
    sent, used = len(bench.transport.sent), bench.metrics.lease_used
    assert [bench.batcher.ask(ALICE) for _ in range(3)] == [FAIL_OPEN[BROKER]] * 3
    bench.loop.advance(GATHER_S)
    assert bench.metrics.lease_used == used + 2
    assert [costs_of(batch) for _, batch in bench.transport.sent[sent:]] == [[1]]


def test_proof_and_update_that_arrive_within_a_turn_apply_to_the_next_check() -> None:
    bench = bench_with_lease(8)
    bench.loop.advance(1.0)
    for ask in (bench.batcher.ask, bench.batcher.answer_at_once):
        bench.loop.advance(PROOF_S + 0.01)
        bench.updates.add(partial(prove, bench))  # the turn in which it arrives goes on
        answer = ask(ALICE)
        assert isinstance(answer, Answer)
        assert not answer.degraded
    alice = UpdateKey("client", "alice")
    bench.updates.add(partial(bench.leases.on_update, 0, alice, 9))
    assert not allowed(bench)


def test_checks_without_time_count_in_the_demand() -> None:
    wants = []
    for overloaded in (False, True):
        bench = bench_with_lease(8)
        while allowed(bench):
            pass
        bench.loop.turn()
        if overloaded:
            for _ in range(1_000):
                bench.batcher.answer_at_once(ALICE)
        bench.loop.advance(1.5)
        prove(bench)
        bench.batcher.ask(ALICE)
        bench.loop.turn()
        rows = bench.transport.last.hold_rows
        assert rows
        assert rows[0].ask is not None
        wants.append(rows[0].ask.want)
    assert wants[1] > 10 * wants[0]


def test_check_that_fails_closed_spends_no_permits() -> None:
    bench = bench_with_lease(2)
    bench.batcher.on_broker_down("no broker")
    bench.loop.advance(1.0)
    used = bench.metrics.lease_used
    assert bench.batcher.ask(ALICE, True) is FAIL_CLOSED[BROKER]
    assert bench.metrics.lease_used == used


def test_ask_whose_batch_misses_its_deadline_or_is_not_published_is_given_up() -> None:
    for undelivered in (False, True):
        bench = bench_with_lease(8)
        while allowed(bench):
            pass
        bench.loop.turn()
        batch = bench.transport.last
        assert batch.hold_rows
        assert batch.hold_rows[0].ask is not None
        if undelivered:
            bench.batcher.on_undelivered(batch.number, 1)
        bench.loop.advance(bench.deadline_s)
        rows = [row for _, rows in bench.leases.take_settlements() for row in rows]
        settled = [one.id for row in rows for one in row.settlements]
        assert batch.hold_rows[0].ask.id in settled
        bench.loop.advance(1.0)
        prove(bench)
        bench.ask(1)
        bench.loop.turn()
        again = bench.transport.last.hold_rows
        assert again
        assert again[0].ask is not None, "the next check asks again"


def test_ask_that_the_transport_refuses_is_given_up() -> None:
    bench = bench_with_lease(8)
    while allowed(bench):
        pass
    bench.transport.broken = True
    bench.loop.turn()
    assert bench.metrics.publish_failures == 1
    rows = [row for _, rows in bench.leases.take_settlements() for row in rows]
    assert len({one.id for row in rows for one in row.settlements}) == 1


def test_check_without_time_is_answered_by_permits() -> None:
    bench = bench_with_lease(8)
    answer = bench.batcher.answer_at_once(ALICE)
    assert isinstance(answer, Answer)
    assert not answer.degraded


def test_check_that_is_denied_by_the_log_is_answered_by_permits_that_are_left() -> None:
    bench = bench_with_lease(8)
    while allowed(bench):
        pass  # the next check is sent, with the ask for the next lease
    [future] = bench.batcher.waiting()
    bench.loop.turn()
    denial: Decision = HeldDecision(False, 100, 0, 9_000, 6_100, 3, 6_100)
    bench.batcher.on_replies([Reply(7, bench.transport.last.number, 0, -1, [denial])])
    answer = future.result()
    assert isinstance(answer, Answer)
    assert answer.allowed
