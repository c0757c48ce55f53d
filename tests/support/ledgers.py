"""Ledgers for tests: the marker of a new partition, and a checkpoint without Kafka."""

from __future__ import annotations

from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, encode_marker
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.policy import parse_policy
from tests.support.memory_store import MemoryStore

DEFAULT = parse_policy("100/minute")
FIRST_MARKER = Marker(0, 0, -1, -1, "topic", DEFAULT)


def checkpoint(ledger: Ledger, store: MemoryStore) -> None:
    """Write everything that is dirty, and the marker, to *store*."""
    marker, entries = ledger.take_dirty()
    store.write(COUNTERS, list(entries.counters))
    store.write(POLICIES, [*entries.policies, (MARKER_KEY, encode_marker(marker))])
    ledger.checkpointed = marker
