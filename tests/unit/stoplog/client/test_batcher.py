from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoplog.client.answer import Answer, Outcome
from stoplog.client.fail_open import BROKER, FAIL_CLOSED, FAIL_OPEN, STOPPING
from stoplog.client.partition_queue import GATHER_S
from stoplog.partitioning import partition_of
from stoplog.wire.checks import Check, encode_batch
from stoplog.wire.format import NO_REPLY
from stoplog.wire.replies import Decision, Reply
from tests.support.clockwork import Bench, answer_to, costs_of, remaining_of


def test_batch_of_idle_partition_is_sent_at_end_of_turn() -> None:
    bench = Bench()
    futures = bench.ask(2, 3, 4)
    assert not bench.transport.sent
    bench.loop.turn()
    assert costs_of(bench.transport.last) == [2, 3, 4]
    assert bench.transport.last.partition == bench.transport.reply_partition
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert remaining_of(futures) == [2, 3, 4]
    assert [f.result().allowed for f in futures] == [True, False, True]  # type: ignore[union-attr]
    assert (bench.metrics.allowed, bench.metrics.rejected, bench.metrics.in_flight) == (2, 1, 0)


def test_caller_that_asks_again_after_its_answer_is_in_next_batch() -> None:
    bench = Bench(partitions=4)
    clients = {partition_of(name, 4): name for name in "abcdefgh"}
    first = [bench.ask(2, client=client)[0] for client in clients.values()]
    bench.loop.turn()
    in_flight = [answer_to(batch) for _, batch in bench.transport.sent]
    for client in clients.values():
        bench.ask(3, client=client)
    bench.loop.turn()
    for future, client in zip(first, reversed(clients.values()), strict=True):
        future.add_done_callback(lambda _, client=client: bench.ask(4, client=client))  # type: ignore[misc]
    bench.batcher.on_replies(in_flight)
    bench.loop.turn()
    assert {p: costs_of(batch) for p, batch in bench.transport.sent[4:]} == {p: [3, 4] for p in clients}


def test_known_denial_is_answered_without_sending_even_while_breaker_is_open() -> None:
    bench = Bench()
    bench.denials.on_proof([0], bench.loop.now)
    [first] = bench.ask(3)
    bench.loop.advance(0.125)
    decision = Decision(False, 5, 1, 9_000, 6_100, 3)
    bench.batcher.on_replies([Reply(7, bench.transport.last.number, 0, -1, [decision])])
    assert first.result() == Answer(False, 5, 1, 9_000, 6_100, 3)
    bench.loop.advance(0.0625)
    bench.denials.on_proof([0], bench.loop.now)
    # The wait is counted from the time the reply arrived, and the end of the denial from when it was sent.
    assert bench.batcher.ask(Check("alice", 3)) == Answer(False, 5, 1, 8_938, 6_038, 3)
    sent = len(bench.transport.sent)
    bench.batcher.on_broker_down("no broker")
    bench.loop.advance(1)
    bench.denials.on_proof([0], bench.loop.now)
    assert bench.batcher.ask(Check("alice", 3)) == Answer(False, 5, 1, 7_938, 5_038, 3)
    assert bench.batcher.ask(Check("alice", 2)) == FAIL_OPEN[BROKER]
    bench.loop.advance(GATHER_S)
    assert [costs_of(batch) for _, batch in bench.transport.sent[sent:]] == [[2]]
    assert (bench.metrics.received, bench.metrics.rejected) == (4, 3)
    bench.batcher.close()
    assert bench.batcher.ask(Check("alice", 3)) == FAIL_OPEN[STOPPING]


def test_partitions_do_not_wait_for_each_other() -> None:
    bench = Bench(partitions=4)
    clients = {partition_of(name, 4): name for name in "abcdefgh"}
    for client in clients.values():
        bench.ask(1, client=client)
    bench.loop.turn()
    assert sorted(partition for partition, _ in bench.transport.sent) == sorted(clients)


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


def test_batch_is_sent_before_the_turn_goes_on_to_answer_checks_at_once() -> None:
    bench = Bench()
    bench.ask(1, 2)
    assert bench.batcher.answer_at_once(Check("alice", 3)) is FAIL_OPEN["overload"]
    assert [costs_of(batch) for _, batch in bench.transport.sent] == [[1, 2]]
    bench.batcher.answer_at_once(Check("alice", 4))
    assert len(bench.transport.sent) == 1, "those that are answered at once still share a batch"
    bench.loop.turn()
    assert [costs_of(batch) for _, batch in bench.transport.sent] == [[1, 2], [3, 4]]


def test_check_beyond_max_in_flight_fails_open_unpublished() -> None:
    bench = Bench(max_in_flight=2)
    bench.ask(1, 2)
    assert bench.batcher.ask(Check("alice", 3)) is FAIL_OPEN["overload"]
    bench.loop.turn()
    assert costs_of(bench.transport.last) == [1, 2]
    assert bench.metrics.uncounted == 1


