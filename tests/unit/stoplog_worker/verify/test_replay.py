from __future__ import annotations

from collections.abc import Iterator

from stoplog_worker.algorithm.fold import Answer
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.verify.replay import NothingStored, Record, replay

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, SingleCheck, encode_batch, encode_single, encode_update
from stoplog.wire.limit_updates import Update
from stoplog.wire.replies import Decision
from tests.support.partition_log import CLIENTS, DEFAULT, PARTITION, PARTITIONS, START, STRANGER

CLIENT = CLIENTS[0]
BLOCKED = parse_policy("0/minute")


def batch(*checks: Check) -> bytes:
    return encode_batch(Batch(0, 1, 1, list(checks)))


def test_replay_decides_records_in_order() -> None:
    records = [
        Record(3, START, batch(Check(CLIENT, 4), Check(STRANGER), Check(CLIENT, 3))),
        Record(4, START, encode_update(Update(9, "client", CLIENT, "", BLOCKED))),
        Record(7, START, encode_single(SingleCheck(Check(CLIENT), None))),
    ]
    found = dict(replay(records, PARTITION, PARTITIONS, DEFAULT))
    assert list(found) == [3, 4, 7]
    first, misrouted, third = found[3]
    assert isinstance(first, Decision)
    assert (first.allowed, first.remaining, first.policy_version) == (True, 2, -1)
    assert isinstance(misrouted, str)
    assert "belongs to partition" in misrouted
    assert isinstance(third, Decision)
    assert not third.allowed
    assert found[4] == []
    [last] = found[7]
    assert isinstance(last, Decision)
    assert (last.allowed, last.limit, last.policy_version) == (False, 0, 9)


def test_replay_undecodable_record_advances_time() -> None:
    records = [
        Record(0, START, batch(Check(CLIENT, 6))),
        Record(1, START + 120_000, b"not a check"),
        Record(2, START + 60_000, None),
        Record(3, START + 60_000, batch(Check(CLIENT, 6))),
    ]
    answers = [answer for _, found in replay(records, PARTITION, PARTITIONS, DEFAULT) for answer in found]
    assert [isinstance(answer, Decision) and answer.allowed for answer in answers] == [True, True]


def test_replay_of_any_records_returns_their_ledger() -> None:
    ledgers: list[Ledger] = []

    def whole() -> Iterator[tuple[int, list[Answer]]]:
        ledgers.append((yield from replay([Record(5, START, b"")], PARTITION, PARTITIONS, DEFAULT)))

    assert list(whole()) == [(5, [])]
    assert ledgers[0].marker == Marker(6, START, START, -1, "", DEFAULT)


def test_replay_of_an_empty_store_returns_no_entries() -> None:
    nothing = NothingStored()
    assert nothing.counters([b"a", b"b"]) == [None, None]
    assert list(nothing.counters_of(b"a")) == []
    assert nothing.policies([b"client\x00a\x00"]) == [None]
