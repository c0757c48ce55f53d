"""Fold the log again, and compare it with all results: replies, HTTP answers, changelogs, workers' tables.

The number of partitions may have grown. The record of the number in ``limit-updates`` tells when.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from confluent_kafka import Consumer, TopicPartition
from rocksdict import AccessType, Options, Rdict
from stoplog_worker.algorithm.fold import Answer
from stoplog_worker.algorithm.relay_keys import NO_KEYS, RelayKeys
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    Marker,
    PolicyChange,
    decode_marker,
    decode_state,
    expires_at_ms,
    position_of,
)
from stoplog_worker.algorithm.update_authority import UNSIGNED, Refusal, UpdateAuthority
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES
from stoplog_worker.verify.replay import Record

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import describe
from stoplog.lanes import app_id
from stoplog.policy import Policy, parse_policy
from stoplog.topics import CHECKS, REPLIES, UPDATES
from stoplog.wire import partition_count
from stoplog.wire.checks import POSITION_BITS, Batch, SingleCheck, decode_checks_record
from stoplog.wire.limit_updates import Update
from stoplog.wire.partition_count import decode_partition_count
from stoplog.wire.replies import Decision, HeldDecision, Reply, as_held, decode_any_reply
from tests.support.faults.admissions import check_windows, permits, without_decision
from tests.support.faults.load import PARTITIONS, SentCheck
from tests.support.faults.partition_fold import Growth, PartitionFold, Table, Versions, is_update
from tests.support.memory_store import MemoryStore

_READ_S: Final = 30.0


class Truth(NamedTuple):
    """The expectation from the log of one partition: all decisions by offset, and the state at its end.

    ``lost_updates`` has the versions that were refused and not sent again, and ``copied`` the limits of
    clients with which a partition began that was split off.
    """

    records: list[Record]
    decided: dict[int, list[Answer]]
    marker: Marker
    counters: Table
    policies: Table
    lost_updates: set[int]
    copied: Versions

    @property
    def checks(self) -> int:
        """Return the number of checks in the log."""
        contents = (decode_checks_record(record.value) for record in self.records)
        return sum(len(one.checks) for one in contents if isinstance(one, Batch | SingleCheck))


class HttpAnswers(NamedTuple):
    """The answers of gateways that were compared: those in the log, and for each client those by leases."""

    decided: int
    leased: Counter[str]


class Topic:
    """All records of a topic. Each reading continues at the end of the one before."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self.messages: dict[int, list[Any]] = {}
        self._bootstrap = bootstrap
        self._name = name
        self._next: dict[int, int] = {}
        self.grow(PARTITIONS)

    def grow(self, partitions: int) -> None:
        """Read so many partitions from now on."""
        for partition in range(partitions):
            self.messages.setdefault(partition, [])
            self._next.setdefault(partition, 0)

    def catch_up(self) -> bool:
        """Read up to the present end; return whether there were new records."""
        before = dict(self._next)
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "oracle",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
            }
        )
        try:
            places = [TopicPartition(self._name, p, offset) for p, offset in self._next.items()]
            # Where others write all the time, a consumer may never be told that it has reached the end.
            ends = {p.partition: consumer.get_watermark_offsets(p, timeout=_READ_S)[1] for p in places}
            consumer.assign(places)
            left = {p for p, end in ends.items() if self._next[p] < end}
            while left:
                messages: list[Any] = [consumer.poll(_READ_S), *consumer.consume(10_000, 0)]
                assert messages[0] is not None, f"{self._name} {left} cannot be read"
                for message in messages:
                    partition = message.partition()
                    if message.error() is None:
                        self.messages[partition].append(message)
                        self._next[partition] = message.offset() + 1
                        if self._next[partition] >= ends[partition]:
                            left.discard(partition)
                    else:
                        assert message.error().name() == "_PARTITION_EOF", message.error()
                        left.discard(partition)
        finally:
            consumer.close()
        return self._next != before


