from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoplog.client.answer import Answer, Outcome
from stoplog.client.fail_open import BROKER, FAIL_OPEN, STOPPING
from stoplog.client.partition_queue import GATHER_S
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


def test_batch_of_idle_partition_is_sent_at_end_of_turn() -> None:
    bench = Bench()
    futures = ask(bench, 2, 3, 4)
    assert not bench.transport.sent
    bench.loop.turn()
    assert costs(bench.transport.last) == [2, 3, 4]
    assert bench.transport.last.partition == bench.transport.reply_partition
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert remaining(futures) == [2, 3, 4]
    assert [f.result().allowed for f in futures] == [True, False, True]  # type: ignore[union-attr]
    assert (bench.metrics.allowed, bench.metrics.rejected, bench.metrics.in_flight) == (2, 1, 0)


def test_batch_with_many_checks_has_one_timer() -> None:
    bench = Bench()
    ask(bench, *range(100))
    bench.loop.turn()
    assert [timer.cancelled() for timer in bench.loop.timers] == [False]


def test_batch_of_busy_partition_is_sent_after_reply() -> None:
    bench = Bench()
    ask(bench, 1)
    bench.loop.turn()
    first = bench.transport.last
    for cost in (2, 3, 4):
        ask(bench, cost)
        bench.loop.turn()
    assert len(bench.transport.sent) == 1
    bench.batcher.on_replies([answer_to(first)])
    bench.loop.turn()
    assert costs(bench.transport.last) == [2, 3, 4]


def test_caller_that_asks_again_after_its_answer_is_in_next_batch() -> None:
    bench = Bench(partitions=4)
    clients = {partition_of(name, 4): name for name in "abcdefgh"}
    first = [ask(bench, 2, client=client)[0] for client in clients.values()]
    bench.loop.turn()
    in_flight = [answer_to(batch) for _, batch in bench.transport.sent]
    for client in clients.values():
        ask(bench, 3, client=client)
    bench.loop.turn()
    for future, client in zip(first, reversed(clients.values()), strict=True):
        future.add_done_callback(lambda _, client=client: ask(bench, 4, client=client))  # type: ignore[misc]
    bench.batcher.on_replies(in_flight)
    bench.loop.turn()
    assert {p: costs(batch) for p, batch in bench.transport.sent[4:]} == {p: [3, 4] for p in clients}


def test_known_denial_is_answered_without_sending_even_while_breaker_is_open() -> None:
    bench = Bench()
    bench.denials.on_proof([0], bench.loop.now)
    [first] = ask(bench, 3)
    bench.loop.advance(0.125)
    decision = Decision(False, 5, 1, 9_000, 6_100, 3)
    bench.batcher.on_replies([Reply(7, bench.transport.last.number, 0, -1, [decision])])
    assert first.result() == Answer(False, 5, 1, 9_000, 6_100, 3)
    bench.loop.advance(1)
    bench.denials.on_proof([0], bench.loop.now)
    # The wait is counted from the time the batch was sent.
    assert bench.batcher.ask(Check("alice", 3)) == Answer(False, 5, 1, 7_875, 4_975, 3)
    sent = len(bench.transport.sent)
    bench.batcher.on_broker_down("no broker")
    assert bench.batcher.ask(Check("alice", 3)) == Answer(False, 5, 1, 7_875, 4_975, 3)
    assert bench.batcher.ask(Check("alice", 2)) == FAIL_OPEN[BROKER]
    bench.loop.advance(GATHER_S)
    assert [costs(batch) for _, batch in bench.transport.sent[sent:]] == [[2]]
    assert (bench.metrics.received, bench.metrics.rejected) == (4, 3)
    bench.batcher.close()
    assert bench.batcher.ask(Check("alice", 3)) == FAIL_OPEN[STOPPING]


def test_partitions_do_not_wait_for_each_other() -> None:
    bench = Bench(partitions=4)
    clients = {partition_of(name, 4): name for name in "abcdefgh"}
    for client in clients.values():
        ask(bench, 1, client=client)
    bench.loop.turn()
    assert sorted(partition for partition, _ in bench.transport.sent) == sorted(clients)


