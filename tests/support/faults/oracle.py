"""The log, folded again, against all that came of it: replies, HTTP answers, changelogs, workers' tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import Consumer, TopicPartition
from rocksdict import AccessType, Options, Rdict
from stoplog_worker.algorithm.fold import Answer
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    Marker,
    PolicyChange,
    decode_marker,
    decode_state,
    expires_at_ms,
    position_of,
)
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES
from stoplog_worker.verify.replay import Record, replay

from stoplog.lanes import app_id
from stoplog.policy import Policy, parse_policy
from stoplog.topics import CHECKS, REPLIES, UPDATES
from stoplog.wire.checks import Batch, SingleCheck, decode_checks_record
from stoplog.wire.replies import Decision, decode_reply
from tests.support.faults.load import PARTITIONS, Asked

_READ_S: Final = 30.0

Table = dict[bytes, bytes]
"""Entries as they are stored."""


class Truth(NamedTuple):
    """What the log of one partition says: all decisions by offset, and what must be stored at its end."""

    records: list[Record]
    decided: dict[int, list[Answer]]
    marker: Marker
    counters: Table
    policies: Table

    @property
    def checks(self) -> int:
        """How many were asked."""
        return sum(map(len, self.decided.values()))


class Topic:
    """All records of a topic, read on from where the last reading ended."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self.messages: dict[int, list[Any]] = {partition: [] for partition in range(PARTITIONS)}
        self._bootstrap = bootstrap
        self._name = name
        self._next = dict.fromkeys(range(PARTITIONS), 0)

    def catch_up(self) -> None:
        """Read to the present end."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "oracle",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
            }
        )
        try:
            consumer.assign([TopicPartition(self._name, p, offset) for p, offset in self._next.items()])
            left = set(self._next)
            while left:
                messages: list[Any] = [consumer.poll(_READ_S), *consumer.consume(10_000, 0)]
                assert messages[0] is not None, f"{self._name} {left} cannot be read"
                for message in messages:
                    partition = message.partition()
                    if message.error() is None:
                        self.messages[partition].append(message)
                        self._next[partition] = message.offset() + 1
                    else:
                        assert message.error().name() == "_PARTITION_EOF", message.error()
                        left.discard(partition)
        finally:
            consumer.close()


class Oracle:
    """Reads a system's topics from their beginnings and judges what it finds.

    Args:
        bootstrap: Of its Kafka.
        default: Its workers' built-in limits.
        lane: Whose changelogs it reads.
    """

    def __init__(self, bootstrap: str, default: Policy | None = None, lane: str = "") -> None:
        self._bootstrap = bootstrap
        self._group = f"{app_id(lane)}-owner"
        self._default = default or parse_policy("100/minute")
        self._checks = Topic(bootstrap, CHECKS)
        self._replies = Topic(bootstrap, REPLIES)
        self._changelogs = {table: Topic(bootstrap, name) for table, name in changelogs(lane).items()}

    def read(self) -> list[Truth]:
        """The truth of each partition as of now; there must be no more load."""
        self._checks.catch_up()
        return [self._fold(partition, self._checks.messages[partition]) for partition in range(PARTITIONS)]

    def _fold(self, partition: int, messages: Sequence[Any]) -> Truth:
        records = [Record(m.offset(), m.timestamp()[1], m.value()) for m in messages]
        fold = replay(records, partition, PARTITIONS, self._default)
        decided: dict[int, list[Answer]] = {}
        while True:
            try:
                offset, answers = next(fold)
            except StopIteration as end:
                ledger: Ledger = end.value
                marker, entries = ledger.take_dirty()
                return Truth(records, decided, marker, dict(entries.counters), dict(entries.policies))
            decided[offset] = answers

    def relayed(self, truths: Sequence[Truth]) -> bool:
        """Whether the log has every limit update and reset that was written."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "oracle"})
        try:
            ends = [
                consumer.get_watermark_offsets(TopicPartition(UPDATES, partition), timeout=_READ_S)[1]
                for partition in range(PARTITIONS)
            ]
        finally:
            consumer.close()
        return [end - 1 for end in ends] == [truth.marker.applied for truth in truths]

    # --- answers ---

    def check_replies(self, truths: Sequence[Truth]) -> int:
        """Every reply that any gateway was sent gives the log's decisions; returns how many were compared."""
        self._replies.catch_up()
        asked: dict[tuple[int, int], tuple[int, int]] = {}
        for partition, truth in enumerate(truths):
            for record in truth.records:
                content = decode_checks_record(record.value)
                if isinstance(content, Batch):
                    sent = (content.incarnation, content.number)
                    assert sent not in asked, f"batch {sent} is in the log twice, at {asked[sent]}"
                    asked[sent] = (partition, record.offset)
        compared = 0
        for message in (m for messages in self._replies.messages.values() for m in messages):
            if message.value().startswith(b"{"):
                continue  # a word on an update
            reply = decode_reply(message.value())
            partition, offset = asked[reply.incarnation, reply.number]
            assert reply.error is None, reply.error
            assert reply.offset == offset
            right = truths[partition].decided[offset]
            assert len(reply.answers) == len(right)
            for index, (answer, truth_) in enumerate(zip(reply.answers, right, strict=True)):
                # None: decided before its worker restarted, and then perhaps answered.
                assert answer is None or answer == truth_, (
                    f"{CHECKS}[{partition}]@{offset} check {index}: answered {answer}, the log says {truth_}"
                )
                compared += answer is not None
        return compared

    def check_http(self, truths: Sequence[Truth], asked: Sequence[Asked]) -> int:
        """Every answer of a gateway that is not degraded is one of the log's decisions on that client.

        No two are the same one. Returns how many were compared.
        """
        right: dict[str, Counter[Any]] = defaultdict(Counter)
        for truth in truths:
            for record in truth.records:
                content = decode_checks_record(record.value)
                if isinstance(content, Batch | SingleCheck):
                    checks = content.checks
                    for check, answer in zip(checks, truth.decided[record.offset], strict=True):
                        assert isinstance(answer, Decision), answer
                        right[check.client][msgspec.structs.astuple(answer)] += 1
        told: dict[str, Counter[Any]] = defaultdict(Counter)
        for one in asked:
            if one.good:
                assert one.answer is not None
                told[one.client][tuple(one.answer[name] for name in Decision.__struct_fields__)] += 1
        for client, answers in told.items():
            extra = answers - right[client]
            assert not extra, f"{client} was told what the log does not say: {extra}"
        return sum(answers.total() for answers in told.values())

    # --- state ---

    def stored(self) -> list[dict[str, Table]]:
        """What the changelogs of each partition hold, merged by position as every reader of them does."""
        for topic in self._changelogs.values():
            topic.catch_up()
        return [
            {table: _merged(topic.messages[partition]) for table, topic in self._changelogs.items()}
            for partition in range(PARTITIONS)
        ]

    def unmended(self) -> list[str]:
        """Keys whose last record in a changelog, which compaction keeps, is older than one before it."""
        found = []
        for table, topic in self._changelogs.items():
            for partition, messages in topic.messages.items():
                last = {message.key(): message.value() for message in messages}
                merged = _merged(messages)
                found += [f"{table}[{partition}] {key!r}" for key in last if last[key] != merged[key]]
        return found

    def committed(self) -> list[int]:
        """What lag monitors see of each partition."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": self._group})
        try:
            places = [TopicPartition(CHECKS, partition) for partition in range(PARTITIONS)]
            return [place.offset for place in consumer.committed(places, timeout=_READ_S)]
        finally:
            consumer.close()


def flushed(truths: Sequence[Truth], stored: Sequence[dict[str, Table]]) -> bool:
    """Whether every marker has reached its log's end."""
    return all(
        MARKER_KEY in tables[POLICIES]
        and decode_marker(tables[POLICIES][MARKER_KEY]).next_offset == truth.marker.next_offset
        for truth, tables in zip(truths, stored, strict=True)
    )


