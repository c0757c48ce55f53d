"""The log as oracle: the records of one partition of ``checks``, folded again from its beginning.

What a worker decided is a pure fold over the log, so folding the log once more, with nothing stored, gives
the same decisions. It takes each record as :mod:`stoplog_worker.partition.partition` does: one that cannot be decoded is not
judged, but partition time advances with it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from stoplog.policy import Policy
from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker


class Record(NamedTuple):
    """A record of ``checks`` as it was read; the timestamp is the broker's, ms since the Unix epoch."""

    offset: int
    timestamp_ms: int
    value: bytes | None


class NothingStored:
    """A :class:`stoplog_worker.algorithm.ledger.Reader` of a partition that was never flushed."""

    def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """None of them."""
        return [None] * len(keys)

    def counters_of(self, client: bytes) -> Iterable[tuple[bytes, bytes]]:
        """No entries."""
        return ()

    def policies(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """None of them."""
        return [None] * len(keys)


def replay(
    records: Iterable[Record], partition: int, partitions: int, default: Policy
) -> Generator[tuple[int, list[Answer]], None, Ledger]:
    """Decide all of a partition's checks again.

    Args:
        records: Of ``checks[partition]``, in offset order, from the topic's beginning.
        partition: Its number.
        partitions: How many there are.
        default: What applies where nothing is configured, as it was when the partition was first opened.

    Yields:
        For each record its offset and the answers to its checks in their order; no answers for an update
        and for what cannot be decoded.

    Returns:
        The ledger after the last record.
    """
    ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", default))
    fault = fault_finder(partition, partitions)
    for offset, timestamp_ms, value in records:
        yield offset, fold(ledger, offset, timestamp_ms, value, fault).answers
    return ledger
