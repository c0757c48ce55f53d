"""Several lanes reply to each batch: the first reply answers, the others are compared with it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.client.answer import Answer
from stoplog.client.lane_divergence import KEPT_ANSWERS, LOG_PAUSE_S, REPLY_COST, DivergenceDetector
from stoplog.client.metrics import Metrics
from stoplog.client.pending_batch import PendingBatch
from stoplog.wire.checks import Check
from stoplog.wire.replies import Decision, Reply
from tests.support.clockwork import Bench, answer_to

Answers = list[Decision | str | None]

YES = Decision(True, 100, 99, 60_000, 0, 3)
NO = Decision(False, 100, 0, 60_000, 9, 3)


def reply(number: int, answers: Answers, error: str | None = None, offset: int = 17) -> Reply:
    return Reply(7, number, offset, -1, answers, error)


class Detector:
    """A detector, with a clock that the test sets."""

    def __init__(self, partitions: int = 1, *, lanes: int = 2) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.detector = DivergenceDetector(self.metrics, partitions, lambda: self.now)
        self.detector.lanes = lanes

    def pair(self, first: Reply, second: Reply) -> int:
        self.detector.remember(0, first)
        self.detector.compare(second)
        return self.metrics.divergence


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], []),
        ([YES, NO], [YES, NO]),
        ([YES, None], [None, NO]),
        ([None, None], [YES, NO]),
        (["no such client"], ["no such client"]),
        (["no such client"], [None]),
    ],
)
def test_equal_or_missing_answers_do_not_diverge(first: Answers, second: Answers) -> None:
    assert Detector().pair(reply(1, first), reply(1, second, offset=18)) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (reply(1, [YES]), reply(1, [NO])),
        (reply(1, [None, YES]), reply(1, [YES, NO])),
        (reply(1, [YES]), reply(1, [])),
        (reply(1, [YES]), reply(1, [YES, None])),
        (reply(1, [YES]), reply(1, ["unfit"])),
        (reply(1, [YES]), reply(1, [], "cannot be read")),
        (reply(1, [], "cannot be read"), reply(1, [YES])),
    ],
)
def test_batch_with_different_answers_is_counted_once(first: Reply, second: Reply) -> None:
    bench = Detector()
    assert bench.pair(first, second) == 1
    for again in (second, first, second):
        bench.detector.compare(again)
    assert bench.metrics.divergence == 1


def test_reply_without_a_kept_first_reply_is_ignored() -> None:
    bench = Detector()
    bench.detector.compare(reply(5, [NO]))
    assert bench.metrics.divergence == 0


def test_busy_partition_takes_no_memory_of_another() -> None:
    bench = Detector(partitions=2)
    bench.detector.remember(1, reply(1, [YES]))
    each = 100
    fit = KEPT_ANSWERS // 2 // (each + REPLY_COST)
    for number in range(2, fit + 3):  # one more than fits
        bench.detector.remember(0, reply(number, [YES] * each))
    for number, expected in ((1, 1), (2, 0), (3, 1), (fit + 2, 1)):
        before = bench.metrics.divergence
        bench.detector.compare(reply(number, [NO]))
        assert bench.metrics.divergence - before == expected, number


def test_reply_larger_than_the_memory_is_kept_until_the_next() -> None:
    bench = Detector(partitions=64)
    bench.detector.remember(0, reply(1, [YES] * 10_000))
    bench.detector.remember(0, reply(2, [YES]))
    bench.detector.compare(reply(1, [NO] * 10_000))
    assert bench.metrics.divergence == 0
    bench.detector.compare(reply(2, [NO]))
    assert bench.metrics.divergence == 1


def test_divergence_is_logged_with_its_place_and_throttled(caplog: pytest.LogCaptureFixture) -> None:
    bench = Detector()
    caplog.set_level(logging.ERROR)
    bench.pair(reply(11, [YES, YES], offset=40), reply(11, [YES, NO], offset=41))
    (line,) = caplog.messages
    assert "batch 11 of partition 0 (offsets 40 and 41), check 1:" in line
    assert str(YES) in line
    assert str(NO) in line

    bench.pair(reply(12, [YES]), reply(12, ["x" * 100_000]))
    assert len(caplog.messages) == 1
    bench.now += LOG_PAUSE_S
    bench.pair(reply(13, ["x" * 100_000]), reply(13, [], "y" * 100_000))
    assert len(caplog.messages) == 2
    assert "suppressed: 1" in caplog.messages[1]
    assert len(caplog.messages[1]) < 1_000
    assert bench.metrics.divergence == 3


def test_different_second_reply_of_one_lane_has_its_own_metric_and_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Detector(lanes=1)
    bench.pair(reply(11, [YES], offset=40), reply(11, [NO], offset=40))
    assert bench.metrics.divergence == 0
    assert bench.metrics.second_replies == {"same": 0, "different": 1, "unknown": 0}
    (line,) = caplog.messages
    assert line.startswith("a batch got two different replies, although there is one lane: batch 11 of ")
    assert "only workers may write to `replies`" in line
    assert "two lanes" not in line


def test_equal_and_unknown_replies_of_one_lane_are_counted_without_a_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Detector(lanes=1)
    bench.pair(reply(1, [YES]), reply(1, [YES]))
    bench.detector.compare(reply(2, [NO]))
    assert bench.metrics.second_replies == {"same": 1, "different": 0, "unknown": 1}
    assert (bench.metrics.divergence, caplog.messages) == (0, [])


@pytest.mark.parametrize("lanes", [0, 2])
def test_second_replies_are_not_counted_unless_there_is_one_lane(lanes: int) -> None:
    bench = Detector(lanes=lanes)
    bench.pair(reply(1, [YES]), reply(1, [NO]))
    bench.detector.compare(reply(2, [NO]))
    assert bench.metrics.second_replies == {"same": 0, "different": 0, "unknown": 0}
    assert bench.metrics.divergence == 1


# --- in the batcher ---


def test_first_reply_answers_and_second_is_not_late() -> None:
    bench = Bench()
    future = bench.batcher.ask(Check("alice", 2))
    bench.loop.turn()
    first = answer_to(bench.transport.last)
    bench.batcher.on_replies([first, first, reply(first.number, [NO])])
    assert isinstance(future, asyncio.Future)
    answer = future.result()
    assert isinstance(answer, Answer)
    assert answer.allowed
    assert (bench.metrics.late, bench.metrics.divergence, bench.metrics.allowed) == (0, 1, 1)


def test_second_of_two_late_replies_is_compared() -> None:
    bench = Bench()
    bench.batcher.ask(Check("alice", 2))
    bench.loop.advance(bench.deadline_s)
    late = answer_to(bench.transport.last)
    bench.batcher.on_replies([late])
    assert (bench.metrics.late, bench.metrics.divergence) == (1, 0)
    bench.batcher.on_replies([late, reply(late.number, [NO])])
    assert (bench.metrics.late, bench.metrics.divergence) == (1, 1)


def test_one_timely_lane_keeps_breaker_closed() -> None:
    bench = Bench(misses=2)
    for _ in range(5):
        bench.batcher.ask(Check("alice", 2))
        bench.loop.turn()
        one = answer_to(bench.transport.last)
        bench.batcher.on_replies([one])
        bench.loop.advance(1.0)
        bench.batcher.on_replies([one])  # the other lane misses every deadline
    assert not isinstance(bench.batcher.ask(Check("alice", 2)), Answer)
    assert (bench.metrics.late, bench.metrics.failed_open, bench.metrics.divergence) == (0, 0, 0)


class Asked:
    """Two checks, of the costs 2 and 4, of a system with some lanes."""

    def __init__(self, lanes: int = 2) -> None:
        self.bench = Bench()
        self.bench.batcher.on_lanes(lanes)
        self.futures = self.bench.ask(2, 4)
        self.bench.loop.turn()
        self.right = answer_to(self.bench.transport.last)

    def reply(self, *answers: Decision | None) -> None:
        self.bench.batcher.on_replies([reply(self.right.number, list(answers))])

    @property
    def outcomes(self) -> list[str | int | None]:
        """The reason of each degraded answer, and what remains in each decision."""
        answers = [future.result() for future in self.futures]
        return [one.reason or one.remaining for one in answers if isinstance(one, Answer)]


def test_lane_that_had_decided_before_a_restart_does_not_answer_before_the_other_one() -> None:
    asked = Asked()
    asked.reply(None, None)
    asked.bench.loop.advance(asked.bench.deadline_s / 2)
    assert not any(future.done() for future in asked.futures)
    asked.bench.batcher.on_replies([asked.right])
    assert asked.outcomes == [2, 4]
    asked.bench.loop.advance(1.0)
    metrics = asked.bench.metrics
    assert (metrics.allowed, metrics.failed_open, metrics.late, metrics.divergence) == (2, 0, 0, 0)
    assert asked.bench.batcher.healthy


def test_reply_that_lacks_answers_counts_at_the_deadline_if_no_other_comes() -> None:
    asked = Asked()
    first, _ = asked.right.answers
    assert isinstance(first, Decision)
    asked.reply(first, None)
    asked.reply(None, None)
    asked.bench.loop.advance(asked.bench.deadline_s)
    assert asked.outcomes == [2, "replayed"]
    assert asked.bench.batcher.healthy, "the worker has replied in time"
    assert len(asked.bench.transport.sent) == 1
    next_one = asked.bench.ask(6)
    asked.bench.loop.turn()
    asked.bench.batcher.on_replies([asked.right, answer_to(asked.bench.transport.last)])
    assert next_one[0].done(), "the partition is free"
    assert (asked.bench.metrics.late, asked.bench.metrics.divergence) == (0, 0)


def test_lanes_that_lack_different_answers_complete_each_other() -> None:
    asked = Asked()
    first, second = asked.right.answers
    assert isinstance(first, Decision)
    assert isinstance(second, Decision)
    asked.reply(first, None)
    assert not any(future.done() for future in asked.futures)
    asked.reply(None, second)
    assert all(future.done() for future in asked.futures)
    assert asked.outcomes == [2, 4]
    metrics = asked.bench.metrics
    assert (metrics.allowed, metrics.failed_open, metrics.late, metrics.divergence) == (2, 0, 0, 0)
    asked.reply(first, NO)
    assert metrics.divergence == 1, "further replies are compared with the answers of both"


def test_answers_of_a_lane_are_compared_while_others_are_missing() -> None:
    asked = Asked()
    first, _ = asked.right.answers
    assert isinstance(first, Decision)
    asked.reply(first, None)
    asked.reply(NO, None)
    asked.reply(NO, None)
    assert asked.bench.metrics.divergence == 1
    asked.bench.loop.advance(asked.bench.deadline_s)
    assert asked.outcomes == [2, "replayed"], "the first answer counts"


def test_completed_reply_has_applied_only_what_both_lanes_have() -> None:
    """Otherwise a lease of the lane that has not read an update yet would be used in spite of it."""
    for applied in ((3, 9), (9, 3)):
        batch = PendingBatch(1, 0)
        batch.incomplete = Reply(7, 1, 17, applied[0], [YES, None])
        found = batch.completed(Reply(7, 1, 17, applied[1], [None, NO]))
        assert found == Reply(7, 1, 17, 3, [YES, NO])


@pytest.mark.parametrize("other", [reply(1, [], "unreadable"), reply(1, [YES])])
def test_reply_that_cannot_complete_another_counts_as_it_is(other: Reply) -> None:
    asked = Asked()
    first, _ = asked.right.answers
    assert isinstance(first, Decision)
    asked.reply(first, None)
    asked.bench.batcher.on_replies([reply(asked.right.number, other.answers, other.error)])
    assert asked.outcomes == ["rejected_batch", "rejected_batch"]
    assert asked.bench.metrics.divergence == 1


def test_reply_from_before_the_breaker_opened_does_not_close_it() -> None:
    asked = Asked()
    first, _ = asked.right.answers
    assert isinstance(first, Decision)
    asked.reply(first, None)
    batcher = asked.bench.batcher
    batcher.on_broker_down("no broker")
    asked.bench.loop.advance(asked.bench.deadline_s)
    answer = batcher.ask(Check("alice", 2))
    assert isinstance(answer, Answer)
    assert answer.reason == "broker"
    assert not batcher.healthy


def test_reply_of_another_lane_after_the_breaker_opened_closes_it() -> None:
    asked = Asked()
    first, _ = asked.right.answers
    assert isinstance(first, Decision)
    asked.reply(first, None)
    asked.bench.batcher.on_broker_down("no broker")
    asked.reply(first, None)
    assert asked.bench.batcher.healthy
    asked.bench.loop.advance(asked.bench.deadline_s)
    assert asked.bench.metrics.divergence == 0


def test_reply_of_a_single_lane_that_lacks_answers_counts_at_once() -> None:
    asked = Asked(lanes=1)
    asked.reply(None, None)
    assert asked.outcomes == ["replayed", "replayed"]


@given(st.data())
def test_replies_in_any_order_and_number_are_counted_right(data: st.DataObject) -> None:
    bench = Bench(partitions=3)
    futures = [bench.batcher.ask(Check(client, 2)) for client in "abcdef" for _ in range(2)]
    bench.loop.turn()
    batches = [batch for _, batch in bench.transport.sent]
    right = [answer_to(batch).answers for batch in batches]

    def answers(index: int) -> Answers:
        given = data.draw(
            st.tuples(*(st.sampled_from((decision, None, NO)) for decision in right[index])), label="given"
        )
        return list(given)

    order = data.draw(st.lists(st.sampled_from(range(len(batches))), max_size=12), label="order")
    first: dict[int, Answers] = {}
    diverged = set()
    for index in order:
        given = answers(index)
        bench.batcher.on_replies([reply(batches[index].number, given)])
        known = first.setdefault(index, given)
        if any(a != b for a, b in zip(known, given, strict=True) if a is not None and b is not None):
            diverged.add(index)
        assert bench.metrics.divergence == len(diverged)
    assert bench.metrics.late == 0

    settled = sum(len(batches[index].checks) for index in first)
    assert sum(future.done() for future in futures if isinstance(future, asyncio.Future)) == settled
    allowed = sum(1 for given in first.values() for one in given if one is not None and one is not NO)
    assert bench.metrics.allowed == allowed
