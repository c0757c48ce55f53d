"""The same log gives the same decisions and the same state, whatever happens to its workers.

The model consists of the real ledger, fold, checkpoint and store. Its changelogs may accept records late, in
part, or after their sender has died. The decisions are compared with
:func:`stoplog_worker.verify.replay.replay`, which reads the log once, from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    NEVER_SET,
    Marker,
    PolicyChange,
    decode_history,
    expires_at_ms,
)
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.changelog_repair import ChangelogRepair, Overtaken
from stoplog_worker.partition.checkpoint import CHUNK, Checkpointer
from stoplog_worker.state.expiry import PASS_S, StateExpirer
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES
from stoplog_worker.verify.replay import Record, replay

from stoplog.wire.checks import Batch, Check, encode_batch
from tests.support.memory_store import Changelogs, MemoryStore, Sent, contents
from tests.support.partition_log import CLIENTS, DEFAULT, PARTITION, PARTITIONS, START, logs
from tests.support.relay import NEW, OLD, authority

METRICS = Metrics()
Action = tuple[object, ...]
FIRST = Marker(0, 0, -1, -1, "", DEFAULT)
AUTHORITY = authority(OLD, NEW)


@pytest.fixture(scope="module", autouse=True, params=[1, CHUNK])
def _chunk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Vary the entries written in one step of a checkpoint. With one, crashes come between entries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stoplog_worker.partition.checkpoint.CHUNK", request.param)
        yield


class Worker:
    """The owners of the partition, one after the other; the changelogs outlive them."""

    def __init__(self, log: list[Record]) -> None:
        self.log = log
        self.changelogs = Changelogs()
        self.late: list[Sent] = []
        self.answers: dict[tuple[int, int], Answer] = {}
        self.expected = {
            (offset, index): answer
            for offset, answers in replay(log, PARTITION, PARTITIONS, DEFAULT, AUTHORITY)
            for index, answer in enumerate(answers)
        }
        self.fault = fault_finder(PARTITION, PARTITIONS)
        self.standby = MemoryStore()
        self.now = 0.0
        self.start(MemoryStore())

    def start(self, store: MemoryStore, batch: int = 1_000) -> None:
        self.changelogs.restore(store, batch)
        self.store = store
        self.ledger = Ledger(store, store.marker() or FIRST)
        self.repair = ChangelogRepair(self.ledger, store, {}, METRICS, self.changelogs.read_later)
        self.checkpointer = Checkpointer(self.ledger, store, self.changelogs.send, self.repair, METRICS)
        self.expirer = StateExpirer(store, self.changelogs.shorten)

    def follow(self, passes: int) -> None:
        """Bring the standby up to date, and let it make *passes* passes over its table."""
        self.changelogs.restore(self.standby)
        expirer = StateExpirer(self.standby)
        for _ in range(passes):
            self.now += PASS_S
            expirer.advance(self.now, 1)

    def change_over(self) -> None:
        """The owner dies and the standby takes over. The old owner comes back as the standby."""
        self.late += self.changelogs.sent
        self.changelogs.sent = []
        self.standby, store = self.store, self.standby
        self.start(store)

    def expire(self, passes: int) -> None:
        """Let the owner make *passes* passes over its table."""
        for _ in range(passes):
            self.now += PASS_S
            gone = self.expirer.advance(self.now, 1)
            if self.checkpointer.idle:
                self.ledger.expire(gone)

    def judge(self, count: int) -> None:
        waiting = [record for record in self.log if record.offset >= self.ledger.next_offset]
        for record in waiting[:count]:
            self.take(record)

    def take(self, record: Record) -> None:
        offset, stamp, value = record
        for index, answer in enumerate(
            fold(self.ledger, offset, stamp, value, self.fault, AUTHORITY).answers
        ):
            if answer is None:
                assert (offset, index) in self.answers, "already applied, but never answered"
            else:
                assert answer == self.expected[offset, index]
                self.answers[offset, index] = answer

    def begin(self) -> None:
        """Start a checkpoint, if none is in progress, after overwriting what other workers wrote."""
        if not self.checkpointer.idle:
            return
        for table in TABLES:
            self.repair.note_end(table, len(self.changelogs.logs[table]))
        gaps, self.repair.gaps = self.repair.gaps, []
        try:
            for table, start, end in gaps:
                self.repair.overwrite(table, self.changelogs.read(table, start, end), 1_000)
        except Overtaken:
            self.start(self.store)
        if self.ledger.changed:
            self.checkpointer.begin()

    def acknowledge(self, count: int) -> None:
        for _ in range(min(count, len(self.changelogs.sent))):
            self.changelogs.arrive()

    def refuse(self, index: int, arrives: bool) -> None:
        if self.changelogs.sent:
            self.changelogs.fail(index % len(self.changelogs.sent), arrives=arrives)

    def step(self, keep: int) -> None:
        """Advance the checkpoint. At its end, evict clean states."""
        if self.checkpointer.advance() is not None:
            self.ledger.evict(keep)

    def crash(self, arrived: list[int], wiped: bool, batch: int) -> None:
        """Lose the memory. Some of the records in flight have arrived, others may arrive later."""
        sent, self.changelogs.sent = self.changelogs.sent, []
        for index in arrived:
            if sent:
                one = sent.pop(index % len(sent))
                self.changelogs.append(one.table, one.key, one.value)
        self.late += sent
        self.start(MemoryStore() if wiped else self.store, batch)

    def arrive_late(self, index: int) -> None:
        """Deliver a record that a dead worker sent."""
        if self.late:
            one = self.late.pop(index % len(self.late))
            self.changelogs.append(one.table, one.key, one.value)

    def checkpoint(self, keep: int) -> None:
        """Make a complete checkpoint."""
        self.begin()
        while not self.checkpointer.idle:
            self.changelogs.arrive_all()
            self.step(keep)

    def finish(self) -> None:
        """Decide the rest of the log and make checkpoints until nothing changes."""
        for _ in range(4):
            self.judge(len(self.log))
            self.checkpoint(0)


def check_final(store: MemoryStore, log: list[Record]) -> None:
    reading = replay(log, PARTITION, PARTITIONS, DEFAULT, AUTHORITY)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            oracle: Ledger = end.value
            break
    marker, entries = oracle.take_dirty()
    found = contents(store)
    assert store.marker() == marker
    assert live(found[COUNTERS], marker) == live(dict(entries.counters), marker)
    del found[POLICIES][MARKER_KEY]
    whole = {key: histories(value) for key, value in entries.policies}
    stored = {key: histories(value) for key, value in found[POLICIES].items()}
    stored = {key: history for key, history in stored.items() if history != [NEVER_SET]}
    assert stored.keys() == whole.keys()
    for key, kept in stored.items():
        # A stored history begins where a replay may begin.
        assert kept == whole[key][-len(kept) :]


def live(counters: dict[bytes, bytes], marker: Marker) -> dict[bytes, bytes]:
    """Return the charges of the states with charges in their windows: the others decide like new clients'.

    A state that replaced one of another worker has a higher position than its last charge.
    """
    return {key: value[9:] for key, value in counters.items() if expires_at_ms(value) > marker.clock_ms}


def histories(value: bytes) -> list[PolicyChange]:
    return decode_history(value)


NUMBER = st.integers(0, 9)
JUDGE = st.tuples(st.just("judge"), st.integers(1, 4))
CHECKPOINT = st.tuples(st.just("checkpoint"), st.integers(0, 2))
BEGIN = st.tuples(st.just("begin"))
ACKNOWLEDGE = st.tuples(st.just("acknowledge"), st.integers(1, 12))
STEP = st.tuples(st.just("step"), st.integers(0, 2))
REFUSE = st.tuples(st.just("refuse"), NUMBER, st.booleans())
CRASH = st.tuples(st.just("crash"), st.lists(NUMBER, max_size=6), st.booleans(), st.integers(1, 5))
LATE = st.tuples(st.just("arrive_late"), NUMBER)
EXPIRE = st.tuples(st.just("expire"), st.integers(1, 3))
FOLLOW = st.tuples(st.just("follow"), st.integers(0, 3))
CHANGE = st.tuples(st.just("change_over"))
CALM = (EXPIRE, JUDGE, JUDGE, JUDGE, CHECKPOINT, BEGIN, BEGIN, ACKNOWLEDGE, STEP, STEP)


def run(worker: Worker, actions: list[Action]) -> None:
    for name, *args in actions:
        getattr(worker, str(name))(*args)
    worker.finish()
    assert worker.answers == worker.expected
    check_final(worker.store, worker.log)
    check_final(restored(worker.changelogs), worker.log)


def restored(changelogs: Changelogs) -> MemoryStore:
    store = MemoryStore()
    changelogs.restore(store)
    return store


def fates(*more: st.SearchStrategy[Action]) -> st.SearchStrategy[list[Action]]:
    return st.lists(st.one_of(*CALM, *more), min_size=15, max_size=40)


@given(logs(), fates())
@settings(max_examples=80)
def test_decisions_with_checkpoints_and_evictions_are_equal(log: list[Record], actions: list[Action]) -> None:
    worker = Worker(log)
    run(worker, actions)
    check_final(restored(worker.changelogs.compacted()), log)


@given(logs(), fates(CRASH, CRASH, REFUSE))
@settings(max_examples=250)
def test_decisions_with_crashes_and_partial_checkpoints_are_equal(
    log: list[Record], actions: list[Action]
) -> None:
    worker = Worker(log)
    run(worker, actions)
    check_final(restored(worker.changelogs.compacted()), log)


@given(
    logs(max_size=40),
    st.lists(st.one_of(EXPIRE, EXPIRE, JUDGE, CHECKPOINT, FOLLOW, CHANGE), min_size=15, max_size=60),
)
@settings(max_examples=150)
def test_decisions_with_shortened_changelogs_are_equal(log: list[Record], actions: list[Action]) -> None:
    worker = Worker(log)
    run(worker, actions)
    check_final(restored(worker.changelogs.compacted()), log)


@given(logs(), fates(CRASH, CRASH, REFUSE, LATE, LATE))
@settings(max_examples=250)
def test_decisions_with_late_writes_of_dead_workers_are_equal(
    log: list[Record], actions: list[Action]
) -> None:
    worker = Worker(log)
    run(worker, actions)
    check_final(restored(worker.changelogs.compacted()), log)


def test_model_of_changelogs_shortens_them_in_some_runs() -> None:
    """The model would prove nothing if its changelogs were never shortened."""
    first = encode_batch(Batch(0, 7, 1, [Check(CLIENTS[1])]))
    other = encode_batch(Batch(0, 7, 1, [Check(CLIENTS[0])]))
    later = START + 3_600_000
    log = [Record(0, START, first), *(Record(n, later + n, other) for n in range(1, 6))]
    worker = Worker(log)
    run(
        worker,
        [("judge", 1), ("checkpoint", 0), ("expire", 2), ("judge", 1), ("checkpoint", 0), ("expire", 3)],
    )
    assert worker.changelogs.start > 0
