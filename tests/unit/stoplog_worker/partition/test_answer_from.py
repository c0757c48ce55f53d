"""A partition of a further lane decides without answering, up to the offset from which it answers."""

from __future__ import annotations

from typing import Any, cast

from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.kafka.producers import Producers
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.partition import Partition
from stoplog_worker.settings import Settings

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, Denials, Denied, encode_batch, encode_denials, encode_update
from stoplog.wire.limit_updates import Update
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import Decision, Reply, decode_reply
from tests.support.memory_store import MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS
from tests.support.records import Message
from tests.support.relay import alone, unkeyed

FIRST = Marker(0, 0, -1, -1, "topic", parse_policy("3/minute"))


class Sent:
    """Producers that keep what they are given."""

    def __init__(self) -> None:
        self.changelogs: dict[str, str] = {}
        self.replies: list[Reply] = []
        self.letters: list[Any] = []
        self.updates: list[bytes] = []

    def reply(self, _partition: int, value: bytes) -> None:
        self.replies.append(decode_reply(value))

    def dead_letter(self, message: Any, _reason: str) -> None:
        self.letters.append(message)

    def write_changelog(self, *_: Any) -> None:
        """Accept a record that is never acknowledged."""

    def publish_update(self, *_: Any) -> None:
        raise AssertionError("no key is to be rewritten")

    def relay_update(self, _partition: int, value: bytes, _headers: Any, _delivered: Any) -> None:
        self.updates.append(value)

    def truncate_changelog(self, *_: Any) -> None:
        """Accept a request that no test checks."""


def opened(answer_from: int) -> tuple[Partition, Sent]:
    sent = Sent()
    store = MemoryStore(PARTITION)
    owned = Partition(
        Settings(),
        PartitionCount(PARTITIONS),
        store,
        FIRST,
        cast("Producers", sent),
        Metrics(),
        keys=unkeyed(),
        workers=alone(),
        answer_from=answer_from,
    )
    owned.schedule.start(0.0)
    return owned, sent


def batch(offset: int) -> Message:
    return Message(offset, encode_batch(Batch(0, 7, offset, [Check(CLIENTS[0])])))


def test_take_before_answer_from_decides_without_answering() -> None:
    owned, sent = opened(answer_from=3)
    for offset in range(3):
        owned.take(Message(offset, b"\x01 poison") if offset == 1 else batch(offset))
    assert not sent.replies
    assert not sent.letters
    for offset in (3, 4):
        owned.take(batch(offset))
    assert [(reply.number, [answer.allowed for answer in reply.answers]) for reply in sent.replies] == [  # type: ignore[union-attr]
        (3, [True]),
        (4, [False]),
    ]
    owned.take(Message(5, b"\x01 poison"))
    assert len(sent.letters) == 1


def test_tend_before_answer_from_relays_no_update() -> None:
    owned, sent = opened(answer_from=2)
    policy = parse_policy("9/minute")
    for version in (0, 1):
        key = b'["client","%s",""]' % CLIENTS[0].encode()
        owned.take_update(Message(version, b'{"limits": ["9/minute"]}', key))
    owned.advance(0.0, 0.0, 1, 1)
    assert not sent.updates
    owned.take(Message(0, encode_update(Update(0, "client", CLIENTS[0], "", policy))))
    owned.advance(0.0, 0.0, 1, 1)
    assert not sent.updates
    owned.take(batch(1))
    owned.advance(0.0, 0.0, 1, 1)
    assert sent.updates == [encode_update(Update(1, "client", CLIENTS[0], "", policy))]


def test_take_denials_counts_them_and_charges_nothing() -> None:
    owned, sent = opened(answer_from=0)
    client = CLIENTS[0]
    for offset in range(2):
        denials = Denials(7, [Denied(client, "", "", 3, 9), Denied(client, "gold", "", 2, 2)])
        owned.take(Message(offset, encode_denials(denials)))
    owned.take(batch(2))
    assert not sent.letters
    [reply] = sent.replies
    assert reply.answers == [Decision(True, 3, 2, reply.answers[0].reset_after_ms, 0, -1)]  # type: ignore[union-attr]
    counted = {
        sample.labels["result"]: sample.value
        for family in owned._metrics.checks.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert (counted["cached"], counted["allowed"], counted["rejected"]) == (10, 1, 0)


def test_take_in_default_lane_answers_at_once() -> None:
    owned, sent = opened(answer_from=0)
    owned.take(batch(0))
    assert len(sent.replies) == 1
