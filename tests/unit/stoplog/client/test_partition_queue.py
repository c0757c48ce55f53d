from __future__ import annotations

import pytest

from stoplog.client.answer import Answer
from stoplog.client.fail_open import FAIL_OPEN
from stoplog.client.partition_queue import GATHER_S
from stoplog.wire.checks import MAX_BATCH, Check
from tests.support.clockwork import Bench, answer_to, costs_of, remaining_of


def test_batch_with_many_checks_has_one_timer() -> None:
    bench = Bench()
    bench.ask(*range(100))
    bench.loop.turn()
    assert [timer.cancelled() for timer in bench.loop.timers] == [False]


def test_batch_of_busy_partition_is_sent_after_reply() -> None:
    bench = Bench()
    bench.ask(1)
    bench.loop.turn()
    first = bench.transport.last
    for cost in (2, 3, 4):
        bench.ask(cost)
        bench.loop.turn()
    assert len(bench.transport.sent) == 1
    bench.batcher.on_replies([answer_to(first)])
    bench.loop.turn()
    assert costs_of(bench.transport.last) == [2, 3, 4]


def test_long_list_is_split_into_batches_sent_one_after_another() -> None:
    bench = Bench()
    futures = bench.ask(*range(MAX_BATCH + 5))
    bench.loop.turn()
    assert [len(batch.checks) for _, batch in bench.transport.sent] == [MAX_BATCH]
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    bench.loop.turn()
    assert len(bench.transport.last.checks) == 5
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert remaining_of(futures) == list(range(MAX_BATCH + 5))


def test_check_fails_open_at_deadline_and_late_reply_changes_nothing() -> None:
    bench = Bench()
    (first,) = bench.ask(1)
    bench.loop.advance(0.1)
    (second,) = bench.ask(2)
    bench.loop.advance(0.1499)
    assert not first.done()
    bench.loop.advance(0.0002)
    assert first.result() is FAIL_OPEN["deadline"]
    assert costs_of(bench.transport.last) == [2]  # the slot is free
    bench.ask(3)
    bench.batcher.on_replies([answer_to(bench.transport.sent[0][1])])
    assert bench.metrics.late == 1
    assert len(bench.transport.sent) == 2  # the late reply does not free it again
    assert not second.done()
    bench.loop.advance(0.1)
    assert second.result() is FAIL_OPEN["deadline"]  # its own deadline, not one from the time it was sent


def test_reply_that_waits_when_timer_fires_counts() -> None:
    bench = Bench()
    (future,) = bench.ask(4)
    bench.loop.turn()
    bench.loop.now += 1  # the loop was stalled; uvloop runs timers first
    timer = bench.loop.timers[0]
    bench.loop.call_soon(bench.batcher.on_replies, [answer_to(bench.transport.last)])
    timer._run()
    bench.loop.turn()
    assert remaining_of([future]) == [4]


def test_misses_open_breaker_and_checks_are_still_published() -> None:
    bench = Bench()
    bench.open_breaker()
    published = len(bench.transport.sent)
    answers = [bench.batcher.ask(Check("alice", cost)) for cost in (5, 6)]
    assert {answer.reason for answer in answers if isinstance(answer, Answer)} == {"breaker_open"}
    bench.loop.advance(GATHER_S)
    assert len(bench.transport.sent) == published + 1
    assert costs_of(bench.transport.last) == [1, 5, 6]

    bench.loop.advance(bench.deadline_s)  # its deadline passes
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert isinstance(bench.batcher.ask(Check("alice", 7)), Answer)

    bench.loop.advance(GATHER_S)
    bench.batcher.ask(Check("alice", 8))
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    assert costs_of(bench.transport.last) == [8]  # gathered checks are sent before the next check
    bench.ask(9)
    bench.loop.turn()
    assert costs_of(bench.transport.last) == [9]


def test_breaker_that_opens_answers_waiting_checks() -> None:
    bench = Bench()
    in_flight = bench.ask(1)
    bench.loop.turn()
    waiting = bench.ask(2)
    bench.batcher.on_broker_down("no broker")
    assert [f.result() for f in in_flight + waiting] == [FAIL_OPEN["broker"]] * 2
    assert costs_of(bench.transport.last) == [2]
    assert bench.mode.partitions == {0}
    bench.batcher.on_replies([answer_to(bench.transport.sent[0][1])])
    assert not bench.mode.partitions
    bench.ask(3)
    bench.loop.turn()
    assert costs_of(bench.transport.last) == [3]


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
    bench.ask(3)
    bench.loop.turn()
    bench.ask(4)
    if answered:
        bench.batcher.on_replies([answer_to(other)])
    else:
        bench.loop.advance(2 * GATHER_S)
    assert costs_of(bench.transport.last) == [3]
    assert not bench.mode.partitions  # and it is not a miss


