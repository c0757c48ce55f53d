from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.partition.canonical_keys import KeyCanonicalizer
from stoplog_worker.partition.update_relay import BACKLOG, UpdateRelay
from stoplog_worker.verify.replay import NothingStored

from stoplog.errors import MisroutedRecord, UndecodableRecord
from stoplog.partitioning import home_of, partition_of
from stoplog.policy import Policy, parse_policy
from stoplog.wire import partition_count
from stoplog.wire.audit import ChangeSource, source_headers, source_of
from stoplog.wire.checks import POSITION_BITS, decode_checks_record
from stoplog.wire.format import ReplyTo
from stoplog.wire.limit_updates import (
    MOVED,
    Update,
    UpdateKey,
    copied_version,
    copy_header,
    encode_update_key,
    encode_update_value,
    order_header,
    reply_to_header,
)
from stoplog.wire.partition_count import PartitionCount
from tests.support.ledgers import FIRST_MARKER
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, STRANGER
from tests.support.records import Message
from tests.support.relay import NEW, OLD, authority

POLICY = parse_policy("5/minute")
COUNT = PartitionCount(PARTITIONS)


class Bench:
    def __init__(
        self,
        marker: Marker = FIRST_MARKER,
        count: PartitionCount = COUNT,
        partition: int = PARTITION,
    ) -> None:
        self.ledger = Ledger(NothingStored(), marker)
        self.sent: list[Update] = []
        self.key: str | None = None
        """Id of the key that all workers have."""
        self.sources: list[ChangeSource] = []
        self.acknowledge: Callable[[Any, Any], None]
        self.authority = authority(OLD, NEW)
        self.relay = UpdateRelay(
            partition,
            count,
            self.ledger,
            self._send,
            self.authority,
            lambda: self.key,
            KeyCanonicalizer(self.ledger, self._publish),
        )
        self.written: list[Message] = []
        """The records of ``limit-updates`` that the relay wrote, from offset 100 on."""
        self.confirm: list[Callable[[Any, Any], None]] = []

    def _publish(
        self, key: bytes, value: bytes | None, headers: Any, done: Callable[[Any, Any], None]
    ) -> None:
        self.written.append(Message(100 + len(self.written), value, key, headers=headers))
        self.confirm.append(done)

    def _send(self, value: bytes, headers: Any, done: Callable[[Any, Any], None]) -> None:
        update = decode_checks_record(value)
        assert isinstance(update, Update)
        self.sources.append(source_of(headers))
        self.sent.append(update)
        self.acknowledge = done

    def take(
        self,
        offset: int,
        kind: str = "client",
        id_: str = CLIENTS[0],
        policy: Policy | None = POLICY,
        headers: Any = None,
    ) -> None:
        key = encode_update_key(UpdateKey(kind, id_))
        self.relay.take(Message(offset, encode_update_value(policy), key, headers=headers))

    @property
    def versions(self) -> list[int]:
        return [update.version for update in self.sent]


def test_updates_are_relayed_one_at_a_time_in_order() -> None:
    bench = Bench()
    for offset in (3, 4, 7):
        bench.take(offset)
    assert bench.versions == []
    bench.relay.advance()
    bench.relay.advance()
    assert bench.versions == [3]
    bench.acknowledge(None, None)
    bench.relay.advance()
    bench.relay.advance()
    assert bench.versions == [3, 4]
    bench.acknowledge(None, None)
    bench.relay.advance()
    bench.acknowledge(None, None)
    bench.relay.advance()
    assert bench.versions == [3, 4, 7]


def test_update_without_acknowledgment_is_sent_again() -> None:
    bench = Bench()
    bench.take(0)
    bench.take(1)
    for _ in range(3):
        bench.relay.advance()
        bench.acknowledge("timed out", None)
    bench.relay.advance()
    bench.acknowledge(None, None)
    bench.relay.advance()
    assert bench.versions == [0, 0, 0, 0, 1]


def test_update_already_in_checks_is_not_sent_again() -> None:
    bench = Bench()
    for offset in range(4):
        bench.take(offset)
    bench.relay.advance()
    bench.acknowledge("timed out, but it came by", None)
    bench.ledger.applied = 2
    bench.relay.advance()
    assert bench.versions == [0, 3]


def test_update_seen_before_its_acknowledgment_drops_no_other() -> None:
    bench = Bench()
    bench.take(0)
    bench.take(1)
    bench.relay.advance()
    bench.ledger.applied = 0
    bench.relay.advance()
    bench.acknowledge(None, None)
    bench.relay.advance()
    assert bench.versions == [0, 1]


