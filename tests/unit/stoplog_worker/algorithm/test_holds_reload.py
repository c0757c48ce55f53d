"""A decision depends on the stored part of a state only, and never on what happens to be in memory."""

from __future__ import annotations

from hypothesis import given, settings
from stoplog_worker.algorithm.fold import Folded, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.state.store import COUNTERS
from stoplog_worker.verify.replay import Record

from tests.support.ledgers import checkpoint
from tests.support.memory_store import MemoryStore, contents
from tests.support.partition_log import DEFAULT, PARTITION, PARTITIONS, logs

FIRST = Marker(0, 0, -1, -1, "", DEFAULT)
FAULT = fault_finder(PARTITION, PARTITIONS)


@given(logs(max_size=40))
@settings(max_examples=300)
def test_states_loaded_before_every_record_give_same_answers_and_bytes(log: list[Record]) -> None:
    kept_store, loaded_store = MemoryStore(), MemoryStore()
    kept = Ledger(kept_store, FIRST)
    for record in log:
        loaded = Ledger(loaded_store, loaded_store.marker() or FIRST)
        expected: Folded = fold(kept, *record, FAULT)
        assert fold(loaded, *record, FAULT) == expected
        checkpoint(loaded, loaded_store)
    checkpoint(kept, kept_store)
    assert loaded_store.marker() == kept_store.marker()
    # Stored policies begin where a replay may begin, which differs.
    assert contents(loaded_store)[COUNTERS] == contents(kept_store)[COUNTERS]
