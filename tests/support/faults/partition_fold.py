"""Fold the log of one partition, record by record as it is read, and split it where the number grew.

A worker's decisions are a pure fold over the log, so folding it again gives the same decisions and the same
state. A partition that was split off begins with the state of the old one, at the end that its log had when
the number grew. That state is split here as the command does it. Whether splitting is right is tested without
Kafka (``tests/unit/stoplog_worker/growth/test_split.py``). Whether the old log ended there, whether
everything was copied and whether nothing was copied that is out of date, is compared with this fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker
from stoplog_worker.algorithm.update_authority import UpdateAuthority
from stoplog_worker.growth.limits import COPIED
from stoplog_worker.growth.split import FILLER, FIRST_OFFSET, goes_to, new_partitions
from stoplog_worker.growth.states import policies_in, write_marker, write_policies, write_states
from stoplog_worker.state.store import COUNTERS, POLICIES
from stoplog_worker.verify.replay import Record

from stoplog.policy import Policy
from stoplog.wire import partition_count
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import ENABLE_HOLDS, MOVED, encode_update_key
from tests.support.ledgers import checkpoint
from tests.support.memory_store import MemoryStore

Table = dict[bytes, bytes]
"""Entries as they are stored."""

Versions = dict[tuple[str, int], Policy]
"""Policies of clients, by client and version."""


class Growth(NamedTuple):
    """A step in which the number of partitions grew.

    Attributes:
        at_ms: The broker's timestamp of the record that put the new number in force.
        partitions: The number from then on.
    """

    at_ms: int
    partitions: int

    def ended_at(self, messages: Sequence[Any]) -> int:
        """Return how many of *messages*, those of an old partition, were written before.

        All gateways and workers had paused for a while before, so there is no doubt about any of them. The
        clock of a leader may have been ahead for some time before, so that the last one counts.
        """
        return max((at for at, one in enumerate(messages, 1) if one.timestamp()[1] < self.at_ms), default=0)


def is_update(message: Any) -> bool:
    """Return whether a record of ``limit-updates`` is to be relayed: growing writes others as well."""
    return bool(message.key() != partition_count.KEY and message.value() != MOVED)


class PartitionFold:
    """The fold over one partition.

    Args:
        partition: The partition.
        partitions: The number of partitions.
        authority: Verifies updates.
        store: The tables with which the partition begins.
        marker: The marker with which it begins.

    Attributes:
        records: The records until now.
        decided: The answers, by offset.
        authority: Verifies updates.
        copied: The limits of clients with which it began.
    """

    def __init__(
        self, partition: int, partitions: int, authority: UpdateAuthority, store: MemoryStore, marker: Marker
    ) -> None:
        self.partition = partition
        self.records: list[Record] = []
        self.decided: dict[int, list[Answer]] = {}
        self.authority = authority
        self.copied: Versions = {}
        self._partitions = partitions
        self._store = store
        self._ledger = Ledger(store, marker)
        self._begins_at = marker.next_offset

    @property
    def marker(self) -> Marker:
        """The marker at the end."""
        return self._ledger.marker

    def tables(self) -> tuple[Table, Table]:
        """Return the counters, and the policies without the marker."""
        checkpoint(self._ledger, self._store)
        policies = dict(self._store.items(POLICIES))
        del policies[MARKER_KEY]
        return dict(self._store.items(COUNTERS)), policies

    def follow(self, messages: Sequence[Any]) -> None:
        """Fold those of *messages*, all records since the beginning, that are new."""
        fault = fault_finder(self.partition, self._partitions)
        for message in messages[len(self.records) :]:
            record = Record(message.offset(), message.timestamp()[1], message.value())
            self.records.append(record)
            if record.offset < self._begins_at:
                assert record.value == FILLER, record
                self.decided[record.offset] = []
            else:
                self.decided[record.offset] = fold(self._ledger, *record, fault, self.authority).answers

    def split(
        self, growth: Growth, updates: dict[int, list[Any]], authorities: Sequence[UpdateAuthority]
    ) -> list[PartitionFold]:
        """Return the partitions that are split off at the end; ignore their clients from now on.

        Args:
            growth: The step.
            updates: All records of ``limit-updates``, by partition.
            authorities: One for each partition.
        """
        before, after = self._partitions, growth.partitions
        waiting = [
            one.offset()
            for one in updates[self.partition]
            if one.timestamp()[1] < growth.at_ms and one.offset() > self.marker.applied and is_update(one)
        ]
        assert not waiting, f"updates of partition {self.partition} were not relayed: {waiting}"
        checkpoint(self._ledger, self._store)
        new = {number: MemoryStore(number) for number in new_partitions(self.partition, before, after)}

        def write(table: str, partition: int, key: bytes, value: bytes) -> None:
            new[partition].write(table, [(key, value)])

        write_states(self._store, write, before, after)
        folds = []
        for number, store in new.items():
            policies, written = policies_in(self._store), _copied(updates[number], growth.at_ms)
            wanted = [
                key
                for key, change in policies.items()
                if change.policy is not None and key != ENABLE_HOLDS and goes_to(key, number, after)
            ]
            missing = [key for key in wanted if encode_update_key(key) not in written]
            assert not missing, f"limits were not copied to partition {number}: {missing}"
            versions = {key: written[encode_update_key(key)] for key in wanted}
            write_policies(policies, write, number, versions)
            early = [one.offset() for one in updates[number] if one.timestamp()[1] < growth.at_ms]
            applied = max(early, default=-1)
            write_marker(self._store, write, number, FIRST_OFFSET, applied)
            marker = store.marker()
            assert marker is not None
            folded = PartitionFold(number, after, authorities[number], store, marker)
            for key, version in versions.items():
                if key.kind == "client" and (policy := policies[key].policy) is not None:
                    folded.copied[key.id, version] = policy
            folds.append(folded)
        self._partitions = after
        return folds


def _copied(messages: Sequence[Any], before_ms: int) -> dict[bytes, int]:
    """Return the offset at which growing has written each limit to a new partition."""
    return {
        one.key(): one.offset()
        for one in messages
        if one.timestamp()[1] < before_ms and one.value() is not None and COPIED in (headers_of(one) or [])
    }