def test_relayed_update_keeps_every_field() -> None:
    bench = Bench()
    to = ReplyTo(2, "r-1")
    bench.take(5, headers=[reply_to_header(to)])
    bench.relay.advance()
    assert bench.sent == [Update(5, "client", CLIENTS[0], "", POLICY, to)]


@pytest.mark.parametrize("kind", ["client", "reset"])
def test_update_in_the_wrong_partition_is_refused(kind: str) -> None:
    bench = Bench()
    with pytest.raises(MisroutedRecord, match="murmur2 of the client id alone"):
        bench.take(0, kind, STRANGER)
    bench.relay.advance()
    assert bench.sent == []


def test_update_that_growing_has_copied_is_skipped_and_others_in_the_wrong_partition_are_refused() -> None:
    """The client has moved from partition 1 of 2 to partition 3 of 4."""
    moved = next(name for name in map(str, range(99)) if partition_of(name, 4) == 3)
    other = next(name for name in map(str, range(99)) if partition_of(name, 4) == 2)
    bench = Bench(count=PartitionCount(4, 2, (0, 6)), partition=1)
    for kind in ("client", "reset"):
        bench.take(5, kind, moved)
    for offset, id_ in ((6, moved), (5, other)):
        with pytest.raises(MisroutedRecord, match="over 4 partitions"):
            bench.take(offset, "client", id_)
    bench.relay.advance()
    assert bench.sent == []


@pytest.mark.parametrize(("kind", "id_"), [("plan", STRANGER), ("default", "")])
def test_plan_and_default_updates_are_relayed_in_every_partition(kind: str, id_: str) -> None:
    bench = Bench()
    bench.take(0, kind, id_)
    bench.relay.advance()
    assert bench.versions == [0]


def test_undecodable_update_is_refused_and_the_next_is_relayed() -> None:
    bench = Bench()
    for key, value in ((None, None), (b"{", None), (b'["client", "a"]', b"{}"), (b'["nobody", "a"]', None)):
        with pytest.raises(UndecodableRecord):
            bench.relay.take(Message(0, value, key))
    bench.take(1)
    bench.relay.advance()
    assert bench.versions == [1]


def test_relay_with_full_backlog_pauses_consuming() -> None:
    bench = Bench()
    for offset in range(BACKLOG):
        assert not bench.relay.full
        bench.take(offset)
    assert bench.relay.full
    bench.relay.advance()
    bench.acknowledge(None, None)
    bench.ledger.applied = 0
    bench.relay.advance()
    assert not bench.relay.full


@pytest.mark.parametrize(
    "error", [SystemError("a result with an exception set"), UnicodeDecodeError("utf-8", b"", 0, 1, "")]
)
def test_update_with_a_header_name_that_is_not_utf_8_is_refused(error: Exception) -> None:
    class Odd(Message):
        def headers(self) -> Any:
            raise error

    bench = Bench()
    with pytest.raises(UndecodableRecord, match="a header has a name that is not UTF-8"):
        bench.relay.take(Odd(0, None, encode_update_key(UpdateKey("client", CLIENTS[0]))))
    bench.relay.advance()
    assert bench.sent == []


def test_number_of_partitions_is_no_update_and_no_dead_letter() -> None:
    record = Message(0, partition_count.encode_partition_count(PartitionCount(4)), partition_count.KEY)
    sent: list[bytes] = []
    for partition in (0, 1):
        ledger = Ledger(NothingStored(), FIRST_MARKER)
        relay = UpdateRelay(
            partition,
            PartitionCount(PARTITIONS),
            ledger,
            lambda value, *_: sent.append(value),
            authority(),
            lambda: None,
            KeyCanonicalizer(ledger, lambda *_: None),
        )
        with pytest.raises(UndecodableRecord, match="partitions") if partition else nullcontext():
            relay.take(record)
        relay.advance()
    assert not sent


def test_relayed_update_names_its_source() -> None:
    source = ChangeSource("ops", "10.0.0.7", "r-1")
    bench = Bench()
    for offset, headers in enumerate(([*source_headers(source), ("order", b"4")], None)):
        bench.take(offset, headers=headers)
        bench.relay.advance()
        bench.acknowledge(None, None)
    assert bench.sources == [source, ChangeSource("kafka")]


# --- relay keys ---


def test_update_is_signed_with_the_key_that_all_workers_have() -> None:
    bench = Bench()
    bench.key = "new"
    bench.take(5)
    bench.relay.advance()
    [update] = bench.sent
    assert update.signature is not None
    assert update.signature.key_id == "new"
    assert bench.authority.refusal(update, -1, signed_before=True) is None


