"""Replies to records about holds: of format version 2, and only after holds are enabled."""

from __future__ import annotations

from typing import Any, Literal, cast

from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.partition import Partition
from stoplog_worker.settings import Settings

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements, encode_update
from stoplog.wire.holds import (
    CHARGE,
    LEASE,
    RESERVATION,
    SETTLED_NOW,
    Ask,
    Grant,
    HoldRow,
    Settlement,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import Update, enabling_update
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import HeldDecision, Reply, SettlementReply, decode_any_reply
from tests.support.memory_store import MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START, STRANGER
from tests.support.records import Message
from tests.support.relay import alone, unkeyed

CLIENT = CLIENTS[0]
HELD = (7, 1, 0)


class Sent:
    """Producers that keep what they are given."""

    def __init__(self) -> None:
        self.changelogs: dict[str, str] = {}
        self.replies: list[Reply | SettlementReply] = []
        self.letters: list[str] = []

    def reply(self, _partition: int, value: bytes) -> None:
        self.replies.append(decode_any_reply(value))

    def dead_letter(self, _message: Any, reason: str) -> None:
        self.letters.append(reason)

    def write_changelog(self, *_: Any) -> None:
        """Accept a record that is never acknowledged."""

    def relay_update(self, *_: Any) -> None:
        """Accept an update, of which there are none."""

    def publish_update(self, *_: Any) -> None:
        """Accept an update of limits, of which there are none."""

    def truncate_changelog(self, *_: Any) -> None:
        """Accept a request that no test checks."""


def opened() -> tuple[Partition, Sent]:
    sent = Sent()
    first = Marker(0, 0, -1, -1, "topic", parse_policy("10/minute"))
    producers = cast("Producers", sent)
    store = MemoryStore(PARTITION)
    return Partition(
        Settings(),
        PartitionCount(PARTITIONS),
        store,
        first,
        producers,
        Metrics(),
        keys=unkeyed(),
        workers=alone(),
    ), sent


RESERVE = Batch(
    0, 7, 1, [Check(CLIENT), Check(CLIENT, 4)], [HoldRow(1, Ask(RESERVATION, HELD, 0, 0, 60_000))]
)


def test_records_with_holds_are_answered_in_format_version_2() -> None:
    one, sent = opened()
    one.take(Message(0, encode_update(enabling_update())))
    one.take(Message(1, encode_batch(RESERVE)))
    rows = [
        SettlementRow(CLIENT, "", (Settlement(HELD, 1), Settlement(HELD, 1))),
        SettlementRow(STRANGER, "", ()),
    ]
    one.take(Message(2, encode_settlements(SettlementBatch(0, 7, 2, rows))))
    one.take(Message(3, encode_settlements(SettlementBatch(-1, 7, 3, rows[:1]))))
    reserved, settled = sent.replies
    assert isinstance(reserved, Reply)
    plain, held = reserved.answers
    assert isinstance(plain, HeldDecision)
    assert isinstance(held, HeldDecision)
    assert (plain.remaining, plain.firm_ms, plain.grant) == (9, -1, None)
    assert (held.remaining, held.firm_ms, held.grant) == (5, 0, Grant(4, 60_000))
    assert isinstance(settled, SettlementReply)
    assert (settled.number, settled.offset, settled.applied) == (2, 2, -1)
    assert settled.answers[0] == (SETTLED_NOW, 1)
    assert isinstance(settled.answers[1], str)
    assert sent.letters == [settled.answers[1]]


def test_batch_with_holds_before_they_are_enabled_is_answered_with_the_reason() -> None:
    one, sent = opened()
    one.take(Message(0, encode_batch(RESERVE)))
    [reply] = sent.replies
    assert isinstance(reply, Reply)
    assert reply.error is not None
    assert "not enabled" in reply.error
    assert sent.letters == [reply.error]


def test_reservations_and_permits_that_end_unsettled_are_counted() -> None:
    sent, metrics = Sent(), Metrics()
    first = Marker(0, 0, -1, -1, "topic", parse_policy("100/minute"))
    producers, store = cast("Producers", sent), MemoryStore(PARTITION)
    count = PartitionCount(PARTITIONS)
    one = Partition(Settings(), count, store, first, producers, metrics, keys=unkeyed(), workers=alone())

    def counted() -> list[dict[str, float]]:
        """Return the counts of reservations, and of permits."""
        return [
            {it.labels["result"]: it.value for it in family.samples if it.name.endswith("_total")}
            for counter in (metrics.reservations, metrics.lease_permits)
            for family in counter.collect()
        ]

    def reserve(offset: int, number: int, ttl_ms: int, kind: Literal[0, 1] = RESERVATION) -> None:
        ask = Ask(kind, (7, number, 0), number * (kind == LEASE), 5 * (kind == LEASE), ttl_ms)
        batch = Batch(0, 7, number, [Check(CLIENT, 1)], [HoldRow(0, ask)])
        one.take(Message(offset, encode_batch(batch), stamp_ms=START))

    assert counted() == [{"granted": 0, "unsettled": 0}] * 2
    one.take(Message(0, encode_update(enabling_update()), stamp_ms=START))
    for number, ttl_ms in ((1, 500), (2, 500), (3, 9_000), (4, 9_000)):
        reserve(number, number, ttl_ms)
    reserve(5, 5, 3_000, LEASE)
    assert counted() == [{"granted": 4, "unsettled": 0}, {"granted": 5, "unsettled": 0}]
    reserve(5, 5, 3_000, LEASE)  # read again
    ids = Settlement((7, 1, 0), 1), Settlement((7, 3, 0), 0), Settlement((7, 5, 0), 2, True)
    settled = [SettlementRow(CLIENT, "", ids)]
    one.take(Message(6, encode_settlements(SettlementBatch(0, 7, 6, settled)), stamp_ms=START))
    one.take(Message(7, encode_batch(Batch(0, 7, 7, [Check(CLIENT, 0)])), stamp_ms=START + 4_000))
    assert counted() == [{"granted": 4, "unsettled": 1}, {"granted": 5, "unsettled": 3}]
    reset = Update(1, "reset", CLIENT, "", None)
    one.take(Message(8, encode_update(reset), stamp_ms=START + 20_000))
    assert counted() == [{"granted": 4, "unsettled": 2}, {"granted": 5, "unsettled": 3}]


def test_costs_that_no_limit_judged_are_announced() -> None:
    def after(ask: Ask | None, *settlements: Settlement) -> bool:
        one, _ = opened()
        one.take(Message(0, encode_update(enabling_update()), stamp_ms=START))
        one.take(Message(1, encode_batch(RESERVE), stamp_ms=START))
        assert not one.unjudged
        row = HoldRow(0, ask, settlements)
        one.take(Message(2, encode_batch(Batch(0, 7, 2, [Check(CLIENT, 0)], [row])), stamp_ms=START))
        return one.unjudged

    assert after(Ask(CHARGE, (7, 2, 0), 0, 1, 1))
    assert not after(Ask(CHARGE, (7, 2, 0), 0, 0, 1)), "it charges nothing"
    assert not after(None, Settlement(HELD, 4))
    assert after(None, Settlement(HELD, 5))
    assert after(None, Settlement(HELD, 3, True), Settlement(HELD, 2))
    assert not after(None, Settlement((7, 9, 0), 9)), "it is not known"
