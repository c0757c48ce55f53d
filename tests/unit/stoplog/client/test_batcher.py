from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoplog.client.answer import Answer, Outcome
from stoplog.client.batcher import GATHER_S
from stoplog.client.fail_open import BROKER, FAIL_OPEN, STOPPING
from stoplog.errors import InvalidInput
from stoplog.partitioning import partition_of
from stoplog.wire.checks import MAX_BATCH, Batch, Check, encode_batch
from stoplog.wire.format import NO_REPLY
from stoplog.wire.replies import Decision, Reply
from tests.support.clockwork import Bench, answer_to


def ask(bench: Bench, *costs: int, client: str = "alice") -> list[asyncio.Future[Outcome]]:
    outcomes = [bench.batcher.ask(Check(client, cost)) for cost in costs]
    assert all(isinstance(outcome, asyncio.Future) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, asyncio.Future)]


def costs(batch: Batch) -> list[int]:
    return [check.cost for check in batch.checks]


def remaining(futures: list[asyncio.Future[Outcome]]) -> list[int | None]:
    answers = [future.result() for future in futures]
    return [answer.remaining for answer in answers if isinstance(answer, Answer)]


def open_breaker(bench: Bench) -> None:
    for _ in range(3):
        ask(bench, 0)
        bench.loop.advance(bench.deadline_s)
    assert isinstance(bench.batcher.ask(Check("alice")), Answer)


def test_an_idle_partition_sends_at_the_end_of_the_turn() -> None:
    bench = Bench()
    futures = ask(bench, 2, 3, 4)
    assert not bench.outbox.sent
    bench.loop.turn()
    assert costs(bench.outbox.last) == [2, 3, 4]
    assert bench.outbox.last.partition == bench.outbox.reply_partition
    bench.batcher.replied([answer_to(bench.outbox.last)])
    assert remaining(futures) == [2, 3, 4]
    assert [f.result().allowed for f in futures] == [True, False, True]  # type: ignore[union-attr]
    assert (bench.metrics.allowed, bench.metrics.rejected, bench.metrics.in_flight) == (2, 1, 0)


def test_a_batch_has_one_timer_however_many_ask() -> None:
    bench = Bench()
    ask(bench, *range(100))
    bench.loop.turn()
    assert [timer.cancelled() for timer in bench.loop.timers] == [False]


def test_a_busy_partition_gathers_until_the_reply() -> None:
    bench = Bench()
    ask(bench, 1)
    bench.loop.turn()
    first = bench.outbox.last
    for cost in (2, 3, 4):
        ask(bench, cost)
        bench.loop.turn()
    assert len(bench.outbox.sent) == 1
    bench.batcher.replied([answer_to(first)])
    bench.loop.turn()
    assert costs(bench.outbox.last) == [2, 3, 4]


def test_whoever_is_answered_and_asks_again_is_in_the_next_batch() -> None:
    bench = Bench(partitions=4)
    clients = {partition_of(name, 4): name for name in "abcdefgh"}
    first = [ask(bench, 2, client=client)[0] for client in clients.values()]
    bench.loop.turn()
    flying = [answer_to(batch) for _, batch in bench.outbox.sent]
    for client in clients.values():
        ask(bench, 3, client=client)
    bench.loop.turn()
    for future, client in zip(first, reversed(clients.values()), strict=True):
        future.add_done_callback(lambda _, client=client: ask(bench, 4, client=client))  # type: ignore[misc]
    bench.batcher.replied(flying)
    bench.loop.turn()
    assert {p: costs(batch) for p, batch in bench.outbox.sent[4:]} == {p: [3, 4] for p in clients}


def test_what_is_known_to_be_denied_is_not_sent_even_while_the_breaker_is_open() -> None:
    bench = Bench()
    bench.denials.proven([0], bench.loop.now)
    [first] = ask(bench, 3)
    bench.loop.advance(0.125)
    decision = Decision(False, 5, 1, 9_000, 6_100, 3)
    bench.batcher.replied([Reply(7, bench.outbox.last.number, 0, -1, [decision])])
    assert first.result() == Answer(False, 5, 1, 9_000, 6_100, 3)
    bench.loop.advance(1)
    bench.denials.proven([0], bench.loop.now)
    # Counted from when the batch was sent.
    assert bench.batcher.ask(Check("alice", 3)) == Answer(False, 5, 1, 7_875, 4_975, 3)
    sent = len(bench.outbox.sent)
    bench.batcher.broker_down("no broker")
    assert bench.batcher.ask(Check("alice", 3)) == Answer(False, 5, 1, 7_875, 4_975, 3)
    assert bench.batcher.ask(Check("alice", 2)) == FAIL_OPEN[BROKER]
    bench.loop.advance(GATHER_S)
    assert [costs(batch) for _, batch in bench.outbox.sent[sent:]] == [[2]]
    assert (bench.metrics.received, bench.metrics.rejected) == (4, 3)
    bench.batcher.close()
    assert bench.batcher.ask(Check("alice", 3)) == FAIL_OPEN[STOPPING]


