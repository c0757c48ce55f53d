"""Several lanes answer each batch: the first wins, the others must say the same."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.client.answer import Answer
from stoplog.client.lane_divergence import KEPT_ANSWERS, QUIET_S, REPLY_COST, Answered
from stoplog.client.metrics import Metrics
from stoplog.wire.checks import Check
from stoplog.wire.replies import Decision, Reply
from tests.support.clockwork import Bench, answer_to

Answers = list[Decision | str | None]

YES = Decision(True, 100, 99, 60_000, 0, 3)
NO = Decision(False, 100, 0, 60_000, 9, 3)


def reply(number: int, answers: Answers, error: str | None = None, offset: int = 17) -> Reply:
    return Reply(7, number, offset, -1, answers, error)


class Kept:
    """An :class:`Answered` and a clock that is set."""

    def __init__(self, partitions: int = 1) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.answered = Answered(self.metrics, partitions, lambda: self.now)

    def pair(self, first: Reply, second: Reply) -> int:
        self.answered.keep(0, first)
        self.answered.compare(second)
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
def test_the_same_or_nothing_is_no_divergence(first: Answers, second: Answers) -> None:
    assert Kept().pair(reply(1, first), reply(1, second, offset=18)) == 0


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
def test_a_difference_counts_once_whatever_comes_after(first: Reply, second: Reply) -> None:
    kept = Kept()
    assert kept.pair(first, second) == 1
    for again in (second, first, second):
        kept.answered.compare(again)
    assert kept.metrics.divergence == 1


def test_what_is_not_kept_is_passed_over() -> None:
    kept = Kept()
    kept.answered.compare(reply(5, [NO]))
    assert kept.metrics.divergence == 0


def test_each_partition_keeps_its_share_however_busy_another_is() -> None:
    kept = Kept(partitions=2)
    kept.answered.keep(1, reply(1, [YES]))
    each = 100
    fit = KEPT_ANSWERS // 2 // (each + REPLY_COST)
    for number in range(2, fit + 3):  # one more than there is room for
        kept.answered.keep(0, reply(number, [YES] * each))
    for number, kept_still in ((1, 1), (2, 0), (3, 1), (fit + 2, 1)):
        before = kept.metrics.divergence
        kept.answered.compare(reply(number, [NO]))
        assert kept.metrics.divergence - before == kept_still, number


def test_one_that_is_larger_than_the_room_is_kept_until_the_next() -> None:
    kept = Kept(partitions=64)
    kept.answered.keep(0, reply(1, [YES] * 10_000))
    kept.answered.keep(0, reply(2, [YES]))
    kept.answered.compare(reply(1, [NO] * 10_000))
    assert kept.metrics.divergence == 0
    kept.answered.compare(reply(2, [NO]))
    assert kept.metrics.divergence == 1


def test_the_log_says_where_and_what_and_does_not_repeat_itself(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    caplog.set_level(logging.ERROR)
    kept.pair(reply(11, [YES, YES], offset=40), reply(11, [YES, NO], offset=41))
    (line,) = caplog.messages
    assert "batch 11 of partition 0 (offset 40; 41), check 1:" in line
    assert str(YES) in line
    assert str(NO) in line

    kept.pair(reply(12, [YES]), reply(12, ["x" * 100_000]))
    assert len(caplog.messages) == 1
    kept.now += QUIET_S
    kept.pair(reply(13, ["x" * 100_000]), reply(13, [], "y" * 100_000))
    assert len(caplog.messages) == 2
    assert "suppressed: 1" in caplog.messages[1]
    assert len(caplog.messages[1]) < 1_000
    assert kept.metrics.divergence == 3


# --- in the batcher ---


def test_the_first_reply_wins_and_the_second_is_not_late() -> None:
    bench = Bench()
    future = bench.batcher.ask(Check("alice", 2))
    bench.loop.turn()
    first = answer_to(bench.outbox.last)
    bench.batcher.replied([first, first, reply(first.number, [NO])])
    assert isinstance(future, asyncio.Future)
    answer = future.result()
    assert isinstance(answer, Answer)
    assert answer.allowed
    assert (bench.metrics.late, bench.metrics.divergence, bench.metrics.allowed) == (0, 1, 1)


def test_of_two_late_replies_the_first_is_late_and_the_second_compared() -> None:
    bench = Bench()
    bench.batcher.ask(Check("alice", 2))
    bench.loop.advance(bench.deadline_s)
    late = answer_to(bench.outbox.last)
    bench.batcher.replied([late])
    assert (bench.metrics.late, bench.metrics.divergence) == (1, 0)
    bench.batcher.replied([late, reply(late.number, [NO])])
    assert (bench.metrics.late, bench.metrics.divergence) == (1, 1)


def test_one_timely_lane_keeps_the_breaker_closed() -> None:
    bench = Bench(misses=2)
    for _ in range(5):
        bench.batcher.ask(Check("alice", 2))
        bench.loop.turn()
        one = answer_to(bench.outbox.last)
        bench.batcher.replied([one])
        bench.loop.advance(1.0)
        bench.batcher.replied([one])  # the other lane is slower than any deadline
    assert not isinstance(bench.batcher.ask(Check("alice", 2)), Answer)
    assert (bench.metrics.late, bench.metrics.failed_open, bench.metrics.divergence) == (0, 0, 0)


@given(st.data())
def test_any_order_any_number_of_replies(data: st.DataObject) -> None:
    bench = Bench(partitions=3)
    futures = [bench.batcher.ask(Check(client, 2)) for client in "abcdef" for _ in range(2)]
    bench.loop.turn()
    batches = {batch.number: batch for _, batch in bench.outbox.sent}
    right = {number: answer_to(batch).answers for number, batch in batches.items()}

    def answers(number: int) -> Answers:
        said = data.draw(
            st.tuples(*(st.sampled_from((decision, None, NO)) for decision in right[number])), label="said"
        )
        return list(said)

    order = data.draw(st.lists(st.sampled_from(sorted(batches)), max_size=12), label="order")
    first: dict[int, Answers] = {}
    diverged = set()
    for number in order:
        said = answers(number)
        bench.batcher.replied([reply(number, said)])
        known = first.setdefault(number, said)
        if any(a != b for a, b in zip(known, said, strict=True) if a is not None and b is not None):
            diverged.add(number)
        assert bench.metrics.divergence == len(diverged)
    assert bench.metrics.late == 0

    settled = sum(len(batches[number].checks) for number in first)
    assert sum(future.done() for future in futures if isinstance(future, asyncio.Future)) == settled
    allowed = sum(1 for said in first.values() for one in said if one is not None and one is not NO)
    assert bench.metrics.allowed == allowed
