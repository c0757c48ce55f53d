"""A worker replies while it must not write: without a lease, in a rebalance, and after a partition has moved.

The consumer thread runs against a real broker, without a group. The test assigns the partitions and holds the
lease.
"""

from __future__ import annotations

import pytest
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.policy import parse_policy
from stoplog.topics import CHECKS, NODES, UPDATES
from stoplog.wire.checks import decode_checks_record
from stoplog.wire.heartbeats import Heartbeat, PartitionState, encode_heartbeat
from stoplog.wire.limit_updates import (
    ENABLE_HOLDS,
    Update,
    UpdateKey,
    encode_update_key,
    encode_update_value,
)
from stoplog.wire.replies import Decision
from tests.support.system import eventually
from tests.support.worker_bench import FAST, SLOW, WAIT_S, Bench


def worker_heartbeat(id_: str, lane: str, partitions: dict[int, PartitionState]) -> Heartbeat:
    return Heartbeat(id_, "worker", "0", "here", 0, partitions, lane=lane)


def relayed(bench: Bench) -> bool:
    """Return whether an update was relayed to the partition of ``checks``."""
    contents = [decode_checks_record(value) for _, value in bench.changelog(CHECKS)]
    return any(isinstance(one, Update) and one.key != ENABLE_HOLDS for one in contents)


@pytest.mark.parametrize("bench", [(0, FAST)], indirect=True)
def test_worker_without_lease_answers_and_writes_nothing(bench: Bench) -> None:
    assert bench.start()
    assert bench.check(3).remaining == 97
    eventually("a checkpoint covers everything", bench.checkpointed)
    ends = bench.end(COUNTERS), bench.end(POLICIES)
    bench.lease.held = False
    name = encode_update_key(UpdateKey("client", bench.client))
    bench.produce(UPDATES, encode_update_value(parse_policy("700/hour")), name)
    assert bench.check(4).remaining == 93
    for _ in range(20):  # turns of the thread, each of which would make a checkpoint
        bench.thread.has_peers().result(WAIT_S)
    assert bench.check(1).remaining == 92
    assert (bench.end(COUNTERS), bench.end(POLICIES)) == ends
    assert bench.thread.partition_states().keys() == {0}
    assert not relayed(bench)

    bench.lease.held = True
    eventually("the update is relayed", lambda: relayed(bench))
    eventually("a checkpoint covers everything", bench.checkpointed)


@pytest.mark.parametrize("bench", [(1, {**SLOW, "unwritten_s": 0.1})], indirect=True)
def test_partition_unwritable_for_long_is_dropped(bench: Bench) -> None:
    assert bench.start()
    assert bench.check(3).remaining == 97
    bench.lease.held = False
    [store] = bench.dropped.get(timeout=WAIT_S)
    assert store is bench.store
    assert bench.thread.partition_states() == {}
    unanswered = bench.publish(4)
    assert (bench.end(COUNTERS), bench.end(POLICIES)) == (0, 0)

    # The partition was dropped, but no check is lost: the log has them, and the worker now replies.
    bench.lease.held = True
    assert bench.start()
    [answer] = bench.reply(unanswered).answers
    assert isinstance(answer, Decision)
    assert answer.remaining == 93


@pytest.mark.parametrize("bench", [(2, FAST)], indirect=True)
def test_rebalance_in_progress_answers_and_writes_nothing(bench: Bench) -> None:
    assert bench.start()
    assert bench.check(1).remaining == 99
    bench.thread.generation = None
    bench.thread.revoke_all(5).result(WAIT_S)
    assert bench.checkpointed(), "a checkpoint is complete before the worker joins the group again"
    ends = bench.end(COUNTERS), bench.end(POLICIES)
    assert bench.check(1).remaining == 98
    for _ in range(20):
        bench.thread.has_peers().result(WAIT_S)
    assert (bench.end(COUNTERS), bench.end(POLICIES)) == ends
    bench.thread.generation = 2
    assert bench.thread.resume(2, {2}).result(WAIT_S) == {2}
    eventually("a checkpoint covers everything", bench.checkpointed)


@pytest.mark.parametrize("bench", [(3, FAST)], indirect=True)
def test_moved_partition_is_answered_until_new_owner_judges(bench: Bench) -> None:
    assert bench.start()
    bench.thread.generation = None
    bench.thread.revoke_all(5).result(WAIT_S)
    bench.thread.hand_over({3}, WAIT_S).result(WAIT_S)
    assert bench.thread.partition_states() == {}
    assert bench.check(1).remaining == 99
    others = [
        worker_heartbeat("new", "a", {3: PartitionState("restoring")}),
        worker_heartbeat("other-lane", "b", {3: PartitionState("running")}),
        worker_heartbeat("other-partition", "a", {1: PartitionState("running")}),
    ]

    def received() -> bool:
        # Workers repeat their heartbeats: a consumer that has just started has missed earlier ones.
        for heartbeat in others:
            bench.produce(NODES, encode_heartbeat(heartbeat), partition=0)
        return bench.thread.has_peers().result(WAIT_S)

    eventually("the heartbeats are received", received)
    assert bench.check(1).remaining == 98
    bench.produce(
        NODES, encode_heartbeat(worker_heartbeat("new", "a", {3: PartitionState("running")})), partition=0
    )
    [store] = bench.dropped.get(timeout=WAIT_S)
    assert store is bench.store