def test_long_list_is_split_into_batches_sent_one_after_another() -> None:
    bench = Bench()
    futures = ask(bench, *range(MAX_BATCH + 5))
    bench.loop.turn()
    assert [len(batch.checks) for _, batch in bench.transport.sent] == [MAX_BATCH]
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    bench.loop.turn()
    assert len(bench.transport.last.checks) == 5
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert remaining(futures) == list(range(MAX_BATCH + 5))


def test_record_of_large_checks_stays_below_broker_limit() -> None:
    bench = Bench()
    wide = "\U0001f300" * 64
    for cost in range(2_000):
        bench.batcher.ask(Check(wide, 1_000_000 - cost, wide, wide))
    bench.batcher.publish(Check("alice"))
    bench.loop.turn()
    without_reply, first = (batch for _, batch in bench.transport.sent)
    assert without_reply.partition == NO_REPLY
    assert 500_000 < len(encode_batch(first)) < 950_000


def test_check_fails_open_at_deadline_and_late_reply_changes_nothing() -> None:
    bench = Bench()
    (first,) = ask(bench, 1)
    bench.loop.advance(0.1)
    (second,) = ask(bench, 2)
    bench.loop.advance(0.1499)
    assert not first.done()
    bench.loop.advance(0.0002)
    assert first.result() is FAIL_OPEN["deadline"]
    assert costs(bench.transport.last) == [2]  # the slot is free
    ask(bench, 3)
    bench.batcher.on_replies([answer_to(bench.transport.sent[0][1])])
    assert bench.metrics.late == 1
    assert len(bench.transport.sent) == 2  # the late reply does not free it again
    assert not second.done()
    bench.loop.advance(0.1)
    assert second.result() is FAIL_OPEN["deadline"]  # its own deadline, not one from the time it was sent


def test_reply_that_waits_when_timer_fires_counts() -> None:
    bench = Bench()
    (future,) = ask(bench, 4)
    bench.loop.turn()
    bench.loop.now += 1  # the loop was stalled; uvloop runs timers first
    timer = bench.loop.timers[0]
    bench.loop.call_soon(bench.batcher.on_replies, [answer_to(bench.transport.last)])
    timer._run()
    bench.loop.turn()
    assert remaining([future]) == [4]


def test_misses_open_breaker_and_checks_are_still_published() -> None:
    bench = Bench()
    open_breaker(bench)
    published = len(bench.transport.sent)
    answers = [bench.batcher.ask(Check("alice", cost)) for cost in (5, 6)]
    assert {answer.reason for answer in answers if isinstance(answer, Answer)} == {"breaker_open"}
    bench.loop.advance(GATHER_S)
    assert len(bench.transport.sent) == published + 1
    assert costs(bench.transport.last) == [1, 5, 6]

    bench.loop.advance(bench.deadline_s)  # its deadline passes
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert isinstance(bench.batcher.ask(Check("alice", 7)), Answer)

    bench.loop.advance(GATHER_S)
    bench.batcher.ask(Check("alice", 8))
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert costs(bench.transport.last) == [8]  # gathered checks are sent before the next check
    ask(bench, 9)
    bench.loop.turn()
    assert costs(bench.transport.last) == [9]


def test_breaker_that_opens_answers_waiting_checks() -> None:
    bench = Bench()
    in_flight = ask(bench, 1)
    bench.loop.turn()
    waiting = ask(bench, 2)
    bench.batcher.on_broker_down("no broker")
    assert [f.result() for f in in_flight + waiting] == [FAIL_OPEN["broker"]] * 2
    assert costs(bench.transport.last) == [2]
    assert bench.mode.partitions == {0}
    bench.batcher.on_replies([answer_to(bench.transport.sent[0][1])])
    assert not bench.mode.partitions
    ask(bench, 3)
    bench.loop.turn()
    assert costs(bench.transport.last) == [3]


