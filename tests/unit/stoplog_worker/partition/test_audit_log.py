from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError
from stoplog_worker.algorithm.ledger import UpdateEffect
from stoplog_worker.algorithm.state_codec import MARKER_KEY, PolicyChange, decode_marker, encode_policy_key
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.audit_log import AuditLog
from stoplog_worker.partition.partition import Partition
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import POLICIES, TABLES

from stoplog.partitioning import home_of
from stoplog.policy import parse_policy
from stoplog.wire.audit import AuditRecord, ChangeSource, decode_audit, source_headers
from stoplog.wire.checks import POSITION_BITS, encode_update
from stoplog.wire.limit_updates import Update, UpdateKey, enabling_update, encode_update_key
from stoplog.wire.partition_count import PartitionCount
from tests.support.ledgers import FIRST_MARKER
from tests.support.memory_store import Changelogs, MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START
from tests.support.records import Message
from tests.support.relay import alone, unkeyed

CLIENT = CLIENTS[0]
SOURCE = ChangeSource("ops", "10.0.0.7", "r-1")
FIVE, NINE = parse_policy("5/minute"), parse_policy(["9/minute", "90/hour"])
NEW = UpdateEffect(None, False, FIRST_MARKER)
TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)


class Topic:
    """The topic ``audit``: what was sent, and what the broker has."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes, Any]] = []
        self.records: list[tuple[bytes, AuditRecord]] = []

    def send(self, key: bytes, value: bytes, delivered: Any) -> None:
        self.sent.append((key, value, delivered))

    def acknowledge(self, error: KafkaError | None = None) -> None:
        sent, self.sent = self.sent, []
        for key, value, delivered in sent:
            if error is None:
                self.records.append((key, decode_audit(value)))
            delivered(error, None)


class Bench:
    """A partition whose audit and changelogs the test acknowledges."""

    def __init__(self, folder: Path, store: MemoryStore, changelogs: Changelogs, topic: Topic) -> None:
        self.topic, self.changelogs = topic, changelogs
        self.relayed: list[Any] = []
        self.now = 1e9
        producers: Any = SimpleNamespace(
            write_changelog=lambda _, *rest: changelogs.send(*rest),
            write_audit=lambda _, *rest: topic.send(*rest),
            changelogs=dict.fromkeys(TABLES, "changelog"),
            reply=lambda *_: None,
            relay_update=lambda *sent: self.relayed.append(sent),
            publish_update=print,
            truncate_changelog=lambda *_: None,
        )
        settings = Settings(kafka="127.0.0.1:1", home=folder)
        marker = store.marker() or FIRST_MARKER
        self.partition = Partition(
            settings,
            PartitionCount(PARTITIONS),
            store,
            marker,
            producers,
            Metrics(),
            keys=unkeyed(),
            workers=alone(),
            audited=True,
        )

    def take(self, offset: int, update: Update, source: ChangeSource | None = SOURCE) -> None:
        headers = source_headers(source) if source is not None else None
        self.partition.take(Message(offset, encode_update(update), headers=headers, stamp_ms=START))

    def checkpoint(self) -> bool:
        """Advance until only acknowledgments of the audit are missing; return whether it is complete."""
        complete = False
        for _ in range(10):
            self.now += 1
            complete = self.partition.checkpoint_to(self.partition.ledger.next_offset, self.now, 0)
            self.changelogs.arrive_all()
        return complete


def test_applied_update_is_recorded_with_its_source_and_what_it_replaced(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryStore(), Changelogs(), Topic())
    bench.take(3, Update(7, "client", CLIENT, "login", FIVE))
    bench.take(4, Update(9, "client", CLIENT, "login", NINE), source=None)
    bench.take(5, Update(9, "client", CLIENT, "login", NINE))
    bench.take(6, Update(12, "client", CLIENT, "login", None))
    bench.take(8, Update(13, "client", CLIENT, "login", FIVE))
    bench.take(9, Update(14, "reset", CLIENT, "", None))
    bench.partition.audit.advance(1e9)
    bench.topic.acknowledge()
    key = encode_update_key(UpdateKey("client", CLIENT, "login"))
    nine = ["90/hour", "9/minute"]
    assert bench.topic.records == [
        (key, AuditRecord(1, 3 << 16, START, 7, ["5/minute"], None, None, "ops", "10.0.0.7", "r-1")),
        (key, AuditRecord(1, 4 << 16, START, 9, nine, 7, ["5/minute"], "kafka", "", "")),
        (key, AuditRecord(1, 6 << 16, START, 12, None, 9, nine, "ops", "10.0.0.7", "r-1")),
        (key, AuditRecord(1, 8 << 16, START, 13, ["5/minute"], None, None, "ops", "10.0.0.7", "r-1")),
        (
            encode_update_key(UpdateKey("reset", CLIENT)),
            AuditRecord(1, 9 << 16, START, 14, None, None, None, "ops", "10.0.0.7", "r-1"),
        ),
    ]


def test_update_that_enables_holds_is_not_recorded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryStore(), Changelogs(), Topic())
    bench.take(3, enabling_update(), source=None)
    bench.partition.audit.advance(1e9)
    assert not bench.topic.sent
    assert bench.partition.ledger.policies.holds_enabled(4 << 16)
    registry = bench.partition._metrics.registry
    for result in ("applied", "repeated"):
        name = "stoplog_worker_updates_total"
        assert not registry.get_sample_value(name, {"result": result}), "no limit was changed"


def test_marker_stays_before_the_first_update_that_is_not_recorded(tmp_path: Path) -> None:
    store, changelogs, topic = MemoryStore(), Changelogs(), Topic()
    bench = Bench(tmp_path, store, changelogs, topic)

    def markers() -> list[int]:
        written = [decode_marker(value) for key, value in changelogs.logs[POLICIES] if key == MARKER_KEY]
        return [marker.next_offset for marker in written]

    bench.take(0, Update(0, "client", CLIENT, "", FIVE))
    bench.partition.audit.advance(1e9)
    topic.acknowledge()
    bench.take(1, Update(1, "client", CLIENT, "", NINE))
    bench.take(2, Update(2, "client", CLIENT, "", FIVE))
    bench.checkpoint()
    assert (markers()[0], markers()[-1]) == (0, 1)
    assert store.policies([encode_policy_key(UpdateKey("client", CLIENT))]) != [None], (
        "it is stored meanwhile"
    )

    # The worker crashes. The policies are in the changelog, and no marker passes the last two updates.
    restored = MemoryStore()
    for table in TABLES:
        restored.write(table, changelogs.logs[table])
    again = Bench(tmp_path, restored, changelogs, topic)
    again.take(1, Update(1, "client", CLIENT, "", NINE))
    again.take(2, Update(2, "client", CLIENT, "", FIVE))
    again.partition.audit.advance(1e9)
    topic.acknowledge()
    topic.acknowledge()
    again.checkpoint()
    assert markers()[-1] == 3
    assert [(record.position, record.previous_version) for _, record in topic.records] == [
        (0, None),
        (1 << 16, 0),
        (2 << 16, 1),
        (1 << 16, 0),
        (2 << 16, 1),
    ]
    assert topic.records[1:3] == topic.records[3:], "a repeated record is the same"


def test_last_checkpoint_of_a_revoked_partition_waits_for_the_audit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryStore(), Changelogs(), Topic())
    bench.take(0, Update(0, "client", CLIENT, "", FIVE))
    assert not bench.checkpoint()
    bench.topic.acknowledge()
    assert bench.checkpoint()


def test_records_that_no_broker_acknowledges_are_sent_again_in_order_until_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic, metrics = Topic(), Metrics()
    log = AuditLog(PARTITION, PartitionCount(PARTITIONS), topic.send, metrics)

    def record(number: int) -> None:
        marker = msgspec.structs.replace(FIRST_MARKER, next_offset=number)
        effect = UpdateEffect(None, False, marker)
        log.record(Update(number, "client", CLIENT, "", FIVE), effect, number << 16, START, SOURCE)

    for number in range(3):
        record(number)
    log.advance(now=0)
    for number in range(3, 5):
        record(number)
    log.advance(now=0)
    assert len(topic.sent) == 3, "the next batch waits for the first one"
    last = topic.sent.pop()
    topic.acknowledge(TIMED_OUT)
    log.advance(now=0)
    assert not topic.sent, "the batch is not settled"
    topic.sent.append(last)
    topic.acknowledge()
    for attempt in range(100):
        log.advance(now=attempt)
        assert len(topic.sent) == 4
        topic.acknowledge(TIMED_OUT)
        log.advance(now=attempt)
        assert not topic.sent or attempt == 0, "attempts are half a second apart"
        topic.acknowledge(TIMED_OUT)
        waiting_from = log.replay_from()
        assert waiting_from is not None
        assert waiting_from.next_offset == 0
    assert caplog.text.count("trying again until it is") == 1
    log.advance(now=200)
    topic.acknowledge()
    assert [record.position >> 16 for _, record in topic.records] == [2, 0, 1, 3, 4]
    assert (log.waiting, log.replay_from()) == (False, None)
    assert metrics.audit.labels("lost")._value.get() == 0


def test_relay_and_reading_stop_while_too_many_records_wait(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MemoryStore(), Changelogs(), Topic())
    bench.partition.relay.take(
        Message(20_000, b'{"limits": ["7/minute"]}', key=encode_update_key(UpdateKey("client", CLIENT)))
    )
    audit = bench.partition.audit
    states = []
    for number in range(10_000):
        bench.take(number, Update(number, "client", CLIENT, "", FIVE))
        states.append((audit.behind, audit.full))
    assert (states.index((True, False)), states.index((True, True))) == (999, 9_999)
    bench.partition.advance(1e9, 0, 1, 1)
    assert not bench.relayed
    while audit.waiting:
        audit.advance(1e9)
        bench.topic.acknowledge()
    assert [record.position >> 16 for _, record in bench.topic.records] == list(range(10_000))
    bench.partition.advance(1e9, 0, 1, 1)
    assert bench.relayed


@pytest.mark.parametrize("code", [KafkaError._UNKNOWN_TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED])
def test_record_that_a_broker_refuses_is_given_up_at_once(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    topic = Topic()
    log = AuditLog(PARTITION, PartitionCount(PARTITIONS), topic.send, Metrics())
    log.record(Update(0, "client", CLIENT, "", FIVE), NEW, 0, START, SOURCE)
    log.advance(now=0)
    topic.acknowledge(KafkaError(code))
    assert not log.waiting
    assert '"who":"ops"' in caplog.text, "the log has the record at least"
    assert "stoplog topics create" in caplog.text


def test_change_is_logged_once_and_without_a_topic_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stoplog.audit")
    effect = UpdateEffect(PolicyChange(0, 4, FIVE), True, FIRST_MARKER)
    for partition in range(PARTITIONS):
        log = AuditLog(partition, PartitionCount(PARTITIONS), None, Metrics())
        order = -1 if partition == home_of("plan", "gold", PARTITIONS) else 8
        log.record(
            Update(8, "plan", "gold", "", NINE, order=order), effect, 9 << POSITION_BITS, START, SOURCE
        )
        log.advance(now=0)
        assert not log.waiting
    home = home_of("plan", "gold", PARTITIONS)
    assert [record.message for record in caplog.records] == [
        "plan gold: limits set to 90/hour, 9/minute, before: 5/minute; by ops from 10.0.0.7, request r-1; "
        f"version 8, previous version 4, partition {home}, position 589824"
    ]
    caplog.clear()
    log = AuditLog(0, PartitionCount(PARTITIONS), None, Metrics())
    log.record(Update(9, "reset", CLIENT, "", None), NEW, 0, START, ChangeSource("kafka"))
    assert f"client {CLIENT}: counters reset; by" in caplog.text
    assert "by kafka from -, request -; version 9, previous version -," in caplog.text
    caplog.clear()
    log.record(Update(10, "client", CLIENT, "", None), NEW, 0, START, SOURCE)
    assert f"client {CLIENT}: limits deleted, before: no limits; by ops" in caplog.text