def test_batch_in_flight_when_breaker_opens_does_not_block_next_batch() -> None:
    bench = Bench()
    bench.ask(1)
    bench.loop.turn()
    bench.batcher.on_broker_down("no broker")
    bench.batcher.probe()
    bench.batcher.probe()
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    bench.ask(2)
    bench.loop.turn()
    assert costs_of(bench.transport.last) == [2]


def test_checks_gathered_while_breaker_is_open_are_not_sent_at_end_of_turn() -> None:
    bench = Bench()
    bench.ask(1)
    bench.batcher.on_broker_down("no broker")
    bench.batcher.ask(Check("alice", 2))
    bench.loop.turn()
    assert costs_of(bench.transport.last) == [1]
    bench.loop.advance(GATHER_S)
    assert costs_of(bench.transport.last) == [2]


def test_timely_reply_resets_misses() -> None:
    bench = Bench()
    for _ in range(2):
        for _ in range(2):
            bench.ask(1)
            bench.loop.advance(bench.deadline_s)
        bench.ask(2)
        bench.loop.turn()
        bench.batcher.on_replies([answer_to(bench.transport.last)])
        assert bench.batcher.healthy
    assert not bench.mode.degraded


def test_unpublished_checks_fail_open_and_are_counted() -> None:
    bench = Bench()
    bench.transport.broken = True
    futures = bench.ask(1, 2)
    bench.batcher.publish(Check("alice", 3))
    bench.loop.turn()
    assert {f.result() for f in futures} == {FAIL_OPEN["unpublished"]}
    assert (bench.metrics.uncounted, bench.metrics.publish_failures) == (3, 2)

    bench.transport.broken = False
    futures = bench.ask(4)
    bench.loop.turn()
    bench.batcher.on_undelivered(bench.transport.last.number, 1)
    assert futures[0].result() is FAIL_OPEN["unpublished"]
    assert bench.metrics.uncounted == 4


def test_degraded_mode_states_why_breaker_opened() -> None:
    no_reply, no_broker = Bench(), Bench()
    for _ in range(3):
        no_reply.ask(1)
        no_reply.loop.advance(0.3)
        no_broker.ask(1)
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


def test_probe_is_sent_to_partitions_without_proof_of_a_reply() -> None:
    bench = Bench(partitions=2)
    assert bench.batcher.never_replied == [0, 1]
    bench.batcher.probe()
    assert [(p, costs_of(b)) for p, b in bench.transport.sent] == [(0, []), (1, [])]
    bench.batcher.on_replies([answer_to(batch) for _, batch in bench.transport.sent])
    assert bench.batcher.never_replied == []
    bench.batcher.probe()
    assert len(bench.transport.sent) == 2

    bench.batcher.on_broker_down("gone")
    bench.batcher.probe()
    bench.batcher.probe()
    assert len(bench.transport.sent) == 6
    assert not bench.metrics.received


def test_probes_before_the_first_reply_open_the_breaker_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(partitions=2)
    for _ in range(4):
        bench.batcher.probe()
        bench.loop.advance(bench.deadline_s)
    assert bench.mode.partitions == {0, 1}
    assert caplog.records == []
    bench.batcher.probe()
    bench.batcher.on_replies([answer_to(batch) for _, batch in bench.transport.sent[-2:]])
    assert bench.mode.partitions == set()

    for _ in range(4):  # a partition that has replied is silent
        bench.batcher.probe(broker_in_doubt=True)
        bench.loop.advance(bench.deadline_s)
    assert "Is its worker running?" in caplog.text


@pytest.mark.parametrize("broken", ["publishing", "broker"])
def test_broker_that_fails_before_the_first_reply_is_logged_at_once(
    caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    bench = Bench()
    if broken == "broker":
        bench.batcher.on_broker_down("no broker answers")
    else:
        for _ in range(3):
            bench.ask(1)
            bench.loop.turn()
            bench.batcher.on_undelivered(bench.transport.last.number, 1)
    assert "degraded: checks fail open" in caplog.text