@pytest.mark.parametrize("answered", [True, False])
def test_batch_sent_while_breaker_was_open_does_not_free_slot(answered: bool) -> None:
    bench = Bench(misses=1)
    bench.batcher.on_broker_down("no broker")
    for cost in (1, 2):
        bench.batcher.ask(Check("alice", cost))
        bench.loop.advance(GATHER_S)
    closing, other = (batch for _, batch in bench.transport.sent)
    bench.batcher.on_replies([answer_to(closing)])
    bench.loop.advance(bench.deadline_s - 2 * GATHER_S)
    ask(bench, 3)
    bench.loop.turn()
    ask(bench, 4)
    if answered:
        bench.batcher.on_replies([answer_to(other)])
    else:
        bench.loop.advance(2 * GATHER_S)
    assert costs(bench.transport.last) == [3]
    assert not bench.mode.partitions  # and it is not a miss


def test_batch_in_flight_when_breaker_opens_does_not_block_next_batch() -> None:
    bench = Bench()
    ask(bench, 1)
    bench.loop.turn()
    bench.batcher.on_broker_down("no broker")
    bench.batcher.probe()
    bench.batcher.probe()
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    ask(bench, 2)
    bench.loop.turn()
    assert costs(bench.transport.last) == [2]


def test_checks_gathered_while_breaker_is_open_are_not_sent_at_end_of_turn() -> None:
    bench = Bench()
    ask(bench, 1)
    bench.batcher.on_broker_down("no broker")
    bench.batcher.ask(Check("alice", 2))
    bench.loop.turn()
    assert costs(bench.transport.last) == [1]
    bench.loop.advance(GATHER_S)
    assert costs(bench.transport.last) == [2]


def test_timely_reply_resets_misses() -> None:
    bench = Bench()
    for _ in range(2):
        for _ in range(2):
            ask(bench, 1)
            bench.loop.advance(bench.deadline_s)
        ask(bench, 2)
        bench.loop.turn()
        bench.batcher.on_replies([answer_to(bench.transport.last)])
        assert bench.batcher.healthy
    assert not bench.mode.degraded


def test_check_beyond_max_in_flight_fails_open_unpublished() -> None:
    bench = Bench(max_in_flight=2)
    ask(bench, 1, 2)
    assert bench.batcher.ask(Check("alice", 3)) is FAIL_OPEN["overload"]
    bench.loop.turn()
    assert costs(bench.transport.last) == [1, 2]
    assert bench.metrics.uncounted == 1


def test_unpublished_checks_fail_open_and_are_counted() -> None:
    bench = Bench()
    bench.transport.broken = True
    futures = ask(bench, 1, 2)
    bench.batcher.publish(Check("alice", 3))
    bench.loop.turn()
    assert {f.result() for f in futures} == {FAIL_OPEN["unpublished"]}
    assert (bench.metrics.uncounted, bench.metrics.publish_failures) == (3, 2)

    bench.transport.broken = False
    futures = ask(bench, 4)
    bench.loop.turn()
    bench.batcher.on_undelivered(bench.transport.last.number, 1)
    assert futures[0].result() is FAIL_OPEN["unpublished"]
    assert bench.metrics.uncounted == 4


def test_degraded_mode_states_why_breaker_opened() -> None:
    no_reply, no_broker = Bench(), Bench()
    for _ in range(3):
        ask(no_reply, 1)
        no_reply.loop.advance(0.3)
        ask(no_broker, 1)
        no_broker.loop.turn()
        no_broker.batcher.on_undelivered(no_broker.transport.last.number, 1)
    assert (no_reply.mode.why or "").startswith(
        "partition 0: 3 batches in a row failed, the last one had no reply within 250 ms. "
        "Is its worker running?"
    )
    assert (no_broker.mode.why or "").startswith(
        "partition 0: 3 batches in a row failed, the last one could not be published. "
        "Are the brokers healthy?"
    )


