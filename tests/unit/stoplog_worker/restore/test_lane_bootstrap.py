"""A copy with a fake broker; tests/integration/test_lane_bootstrap.py uses a real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from stoplog_worker.algorithm.state_codec import MARKER_KEY, decode_marker, encode_marker
from stoplog_worker.kafka.assigned_consumer import Consumed
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.restore.lane_bootstrap import (
    CopyPhase,
    LaneCopier,
    PartitionCopy,
    changelogs,
)
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.errors import NewerFormat
from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import CHECKS
from stoplog.wire.checks import POSITION_BITS
from tests.support.ledgers import FIRST_MARKER
from tests.support.phase_table import edges_of

SOURCE, TARGET = changelogs(""), changelogs("b")
STATES = 3
LOG_END = 9
P = CopyPhase


class Message:
    """A record of one of the default lane's changelogs."""

    def __init__(self, table: str, offset: int, key: bytes, value: bytes) -> None:
        self._table, self._offset, self._key, self._value = table, offset, key, value

    def topic(self) -> str:
        return SOURCE[self._table]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes:
        return self._value

    @property
    def entry(self) -> tuple[bytes, bytes]:
        return self._key, self._value


def state(offset: int) -> Message:
    return Message(COUNTERS, offset, b"client-%d" % offset, b"\x01" + offset.to_bytes(8) + b"\x90")


class Broker:
    """Consumer and producer in one: has a few records, read one at a time, and keeps what is written."""

    def __init__(self, records: list[Message] | None = None) -> None:
        self.records = [state(offset) for offset in range(STATES)] if records is None else records
        self.written: list[tuple[bytes, bytes]] = []
        self.purged = 0
        self.error: str | None = None
        self._at = 0
        self._deliveries: list[Any] = []

    def offset_range(self, topic: str, _partition: int) -> tuple[int, int]:
        return 0, LOG_END if topic == CHECKS else sum(record.topic() == topic for record in self.records)

    def assign(self, _places: object) -> None:
        self._at = 0

    def consume(self, _wait_s: float) -> Consumed:
        self._at += 1
        return Consumed(list(self.records[self._at - 1 : self._at]), {}, set())

    def produce(self, topic: str, value: bytes, key: bytes, *, partition: int, on_delivery: Any) -> None:
        assert (topic, partition) in ((TARGET[COUNTERS], 0), (TARGET[POLICIES], 0))
        self.written.append((key, value))
        self._deliveries.append(on_delivery)

    def poll(self, _wait_s: float) -> None:
        while self._deliveries:
            self._deliveries.pop()(self.error, None)

    def purge(self) -> None:
        self.purged += 1

    def close(self) -> None:
        pass

    @property
    def keys(self) -> list[bytes]:
        return [key for key, _ in self.written]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(
        "stoplog_worker.restore.lane_bootstrap.AssignedConsumer", lambda *_args, **_kwargs: broker
    )
    monkeypatch.setattr(
        "stoplog_worker.restore.lane_bootstrap.kafka", SimpleNamespace(changelog_producer=lambda *_: broker)
    )
    return broker


def test_state_ahead_of_the_log_is_not_copied(broker: Broker) -> None:
    """No worker can have written it."""
    beyond = b"\x01" + (LOG_END << POSITION_BITS).to_bytes(8) + b"\x90"
    last = b"\x01" + ((LOG_END << POSITION_BITS) - 1).to_bytes(8) + b"\x90"
    broker.records = [
        Message(COUNTERS, 0, b"alice", last),
        Message(COUNTERS, 1, b"alice", beyond),
        Message(COUNTERS, 2, b"bob", beyond),
    ]
    lease = Lease(6_000, 2_000, clock=lambda: 0.0)
    lease.extend(0.0)
    copier = LaneCopier(KafkaConnection("nowhere"), 2_000, SOURCE, TARGET, Metrics(), lease)
    while not copier.advance(0):
        pass
    assert broker.written == [(b"alice", last)]


def test_copier_without_lease_writes_nothing_and_begins_again(broker: Broker) -> None:
    """Another worker may own the partition by then, and have copied and decided it."""
    lease = Lease(6_000, 2_000, clock=lambda: 0.0)
    copier = LaneCopier(KafkaConnection("nowhere"), 2_000, SOURCE, TARGET, Metrics(), lease)
    assert not copier.advance(0)
    assert not broker.written
    lease.extend(0.0)
    while len(broker.written) < 2:
        assert not copier.advance(0)
    lease.end()
    for _ in range(10):
        assert not copier.advance(0)
    assert len(broker.written) == 2
    assert broker.purged == 1
    lease.extend(0.0)
    while not copier.advance(0):
        pass
    assert broker.keys[2:] == [b"client-0", b"client-1", b"client-2"]