def test_check_that_asked_for_it_fails_closed_for_every_reason_and_is_counted_alike() -> None:
    check = Check("alice", 3)
    bench = Bench(max_in_flight=1)
    waiting = bench.batcher.ask(check, True)
    assert isinstance(waiting, asyncio.Future)
    assert bench.batcher.ask(check, True) is FAIL_CLOSED["overload"]
    bench.loop.advance(bench.deadline_s)
    assert waiting.result() is FAIL_CLOSED["deadline"]
    assert costs_of(bench.transport.last) == [3]  # published, so it will be counted
    bench.batcher.on_broker_down("no broker")
    assert bench.batcher.ask(check, True) is FAIL_CLOSED["broker"]
    assert bench.batcher.ask(check) is FAIL_OPEN["broker"]
    bench.loop.advance(GATHER_S)
    assert costs_of(bench.transport.last) == [3, 3]
    bench.batcher.close()
    assert bench.batcher.ask(check, True) is FAIL_CLOSED["stopping"]
    assert bench.metrics.failed_closed | {"internal_error": 0} == {
        **dict.fromkeys(bench.metrics.failed_closed, 0),
        **dict.fromkeys(("overload", "deadline", "broker", "stopping"), 1),
    }


def test_store_decides_a_check_that_would_fail_closed() -> None:
    bench = Bench()
    pending = [bench.batcher.ask(Check("alice", cost), True) for cost in (2, 3)]
    bench.loop.turn()
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    answers = [one.result() for one in pending if isinstance(one, asyncio.Future)]
    assert [(a.allowed, a.degraded) for a in answers if isinstance(a, Answer)] == [
        (True, False),
        (False, False),
    ]
    assert not any(bench.metrics.failed_closed.values())


def test_publish_sends_batch_without_reply_address() -> None:
    bench = Bench()
    for cost in (1, 2):
        bench.batcher.publish(Check("alice", cost))
    bench.loop.turn()
    assert bench.transport.last.partition == NO_REPLY
    assert costs_of(bench.transport.last) == [1, 2]
    assert bench.metrics.published == 2


@pytest.mark.parametrize("error", ["cannot read it", None])
def test_reply_without_answers_fails_open_and_logs_once(
    error: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    for _ in range(2):
        futures = bench.ask(1)
        bench.loop.turn()
        bench.batcher.on_replies([Reply(7, bench.transport.last.number, 0, 0, [], error)])
        assert futures[0].result() is FAIL_OPEN["rejected_batch"]
    assert len(caplog.records) == 1


def test_replayed_check_and_one_that_a_worker_refuses_fail_open() -> None:
    bench = Bench()
    replayed, unjudged, gone = bench.ask(1, 2, 3)
    gone.cancel()
    bench.loop.turn()
    (good,) = answer_to(bench.transport.last).answers[2:]
    bench.batcher.on_replies([Reply(7, bench.transport.last.number, 0, 0, [None, "wrong partition", good])])
    assert replayed.result() is FAIL_OPEN["replayed"]
    assert unjudged.result() is FAIL_OPEN["rejected_batch"]
    assert bench.metrics.in_flight == 0


def test_stop_answers_every_waiting_check() -> None:
    bench = Bench()
    in_flight = bench.ask(1)
    bench.loop.turn()
    waiting = bench.ask(2)
    bench.batcher.close()
    assert bench.batcher.ask(Check("alice", 3)) is FAIL_OPEN["stopping"]
    assert set(bench.batcher.waiting()) == {*in_flight, *waiting}
    bench.batcher.stop()
    assert {f.result() for f in in_flight + waiting} == {FAIL_OPEN["stopping"]}
    assert costs_of(bench.transport.last) == [2]
    assert not [timer for timer in bench.loop.timers if not timer.cancelled()]


class AnyOrder(RuleBasedStateMachine):
    """Checks, replies (timely, late, repeated), failures and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(partitions=2, misses=2, max_in_flight=30)
        self.asked: list[tuple[int, float, asyncio.Future[Outcome]]] = []
        self.closed: set[int] = set()
        self.published: dict[int, list[int]] = defaultdict(list)
        self.next = 0

    @rule(clients=st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=12))
    def ask(self, clients: list[tuple[str, bool]]) -> None:
        for client, fails_closed in clients:
            cost, self.next = self.next, self.next + 1
            if fails_closed:
                self.closed.add(cost)
            outcome = self.bench.batcher.ask(Check(client, cost), fails_closed)
            if isinstance(outcome, asyncio.Future):
                self.asked.append((cost, self.bench.loop.now, outcome))
            if isinstance(outcome, Answer):
                assert outcome.allowed is not fails_closed
            if outcome not in (FAIL_OPEN["overload"], FAIL_CLOSED["overload"]):
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
                assert not answer.degraded or answer.allowed is (cost not in self.closed)
        assert self.bench.metrics.in_flight == waiting <= 30

    @invariant()
    def one_batch_in_flight(self) -> None:
        waiting = {cost for cost, _, future in self.asked if not future.done()}
        in_flight = [p for p, batch in self.bench.transport.sent if waiting.intersection(costs_of(batch))]
        assert len(in_flight) == len(set(in_flight))

    def teardown(self) -> None:
        self.bench.batcher.close()
        self.bench.batcher.stop()
        assert all(future.done() for *_, future in self.asked)
        sent: dict[int, list[int]] = defaultdict(list)
        for partition, batch in self.bench.transport.sent:
            sent[partition] += costs_of(batch)
        assert {p: ids for p, ids in sent.items() if ids} == self.published  # each once, in order
        counted = self.bench.metrics
        closed = sum(counted.failed_closed.values())
        assert counted.received == counted.allowed + counted.rejected + counted.failed_open + closed


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40)