def test_publish_sends_batch_without_reply_address() -> None:
    bench = Bench()
    for cost in (1, 2):
        bench.batcher.publish(Check("alice", cost))
    bench.loop.turn()
    assert bench.transport.last.partition == NO_REPLY
    assert costs(bench.transport.last) == [1, 2]
    assert bench.metrics.published == 2


@pytest.mark.parametrize("error", ["cannot read it", None])
def test_reply_without_answers_fails_open_and_logs_once(
    error: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    for _ in range(2):
        futures = ask(bench, 1)
        bench.loop.turn()
        bench.batcher.on_replies([Reply(7, bench.transport.last.number, 0, 0, [], error)])
        assert futures[0].result() is FAIL_OPEN["rejected_batch"]
    assert len(caplog.records) == 1


def test_replayed_check_fails_open_and_refused_check_is_an_error() -> None:
    bench = Bench()
    replayed, unjudged, gone = ask(bench, 1, 2, 3)
    gone.cancel()
    bench.loop.turn()
    (good,) = answer_to(bench.transport.last).answers[2:]
    bench.batcher.on_replies([Reply(7, bench.transport.last.number, 0, 0, [None, "wrong partition", good])])
    assert replayed.result() is FAIL_OPEN["replayed"]
    assert isinstance(unjudged.result(), InvalidInput)
    assert bench.metrics.in_flight == 0


def test_probe_is_sent_to_partitions_without_proof_of_a_reply() -> None:
    bench = Bench(partitions=2)
    assert bench.batcher.never_replied == [0, 1]
    bench.batcher.probe()
    assert [(p, costs(b)) for p, b in bench.transport.sent] == [(0, []), (1, [])]
    bench.batcher.on_replies([answer_to(batch) for _, batch in bench.transport.sent])
    assert bench.batcher.never_replied == []
    bench.batcher.probe()
    assert len(bench.transport.sent) == 2

    bench.batcher.on_broker_down("gone")
    bench.batcher.probe()
    bench.batcher.probe()
    assert len(bench.transport.sent) == 6
    assert not bench.metrics.received


def test_stop_answers_every_waiting_check() -> None:
    bench = Bench()
    in_flight = ask(bench, 1)
    bench.loop.turn()
    waiting = ask(bench, 2)
    bench.batcher.close()
    assert bench.batcher.ask(Check("alice", 3)) is FAIL_OPEN["stopping"]
    assert set(bench.batcher.waiting()) == {*in_flight, *waiting}
    bench.batcher.stop()
    assert {f.result() for f in in_flight + waiting} == {FAIL_OPEN["stopping"]}
    assert costs(bench.transport.last) == [2]
    assert not [timer for timer in bench.loop.timers if not timer.cancelled()]


class AnyOrder(RuleBasedStateMachine):
    """Checks, replies (timely, late, repeated), failures and time in any order."""

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

    @precondition(lambda self: self.bench.transport.sent)
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        batches = [batch for _, batch in self.bench.transport.sent[-4:]]
        self.bench.batcher.on_replies([answer_to(data.draw(st.sampled_from(batches)))])

    @precondition(lambda self: self.bench.transport.sent)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from([batch for _, batch in self.bench.transport.sent[-4:]]))
        self.bench.batcher.on_undelivered(batch.number, len(batch.checks))

    @rule()
    def lose_broker(self) -> None:
        self.bench.batcher.on_broker_down("gone")

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
        in_flight = [p for p, batch in self.bench.transport.sent if waiting.intersection(costs(batch))]
        assert len(in_flight) == len(set(in_flight))

    def teardown(self) -> None:
        self.bench.batcher.close()
        self.bench.batcher.stop()
        assert all(future.done() for *_, future in self.asked)
        sent: dict[int, list[int]] = defaultdict(list)
        for partition, batch in self.bench.transport.sent:
            sent[partition] += costs(batch)
        assert {p: ids for p, ids in sent.items() if ids} == self.published  # each once, in order
        counted = self.bench.metrics
        assert counted.received == counted.allowed + counted.rejected + counted.failed_open


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40)
