"""Split one lane's states and policies: from the changelogs of an old partition to those of the new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rocksdict import Options, Rdict

from stoplog.topics import CHECKS
from stoplog.wire.limit_updates import ENABLE_HOLDS, UpdateKey
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    NEVER_SET,
    PolicyChange,
    decode_history,
    encode_history,
    encode_marker,
    encode_policy_key,
    without_charges,
)
from stoplog_worker.growth.limits import Versions
from stoplog_worker.growth.split import (
    owner_of_state,
    policy_key,
    split_history,
    split_marker,
    split_state,
)
from stoplog_worker.kafka.progress_reader import ProgressReader
from stoplog_worker.restore.merge_changelog import merge_changelog
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore

WriteEntry = Callable[[str, int, bytes, bytes], None]
"""Writes an entry to the lane's changelog: table, partition, key and value."""


def read_store(
    reader: ProgressReader, changelogs: Mapping[str, str], partition: int, folder: Path
) -> PartitionStore:
    """Return one lane's tables of *partition*, read from its changelogs into *folder*. Close them after use.

    Raises:
        Unavailable: The broker does not answer.
    """
    paths = {table: folder / table for table in TABLES}
    store = PartitionStore(partition, lambda path: Rdict(str(path), Options(raw_mode=True)), paths)
    store.log_end = lambda: reader.offset_range(CHECKS, partition)[1]
    read_on(reader, changelogs, store)
    return store


def read_on(reader: ProgressReader, changelogs: Mapping[str, str], store: PartitionStore) -> None:
    """Add what the changelogs have got since to the tables in *store*.

    Raises:
        Unavailable: The broker does not answer.
    """
    for table in (POLICIES, COUNTERS):  # a marker comes after all states that it covers
        _, end = reader.offset_range(changelogs[table], store.partition)
        merge_changelog(reader, changelogs[table], store, table, end)


def clear(store: PartitionStore, write: WriteEntry) -> None:
    """Empty what an interrupted attempt has written to a new partition, so that it can be written again.

    The system may have run since. A limit may have been deleted, and a client reset.

    Args:
        store: The tables of the new partition.
        write: Writes an entry.
    """
    for key, value in store.items(COUNTERS):
        write(COUNTERS, store.partition, key, without_charges(value))
    for key, _ in store.items(POLICIES):
        if key != MARKER_KEY:
            write(POLICIES, store.partition, key, encode_history([NEVER_SET], 0))


def policies_in(store: PartitionStore) -> dict[UpdateKey, PolicyChange]:
    """Return the last change of each policy in *store*."""
    return {
        known: decode_history(value)[-1]
        for key, value in store.items(POLICIES)
        if (known := policy_key(key)) is not None
    }


def write_policies(
    policies: Mapping[UpdateKey, PolicyChange], write: WriteEntry, new: int, versions: Versions
) -> None:
    """Write those *policies* of the old partition that are in *versions* to the new partition *new*."""
    for key, change in policies.items():
        version = change.version if key == ENABLE_HOLDS else versions.get(key)
        if version is not None:
            write(POLICIES, new, encode_policy_key(key), split_history(change, version))


def write_states(store: PartitionStore, write: WriteEntry, before: int, after: int) -> int:
    """Write the states of all clients that move to their new partitions; return how many.

    States that have expired are left out. So are those of clients that moved when the number grew before.

    Args:
        store: The tables of the old partition, which have a marker.
        write: Writes an entry.
        before: The number of partitions before growing.
        after: The number afterwards.
    """
    marker = store.marker()
    assert marker is not None
    written = 0
    for key, value in store.items(COUNTERS):
        owner = owner_of_state(key, after)
        if (
            owner % before == store.partition != owner
            and (state := split_state(value, marker.clock_ms)) is not None
        ):
            write(COUNTERS, owner, key, state)
            written += 1
    return written


def write_marker(store: PartitionStore, write: WriteEntry, new: int, first_offset: int, applied: int) -> None:
    """Write the marker of the new partition *new* (:func:`stoplog_worker.growth.split.split_marker`)."""
    marker = store.marker()
    assert marker is not None
    write(POLICIES, new, MARKER_KEY, encode_marker(split_marker(marker, first_offset, applied)))
