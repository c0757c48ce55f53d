"""Write the limits that a new partition needs to its partition of ``limit-updates``.

Two groups of records, in this order:

1. The limits in force in the old partition. The new partition's marker covers them, so no worker relays them.
   Their offsets are the versions of the limits in the new partition.
2. The updates that no worker has relayed yet, in the order in which they were written: those in the old
   partition, and those that another producer has written to the new one meanwhile.

Workers relay the second group after the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from stoplog.errors import UndecodableRecord
from stoplog.partitioning import home_of, partition_of
from stoplog.topics import UPDATES
from stoplog.wire.format import headers_of
from stoplog.wire.limit_updates import (
    ENABLE_HOLDS,
    MOVED,
    Update,
    UpdateKey,
    copied_version,
    decode_update,
    encode_update_key,
    encode_update_value,
    order_header,
)
from stoplog.wire.partition_count import KEY, PartitionCount
from stoplog_worker.algorithm.state_codec import PolicyChange
from stoplog_worker.growth.split import goes_to
from stoplog_worker.growth.writer import Headers, Writer
from stoplog_worker.kafka.progress_reader import ProgressReader

COPIED: Final = ("grown", b"1")
"""Header of every record that this command writes."""

Versions = dict[UpdateKey, int]
"""The version of each limit in a new partition."""


class UpdateRecord(NamedTuple):
    """An update in ``limit-updates``, as it was written.

    Attributes:
        partition: The partition that has it.
        stamp_ms: The broker's timestamp, ms since the Unix epoch.
        update: The update.
        value: The record's value.
        headers: The record's headers.
    """

    partition: int
    stamp_ms: int
    update: Update
    value: bytes | None
    headers: Headers

    @property
    def client(self) -> str | None:
        """The client that it concerns; ``None`` for a plan and the default."""
        return self.update.id if self.update.kind in ("client", "reset") else None


def read_updates(reader: ProgressReader, partition: int, start: int = 0) -> Iterator[UpdateRecord]:
    """Yield the updates in *partition* of ``limit-updates`` from *start* to the present end.

    Raises:
        Unavailable: The broker does not answer.
    """
    low, end = reader.offset_range(UPDATES, partition)
    for message in reader.read(UPDATES, partition, max(low, start), end):
        key, value = message.key(), message.value()
        if key == KEY or value == MOVED:
            continue
        try:
            headers = headers_of(message) or []
            update = decode_update(message.offset(), key, value, headers)
        except UndecodableRecord:
            continue  # the owner of the partition has copied it to the dead letters
        yield UpdateRecord(partition, message.timestamp()[1], update, value, headers)


class LimitsCopy:
    """Writes the limits of one new partition.

    Args:
        reader: Reads ``limit-updates``.
        writer: Writes it.
        partition: The new partition.
        count: The number of partitions after growing.
    """

    def __init__(self, reader: ProgressReader, writer: Writer, partition: int, count: PartitionCount) -> None:
        self._reader = reader
        self._writer = writer
        self._partition = partition
        self._count = count

    def clear(self) -> None:
        """Delete the limits that an interrupted attempt has written.

        Raises:
            Unavailable: The broker does not answer.
        """
        copied = {
            one.update.key
            for one in read_updates(self._reader, self._partition)
            if COPIED in one.headers and one.update.kind != "reset"
        }
        for key in copied:
            self._send(encode_update_key(key), None, [])

    def write(
        self, stamp_ms: int, in_force: Mapping[UpdateKey, PolicyChange], waiting: Iterable[UpdateRecord]
    ) -> tuple[Versions, int]:
        """Write the two groups.

        Args:
            stamp_ms: The timestamp of the last record that was decided. A record that another producer wrote
                to the new partition before is not repeated: the limits in force are newer.
            in_force: The last change of each policy in the old partition.
            waiting: The updates that its owner has not relayed.

        Returns:
            The versions of the limits, and the last offset that need not be relayed; -1 for none.

        Raises:
            Unavailable: The broker does not answer.
        """
        wanted = [
            (key, change, change.policy)
            for key, change in in_force.items()
            if key != ENABLE_HOLDS and goes_to(key, self._partition, self._count.partitions)
        ]
        for key, change, policy in wanted:
            if policy is not None:
                order = [order_header(change.order)] if change.order >= 0 else []
                self._send(encode_update_key(key), encode_update_value(policy), order)
        written = self._writer.flush()
        _, end = self._reader.offset_range(UPDATES, self._partition)
        early = [
            one
            for one in read_updates(self._reader, self._partition)
            if COPIED not in one.headers and one.stamp_ms >= stamp_ms
        ]
        for record in sorted([*waiting, *early], key=lambda one: one.stamp_ms):
            if self._concerns(record):
                self._repeat(record)
        self._writer.flush()
        versions = {key: written[encode_update_key(key)] for key, _, policy in wanted if policy is not None}
        return versions, end - 1

    def _concerns(self, record: UpdateRecord) -> bool:
        if copied_version(record.headers) >= 0:  # it repeats an update, under that one's version
            return False
        return record.client is None or partition_of(record.client, self._count.partitions) == self._partition

    def _repeat(self, record: UpdateRecord) -> None:
        update, headers = record.update, record.headers
        if record.client is None and home_of(update.kind, update.id, self._count.first) == record.partition:
            headers = [*headers, order_header(update.version)]
        self._send(encode_update_key(update.key), record.value, headers)

    def _send(self, key: bytes, value: bytes | None, headers: Headers) -> None:
        self._writer.write(UPDATES, self._partition, key, value, [*headers, COPIED])


def overwrite_moved(reader: ProgressReader, writer: Writer, partition: int, count: PartitionCount) -> int:
    """Overwrite the updates in *partition* of clients that have moved; return how many keys they have.

    Raises:
        Unavailable: The broker does not answer.
    """
    moved = {
        encode_update_key(one.update.key)
        for one in read_updates(reader, partition)
        if one.client is not None and partition_of(one.client, count.partitions) != partition
    }
    for key in moved:
        writer.write(UPDATES, partition, key, MOVED)
    writer.flush()
    return len(moved)
