"""Malformed records: they harm neither the worker nor the other checks."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    Marker,
    PolicyChange,
    State,
    encode_history,
    encode_marker,
    encode_state,
)

from stoplog.partitioning import partition_of
from stoplog.policy import UNLIMITED
from stoplog.topics import (
    CHECKS,
    COUNTERS_CHANGELOG,
    DEAD_LETTERS,
    NODES,
    POLICIES_CHANGELOG,
    REPLIES,
    UPDATES,
)
from stoplog.wire.checks import HEADER, POSITION_BITS, Batch, Check, encode_batch
from stoplog.wire.format import KIND_BATCH
from stoplog.wire.replies import decode_reply
from tests.support import raw
from tests.support.broker import fresh_broker
from tests.support.raw import GZIP, ZSTD, bomb
from tests.support.system import System, eventually, running_system

PARTITIONS = 4
NAMES = [f"beside-{number}" for number in range(100)]
OTHERS = [next(name for name in NAMES if partition_of(name, PARTITIONS) == p) for p in range(PARTITIONS)]
"""A client of each partition."""
STALL_S = 1.0
"""Seconds that another check may take while malformed records are processed, on a machine that is fast
enough."""
FAST_S = 0.1
"""A machine is fast enough if no check takes longer without malformed records."""
UNKNOWN_SERVER_ERROR, INVALID_RECORD = -1, 87
HEAD = HEADER.pack(1, KIND_BATCH, -1, 4711, 1)
MIB = 2**20
NOISE = os.urandom(MIB - 1_000)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run one system for all tests: earlier malformed records must not matter."""
    folder = tmp_path_factory.mktemp("system")
    # A check waits for its answer, however long that takes: the latency is measured. It is the worker's, so
    # no lease may hide it.
    with (
        fresh_broker() as broker,
        running_system(broker, folder, deadline_ms=30_000, lease_max_ms=0) as running,
    ):
        for client in OTHERS:
            running.gateways[0].set_limits(client, "1000000/hour")
        yield running