def _merged(messages: Iterable[Any]) -> Table:
    table: Table = {}
    for message in messages:
        key, value = message.key(), message.value()
        if key not in table or position_of(value) >= position_of(table[key]):
            table[key] = value
    return table


def check_state(partition: int, truth: Truth, stored: dict[str, Table], where: str) -> None:
    """What is stored of *partition*, its log read to the end, is what the log says: nothing more or less."""
    policies = dict(stored[POLICIES])
    marker = decode_marker(policies.pop(MARKER_KEY))
    # The oracle has met no topic ids.
    marker_ = msgspec.structs.replace(marker, topic_id="", updates_id="", changelog_ids={})
    assert marker_ == truth.marker, f"marker, {where}[{partition}]"
    assert _in_force(policies) == _in_force(truth.policies), f"policies, {where}[{partition}]"
    right, found = (_counts(counters, marker.clock_ms) for counters in (truth.counters, stored[COUNTERS]))
    wrong = {
        key: (found.get(key), right.get(key)) for key in found | right if found.get(key) != right.get(key)
    }
    assert not wrong, f"counters, {where}[{partition}], found and right: {wrong}"


def _in_force(policies: Table) -> dict[bytes, Any]:
    history = msgspec.msgpack.Decoder(list[PolicyChange])
    return {key: history.decode(value[9:])[-1] for key, value in policies.items()}


def _counts(counters: Table, clock_ms: int) -> dict[bytes, Any]:
    """Of each key what is in its windows, which state it is of, and nothing that time has forgotten.

    A state that holds nothing else is as good as none: it may have been swept.
    """
    found = {}
    for key, value in counters.items():
        if expires_at_ms(value) <= clock_ms:
            continue
        state = decode_state(value)
        lists = {}
        for length, window in state.windows.items():
            window.forget(clock_ms)
            lists[length] = (list(window.charges()), window.kept_until_ms)
        found[key] = (state.position, lists)
    return found


def read_tables(folder: Path, partition: int) -> dict[str, Table]:
    """Both tables of *partition* under a worker's *folder*, as they are now."""
    found: dict[str, Table] = {}
    for table in TABLES:
        (path,) = folder.rglob(f"{table}-{partition}.db")
        db = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only())
        entries: Any = db.items()
        found[table] = {k: v for k, v in entries if not k.startswith(b"\0") or k == MARKER_KEY}
        db.close()
    return found