def test_partitions_do_not_wait_for_each_other() -> None:
    bench = Bench(partitions=4)
    clients = {partition_of(name, 4): name for name in "abcdefgh"}
    for client in clients.values():
        ask(bench, 1, client=client)
    bench.loop.turn()
    assert sorted(partition for partition, _ in bench.outbox.sent) == sorted(clients)


def test_a_long_list_is_split_and_goes_one_batch_after_the_other() -> None:
    bench = Bench()
    futures = ask(bench, *range(MAX_BATCH + 5))
    bench.loop.turn()
    assert [len(batch.checks) for _, batch in bench.outbox.sent] == [MAX_BATCH]
    bench.batcher.replied([answer_to(bench.outbox.last)])
    bench.loop.turn()
    assert len(bench.outbox.last.checks) == 5
    bench.batcher.replied([answer_to(bench.outbox.last)])
    assert remaining(futures) == list(range(MAX_BATCH + 5))


def test_a_record_stays_below_what_the_broker_takes() -> None:
    bench = Bench()
    wide = "\U0001f300" * 64
    for cost in range(2_000):
        bench.batcher.ask(Check(wide, 1_000_000 - cost, wide, wide))
    bench.batcher.publish(Check("alice"))
    bench.loop.turn()
    silent, first = (batch for _, batch in bench.outbox.sent)
    assert silent.partition == NO_REPLY
    assert 500_000 < len(encode_batch(first)) < 950_000


def test_the_deadline_lets_through_and_a_late_reply_changes_nothing() -> None:
    bench = Bench()
    (first,) = ask(bench, 1)
    bench.loop.advance(0.1)
    (second,) = ask(bench, 2)
    bench.loop.advance(0.1499)
    assert not first.done()
    bench.loop.advance(0.0002)
    assert first.result() is FAIL_OPEN["deadline"]
    assert costs(bench.outbox.last) == [2]  # the slot is free
    ask(bench, 3)
    bench.batcher.replied([answer_to(bench.outbox.sent[0][1])])
    assert bench.metrics.late == 1
    assert len(bench.outbox.sent) == 2  # and was not freed again
    assert not second.done()
    bench.loop.advance(0.1)
    assert second.result() is FAIL_OPEN["deadline"]  # its own deadline, not that of its sending


def test_a_reply_that_is_there_when_the_timer_fires_counts() -> None:
    bench = Bench()
    (future,) = ask(bench, 4)
    bench.loop.turn()
    bench.loop.now += 1  # the loop was stalled; on uvloop timers come first
    timer = bench.loop.timers[0]
    bench.loop.call_soon(bench.batcher.replied, [answer_to(bench.outbox.last)])
    timer._run()
    bench.loop.turn()
    assert remaining([future]) == [4]


def test_misses_open_the_breaker_and_checks_are_still_published() -> None:
    bench = Bench()
    open_breaker(bench)
    published = len(bench.outbox.sent)
    answers = [bench.batcher.ask(Check("alice", cost)) for cost in (5, 6)]
    assert {answer.reason for answer in answers if isinstance(answer, Answer)} == {"breaker_open"}
    bench.loop.advance(GATHER_S)
    assert len(bench.outbox.sent) == published + 1
    assert costs(bench.outbox.last) == [1, 5, 6]

    bench.loop.advance(bench.deadline_s)  # too late to be timely
    bench.batcher.replied([answer_to(bench.outbox.last)])
    assert isinstance(bench.batcher.ask(Check("alice", 7)), Answer)

    bench.loop.advance(GATHER_S)
    bench.batcher.ask(Check("alice", 8))
    bench.batcher.replied([answer_to(bench.outbox.last)])
    assert costs(bench.outbox.last) == [8]  # what was being gathered goes before the next check
    ask(bench, 9)
    bench.loop.turn()
    assert costs(bench.outbox.last) == [9]


def test_opening_lets_go_whoever_waits() -> None:
    bench = Bench()
    flying = ask(bench, 1)
    bench.loop.turn()
    waiting = ask(bench, 2)
    bench.batcher.broker_down("no broker")
    assert [f.result() for f in flying + waiting] == [FAIL_OPEN["broker"]] * 2
    assert costs(bench.outbox.last) == [2]
    assert bench.mode.partitions == {0}
    bench.batcher.replied([answer_to(bench.outbox.sent[0][1])])
    assert not bench.mode.partitions
    ask(bench, 3)
    bench.loop.turn()
    assert costs(bench.outbox.last) == [3]


