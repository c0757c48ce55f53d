"""A partition's ledger, tables and changelogs, without Kafka, for tests of checkpoint and repair."""

from __future__ import annotations

from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, decode_state, encode_marker
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.changelog_repair import ChangelogRepair
from stoplog_worker.partition.checkpoint import Checkpointer
from stoplog_worker.state.store import POLICIES, TABLES

from stoplog.policy import parse_policy
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.limit_updates import Update
from tests.support.ledgers import FIRST_MARKER
from tests.support.memory_store import Changelogs, MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START

A, AB, ZOE = CLIENTS


class CheckpointBench:
    """A partition, its changelogs, and the next offset of its log."""

    def __init__(self, store: MemoryStore | None = None, changelogs: Changelogs | None = None) -> None:
        self.store = store or MemoryStore()
        self.changelogs = changelogs or Changelogs()
        self.metrics = Metrics()
        self.ledger = Ledger(self.store, self.store.marker() or FIRST_MARKER)
        topics = {table: table for table in TABLES}
        read = self.changelogs.read_later
        self.repair = ChangelogRepair(self.ledger, self.store, topics, self.metrics, read)
        send = self.changelogs.send
        self.checkpointer = Checkpointer(self.ledger, self.store, send, self.repair, self.metrics)

    def check(self, *checks: Check) -> None:
        """Judge *checks* as the next record of the log."""
        offset = self.ledger.next_offset
        now = self.ledger.advance(offset, START)
        judge(self.ledger, offset, now, checks, fault_finder(PARTITION, PARTITIONS))

    def update(self, version: int, client: str, text: str) -> None:
        """Apply a limit update as the next record of the log."""
        offset = self.ledger.next_offset
        self.ledger.advance(offset, START)
        self.ledger.apply(Update(version, "client", client, "", parse_policy(text)), offset << POSITION_BITS)

    def sent(self) -> list[tuple[str, bytes]]:
        """Return table and key of each changelog record in flight."""
        return [(sent.table, sent.key) for sent in self.changelogs.sent]

    def checkpoint(self) -> Marker:
        """Make a complete checkpoint."""
        self.checkpointer.begin()
        self.changelogs.arrive_all()
        assert self.checkpointer.advance() is None
        self.changelogs.arrive_all()
        marker = self.checkpointer.advance()
        assert marker is not None
        return marker

    def stored(self, client: str) -> int:
        """Return the charges of *client* in its tables."""
        [value] = self.store.counters([client.encode()])
        return sum(w.total for w in decode_state(value).windows.values()) if value else 0

    def write_foreign(self, table: str, *entries: tuple[bytes, bytes]) -> None:
        """Write to a changelog as another worker."""
        for key, value in entries:
            self.changelogs.append(table, key, value)

    def note_ends(self) -> None:
        """Compare the ends of both changelogs with this worker's own writes."""
        for table, log in self.changelogs.logs.items():
            self.repair.note_end(table, len(log))

    def overwrite_gaps(self) -> None:
        """Overwrite everything that was found in gaps."""
        while self.repair.gaps:
            self.repair.advance()


def zombie() -> tuple[CheckpointBench, list[tuple[str, bytes, bytes]]]:
    """Return a worker, and what another one, stopped two records earlier, writes when it wakes."""
    changelogs = Changelogs()
    asleep = CheckpointBench(changelogs=changelogs)
    asleep.check(Check(A, 2), Check(AB))
    asleep.update(0, A, "50/minute")
    asleep.checkpointer.begin()
    late = [(sent.table, sent.key, sent.value) for sent in changelogs.sent]
    late.append((POLICIES, MARKER_KEY, encode_marker(asleep.ledger.marker)))
    changelogs.sent.clear()
    awake = CheckpointBench(changelogs=changelogs)
    awake.check(Check(A, 2), Check(AB))
    awake.update(0, A, "50/minute")
    awake.check(Check(A, 7))
    awake.update(1, A, "40/minute")
    awake.checkpoint()
    return awake, late


def restored(changelogs: Changelogs) -> MemoryStore:
    """Return the tables of a worker that read *changelogs* from the beginning."""
    store = MemoryStore()
    changelogs.restore(store)
    return store