def test_update_is_not_signed_before_a_key_is_agreed_on() -> None:
    bench = Bench()
    bench.take(5)
    bench.relay.advance()
    assert [update.signature for update in bench.sent] == [None]
    assert not bench.relay.held


def test_partition_with_signed_updates_holds_the_next_until_a_key_is_agreed_on() -> None:
    bench = Bench(msgspec.structs.replace(FIRST_MARKER, signed_from=3))
    bench.take(5)
    for _ in range(3):
        bench.relay.advance()
    assert (bench.sent, bench.relay.held) == ([], True)
    bench.key = "old"
    bench.relay.advance()
    assert bench.versions == [5]
    assert bench.sent[0].signature is not None
    bench.acknowledge(None, None)
    bench.relay.advance()
    assert not bench.relay.held


def test_updates_that_a_signed_one_overtook_are_sent_again_signed() -> None:
    """Another lane signs already. Its update stands in ``checks`` before those that this worker sent."""
    bench = Bench()
    for offset in range(3):
        bench.take(offset)
    for _ in range(2):
        bench.relay.advance()
        bench.acknowledge(None, None)
    bench.key = "old"
    bench.ledger.applied, bench.ledger.signed_from = 0, 17
    for _ in range(2):
        bench.relay.advance()
        bench.acknowledge(None, None)
    bench.relay.advance()
    assert bench.versions == [0, 1, 1, 2]
    assert [update.signature is not None for update in bench.sent] == [False, False, True, True]
    bench.ledger.applied = 2
    bench.relay.advance()
    assert len(bench.sent) == 4, "once"


# --- canonical keys ---

ODD = f'["client", "{CLIENTS[0]}", ""]'.encode()
KEY = encode_update_key(UpdateKey("client", CLIENTS[0]))


class KeyBench(Bench):
    """A relay, whose updates are applied as soon as they are in ``checks``."""

    def write(self, offset: int, key: bytes, text: str | None, headers: Any = None) -> None:
        """Have the relay read a record of ``limit-updates``."""
        value = encode_update_value(parse_policy(text)) if text is not None else None
        self.relay.take(Message(offset, value, key, headers=headers))

    def settle(self) -> None:
        """Relay, apply and rewrite until nothing is left to do."""
        for _ in range(20):
            self.relay.advance()
            while self.confirm:
                self.confirm.pop(0)(None, None)
            if self.relay._in_flight:
                self.acknowledge(None, None)
                self.ledger.apply(self.sent[-1], len(self.sent) << POSITION_BITS)

    def read_back(self) -> None:
        """Have the relay read the records that it wrote."""
        written, self.written = self.written, []
        for message in written:
            self.relay.take(message)

    def topic(self) -> list[tuple[bytes, bytes | None, int]]:
        """Return what the relay wrote: key, value and the version that it repeats."""
        return [(m.key() or b"", m.value(), copied_version(m.headers())) for m in self.written]


def test_update_under_another_spelling_is_applied_and_then_moved_to_its_canonical_key() -> None:
    bench = KeyBench()
    bench.write(10, ODD, "5/minute")
    bench.relay.advance()
    assert (bench.versions, bench.written) == ([10], []), "it takes effect first"
    bench.settle()
    assert bench.topic() == [(KEY, b'{"limits":["5/minute"]}', 10), (ODD, MOVED, -1)]
    bench.read_back()
    bench.settle()
    assert (bench.versions, bench.written) == ([10], []), "a copy is no change"


def test_deletion_under_another_spelling_also_deletes_the_canonical_key() -> None:
    bench = KeyBench()
    bench.write(9, KEY, "5/minute")
    bench.write(10, ODD, None)
    bench.settle()
    assert bench.topic() == [(KEY, None, 10)]


def test_change_that_arrives_before_the_copy_is_copied_again() -> None:
    """The copy of version 10 has offset 12, so that compaction would drop version 11."""
    bench = KeyBench()
    bench.write(10, ODD, "5/minute")
    bench.settle()
    copy, moved = bench.written
    bench.written = []
    bench.write(11, KEY, "6/minute")
    bench.relay.take(copy)
    bench.relay.take(moved)
    bench.settle()
    assert bench.versions == [10, 11]
    assert bench.topic() == [(KEY, b'{"limits":["6/minute"]}', 11)]
    bench.read_back()
    bench.settle()
    assert (bench.versions, bench.written) == ([10, 11], [])


