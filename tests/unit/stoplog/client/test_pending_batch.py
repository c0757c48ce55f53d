from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.client.answer import Answer, from_decision
from stoplog.client.fail_open import DEADLINE, FAIL_CLOSED, FAIL_OPEN, degraded_answer
from stoplog.client.metrics import Metrics
from stoplog.client.pending_batch import MAX_BYTES, ROW_BYTES, PendingBatch
from stoplog.client.top_rejected import Rejections
from stoplog.wire.checks import MAX_BATCH, Batch, Check, encode_batch
from stoplog.wire.format import pack
from stoplog.wire.holds import LEASE, Ask, HoldRow, Settlement
from stoplog.wire.replies import Decision, Reply
from tests.support.clockwork import Clockwork, answer_to

ids = st.text(max_size=64)


@given(st.builds(Check, ids, st.integers(0, 1_000_000), ids, ids))
def test_encoded_check_is_never_larger_than_its_estimate(check: Check) -> None:
    one, two = (len(encode_batch(Batch(0, 0, 0, [check] * n))) for n in (1, 2))
    batch = PendingBatch(1, 0)
    assert batch.add(check, None, 0.0)
    assert two - one <= batch.size


def test_batch_is_bounded_by_count_and_by_bytes() -> None:
    batch = PendingBatch(1, 0)
    check = Check("a")
    for _ in range(MAX_BATCH):
        assert batch.add(check, None, 0.0)
    assert not batch.add(check, None, 0.0)
    assert len(batch.checks) == MAX_BATCH
    wide = PendingBatch(2, 0)
    wide.size = MAX_BYTES
    assert not wide.add(check, None, 0.0)
    assert (wide.size, wide.checks) == (MAX_BYTES, [])


def test_checks_of_each_turn_have_their_own_latency() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    for asked, checks in ((10.0, 2), (10.1, 3)):
        for _ in range(checks):
            batch.add(Check("a", 2), loop.create_future(), asked)
    metrics.in_flight = 5
    batch.resolve(answer_to(Batch(0, 0, 1, batch.checks)), metrics, Rejections(loop.time), 10.2)
    (family,) = (f for f in metrics.collect() if f.name == "stoplog_check_duration_seconds")
    values = {s.labels.get("le", s.name): s.value for s in family.samples}
    assert (values["0.1"], values["0.25"]) == (3, 5)
    assert values["stoplog_check_duration_seconds_sum"] == pytest.approx(2 * 0.2 + 3 * 0.1)
    assert metrics.in_flight == 0


def test_each_answered_check_is_counted_once_by_its_outcome() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    answers = [
        Decision(True, 0, 0, 0, 0, 7),
        Decision(False, 0, 0, 0, 0, 7),
        None,
        "no such plan",
        "nor this",
    ]
    for _ in answers:
        batch.add(Check("a"), loop.create_future(), 1.0)
    batch.resolve(Reply(1, 0, 0, 0, answers), metrics, Rejections(loop.time), 2.0)
    degraded = metrics.degraded["replayed"], metrics.degraded["rejected_batch"]
    assert (metrics.allowed, metrics.rejected, *degraded) == (1, 1, 1, 2)


def test_check_that_asked_for_it_fails_closed_and_is_counted_apart() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    futures = [loop.create_future() for _ in range(3)]
    for future in futures:
        batch.add(Check("a"), future, 1.0)
    batch.fail_closed(futures[1])
    batch.degrade("deadline", metrics, 2.0)
    assert [future.result() for future in futures] == [
        FAIL_OPEN["deadline"],
        FAIL_CLOSED["deadline"],
        FAIL_OPEN["deadline"],
    ]
    assert (metrics.degraded["deadline"], metrics.failed_closed["deadline"]) == (2, 1)
    batch.degrade("broker", metrics, 3.0)
    assert metrics.failed_closed["broker"] == 0


def test_replayed_check_that_asked_for_it_fails_closed() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    futures = [loop.create_future() for _ in range(3)]
    for future in futures:
        batch.add(Check("a"), future, 1.0)
    for future in futures[1:]:
        batch.fail_closed(future)
    decision = Decision(True, 9, 8, 0, 0, 7)
    batch.resolve(Reply(1, 0, 0, 0, [None, None, decision]), metrics, Rejections(loop.time), 2.0)
    assert [future.result().allowed for future in futures] == [True, False, True]
    assert (metrics.degraded["replayed"], metrics.failed_closed["replayed"]) == (1, 1)


def test_check_is_published_alike_whether_it_fails_open_or_closed() -> None:
    loop, batches = Clockwork(), (PendingBatch(1, 0), PendingBatch(1, 0))
    for batch in batches:
        batch.add(Check("a"), loop.create_future(), 1.0)
    batches[1].fail_closed(batches[1].futures[0])
    first, second = (encode_batch(Batch(0, 0, 1, batch.checks)) for batch in batches)
    assert first == second


def test_batch_that_fails_open_twice_is_counted_once() -> None:
    loop, metrics, batch = Clockwork(), Metrics(), PendingBatch(1, 0)
    future = loop.create_future()
    batch.add(Check("a"), future, 1.0)
    batch.degrade("deadline", metrics, 2.0)
    batch.degrade("broker", metrics, 3.0)
    assert future.result() is FAIL_OPEN["deadline"]
    assert metrics.failed_open == 1


def test_permits_answer_checks_that_were_denied_or_not_answered() -> None:
    loop, metrics = Clockwork(), Metrics()
    permit = Answer(True, 10, 4, 1, 0, 7)

    def rescue(check: Check) -> Answer | None:
        return permit if check.cost == 1 else None

    denied = PendingBatch(1, 0, rescue)
    futures = [loop.create_future() for _ in range(2)]
    for future, cost in zip(futures, (1, 2), strict=True):
        denied.add(Check("a", cost), future, 1.0)
    no = Decision(False, 10, 0, 1, 5, 7)
    denied.resolve(Reply(0, 1, 0, -1, [no, no]), metrics, Rejections(loop.time), 2.0)
    assert [future.result() for future in futures] == [permit, from_decision(no)]
    assert (metrics.allowed, metrics.rejected) == (1, 1)
    late = PendingBatch(2, 0, rescue)
    futures = [loop.create_future() for _ in range(4)]
    for future, cost in zip(futures, (1, 2, 1, 2), strict=True):
        late.add(Check("a", cost), future, 1.0)
    for future in futures[2:]:
        late.fail_closed(future)
    late.degrade(DEADLINE, metrics, 2.0)
    degraded = [degraded_answer(DEADLINE, closed) for closed in (False, True)]
    assert [future.result() for future in futures] == [permit, degraded[0], permit, degraded[1]]
    assert (metrics.degraded[DEADLINE], metrics.failed_closed[DEADLINE], metrics.allowed) == (1, 1, 3)


def test_marked_check_leaves_room_for_what_it_asks_and_settles() -> None:
    batch = PendingBatch(1, 0)
    batch.add(Check("a"), None, 0.0)
    before = batch.size
    batch.mark_last()
    assert batch.marked == [0]
    id_ = (2**64 - 1, 2**40, 0)
    ask = Ask(LEASE, id_, 2**40, 1_000_000, 10_000, (id_,))
    settlements = (Settlement(id_, 1_000_000), Settlement(id_, 1_000_000), Settlement(id_, 1_000_000, True))
    rows = [HoldRow(10_000, None, settlements[:1]), HoldRow(10_000, ask, settlements)]
    assert len(pack(rows)) <= batch.size - before == ROW_BYTES
