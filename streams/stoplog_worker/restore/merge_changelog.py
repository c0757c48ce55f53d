"""Read a range of a changelog once and outside a worker: into a store, or for its last marker."""

from __future__ import annotations

from typing import Final

from stoplog.topics import CHECKS
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, decode_marker, position_of
from stoplog_worker.kafka.progress_reader import ProgressReader
from stoplog_worker.state.store import POLICIES, NewerMarker, PartitionStore, Record

_BATCH: Final = 10_000
"""Records stored at a time."""


def merge_changelog(
    reader: ProgressReader, topic: str, store: PartitionStore, table: str, end: int, below: int | None = None
) -> None:
    """Store the records of a changelog from ``store.next_offset`` up to *end*.

    Args:
        reader: Reads the topic.
        topic: The changelog.
        store: The tables of the partition.
        table: The changelog's table.
        end: Offset to stop before.
        below: Only entries of lower positions are stored, if given.

    Raises:
        NewerFormat: A newer release has written the partition.
        Unavailable: The broker stopped answering.
    """
    begin = store.next_offset[table]
    batch: list[Record] = []
    on_missing = "error" if begin else "earliest"
    for message in reader.read(topic, store.partition, begin, end, on_missing):
        record = Record(message.offset(), message.key(), message.value())
        entry = record.entry(table)
        if below is None or (entry is not None and position_of(entry[1]) < below):
            batch.append(record)
        if len(batch) == _BATCH:
            store.merge(table, batch)
            batch = []
    if batch:
        store.merge(table, batch)
    store.reach(table, end)


def read_marker(reader: ProgressReader, topic: str, partition: int, start: int, end: int) -> Marker | None:
    """Return the last marker in a range of a changelog of policies; ``None`` if there is none.

    Raises:
        NewerFormat: A newer release has written the partition.
        Unavailable: The broker stopped answering.
    """
    last, newer = None, NewerMarker()
    for message in reader.read(topic, partition, start, end):
        record = Record(message.offset(), message.key(), message.value())
        newer.note(record, POLICIES, lambda: reader.offset_range(CHECKS, partition)[1])
        entry = record.entry(POLICIES)
        if entry is not None and entry[0] == MARKER_KEY:
            found = decode_marker(entry[1])
            if last is None or found.next_offset >= last.next_offset:
                last = found
    newer.refuse()
    return last