class WatchfulAuthority(UpdateAuthority):
    """Verifies updates. Only workers write them here, so no update may be lost.

    A worker may send an update without a signature when another one has just signed its first. It then sends
    the update again. Every other refusal fails the test.
    """

    def __init__(self, keys: RelayKeys, topic_id: str, updates_id: str, partition: int) -> None:
        super().__init__(keys, topic_id, updates_id, partition)
        self._accepted: set[int] = set()
        self._refused: set[int] = set()

    def refusal(self, update: Update, applied: int, *, signed_before: bool) -> Refusal | None:
        """Return why *update* is refused; ``None`` if it is accepted. Fail if it is not from a worker."""
        refusal = super().refusal(update, applied, signed_before=signed_before)
        if refusal is None:
            self._accepted.add(update.version)
        else:
            assert refusal.kind == UNSIGNED, f"{update.id!r}, version {update.version}: {refusal.reason}"
            self._refused.add(update.version)
        return refusal

    @property
    def lost(self) -> set[int]:
        """Return the versions that were refused and not accepted at another time."""
        return self._refused - self._accepted


class Oracle:
    """A reader of a system's topics, from their beginnings, that checks their contents.

    Args:
        bootstrap: Address of the Kafka cluster.
        default: Default limits of the workers.
        lane: Lane of the changelogs.
        relay_keys: All keys that workers have signed with.
    """

    def __init__(
        self,
        bootstrap: str,
        default: Policy | None = None,
        lane: str = "",
        relay_keys: RelayKeys = NO_KEYS,
    ) -> None:
        self._relay_keys = relay_keys
        self._bootstrap = bootstrap
        self._group = f"{app_id(lane)}-owner"
        self._default = default or parse_policy("100/minute")
        self._checks = Topic(bootstrap, CHECKS)
        self._updates = Topic(bootstrap, UPDATES)
        self._replies = Topic(bootstrap, REPLIES)
        self._leased: Counter[str] = Counter()
        """Answers by leases, so far."""
        self._changelogs = {table: Topic(bootstrap, name) for table, name in changelogs(lane).items()}

        self._folds: list[PartitionFold] = []

    @property
    def relay_keys(self) -> RelayKeys:
        """All keys that workers have signed with."""
        return self._relay_keys

    @relay_keys.setter
    def relay_keys(self, keys: RelayKeys) -> None:
        self._relay_keys = keys
        self._folds = []  # from the beginning again

    def read(self) -> list[Truth]:
        """Return the expectation for each partition as of now. There must be no more load."""
        self._follow_growth()
        self._checks.catch_up()
        return self._fold_all()

    def _follow_growth(self) -> None:
        self._updates.catch_up()
        for growth in self._growths():
            for topic in (self._checks, self._updates, *self._changelogs.values()):
                topic.grow(growth.partitions)
        self._updates.catch_up()

    def _growths(self) -> list[Growth]:
        """Return the steps in which the number of partitions grew."""
        found, number = [], PARTITIONS
        for message in self._updates.messages[partition_count.PARTITION]:
            if message.key() == partition_count.KEY:
                partitions = decode_partition_count(message.value()).count.partitions
                if partitions != number:
                    found.append(Growth(message.timestamp()[1], partitions))
                    number = partitions
        return found

    def _fold_all(self) -> list[Truth]:
        logs = self._checks.messages
        if not self._folds:
            marker = Marker(0, 0, -1, -1, "", self._default)
            self._folds = [
                PartitionFold(
                    partition, PARTITIONS, self._authority(partition), MemoryStore(partition), marker
                )
                for partition in range(PARTITIONS)
            ]
        for growth in self._growths():
            if growth.partitions > len(self._folds):
                authorities = [self._authority(partition) for partition in range(growth.partitions)]
                new: list[PartitionFold] = []
                for folded in self._folds:
                    log = logs[folded.partition]
                    folded.follow(log[: growth.ended_at(log)])
                    new += folded.split(growth, self._updates.messages, authorities)
                self._folds += sorted(new, key=lambda one: one.partition)
        return [self._truth(folded) for folded in self._folds]

    def _truth(self, folded: PartitionFold) -> Truth:
        folded.follow(self._checks.messages[folded.partition])
        counters, policies = folded.tables()
        authority = folded.authority
        assert isinstance(authority, WatchfulAuthority)
        return Truth(
            folded.records, folded.decided, folded.marker, counters, policies, authority.lost, folded.copied
        )

    def _authority(self, partition: int) -> WatchfulAuthority:
        topic_id, updates_id = self._topic_ids if self.relay_keys.announced else ("", "")
        return WatchfulAuthority(self.relay_keys, topic_id, updates_id, partition)

    @cached_property
    def _topic_ids(self) -> tuple[str, str]:
        """The ids of ``checks`` and ``limit-updates``, which every signature covers."""
        topics = describe(silent_admin(KafkaConnection(self._bootstrap)), [CHECKS, UPDATES], _READ_S)
        return str(topics[CHECKS].topic_id), str(topics[UPDATES].topic_id)

    def relayed(self, truths: Sequence[Truth]) -> bool:
        """Return whether every limit update and reset that was written has been relayed, and accepted."""
        self._updates.catch_up()
        lost = any(truth.lost_updates for truth in truths)
        return not lost and not any(
            message.offset() > truth.marker.applied and is_update(message)
            for partition, truth in enumerate(truths)
            for message in self._updates.messages[partition]
        )

    def signers(self) -> set[str | None]:
        """Return the relay keys of the last update in each partition; ``None`` stands for no signature."""
        self._checks.catch_up()
        return {last_signer(m.value() for m in reversed(found)) for found in self._checks.messages.values()}

    # --- answers ---

    def check_replies(self, truths: Sequence[Truth]) -> int:
        """Check that every reply contains the log's decisions; return how many decisions were compared."""
        self._replies.catch_up()
        batches: dict[tuple[int, int], tuple[int, int]] = {}
        for partition, truth in enumerate(truths):
            for record in truth.records:
                content = decode_checks_record(record.value)
                if isinstance(content, Batch):
                    sent = (content.incarnation, content.number)
                    assert sent not in batches, f"batch {sent} is in the log twice, at {batches[sent]}"
                    batches[sent] = (partition, record.offset)
        compared = 0
        for message in (m for messages in self._replies.messages.values() for m in messages):
            if message.value().startswith(b"{"):
                continue  # a reply to an update
            reply = decode_any_reply(message.value())
            assert isinstance(reply, Reply)
            partition, offset = batches[reply.incarnation, reply.number]
            assert reply.error is None, reply.error
            assert reply.offset == offset
            decisions = truths[partition].decided[offset]
            assert len(reply.answers) == len(decisions)
            for index, (answer, expected) in enumerate(zip(reply.answers, decisions, strict=True)):
                if isinstance(answer, HeldDecision) and isinstance(expected, Decision):
                    expected = as_held(expected)
                # None: the check was decided before the worker restarted, which may have replied then.
                assert answer is None or answer == expected, (
                    f"{CHECKS}[{partition}]@{offset} check {index}: reply {answer}, log {expected}"
                )
                compared += answer is not None
        return compared

    def check_http(self, truths: Sequence[Truth], sent: Sequence[SentCheck]) -> HttpAnswers:
        """Check every answer of a gateway, unless degraded.

        It is a decision in the log on that client, and each decision accounts for one answer
        (:func:`~tests.support.faults.admissions.without_decision`). Or a lease has allowed the check: then
        the log contains enough permits for all such answers to the client.
        """
        decisions: dict[str, Counter[Any]] = defaultdict(Counter)
        granted: Counter[str] = Counter()
        for truth in truths:
            granted += permits(truth.records, truth.decided)
            for record in truth.records:
                content = decode_checks_record(record.value)
                if isinstance(content, Batch | SingleCheck):
                    checks = content.checks
                    for check, answer in zip(checks, truth.decided[record.offset], strict=True):
                        assert isinstance(answer, Decision), answer
                        shown = tuple(getattr(answer, name) for name in Decision.__struct_fields__)
                        decisions[check.client][shown] += 1
        received: dict[str, Counter[Any]] = defaultdict(Counter)
        for one in sent:
            if one.decided:
                assert one.answer is not None
                received[one.client][tuple(one.answer[name] for name in Decision.__struct_fields__)] += 1
        leased: Counter[str] = Counter()
        for client, answers in received.items():
            extra = without_decision(answers, decisions[client])
            denied = [answer for answer in extra if not answer[0]]
            assert not denied, f"{client} received denials that are not in the log: {denied}"
            if extra:
                leased[client] = extra.total()
        self._leased += leased
        for client, total in self._leased.items():
            assert total <= granted[client], f"{client}: {total} answers without a decision in the log"
        decided = sum(answers.total() for answers in received.values()) - leased.total()
        return HttpAnswers(decided, leased)

    def check_windows(self, truths: Sequence[Truth], sent: Sequence[SentCheck]) -> int:
        """Check that no interval admitted more than the limits; return how many admissions were checked."""
        records = [record for truth in truths for record in truth.records]
        copied = [one for truth in truths for one in truth.copied.items()]
        return check_windows(records, self._default, sent, copied)

    # --- state ---

    def read_with_stored(self) -> tuple[list[Truth], list[dict[str, Table]]]:
        """Return the results of :meth:`read` and :meth:`stored` for one and the same end of the log."""
        self._follow_growth()
        stored = self.stored()
        while self._checks.catch_up():
            stored = self.stored()
        return self._fold_all(), stored

    def stored(self) -> list[dict[str, Table]]:
        """Return the contents of each partition's changelogs, merged by position as in a restore.

        The counters are read last. So they contain all that was written before the markers.
        """
        for table in (POLICIES, COUNTERS):
            self._changelogs[table].catch_up()
        return [
            {table: _merged(topic.messages[partition]) for table, topic in self._changelogs.items()}
            for partition in self._checks.messages
        ]

    def unrepaired(self) -> list[str]:
        """Return the keys whose last record in a changelog is older than an earlier one.

        Compaction would keep the older state.
        """
        found = []
        for table, topic in self._changelogs.items():
            for partition, messages in topic.messages.items():
                last = {message.key(): message.value() for message in messages}
                merged = _merged(messages)
                found += [f"{table}[{partition}] {key!r}" for key in last if last[key] != merged[key]]
        return found

    def committed(self) -> list[int]:
        """Return the committed offset of each partition, which lag monitors show."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": self._group})
        try:
            places = [TopicPartition(CHECKS, partition) for partition in self._checks.messages]
            return [place.offset for place in consumer.committed(places, timeout=_READ_S)]
        finally:
            consumer.close()


def last_signer(values: Iterable[bytes]) -> str | None:
    """Return the id of the key that signed the first update among *values*, records of ``checks``."""
    for value in values:
        content = decode_checks_record(value)
        if isinstance(content, Update):
            return content.signature.key_id if content.signature is not None else None
    return None


def checkpointed(truths: Sequence[Truth], stored: Sequence[dict[str, Table]]) -> bool:
    """Return whether every marker has reached the end of its log."""
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
    """Check that the stored state of *partition* is exactly the state that follows from its whole log."""
    policies = dict(stored[POLICIES])
    assert MARKER_KEY in policies, f"no marker, {where}[{partition}]"
    marker = decode_marker(policies.pop(MARKER_KEY))
    # The oracle knows no topic ids.
    without_ids = msgspec.structs.replace(marker, topic_id="", updates_id="", changelog_ids={})
    assert without_ids == truth.marker, f"marker, {where}[{partition}]: {without_ids}, {truth.marker}"
    assert _in_force(policies) == _in_force(truth.policies), f"policies, {where}[{partition}]"
    expected, found = (_counts(counters, marker.clock_ms) for counters in (truth.counters, stored[COUNTERS]))
    wrong = {
        key: (found.get(key), expected.get(key))
        for key in found | expected
        if found.get(key) != expected.get(key)
    }
    assert not wrong, f"counters, {where}[{partition}], found and expected: {wrong}"
    # An owner that overwrites what another worker wrote gives its entries the last position so far.
    end = marker.next_offset << POSITION_BITS
    positions = {
        key: (position_of(stored[COUNTERS][key]), position_of(truth.counters[key])) for key in expected
    }
    wrong = {key: pair for key, pair in positions.items() if not pair[1] <= pair[0] < end}
    assert not wrong, f"positions, {where}[{partition}], found and least: {wrong}, end {end}"


def _in_force(policies: Table) -> dict[bytes, Any]:
    history = msgspec.msgpack.Decoder(list[PolicyChange])
    return {key: history.decode(value[9:])[-1] for key, value in policies.items()}


def _counts(counters: Table, clock_ms: int) -> dict[bytes, Any]:
    """Return the newest charge, the holds and the windows of each key, without the charges that left.

    An expired state counts as none: the worker may have deleted it.
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
        found[key] = (state.newest_ms, [*(state.holds or ())], lists)
    return found


def read_tables(folder: Path, partition: int) -> dict[str, Table]:
    """Return both tables of *partition* under a worker's *folder*, as they are now."""
    found: dict[str, Table] = {}
    for table in TABLES:
        (path,) = folder.rglob(f"{table}-{partition}.db")
        db = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only())
        entries: Any = db.items()
        found[table] = {k: v for k, v in entries if not k.startswith(b"\0") or k == MARKER_KEY}
        db.close()
    return found