class Clock:
    """Seconds that a test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def copy_of(
    broker: Broker, clock: Clock | None = None, leftovers: tuple[tuple[bytes, bytes], ...] = ()
) -> PartitionCopy:
    fake = cast(Any, broker)
    return PartitionCopy(0, fake, fake, SOURCE, TARGET, clock or Clock(), leftovers)


def path_of(copy: PartitionCopy, clock: Clock | None = None, slow_reads: int = 0) -> list[CopyPhase]:
    """Advance *copy* to its end; return its phases. The first *slow_reads* readings take a minute."""
    path = [copy.phase]
    while not copy.advance():
        if copy.phase is not path[-1]:
            path.append(copy.phase)
            if copy.phase is P.COPYING and clock is not None and path.count(P.COPYING) <= slow_reads:
                clock.now += 60.1
    return [*path, copy.phase]


MARKER = Message(POLICIES, 0, MARKER_KEY, encode_marker(FIRST_MARKER))


def test_copy_without_marker_is_complete_at_the_ends() -> None:
    broker = Broker()
    assert path_of(copy_of(broker)) == [P.EMPTYING, P.FINDING_ENDS, P.COPYING, P.COMPLETE]
    assert broker.keys == [b"client-0", b"client-1", b"client-2"]


def test_copy_with_marker_writes_it_last_without_changelog_ids() -> None:
    broker = Broker([MARKER, *(state(offset) for offset in range(STATES))])
    path = path_of(copy_of(broker))
    assert path == [P.EMPTYING, P.FINDING_ENDS, P.COPYING, P.WRITING_MARKER, P.COMPLETE]
    assert broker.keys == [b"client-0", b"client-1", b"client-2", MARKER_KEY]
    assert decode_marker(broker.written[-1][1]) == FIRST_MARKER


def newer_marker(changelog_offset: int, offset: int) -> Message:
    """Return the marker of a release whose format is not known here."""
    value = b"\x03" + (offset << POSITION_BITS).to_bytes(8) + b"\x91" + offset.to_bytes(1)
    return Message(POLICIES, changelog_offset, MARKER_KEY, value)


@pytest.mark.parametrize("records", [[newer_marker(0, 1)], [MARKER, newer_marker(1, LOG_END)]])
def test_copy_stops_at_the_marker_of_a_newer_format(records: list[Message]) -> None:
    broker = Broker([*records, state(0)])
    with pytest.raises(NewerFormat):
        path_of(copy_of(broker))
    assert MARKER_KEY not in broker.keys


@pytest.mark.parametrize(
    "records",
    [[MARKER, newer_marker(1, LOG_END + 1)], [newer_marker(0, 0), Message(POLICIES, 1, *MARKER.entry)]],
)
def test_copy_skips_a_newer_marker_that_is_overridden_or_ahead_of_the_log(records: list[Message]) -> None:
    broker = Broker(records)
    path_of(copy_of(broker))
    assert broker.written == [MARKER.entry]


def test_copy_read_too_slowly_finds_the_ends_again() -> None:
    clock, broker = Clock(), Broker()
    path = path_of(copy_of(broker, clock), clock, slow_reads=1)
    assert path == [P.EMPTYING, P.FINDING_ENDS, P.COPYING, P.FINDING_ENDS, P.COPYING, P.COMPLETE]


def test_copy_with_leftovers_empties_them_first() -> None:
    broker = Broker()
    copy = copy_of(broker, leftovers=((b"zoe", b"\x01" + bytes(8) + b"\x91\x92\xcd\xea\x60\x00"),))
    assert path_of(copy)[0] is P.EMPTYING
    assert broker.written[0] == (b"zoe", b"\x01" + bytes(8) + b"\x90")


@pytest.mark.parametrize("records", [[], [MARKER]])
def test_copy_failed_delivery_is_sent_again_in_every_phase(records: list[Message]) -> None:
    broker = Broker([*records, state(0)])
    copy = copy_of(broker, leftovers=((b"zoe", b"\x01" + bytes(8) + b"\x90"),))
    seen: set[CopyPhase] = set()
    while True:
        phase, before = copy.phase, len(broker.written)
        if copy.advance():
            break
        if len(broker.written) > before and phase not in seen:
            seen.add(phase)
            sent = broker.written[before:]
            broker.error = "timed out"
            copy.advance()
            broker.error = None
            assert broker.written[before + len(sent) :] == sent, "sent again"
    assert broker.keys.count(b"zoe") == 2
    assert broker.keys.count(b"client-0") == 2


def test_copy_phase_table_states_exactly_the_edges_of_the_code() -> None:
    assert edges_of(CopyPhase) == {
        (P.EMPTYING, P.FINDING_ENDS),
        (P.FINDING_ENDS, P.COPYING),
        (P.COPYING, P.FINDING_ENDS),
        (P.COPYING, P.WRITING_MARKER),
        (P.COPYING, P.COMPLETE),
        (P.WRITING_MARKER, P.COMPLETE),
    }
