"""The guards that keep two workers from writing one partition. Each test fails without its guard.

The consumer thread and the restorer run against a real broker, without a group. The test assigns the
partitions and holds the lease.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    Marker,
    State,
    decode_state,
    encode_marker,
    encode_state,
)
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, Record

from stoplog.errors import TopicRecreated
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import describe
from stoplog.policy import parse_policy
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, UPDATES
from stoplog.wire.checks import decode_checks_record, encode_update
from stoplog.wire.limit_updates import (
    ENABLE_HOLDS,
    Update,
    UpdateKey,
    encode_update_key,
    encode_update_value,
)
from tests.support.broker import compact_at_once
from tests.support.system import eventually
from tests.support.worker_bench import (
    CHANGELOGS,
    FAST,
    SLOW,
    WAIT_S,
    Bench,
    open_store,
    running_restorer,
)


def spent(value: bytes) -> int:
    return sum(window.total for window in decode_state(value).windows.values())


# --- generation -----------------------------------------------------------------------------


@pytest.mark.parametrize("bench", [(0, FAST)], indirect=True)
def test_command_of_old_generation_is_refused(bench: Bench) -> None:
    assert not bench.start(generation=0)
    assert not bench.start(generation=2)
    assert bench.thread.partition_states() == {}
    assert bench.start(generation=1)
    assert bench.check(1).remaining == 99

    bench.thread.generation = None
    bench.thread.revoke_all(5).result(WAIT_S)
    assert bench.thread.resume(1, {0}).result(WAIT_S) == set(), "a rebalance is under way"
    bench.thread.generation = 3
    assert bench.thread.resume(2, {0}).result(WAIT_S) == set()
    assert bench.thread.resume(3, {0}).result(WAIT_S) == {0}
    assert bench.check(1).remaining == 98


# --- recreated topics -----------------------------------------------------------------------


@pytest.mark.parametrize("bench", [(2, FAST)], indirect=True)
@pytest.mark.parametrize("topic", [CHECKS, UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG])
def test_marker_of_recreated_topic_stops_worker(bench: Bench, topic: str) -> None:
    # Offsets alone would not reveal the loss: the new topic may have more records than the old one had.
    admin = silent_admin(KafkaConnection(bench.bootstrap))
    described = describe(admin, [CHECKS, UPDATES, *CHANGELOGS.values()])
    ids = {name: str(described[name].topic_id) for name in described} | {topic: "of old"}
    of_changelogs = {table: ids[name] for table, name in CHANGELOGS.items()}
    marker = Marker(0, 0, -1, -1, ids[CHECKS], parse_policy("7/minute"), ids[UPDATES], of_changelogs)
    bench.store.merge(POLICIES, [Record(0, MARKER_KEY, encode_marker(marker))])
    refuses_to_start(bench, topic)


@pytest.mark.parametrize("bench", [(2, FAST)], indirect=True)
@pytest.mark.parametrize("left", [True, False], ids=["states still stored", "all states expired"])
def test_counters_without_marker_stop_worker(bench: Bench, left: bool) -> None:
    state = encode_state(State(7, {60_000: Window(60_000, [7], [1])}))
    bench.store.merge(COUNTERS, [Record(0, b"zoe", state)])
    if not left:
        bench.store.remove([b"zoe"])
    refuses_to_start(bench, POLICIES_CHANGELOG)


def refuses_to_start(bench: Bench, topic: str) -> None:
    with pytest.raises(TopicRecreated, match=rf" topic {topic}[ ,].*was deleted.* delete their tables"):
        bench.start()
    eventually("the thread has ended", lambda: not bench.thread.is_alive())
    assert [type(failure) for failure in bench.failures] == [TopicRecreated]
    bench.failures.clear()


# --- lease ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", [(1, SLOW)], indirect=True)
def test_partitions_revoked_without_lease_are_not_written(bench: Bench) -> None:
    ends = bench.end(COUNTERS), bench.end(POLICIES)
    assert bench.start()
    bench.check(1)
    bench.lease.held = False
    bench.thread.revoke_all(0.5).result(WAIT_S)
    assert (bench.end(COUNTERS), bench.end(POLICIES)) == ends
    bench.lease.held = True


@pytest.mark.parametrize("bench", [(1, SLOW)], indirect=True)
def test_checkpoint_after_lease_end_does_not_begin(bench: Bench) -> None:
    ends = bench.end(COUNTERS), bench.end(POLICIES)
    assert bench.start()
    bench.check(1)

    # Within one turn of the consumer thread, the lease ends and a checkpoint is due.
    def lose_lease_when_due() -> None:
        bench.lease.held = False
        bench.thread._partitions.by_number[bench.partition].schedule._due_at = 0.0

    bench.thread._commands.call(lose_lease_when_due).result(WAIT_S)
    for _ in range(5):
        bench.thread.has_peers().result(WAIT_S)  # returns after one turn
    assert (bench.end(COUNTERS), bench.end(POLICIES)) == ends
    bench.lease.held = True


# --- foreign writes -------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("bench", [(2, FAST)], indirect=True)
def test_foreign_changelog_record_is_overwritten_before_compaction(
    bench: Bench, fresh_kafka: Broker, tmp_path: Path
) -> None:
    compact_at_once(fresh_kafka, COUNTERS_CHANGELOG, POLICIES_CHANGELOG)
    assert bench.start()
    key = bench.client.encode()
    bench.check(5)
    eventually("a checkpoint covers everything", bench.checkpointed)
    old = bench.changelog(COUNTERS_CHANGELOG)[-1]
    assert old[0] == key
    marker = next(v for k, v in reversed(bench.changelog(POLICIES_CHANGELOG)) if k == MARKER_KEY)
    assert bench.check(6).remaining == 89
    eventually("a checkpoint covers everything", bench.checkpointed)

    # A zombie wakes, and writes its old state and its old marker.
    bench.produce(COUNTERS_CHANGELOG, old[1], key)
    bench.produce(POLICIES_CHANGELOG, marker, MARKER_KEY)
    bench.thread.set_changelog_ends({(table, 2): bench.end(table) for table in TABLES})
    eventually("the foreign records are overwritten", lambda: bench.metrics.gaps_mended._value.get() >= 2)
    eventually(
        "a checkpoint covers everything",
        lambda: spent(last(bench, COUNTERS_CHANGELOG, key)) == 11 and bench.checkpointed(),
    )

    def compacted() -> bool:
        # The broker compacts closed segments only. Each record begins a new segment.
        for table in TABLES:
            bench.produce(CHANGELOGS[table], b"\x01" + bytes(8) + b"\x90", b"filler")
        time.sleep(0.2)
        keys = [k for k, _ in bench.changelog(COUNTERS_CHANGELOG)]
        marks = [k for k, _ in bench.changelog(POLICIES_CHANGELOG)]
        return keys.count(key) == 1 and marks.count(MARKER_KEY) <= 2

    eventually("the broker has compacted", compacted)
    bench.thread.stop(5)
    with running_restorer(fresh_kafka, open_store(2, tmp_path / "fresh")) as hand_over:
        fresh = hand_over()
    [value] = fresh.counters([key])
    assert value is not None
    assert spent(value) == 11
    assert fresh.marker() == bench.store.marker()
    fresh.close()


def last(bench: Bench, topic: str, key: bytes) -> bytes:
    return [value for k, value in bench.changelog(topic) if k == key][-1]


# --- restoring ------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", [(0, FAST)], indirect=True)
@pytest.mark.parametrize("standby", [False, True], ids=["active", "standby"])
def test_restored_record_never_replaces_later_position(
    bench: Bench, fresh_kafka: Broker, tmp_path: Path, standby: bool
) -> None:
    def write(*counts: tuple[int, int]) -> None:
        for position, count in counts:
            bench.produce(COUNTERS_CHANGELOG, state(position, count), b"zoe")

    def state(position: int, count: int) -> bytes:
        return encode_state(State(position, {60_000: Window(60_000, [7], [count])}))

    write((9, 1), (40, 4))
    store = open_store(0, tmp_path / "fresh")
    with running_restorer(fresh_kafka, store) as hand_over:
        if standby:
            eventually(
                "the standby has caught up", lambda: store.next_offset[COUNTERS] == bench.end(COUNTERS)
            )
        write((12, 2), (40, 5), (39, 3))
        assert hand_over() is store
    [value] = store.counters([b"zoe"])
    assert value == state(40, 5)
    assert store.outdated[COUNTERS] == {b"zoe"}, "the last record must be overwritten"
    store.close()


# --- relay ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", [(3, FAST)], indirect=True)
def test_update_relayed_twice_takes_effect_once(bench: Bench) -> None:
    assert bench.start()
    bench.check(7)
    limit = encode_update_value(parse_policy("50/hour"))
    bench.produce(UPDATES, limit, encode_update_key(UpdateKey("client", bench.client)))
    version = bench.produce(UPDATES, None, encode_update_key(UpdateKey("reset", bench.client)))

    def relayed() -> list[Update]:
        decoded = [decode_checks_record(value) for _, value in bench.changelog(CHECKS)]
        updates = [record for record in decoded if isinstance(record, Update)]
        return [update for update in updates if update.key != ENABLE_HOLDS]

    eventually("both updates are relayed", lambda: len(relayed()) >= 2)
    assert bench.check(10).remaining == 40
    # The owner died before the reset was acknowledged, so the next owner relays it again.
    bench.produce(CHECKS, encode_update(Update(version, "reset", bench.client, "", None)))
    bench.produce(CHECKS, encode_update(Update(version - 1, "client", bench.client, "", None)))
    again = bench.check(0)
    assert (again.limit, again.remaining, again.policy_version) == (50, 40, version - 1)

    # The next owner relays only updates after the last one in checks.
    count = len(relayed())
    eventually("a checkpoint covers everything", bench.checkpointed)
    bench.thread.generation = None
    bench.thread.revoke_all(5).result(WAIT_S)
    bench.thread.generation = 2
    assert bench.thread.resume(2, {3}).result(WAIT_S) == {3}
    third = bench.produce(
        UPDATES, encode_update_value(parse_policy("60/hour")), b'["client","%s",""]' % bench.client.encode()
    )
    eventually("the new update is relayed", lambda: relayed()[-1].version == third)
    assert len(relayed()) == count + 1