@pytest.mark.parametrize("answered", [True, False])
def test_what_was_sent_while_open_never_frees_the_slot_of_another(answered: bool) -> None:
    bench = Bench(misses=1)
    bench.batcher.broker_down("no broker")
    for cost in (1, 2):
        bench.batcher.ask(Check("alice", cost))
        bench.loop.advance(GATHER_S)
    closing, other = (batch for _, batch in bench.outbox.sent)
    bench.batcher.replied([answer_to(closing)])
    bench.loop.advance(bench.deadline_s - 2 * GATHER_S)
    ask(bench, 3)
    bench.loop.turn()
    ask(bench, 4)
    if answered:
        bench.batcher.replied([answer_to(other)])
    else:
        bench.loop.advance(2 * GATHER_S)
    assert costs(bench.outbox.last) == [3]
    assert not bench.mode.partitions  # nor is it a miss


def test_a_batch_in_flight_when_the_breaker_opens_does_not_hold_up_what_comes_after() -> None:
    bench = Bench()
    ask(bench, 1)
    bench.loop.turn()
    bench.batcher.broker_down("no broker")
    bench.batcher.probe()
    bench.batcher.probe()
    bench.batcher.replied([answer_to(bench.outbox.last)])
    ask(bench, 2)
    bench.loop.turn()
    assert costs(bench.outbox.last) == [2]


def test_what_is_gathered_while_open_is_not_sent_at_the_end_of_the_turn() -> None:
    bench = Bench()
    ask(bench, 1)
    bench.batcher.broker_down("no broker")
    bench.batcher.ask(Check("alice", 2))
    bench.loop.turn()
    assert costs(bench.outbox.last) == [1]
    bench.loop.advance(GATHER_S)
    assert costs(bench.outbox.last) == [2]


def test_a_hit_forgives_earlier_misses() -> None:
    bench = Bench()
    for _ in range(2):
        for _ in range(2):
            ask(bench, 1)
            bench.loop.advance(bench.deadline_s)
        ask(bench, 2)
        bench.loop.turn()
        bench.batcher.replied([answer_to(bench.outbox.last)])
        assert bench.batcher.calm
    assert not bench.mode.degraded


def test_beyond_the_bound_checks_are_let_through_unpublished() -> None:
    bench = Bench(max_in_flight=2)
    ask(bench, 1, 2)
    assert bench.batcher.ask(Check("alice", 3)) is FAIL_OPEN["overload"]
    bench.loop.turn()
    assert costs(bench.outbox.last) == [1, 2]
    assert bench.metrics.uncounted == 1


def test_what_cannot_be_published_is_let_through_and_counted() -> None:
    bench = Bench()
    bench.outbox.broken = True
    futures = ask(bench, 1, 2)
    bench.batcher.publish(Check("alice", 3))
    bench.loop.turn()
    assert {f.result() for f in futures} == {FAIL_OPEN["unpublished"]}
    assert (bench.metrics.uncounted, bench.metrics.publish_failures) == (3, 2)

    bench.outbox.broken = False
    futures = ask(bench, 4)
    bench.loop.turn()
    bench.batcher.undelivered(bench.outbox.last.number, 1)
    assert futures[0].result() is FAIL_OPEN["unpublished"]
    assert bench.metrics.uncounted == 4


def test_a_breaker_tells_what_opened_it() -> None:
    silent, deaf = Bench(), Bench()
    for _ in range(3):
        ask(silent, 1)
        silent.loop.advance(0.3)
        ask(deaf, 1)
        deaf.loop.turn()
        deaf.batcher.undelivered(deaf.outbox.last.number, 1)
    assert (silent.mode.why or "").startswith(
        "partition 0: 3 batches in a row failed, the last had no answer within 250 ms: is its worker running?"
    )
    assert (deaf.mode.why or "").startswith(
        "partition 0: 3 batches in a row failed, the last could not be published: are the brokers well?"
    )


def test_publish_wants_no_reply() -> None:
    bench = Bench()
    for cost in (1, 2):
        bench.batcher.publish(Check("alice", cost))
    bench.loop.turn()
    assert bench.outbox.last.partition == NO_REPLY
    assert costs(bench.outbox.last) == [1, 2]
    assert bench.metrics.published == 2


