"""The limits that a new partition gets, and their order."""

from __future__ import annotations

from typing import Any, cast

from stoplog_worker.algorithm.state_codec import PolicyChange
from stoplog_worker.growth.limits import COPIED, LimitsCopy, UpdateRecord, overwrite_moved, read_updates
from stoplog_worker.growth.writer import Writer
from stoplog_worker.kafka.progress_reader import ProgressReader

from stoplog.partitioning import home_of, partition_of
from stoplog.policy import parse_policy
from stoplog.topics import UPDATES
from stoplog.wire.limit_updates import (
    MOVED,
    UpdateKey,
    copy_header,
    encode_update_key,
    encode_update_value,
    order_header,
)
from stoplog.wire.partition_count import PartitionCount

COUNT = PartitionCount(2, 1)
STAYS, MOVES = (
    next(name for name in map(str, range(99)) if partition_of(name, 2) == number) for number in (0, 1)
)
LAST_DECISION_MS = 1_000

Headers = list[tuple[str, bytes]]


class Message:
    """A record of ``limit-updates``."""

    def __init__(self, offset: int, stamp_ms: int, key: bytes, value: bytes | None, headers: Headers) -> None:
        self._parts = offset, stamp_ms, key, value, headers

    def offset(self) -> int:
        return self._parts[0]

    def timestamp(self) -> tuple[int, int]:
        return 1, self._parts[1]

    def key(self) -> bytes:
        return self._parts[2]

    def value(self) -> bytes | None:
        return self._parts[3]

    def headers(self) -> Headers:
        return self._parts[4]


class Topic:
    """``limit-updates`` in memory: the reader and the writer of it."""

    def __init__(self) -> None:
        self.partitions: dict[int, list[Message]] = {0: [], 1: []}
        self._flushed: dict[bytes, int] = {}

    def add(self, partition: int, key: UpdateKey, limits: str | None, stamp_ms: int, *headers: Any) -> None:
        """Append an update of another producer."""
        value = encode_update_value(parse_policy(limits)) if limits is not None else None
        self._append(partition, encode_update_key(key), value, [*headers], stamp_ms)

    def _append(
        self, partition: int, key: bytes, value: bytes | None, headers: Headers, stamp_ms: int
    ) -> None:
        log = self.partitions[partition]
        log.append(Message(len(log), stamp_ms, key, value, headers))
        self._flushed[key] = len(log) - 1

    def write(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers | None = None
    ) -> None:
        assert topic == UPDATES
        self._append(partition, key, value, headers or [], 5_000)

    def flush(self) -> dict[bytes, int]:
        flushed, self._flushed = self._flushed, {}
        return flushed

    def offset_range(self, _topic: str, partition: int) -> tuple[int, int]:
        return 0, len(self.partitions[partition])

    def read(self, _topic: str, partition: int, start: int, end: int) -> list[Message]:
        return self.partitions[partition][start:end]

    def updates(self, partition: int) -> list[UpdateRecord]:
        """Return the updates that are in a partition."""
        return list(read_updates(cast(ProgressReader, self), partition))

    def copy(self) -> LimitsCopy:
        """Return the copy into the new partition."""
        return LimitsCopy(cast(ProgressReader, self), cast(Writer, self), 1, COUNT)


def in_force(**limits: str | None) -> dict[UpdateKey, PolicyChange]:
    """Return the policies of clients in the old partition."""
    return {
        UpdateKey("client", name[1:]): PolicyChange(0, 7, parse_policy(text) if text else None)
        for name, text in limits.items()
    }


def test_only_limits_in_force_of_clients_that_move_are_copied_with_their_new_versions() -> None:
    topic = Topic()
    topic.add(1, UpdateKey("plan", "gold"), "1/minute", 10)  # an offset is taken
    policies = in_force(**{f"_{MOVES}": "5/minute", f"_{STAYS}": "6/minute"})
    policies[UpdateKey("plan", "deleted")] = PolicyChange(0, 8, None)
    versions, applied = topic.copy().write(LAST_DECISION_MS, policies, [])
    assert versions == {UpdateKey("client", MOVES): 1}
    assert applied == 1
    assert len(topic.partitions[1]) == 2, (
        "what another producer wrote before the last decision is out of date"
    )


def test_updates_that_wait_come_in_the_order_in_which_they_were_written() -> None:
    topic, client, plan = Topic(), UpdateKey("client", MOVES), UpdateKey("plan", "gold")
    topic.add(0, client, "5/minute", 2_000)
    topic.add(0, UpdateKey("client", STAYS), "1/minute", 2_001)
    topic.add(0, plan, "9/minute", 2_002)
    topic.add(0, UpdateKey("client", MOVES, "login"), "3/minute", 2_003, copy_header(0))
    topic.add(1, client, "8/minute", 2_500)  # another producer, to the new partition
    assert home_of("plan", "gold", COUNT.first) == 0
    versions, applied = topic.copy().write(LAST_DECISION_MS, {}, topic.updates(0))
    assert (versions, applied) == ({}, 0)
    waiting = [one for one in topic.updates(1) if one.update.version > applied]
    found = [(one.update.key, one.update.policy, one.update.order) for one in waiting]
    assert found == [
        (client, parse_policy("5/minute"), -1),
        (plan, parse_policy("9/minute"), 2),
        (client, parse_policy("8/minute"), -1),
    ]
    assert all(COPIED in one.headers for one in waiting)
    assert order_header(2) in waiting[1].headers


def test_second_attempt_deletes_what_the_first_one_copied_and_repeats_nothing_of_it() -> None:
    topic, client = Topic(), UpdateKey("client", MOVES)
    topic.add(0, client, "6/minute", 2_000)
    topic.copy().write(LAST_DECISION_MS, in_force(**{f"_{MOVES}": "5/minute"}), topic.updates(0))
    topic.copy().clear()
    versions, applied = topic.copy().write(LAST_DECISION_MS, {}, [])
    assert versions == {}
    assert applied == len(topic.partitions[1]) - 1
    last = topic.updates(1)[-1]
    assert (last.update.key, last.update.policy) == (client, None)


def test_updates_of_clients_that_moved_are_overwritten_in_their_old_partition() -> None:
    topic = Topic()
    for client in (STAYS, MOVES):
        topic.add(0, UpdateKey("client", client), "5/minute", 1)
        topic.add(0, UpdateKey("reset", client), None, 1)
    assert overwrite_moved(cast(ProgressReader, topic), cast(Writer, topic), 0, COUNT) == 2
    moved = [message.key() for message in topic.partitions[0] if message.value() == MOVED]
    assert sorted(moved) == sorted(encode_update_key(UpdateKey(kind, MOVES)) for kind in ("client", "reset"))
