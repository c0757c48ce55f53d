"""The fold of a log whose number of partitions grew: the oracle of the fault tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.algorithm.update_authority import WITHOUT_KEYS
from stoplog_worker.growth.limits import COPIED
from stoplog_worker.growth.split import FILLER

from stoplog.partitioning import partition_of
from stoplog.policy import Policy, parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_update
from stoplog.wire.limit_updates import (
    MOVED,
    Update,
    UpdateKey,
    encode_update_key,
    encode_update_value,
)
from stoplog.wire.replies import Decision
from tests.support.faults.partition_fold import Growth, PartitionFold, is_update
from tests.support.ledgers import DEFAULT
from tests.support.memory_store import MemoryStore

NOW = 1_764_000_000_000
GROWTH = Growth(NOW + 500, 2)
FIVE = parse_policy("5/minute")
CLIENT = next(name for name in (f"client-{n}" for n in range(9)) if partition_of(name, 2) == 1)
KEY = encode_update_key(UpdateKey("client", CLIENT))


class Message(NamedTuple):
    """A record as a consumer returns it."""

    at: int
    after_ms: int
    content: bytes | None
    of: bytes | None = None
    marks: list[tuple[str, bytes]] | None = None

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, NOW + self.after_ms

    def key(self) -> bytes | None:
        return self.of

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self.marks


def check(at: int, after_ms: int) -> Message:
    return Message(at, after_ms, encode_batch(Batch(0, 7, at, [Check(CLIENT)])))


def update(at: int, after_ms: int, policy: Policy, *, copied: bool = False) -> Message:
    return Message(at, after_ms, encode_update_value(policy), KEY, [COPIED] if copied else None)


def relayed(at: int, after_ms: int, version: int) -> Message:
    return Message(at, after_ms, encode_update(Update(version, "client", CLIENT, "", FIVE)))


def first_partition() -> PartitionFold:
    return PartitionFold(0, 1, WITHOUT_KEYS, MemoryStore(0), Marker(0, 0, -1, -1, "", DEFAULT))


def grown(log: list[Message], updates: dict[int, list[Any]]) -> PartitionFold:
    """Return the partition that is split off."""
    folded = first_partition()
    folded.follow(log[: GROWTH.ended_at(log)])
    [new] = folded.split(GROWTH, updates, [WITHOUT_KEYS] * 2)
    return new


LOG = [relayed(0, 0, 3), check(1, 100), check(2, 200), check(3, 800)]
"""The last record came after growing, for a client that stayed."""

UPDATES: dict[int, list[Any]] = {
    0: [update(3, 0, FIVE), Message(4, 900, MOVED, KEY)],
    1: [update(0, 150, DEFAULT, copied=True), update(6, 400, FIVE, copied=True), update(7, 700, FIVE)],
}


def test_partition_that_was_split_off_continues_the_counts_with_the_new_version() -> None:
    new = grown(LOG, UPDATES)
    assert new.copied == {(CLIENT, 6): FIVE}
    assert new.marker.applied == 6
    # An interrupted attempt had written the first record before the last check of the old partition.
    new.follow([Message(0, 150, FILLER), check(1, 900), check(2, 1_000)])
    answers = [new.decided[offset] for offset in (0, 1, 2)]
    assert answers[0] == []
    remaining = [(one.remaining, one.policy_version) for [one] in answers[1:] if isinstance(one, Decision)]
    assert remaining == [(2, 6), (1, 6)]
    assert new.marker.clock_ms == new.marker.stamp_ms == NOW + 1_000


def test_update_that_nobody_relayed_before_growing_is_found() -> None:
    late = {**UPDATES, 0: [*UPDATES[0][:1], update(4, 300, DEFAULT)]}
    with pytest.raises(AssertionError, match=r"updates of partition 0 were not relayed: \[4\]"):
        grown(LOG, late)


def test_limit_that_was_not_copied_is_found() -> None:
    with pytest.raises(AssertionError, match="limits were not copied to partition 1"):
        grown(LOG, {**UPDATES, 1: [update(7, 700, FIVE)]})


def test_log_ends_with_the_last_record_from_before_the_new_number() -> None:
    ahead = [check(0, 0), check(1, 3_600_000), check(2, 400), check(3, 600)]
    assert GROWTH.ended_at(ahead) == 3, "the clock of a leader was an hour ahead for a while"
    assert GROWTH.ended_at([]) == 0


def test_records_that_growing_writes_are_no_updates() -> None:
    assert [is_update(one) for one in UPDATES[0]] == [True, False]
