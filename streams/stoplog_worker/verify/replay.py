"""The log as oracle: fold the records of one partition of ``checks`` again from its beginning.

A worker's decisions are a pure fold over the log. So folding the log again, with nothing stored, gives the
same decisions. A record that cannot be decoded is not decided, but it advances partition time, as in
:mod:`stoplog_worker.partition.partition`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from stoplog.policy import Policy
from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.algorithm.update_authority import WITHOUT_KEYS, UpdateAuthority


class Record(NamedTuple):
    """A record of ``checks``; the timestamp is the broker's, ms since the Unix epoch."""

    offset: int
    timestamp_ms: int
    value: bytes | None


class NothingStored:
    """A :class:`~stoplog_worker.algorithm.state_codec.StateReader` of a partition without stored entries."""

    def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return ``None`` for each key."""
        return [None] * len(keys)

    def counters_of(self, client: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Return no entries."""
        return ()

    def policies(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return ``None`` for each key."""
        return [None] * len(keys)


def replay(
    records: Iterable[Record],
    partition: int,
    partitions: int,
    default: Policy,
    authority: UpdateAuthority = WITHOUT_KEYS,
) -> Generator[tuple[int, list[Answer]], None, Ledger]:
    """Decide all of a partition's checks again.

    Args:
        records: The records of ``checks[partition]``, in offset order, from the topic's beginning.
        partition: The partition.
        partitions: The number of partitions.
        default: The built-in default policy, as it was when the partition was first opened.
        authority: Verifies updates. It must have the workers' relay keys, if they have any.

    Yields:
        For each record, its offset and the answers to its checks, in their order. Updates and records that
        cannot be decoded have no answers.

    Returns:
        The ledger after the last record.
    """
    ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", default))
    fault = fault_finder(partition, partitions)
    for offset, timestamp_ms, value in records:
        yield offset, fold(ledger, offset, timestamp_ms, value, fault, authority).answers
    return ledger
