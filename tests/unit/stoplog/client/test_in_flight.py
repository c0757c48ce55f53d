from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.client.answer import Answer
from stoplog.client.fail_open import FAIL_OPEN, REASONS
from stoplog.client.in_flight import MAX_BYTES, Pending, PendingBatch, size_of
from stoplog.client.metrics import Metrics
from stoplog.client.top_rejected import Rejections
from stoplog.wire.checks import MAX_BATCH, Batch, Check, encode_batch
from stoplog.wire.replies import Decision, Reply
from tests.support.clockwork import Clockwork, answer_to

ids = st.text(max_size=64)


@given(st.builds(Check, ids, st.integers(0, 1_000_000), ids, ids))
def test_a_check_is_never_larger_than_its_estimate(check: Check) -> None:
    one, two = (len(encode_batch(Batch(0, 0, 0, [check] * n))) for n in (1, 2))
    assert two - one <= size_of(check)


def test_room_is_bounded_by_count_and_by_bytes() -> None:
    batch = PendingBatch(1, 0)
    check = Check("a")
    for _ in range(MAX_BATCH):
        assert batch.has_room(10)
        batch.add(check, 10, None, 0.0)
    assert not batch.has_room(10)
    assert not PendingBatch(2, 0).has_room(MAX_BYTES + 1)


def test_each_turn_of_checks_has_its_own_latency() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    for asked, checks in ((10.0, 2), (10.1, 3)):
        for _ in range(checks):
            batch.add(Check("a", 2), 10, loop.create_future(), asked)
    metrics.in_flight = 5
    batch.settle(answer_to(Batch(0, 0, 1, batch.checks)), metrics, Rejections(loop.time), 10.2)
    (family,) = (f for f in metrics.collect() if f.name == "stoplog_check_duration_seconds")
    values = {s.labels.get("le", s.name): s.value for s in family.samples}
    assert (values["0.1"], values["0.25"]) == (3, 5)
    assert values["stoplog_check_duration_seconds_sum"] == pytest.approx(2 * 0.2 + 3 * 0.1)
    assert metrics.in_flight == 0


def test_every_answered_check_is_in_one_count() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    answers = [
        Decision(True, 0, 0, 0, 0, 7),
        Decision(False, 0, 0, 0, 0, 7),
        None,
        "no such plan",
        "nor this",
    ]
    for _ in answers:
        batch.add(Check("a"), 10, loop.create_future(), 1.0)
    batch.settle(Reply(1, 0, 0, 0, answers), metrics, Rejections(loop.time), 2.0)
    counts = (metrics.allowed, metrics.rejected, metrics.degraded["replayed"], metrics.invalid)
    assert counts == (1, 1, 1, 2)


def test_letting_through_twice_counts_once() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    future = loop.create_future()
    batch.add(Check("a"), 10, future, 1.0)
    batch.fail_open("deadline", metrics, 2.0)
    batch.fail_open("broker", metrics, 3.0)
    assert future.result() is FAIL_OPEN["deadline"]
    assert metrics.failed_open == 1


def test_a_number_is_taken_once() -> None:
    pending = Pending()
    one, two = pending.new(0), pending.new(0)
    assert one.number != two.number
    assert pending.take(one.number) is None
    pending.expect(one)
    assert pending.take(one.number) is one
    assert pending.take(one.number) is None
    pending.expect(two)
    assert pending.drain() == [two]
    assert pending.take(two.number) is None


def test_degraded_answers_allow_and_claim_nothing() -> None:
    for reason in REASONS:
        assert FAIL_OPEN[reason] == Answer(True, None, None, 0, 0, -1, True, reason)