def test_later_changes_wait_in_the_queue_until_a_key_is_rewritten() -> None:
    bench = KeyBench()
    bench.write(10, ODD, "5/minute")
    bench.relay.advance()
    bench.acknowledge(None, None)
    bench.ledger.apply(bench.sent[0], 1 << POSITION_BITS)
    bench.relay.advance()
    assert len(bench.written) == 2
    bench.write(14, KEY, "7/minute")
    bench.relay.advance()
    assert bench.versions == [10]
    bench.confirm.pop(0)("timed out", None)
    bench.confirm.pop(0)(None, None)
    bench.settle()
    assert bench.versions == [10, 14]
    assert [value for _, value, _ in bench.topic()[2:]] == [b'{"limits":["5/minute"]}', MOVED]


def test_worker_that_may_not_write_limit_updates_says_so_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = KeyBench()
    bench.write(10, ODD, "5/minute")
    bench.relay.advance()
    bench.acknowledge(None, None)
    bench.ledger.apply(bench.sent[0], 1 << POSITION_BITS)
    bench.relay.advance()
    for confirm in bench.confirm:
        confirm(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), None)
    bench.write(11, KEY, "6/minute")
    bench.relay.advance()
    assert bench.versions == [10, 11]
    assert "allow workers to write to limit-updates" in caplog.text


def test_copy_that_a_worker_without_state_reads_is_an_update() -> None:
    bench = KeyBench()
    bench.write(12, KEY, "5/minute", [copy_header(10)])
    bench.settle()
    assert bench.versions == [12]


def test_copy_of_a_plan_keeps_its_order() -> None:
    home = next(id_ for id_ in "abcdefgh" if home_of("plan", id_, PARTITIONS) == PARTITION)
    odd, key = f'["plan", "{home}", ""]'.encode(), encode_update_key(UpdateKey("plan", home))
    bench = KeyBench()
    bench.write(10, odd, "5/minute")
    bench.settle()
    copy = bench.written[0]
    assert copy.key() == key
    assert order_header(10) in copy.headers()
    fresh = KeyBench()
    fresh.relay.take(copy)
    fresh.settle()
    assert [update.order for update in fresh.sent] == [10]


def test_reset_under_another_spelling_is_not_repeated() -> None:
    bench = KeyBench()
    bench.write(10, f'["reset", "{CLIENTS[0]}", ""]'.encode(), None)
    bench.settle()
    assert (bench.versions, bench.written) == ([10], [])


@given(
    st.lists(st.tuples(st.sampled_from((KEY, ODD, ODD.replace(b" ", b"  "))), st.integers(1, 5)), max_size=8),
    st.data(),
)
def test_compacted_topic_holds_the_limit_in_force_under_one_key(
    changes: list[tuple[bytes, int]], data: st.DataObject
) -> None:
    """Changes, copies and the relay's reads interleave in any way; 5 stands for a deletion."""
    bench = KeyBench()
    topic: list[Message] = []
    read, waiting = 0, list(changes)

    def append(key: bytes | None, value: bytes | None, headers: Any) -> None:
        topic.append(Message(len(topic), value, key, headers=headers))

    def write() -> None:
        key, limit = waiting.pop(0)
        policy = None if limit == 5 else parse_policy(f"{limit}/minute")
        append(key, encode_update_value(policy), None)

    while True:
        for message in bench.written:
            append(message.key(), message.value(), message.headers())
        bench.written = []
        moves = [*["write"] * bool(waiting), *["read"] * (read < len(topic))]
        if not moves:
            bench.settle()
            if not bench.written:
                break
            continue
        if data.draw(st.sampled_from(moves)) == "write":
            write()
        else:
            bench.relay.take(topic[read])
            read += 1
            if data.draw(st.booleans()):
                bench.settle()
    last = {message.key(): message.value() for message in topic}
    change = bench.ledger.policies.last_change(UpdateKey("client", CLIENTS[0]))
    if changes:
        assert change is not None
        assert last.pop(KEY, None) == encode_update_value(change.policy)
    assert set(last.values()) <= {MOVED, None}


def test_relay_is_idle_once_every_update_that_was_read_is_applied() -> None:
    bench = Bench()
    assert (bench.relay.idle, bench.relay.next_offset) == (True, 0)
    bench.take(4)
    assert (bench.relay.idle, bench.relay.next_offset) == (False, 5)
    bench.relay.advance()
    bench.acknowledge(None, None)
    bench.relay.advance()
    assert not bench.relay.idle, "it is sent, but not applied"
    bench.ledger.applied = 4
    bench.relay.advance()
    assert bench.relay.idle
    bench.relay.take(Message(5, partition_count.encode_partition_count(COUNT), partition_count.KEY))
    with pytest.raises(UndecodableRecord):
        bench.relay.take(Message(6, b"no policy", b"no key"))
    assert (bench.relay.idle, bench.relay.next_offset) == (True, 7), "other records need nothing"
