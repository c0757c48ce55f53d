from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from streams.contract.policy import parse_policy
from streams.contract.records import Check
from streams.judge import fault_finder, judge
from streams.ledger import MARKER_KEY, Marker
from streams.metrics import Metrics
from streams.owned import Owned
from streams.settings import Settings
from streams.store import COUNTERS
from tests.unit.streams.memory import Changelogs, MemoryStore
from tests.unit.streams.partition_log import CLIENTS, PARTITION, PARTITIONS


def test_a_partitions_marker_is_acknowledged_before_its_first_counter_is_written(tmp_path: Path) -> None:
    changelogs = Changelogs()
    first = Marker(40, 0, -1, -1, "topic", parse_policy("100/minute"))
    outbox: Any = SimpleNamespace(
        changelog=lambda _, *rest: changelogs.send(*rest), update=print, shorten=print
    )
    settings = Settings(kafka="127.0.0.1:1", home=tmp_path)
    owned = Owned(settings, PARTITIONS, MemoryStore(PARTITION), first, outbox, Metrics())
    ledger = owned.ledger
    judge(
        ledger,
        40,
        ledger.advance(40, 1_000),
        [Check(name) for name in CLIENTS],
        fault_finder(PARTITION, PARTITIONS),
    )
    at = 0.0

    def flush() -> None:
        nonlocal at
        at += 1_000
        for _ in range(2):
            owned.tend(at, at)

    for _ in range(2):
        flush()
        assert [sent.key for sent in changelogs.sent] == [MARKER_KEY]
        changelogs.fail()
        owned.tend(at, at)
    flush()
    changelogs.arrive_all()
    owned.tend(at, at)
    assert owned.store.marker() == first
    flush()
    assert {sent.table for sent in changelogs.sent} == {COUNTERS}
    changelogs.arrive_all()
    owned.tend(at, at)
    changelogs.arrive_all()
    owned.tend(at, at)
    assert cast(Marker, owned.store.marker()).next_offset == 41