@pytest.mark.parametrize("error", ["cannot read it", None])
def test_a_reply_that_is_no_answer_lets_through(error: str | None, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    for _ in range(2):
        futures = ask(bench, 1)
        bench.loop.turn()
        bench.batcher.replied([Reply(7, bench.outbox.last.number, 0, 0, [], error)])
        assert futures[0].result() is FAIL_OPEN["rejected_batch"]
    assert len(caplog.records) == 1


def test_replayed_and_unjudged_checks() -> None:
    bench = Bench()
    replayed, unjudged, gone = ask(bench, 1, 2, 3)
    gone.cancel()
    bench.loop.turn()
    (good,) = answer_to(bench.outbox.last).answers[2:]
    bench.batcher.replied([Reply(7, bench.outbox.last.number, 0, 0, [None, "wrong partition", good])])
    assert replayed.result() is FAIL_OPEN["replayed"]
    assert isinstance(unjudged.result(), InvalidInput)
    assert bench.metrics.in_flight == 0


def test_probes_go_where_nothing_is_known() -> None:
    bench = Bench(partitions=2)
    assert bench.batcher.unproven == [0, 1]
    bench.batcher.probe()
    assert [(p, costs(b)) for p, b in bench.outbox.sent] == [(0, []), (1, [])]
    bench.batcher.replied([answer_to(batch) for _, batch in bench.outbox.sent])
    assert bench.batcher.unproven == []
    bench.batcher.probe()
    assert len(bench.outbox.sent) == 2

    bench.batcher.broker_down("gone")
    bench.batcher.probe()
    bench.batcher.probe()
    assert len(bench.outbox.sent) == 6
    assert not bench.metrics.received


def test_stopping_leaves_nobody_waiting() -> None:
    bench = Bench()
    flying = ask(bench, 1)
    bench.loop.turn()
    waiting = ask(bench, 2)
    bench.batcher.close()
    assert bench.batcher.ask(Check("alice", 3)) is FAIL_OPEN["stopping"]
    assert set(bench.batcher.waiting()) == {*flying, *waiting}
    bench.batcher.let_go()
    assert {f.result() for f in flying + waiting} == {FAIL_OPEN["stopping"]}
    assert costs(bench.outbox.last) == [2]
    assert not [timer for timer in bench.loop.timers if not timer.cancelled()]


class AnyOrder(RuleBasedStateMachine):
    """Asks, replies (prompt, late, twice), failures and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(partitions=2, misses=2, max_in_flight=30)
        self.asked: list[tuple[int, float, asyncio.Future[Outcome]]] = []
        self.published: dict[int, list[int]] = defaultdict(list)
        self.next = 0

    @rule(clients=st.lists(st.sampled_from("abcdef"), max_size=12))
    def ask(self, clients: list[str]) -> None:
        for client in clients:
            cost, self.next = self.next, self.next + 1
            outcome = self.bench.batcher.ask(Check(client, cost))
            if isinstance(outcome, asyncio.Future):
                self.asked.append((cost, self.bench.loop.now, outcome))
            if outcome is not FAIL_OPEN["overload"]:
                self.published[partition_of(client, 2)].append(cost)

    @rule()
    def turn(self) -> None:
        self.bench.loop.turn()

    @rule(ms=st.integers(0, 300))
    def advance(self, ms: int) -> None:
        self.bench.loop.advance(ms / 1000)

    @precondition(lambda self: self.bench.outbox.sent)
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        batches = [batch for _, batch in self.bench.outbox.sent[-4:]]
        self.bench.batcher.replied([answer_to(data.draw(st.sampled_from(batches)))])

    @precondition(lambda self: self.bench.outbox.sent)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from([batch for _, batch in self.bench.outbox.sent[-4:]]))
        self.bench.batcher.undelivered(batch.number, len(batch.checks))

    @rule()
    def lose_broker(self) -> None:
        self.bench.batcher.broker_down("gone")

    @rule()
    def probe(self) -> None:
        self.bench.batcher.probe()

    @invariant()
    def answers_are_right_and_timely(self) -> None:
        waiting = 0
        for cost, at, future in self.asked:
            if not future.done():
                waiting += 1
                assert self.bench.loop.now - at <= self.bench.deadline_s + 1e-9
            else:
                answer = future.result()
                assert isinstance(answer, Answer)
                assert answer.degraded or answer.remaining == cost
        assert self.bench.metrics.in_flight == waiting <= 30

    @invariant()
    def one_batch_in_flight(self) -> None:
        waiting = {cost for cost, _, future in self.asked if not future.done()}
        flying = [p for p, batch in self.bench.outbox.sent if waiting.intersection(costs(batch))]
        assert len(flying) == len(set(flying))

    def teardown(self) -> None:
        self.bench.batcher.close()
        self.bench.batcher.let_go()
        assert all(future.done() for *_, future in self.asked)
        sent: dict[int, list[int]] = defaultdict(list)
        for partition, batch in self.bench.outbox.sent:
            sent[partition] += costs(batch)
        assert {p: ids for p, ids in sent.items() if ids} == self.published  # each once, in order
        counted = self.bench.metrics
        assert counted.received == counted.allowed + counted.rejected + counted.failed_open


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40)