@contextmanager
def undisturbed(system: System) -> Iterator[None]:
    """Send checks in every partition during the block. The same worker must answer each of them soon.

    Latency is judged only if the machine is fast enough before the block.
    """
    gateway, worker = system.gateways[0], system.workers[0]
    pid, stopping = worker.pid, threading.Event()
    waits: list[float] = []
    answers: list[dict[str, Any]] = []

    def check(client: str) -> float:
        sent_at = time.perf_counter()
        answers.append(gateway.check(client))
        return time.perf_counter() - sent_at

    def check_repeatedly(client: str) -> None:
        while not stopping.is_set():
            waits.append(check(client))

    before = max(check(client) for _ in range(5) for client in OTHERS)
    threads = [threading.Thread(target=check_repeatedly, args=(client,)) for client in OTHERS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    print(f"{len(waits)} other checks, the slowest {max(waits):.3f} s; before: {before:.3f} s")
    assert not any(answer["degraded"] for answer in answers)
    assert max(waits) < STALL_S or before > FAST_S
    assert (worker.status, worker.pid) == (None, pid), worker.tail()


def produce(system: System, topic: str, partition: int, records: bytes) -> int:
    return raw.produce(system.broker.bootstrap, topic, partition, records)


def read(system: System, topic: str, partition: int) -> list[Any]:
    """Return all messages of a partition."""
    consumer = Consumer({"bootstrap.servers": system.broker.bootstrap, "group.id": "letters"})
    place = TopicPartition(topic, partition, 0)
    try:
        _, end = consumer.get_watermark_offsets(place, timeout=30)
        consumer.assign([place])
        found: list[Any] = []
        while end and (not found or found[-1].offset() < end - 1):
            found.append(consumer.poll(30))
        return found
    finally:
        consumer.close()


def dead_letters(system: System) -> list[tuple[str, str]]:
    """Return topic and reason of each dead letter."""
    headers = [dict(message.headers()) for message in read(system, DEAD_LETTERS, 0)]
    return [(found["topic"].decode(), found["reason"].decode()) for found in headers]


def dead_letter_of(system: System, topic: str, poison: Callable[[], None]) -> str:
    """Call *poison* while other checks go on; return the reason of the dead letter that it causes."""
    before = len(dead_letters(system))
    with undisturbed(system):
        poison()
        eventually("a dead letter", lambda: len(dead_letters(system)) > before, on_failure=system.logs)
    [(found, reason)] = dead_letters(system)[before:]
    assert found == topic
    return reason


POISONED_CHECKS = {
    "null": (raw.record(None, None), "the record has no value"),
    "empty": (raw.record(b"", b""), "the record has no value"),
    "noise": (raw.record(NOISE[:100], b"\xff" + NOISE), "format version 255"),
    "noise in a batch": (raw.record(None, HEAD + b"\xc1" + NOISE[: MIB - 2_000]), "not a check"),
    "unknown format version": (raw.record(None, b"\x03B" + bytes(40)), "format version 3 is not known here"),
    "unknown record kind": (raw.record(None, b"\x01Z" + bytes(40)), "record kind 90 is not known"),
    "deeply nested": (raw.record(None, HEAD + b"\x91" * 1_000_000), "not a check"),
    "deeply nested JSON": (raw.record(None, b'{"client_id":' + b"[" * 1_000_000), "not a check"),
    "length of 4 billion checks": (raw.record(None, HEAD + b"\xdd\xff\xff\xff\xff"), "at most 10,000"),
    "length of 4 billion bytes": (raw.record(None, HEAD + b"\x91\x91\xdb\xff\xff\xff\xff"), "not a check"),
    "lone surrogate": (raw.record(None, b'{"client_id": "\\ud800"}'), "not a check"),
    "lone surrogate in msgpack": (raw.record(None, HEAD + b"\x91\x91\xa3\xed\xa0\x80"), "not a check"),
}


@pytest.mark.parametrize("name", POISONED_CHECKS)
def test_check_that_cannot_be_decoded_goes_to_dead_letters(system: System, name: str) -> None:
    record, reason = POISONED_CHECKS[name]
    poison = raw.batch(record)
    assert reason in dead_letter_of(system, CHECKS, lambda: accepted(system, CHECKS, 0, poison))


def accepted(system: System, topic: str, partition: int, records: bytes) -> None:
    """Produce *records*, which the broker must accept."""
    assert produce(system, topic, partition, records) == 0


@pytest.mark.parametrize(("codec", "mib"), [(GZIP, 12), (ZSTD, 12)], ids=["gzip", "zstd"])
def test_decompression_bomb_that_unpacks_is_refused(system: System, codec: int, mib: int) -> None:
    poison = bomb(codec, mib)
    assert "a record has at most" in dead_letter_of(
        system, CHECKS, lambda: accepted(system, CHECKS, 0, poison)
    )


@pytest.mark.parametrize("topic", [CHECKS, UPDATES])
def test_decompression_bomb_beyond_bound_is_skipped(system: System, topic: str) -> None:
    poison = bomb(ZSTD, 200)
    assert "cannot be decompressed" in dead_letter_of(
        system, topic, lambda: accepted(system, topic, 0, poison)
    )


def test_batch_that_cannot_be_decompressed_is_skipped_whole(system: System) -> None:
    """The batch has many records. It causes one dead letter, not one for each record."""
    poison = bomb(ZSTD, 1, records=300)
    before = len(dead_letters(system))

    def produce_and_check() -> None:
        accepted(system, CHECKS, 0, poison)
        eventually("a later check is counted", lambda: not system.gateways[0].check(OTHERS[0])["degraded"])

    reason = dead_letter_of(system, CHECKS, produce_and_check)
    assert "the batch that begins here cannot be decompressed" in reason
    system.gateways[0].check(OTHERS[0])
    assert len(dead_letters(system)) == before + 1


def test_batch_of_100_000_checks_is_answered_with_error(system: System) -> None:
    poison = raw.batch(raw.record(None, encode_batch(Batch(0, 4711, 1, [Check("z")] * 100_000))))
    assert "100000 checks" in dead_letter_of(system, CHECKS, lambda: accepted(system, CHECKS, 1, poison))
    replies = [
        decode_reply(value) for value in (m.value() for m in read(system, REPLIES, 0)) if value[:1] == b"\x01"
    ]
    [answer] = [reply for reply in replies if reply.incarnation == 4711]
    assert "at most 10,000 are accepted" in (answer.error or "")


POISONED_UPDATES = {
    "empty key": raw.record(b"", b'{"limits": ["5/minute"]}'),
    "no limits": raw.record(b'["client","alice",""]', b"{}"),
    "noise": raw.record(NOISE[:1_000], NOISE[: MIB - 3_000]),
    "deeply nested value": raw.record(b'["client","alice",""]', b'{"limits":' + b"[" * 1_000_000),
    "deeply nested key": raw.record(b"[" * 1_000_000, b"{}"),
    "header that is not UTF-8": raw.record(
        b'["client","alice",""]', b'{"limits": ["5/minute"]}', [(b"\xff\xfe", b"x")]
    ),
    "lone surrogate": raw.record(b'["client","\\ud800",""]', b'{"limits": ["5/minute"]}'),
    "partition of another client": raw.record(b'["client","beside-0",""]', b'{"limits": ["5/minute"]}'),
}


@pytest.mark.parametrize("name", POISONED_UPDATES)
def test_update_that_cannot_be_decoded_goes_to_dead_letters(system: System, name: str) -> None:
    partition = (partition_of("beside-0", PARTITIONS) + 1) % PARTITIONS
    poison = raw.batch(POISONED_UPDATES[name])
    assert dead_letter_of(system, UPDATES, lambda: accepted(system, UPDATES, partition, poison))
    # Later updates of the same partition take effect.
    system.gateways[0].set_limits(OTHERS[partition], "1000000/hour")


def test_update_with_invalid_header_after_many_goes_to_dead_letters(system: System) -> None:
    """CPython specializes calls that it has made often. The specialized call validates less."""
    key, value = json.dumps(["client", OTHERS[0], ""]).encode(), b'{"limits": ["1000000/hour"]}'
    good = [raw.record(key, value, [(b"fine", b"x")], delta) for delta in range(200)]
    poison = raw.record(key, value, [(b"\xff\xfe", b"x")], len(good))
    records = raw.batch(b"".join([*good, poison]), len(good) + 1)
    assert "not UTF-8" in dead_letter_of(system, UPDATES, lambda: accepted(system, UPDATES, 0, records))
    system.gateways[0].set_limits(OTHERS[0], "1000000/hour")


def test_check_with_invalid_header_name_is_judged(system: System) -> None:
    client = "odd-header"
    partition = partition_of(client, PARTITIONS)
    record = raw.record(None, b'{"client_id": "odd-header", "cost": 3}', [(b"\xff\xfe", b"x")])
    with undisturbed(system):
        accepted(system, CHECKS, partition, raw.batch(record))
        eventually(
            "the check is counted",
            lambda: bool(system.gateways[0].check(client, cost=0)["remaining"] == 97),
            on_failure=system.logs,
        )


@pytest.mark.parametrize("topic", [CHECKS, UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, NODES, REPLIES])
def test_batch_with_unknown_codec_is_refused_by_the_broker(system: System, topic: str) -> None:
    record = raw.record(b"a", b'{"client_id": "a"}')
    for codec in (5, 6, 7):
        assert produce(system, topic, 0, raw.batch(record, codec=codec)) == UNKNOWN_SERVER_ERROR
    for garbage in (raw.batch(b"garbage" * 9, codec=1), raw.batch(b"\xff" * 50)):
        assert produce(system, topic, 0, garbage) == UNKNOWN_SERVER_ERROR


@pytest.mark.parametrize("topic", [UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG])
def test_record_without_key_on_compacted_topic_is_refused_by_the_broker(system: System, topic: str) -> None:
    assert produce(system, topic, 0, raw.batch(raw.record(None, b"{}"))) == INVALID_RECORD


@pytest.mark.parametrize("topic", [NODES, REPLIES])
def test_noise_on_nodes_and_replies_is_skipped(system: System, topic: str) -> None:
    values = [
        None,
        b"",
        NOISE[:60_000],
        b"{",
        b"{}",
        b'{"id": 7}',
        b"\x01B",
        b"\x01B" + bytes(40),
        b"\x02" * 90,
    ]
    gateway = system.gateways[0]
    # The gateway decodes all heartbeats, and only replies in JSON, which may be for any gateway.
    undecodable = 2 * (3 if topic == REPLIES else len(values) - 2)
    before = gateway.metric("stoplog_undecodable_records_total")
    with undisturbed(system):
        for partition in range(1 if topic == NODES else PARTITIONS):
            for value in values:
                accepted(system, topic, partition, raw.batch(raw.record(None, value, [(b"\xff", b"x")])))
                accepted(system, topic, partition, raw.batch(raw.record(NOISE[:90], value)))
        eventually(
            "the gateway has skipped all of them",
            lambda: gateway.metric("stoplog_undecodable_records_total") == before + undecodable,
            on_failure=system.logs,
        )
    assert gateway.report()["mode"] == "normal"


def test_noise_in_changelogs_is_overwritten(system: System) -> None:
    gateway, worker = system.gateways[0], system.workers[0]
    client = "steady"
    partition = partition_of(client, PARTITIONS)
    gateway.set_limits(client, "50/hour")
    gateway.check(client, cost=7)
    garbage = [
        None,
        b"",
        NOISE,
        b"\x01" + bytes(8),
        b"\x01" * 40,
        b"\x01" + b"\xff" * 8 + b"\xdd\xff\xff\xff\xff",
    ]
    garbage.append(encode_state(State(1)))  # a valid state with an old position
    own = [b"\0changelog", b"\0milestones", b"\0outrun"]
    keys = [client.encode(), b"\xff\xfe", MARKER_KEY, b"client\0steady\0", *own]
    # Encoded beforehand: computing the checksums would keep the callers' threads from running.
    poison = [raw.batch(raw.record(key, value, [(b"\xff", b"x")])) for value in garbage for key in keys]
    poison.append(bomb(ZSTD, 200))
    before = len(worker.lines("WARNING", "another worker wrote"))
    with undisturbed(system):
        for records in poison:
            for topic in (COUNTERS_CHANGELOG, POLICIES_CHANGELOG):
                accepted(system, topic, partition, records)
        eventually(
            "the worker has found the foreign records",
            lambda: len(worker.lines("WARNING", "another worker wrote")) > before,
            on_failure=system.logs,
        )
    assert gateway.check(client, cost=0)["remaining"] == 43

    worker.kill()
    shutil.rmtree(worker.log.parent / "worker-1")
    worker.start()
    eventually(
        "the state is restored from the overwritten changelogs",
        lambda: gateway.check(client, cost=0).get("remaining") == 43,
        on_failure=system.logs,
    )


def test_forged_entries_with_higher_positions_lose_even_when_the_disks_are_wiped(system: System) -> None:
    gateway, worker = system.gateways[0], system.workers[0]
    client = "owed"
    partition = partition_of(client, PARTITIONS)
    other = next(name for name in NAMES[::-1] if partition_of(name, PARTITIONS) == partition)
    for name in (client, other):
        gateway.set_limits(name, "1000/hour")
        gateway.check(name, cost=100)
    for _ in range(3):
        gateway.check(OTHERS[partition])
    reached = system.records(partition)[-1].offset << POSITION_BITS
    marker = Marker(10**9, 0, 0, 10**9, "", UNLIMITED)
    forged = [
        # Between the state's position and that of the last record, and far ahead of the log.
        (COUNTERS_CHANGELOG, client.encode(), encode_state(State(reached - 1))),
        (COUNTERS_CHANGELOG, other.encode(), encode_state(State(2**50))),
        (POLICIES_CHANGELOG, MARKER_KEY, encode_marker(marker)),
        (POLICIES_CHANGELOG, b"client\0owed\0", encode_history([PolicyChange(0, 0, UNLIMITED)], reached - 1)),
        (POLICIES_CHANGELOG, b"client\0nobody\0", encode_history([PolicyChange(0, 0, UNLIMITED)], 1)),
    ]
    mended = len(worker.lines("WARNING", "another worker wrote"))
    for topic, key, value in forged:
        accepted(system, topic, partition, raw.batch(raw.record(key, value)))

    def repaired() -> bool:
        """Return whether the last record of each key is the worker's own."""
        found = [read(system, topic, partition) for topic, _, _ in forged]
        last = [
            [m.value() for m in messages if m.key() == key][-1]
            for messages, (_, key, _) in zip(found, forged, strict=True)
        ]
        return all(value != own for (_, _, value), own in zip(forged, last, strict=True))

    eventually("the worker has overwritten them", repaired, on_failure=system.logs)
    assert len(worker.lines("WARNING", "another worker wrote")) > mended
    worker.kill()
    shutil.rmtree(worker.tables)
    worker.start()
    eventually(
        "the owner's states are restored",
        lambda: [gateway.check(name, cost=0).get("remaining") for name in (client, other)] == [900, 900],
        on_failure=system.logs,
    )


def test_worker_joining_after_malformed_records_judges(system: System) -> None:
    second = system.add_worker()
    gateway = system.gateways[0]

    def shared() -> bool:
        nodes = [node for node in gateway.report()["nodes"] if node["role"] == "worker"]
        states = [{p["state"] for p in node["partitions"].values()} for node in nodes]
        return len(nodes) == 2 and all("running" in found and "restoring" not in found for found in states)

    eventually("both workers judge", shared, on_failure=system.logs)
    before = gateway.metric("stoplog_checks_received_total")
    with undisturbed(system):
        eventually(
            "checks are answered",
            lambda: gateway.metric("stoplog_checks_received_total") >= before + 100,
            on_failure=system.logs,
        )
    assert second.status is None
    for process in (*system.workers, *system.gateways):
        assert not process.lines("Traceback"), process.name
