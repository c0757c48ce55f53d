"""The SDK's engine against a real broker. A stand-in for the worker replies, or does not."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.client.answer import Answer
from stoplog.client.blocking import BlockingLimiter
from stoplog.client.limiter import Limiter
from stoplog.client.settings import Settings
from stoplog.errors import InvalidId, InvalidInput, SettingsError, Unavailable
from stoplog.policy import parse_policy
from stoplog.topics import CHECKS, NODES, REPLIES, UPDATES
from stoplog.wire.checks import Batch, Check, decode_checks_record
from stoplog.wire.heartbeats import Heartbeat, PartitionState, encode_heartbeat
from stoplog.wire.limit_updates import UpdateKey, decode_update
from stoplog.wire.replies import Decision, Reply, encode_json_reply, encode_reply
from tests.support.broker import fresh_broker

PARTITIONS = 4
PATIENT_MS = 10_000
"""Deadline of checks that must be answered. A slow machine does not miss it."""
SHORT_MS = 1_000
"""Deadline of checks that miss it on purpose. Checks that are answered meet it on a slow machine, too."""


class Responder:
    """A stand-in for the worker. It allows each client 100 in all, and replies while ``answers`` is set."""

    def __init__(self, bootstrap: str) -> None:
        self.answers = True
        self.spent: Counter[str] = Counter()
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "stand-in"})
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Responder:
        # It reads from the beginning, so it also replies to the checks of earlier tests.
        topics = [(topic, p) for topic in (CHECKS, UPDATES) for p in range(PARTITIONS)]
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for topic, p in topics])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()
        self._producer.flush(1)

    def send_heartbeat(self, *, stopping: bool = False) -> None:
        partitions = {p: PartitionState("running") for p in range(PARTITIONS)}
        heartbeat = Heartbeat("stand-in", "worker", "0", "here", 0, partitions, stopping)
        self._producer.produce(NODES, encode_heartbeat(heartbeat), partition=0)
        self._producer.flush()

    def _run(self) -> None:
        while not self._stopping.is_set():
            message = self._consumer.poll(0.05)
            if message is not None and message.error() is None:
                (self._on_check if message.topic() == CHECKS else self._on_update)(message)
            self._producer.poll(0)

    def _on_check(self, message: Any) -> None:
        batch = decode_checks_record(message.value())
        assert isinstance(batch, Batch)
        decisions: list[Decision | str | None] = []
        for check in batch.checks:
            left = 100 - self.spent[check.client] - check.cost
            if left >= 0:
                self.spent[check.client] += check.cost
            decisions.append(Decision(left >= 0, 100, max(left, 0), 5, 0 if left >= 0 else 7, -1))
        if self.answers and batch.partition >= 0:
            reply = Reply(batch.incarnation, batch.number, message.offset(), -1, decisions)
            self._producer.produce(REPLIES, encode_reply(reply), partition=batch.partition)

    def _on_update(self, message: Any) -> None:
        update = decode_update(message.offset(), message.key(), message.value(), message.headers())
        if self.answers and update.reply_to is not None:
            reply = encode_json_reply(
                update.reply_to, applied=True, version=message.offset(), partition=message.partition()
            )
            self._producer.produce(REPLIES, reply, partition=update.reply_to.partition)


@pytest.fixture
def responder(fresh_kafka: Broker) -> Iterator[Responder]:
    with Responder(fresh_kafka.bootstrap) as it:
        yield it


@asynccontextmanager
async def limiter_at(bootstrap: str, **settings: Any) -> AsyncIterator[Limiter]:
    async with Limiter(Settings(kafka=bootstrap, **{"deadline_ms": PATIENT_MS, **settings})) as limiter:
        yield limiter


@asynccontextmanager
async def ready_limiter(bootstrap: str, **settings: Any) -> AsyncIterator[Limiter]:
    async with limiter_at(bootstrap, **settings) as limiter:
        await until(lambda: not limiter._engine.batcher.never_replied)
        yield limiter


def answer_at_once(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """Return the answer of a check that must not wait for anything, not even for a turn of the event loop."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        answer: Answer = finished.value
        return answer
    coroutine.close()
    raise AssertionError("the check waits")


async def until(holds: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - counters and logs have no events
            await asyncio.sleep(0.01)


def samples(limiter: Limiter) -> dict[str, float]:
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in limiter.metrics.registry.collect()
        for sample in family.samples
        if family.type != "histogram"
    }


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_blocking_limiter_shared_by_threads_admits_exactly_the_limit(
    fresh_kafka: Broker, responder: Responder
) -> None:
    with (
        BlockingLimiter(fresh_kafka.bootstrap, deadline_ms=10_000) as limiter,
        ThreadPoolExecutor(32) as pool,
    ):
        answers = list(pool.map(limiter.check, ["dora"] * 150))
        assert limiter.peek("dora").remaining == 0
    assert sum(answer.allowed for answer in answers) == responder.spent["dora"] == 100
    assert not any(answer.degraded for answer in answers)


async def test_check_many_answers_in_order(fresh_kafka: Broker, responder: Responder) -> None:
    async with ready_limiter(fresh_kafka.bootstrap) as limiter:
        assert await limiter.check("alice") == Answer(True, 100, 99, 5, 0, -1)
        checks = [Check(f"client-{i}", i % 120) for i in range(12_000)]
        answers = await limiter.check_many(checks)
        assert [a.allowed for a in answers] == [c.cost <= 100 for c in checks]
        assert not any(a.degraded for a in answers)
        await limiter.publish("bob", 3)
        await until(lambda: responder.spent["bob"] == 3)
        assert (await limiter.ready()).ready
        counted = samples(limiter)
        assert counted["stoplog_checks_received_total"] == 12_002
        assert counted["stoplog_checks_in_flight"] == 0


async def test_node_that_compares_ids_in_another_form_does_not_start(
    fresh_kafka: Broker, responder: Responder
) -> None:
    async with Limiter(fresh_kafka.bootstrap, node_id="first", id_normalization="nfc"):
        with pytest.raises(SettingsError, match=r"=none, but .* first \(nfc\)\."):
            await Limiter(fresh_kafka.bootstrap, node_id="second").__aenter__()
        async with Limiter(fresh_kafka.bootstrap, node_id="third", id_normalization="nfc"):
            pass
    async with Limiter(fresh_kafka.bootstrap, node_id="second"):  # those that have stopped do not count
        pass


async def test_gateways_sharing_reply_partition_get_their_own_replies(
    fresh_kafka: Broker, responder: Responder
) -> None:
    one, two = (Limiter(Settings(kafka=fresh_kafka.bootstrap, deadline_ms=PATIENT_MS)) for _ in range(2))
    two._reply_partition = one._reply_partition
    async with one, two:
        await until(lambda: not one._engine.batcher.never_replied and not two._engine.batcher.never_replied)
        late = one.metrics.late + two.metrics.late  # the first probes may have been late
        answers = await asyncio.gather(*(g.check("shared") for g in (one, two) for _ in range(64)))
        assert one.metrics.late + two.metrics.late == late
    assert sum(answer.allowed for answer in answers) == 100


async def test_producer_after_fatal_error_is_replaced(
    fresh_kafka: Broker, responder: Responder, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready_limiter(fresh_kafka.bootstrap) as limiter:
        dead = limiter._engine.transport._producer._producer
        limiter._engine.transport._producer._fatal = (
            "out of order sequence"  # as its error callback would say
        )
        await until(lambda: limiter._engine.transport._producer._producer is not dead)
        assert not (await limiter.check("hugo")).degraded
        assert "out of order sequence" in caplog.text


def publish(bootstrap: str, topic: str, partition: int, *values: bytes) -> None:
    """Publish *values* as any other producer."""
    producer = Producer({"bootstrap.servers": bootstrap})
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(10) == 0


async def test_limiter_with_unreadable_records_keeps_answering(
    fresh_kafka: Broker, responder: Responder, caplog: pytest.LogCaptureFixture
) -> None:
    nested = b"[" * 10_000
    poison = [b'{"id": "\xff"}', b'{"id": "a", "x": ' + nested, b"{", b"\x01", b"\xff" * 50, nested]
    async with ready_limiter(fresh_kafka.bootstrap) as limiter:
        publish(fresh_kafka.bootstrap, REPLIES, limiter._reply_partition, *poison)
        # The follower of replies decodes only 3 of these: the others are too short, or not for this gateway.
        decoded = 3
        publish(fresh_kafka.bootstrap, NODES, 0, *poison)
        await until(lambda: limiter.metrics.undecodable == decoded + len(poison))
        assert not (await limiter.check("ivan")).degraded
        responder.send_heartbeat()
        await until(lambda: limiter.status().store == "ok")
        responder.send_heartbeat(stopping=True)
        assert limiter.failure is None
        assert samples(limiter)["stoplog_undecodable_records_total"] == decoded + len(poison)
    async with ready_limiter(fresh_kafka.bootstrap) as late:  # it reads the old heartbeats, too
        assert not (await late.check("ivan")).degraded
    assert warnings(caplog) == []


async def test_invalid_input_is_refused_before_publishing(fresh_kafka: Broker) -> None:
    async with limiter_at(fresh_kafka.bootstrap) as limiter:
        with pytest.raises(InvalidId, match="client_id"):
            await limiter.check("")
        with pytest.raises(InvalidInput, match=r"checks\[1\]\.cost"):
            await limiter.check_many([Check("a"), Check("a", -1)])
        assert limiter.metrics.received == 0


async def test_limiter_without_worker_fails_open(
    fresh_kafka: Broker, responder: Responder, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready_limiter(fresh_kafka.bootstrap, deadline_ms=SHORT_MS) as limiter:
        responder.answers = False
        began = perf_counter()
        answer = await limiter.check("carol")
        assert answer == Answer(True, None, None, 0, 0, -1, True, "deadline")
        # The deadline ends the wait, also on a slow machine.
        assert 0.9 * SHORT_MS < (perf_counter() - began) * 1_000 < 5 * SHORT_MS

        await limiter.check("carol")
        await limiter.check("carol")
        answers = [answer_at_once(limiter.check("carol")) for _ in range(20)]
        assert {a.reason for a in answers} == {"breaker_open"}
        status = limiter.status()
        assert status.mode == "degraded"
        assert len(status.degraded_partitions) == 1
        assert status.let_through >= 20

        await until(lambda: responder.spent["carol"] == 23)  # all of them were published
        responder.answers = True
        await until(lambda: limiter.status().mode == "normal")
        assert (await limiter.check("carol")).remaining == 76
        began_line, ended_line = warnings(caplog)
        assert f"3 batches in a row failed, the last one had no reply within {SHORT_MS} ms" in began_line
        assert "normal again" in ended_line
        assert "23 checks failed open, 0 failed closed, 0 could not" in ended_line


async def test_limits_set_are_applied_read_and_listed(fresh_kafka: Broker, responder: Responder) -> None:
    policy = parse_policy(["10/second", "100/minute"])
    async with ready_limiter(fresh_kafka.bootstrap) as limiter:
        applied = await limiter.set_limits(UpdateKey("client", "dora"), policy)
        assert applied.applied
        assert (await limiter.set_limits(UpdateKey("plan", "gold"), policy)).applied
        assert (await limiter.set_limits(UpdateKey("default"), policy)).applied
        assert (await limiter.set_limits(UpdateKey("client", "eve"), policy)).applied
        assert (await limiter.set_limits(UpdateKey("client", "eve"), None)).applied
        assert (await limiter.reset("dora", "login")).applied

        assert await limiter.get_limits(UpdateKey("client", "dora")) == policy
        assert await limiter.get_limits(UpdateKey("plan", "gold")) == policy
        assert await limiter.get_limits(UpdateKey("client", "eve")) is None
        assert await limiter.get_limits(UpdateKey("client", "nobody")) is None

        found, after = [], None
        while True:
            page = await limiter.list_limits(after, 1)
            found += page.items
            if (after := page.next) is None:
                break
        latest = {item.key: item.policy for item in found}
        assert {key.id for key, value in latest.items() if value} == {"dora", "gold", ""}
        assert {i.key.kind for i in (await limiter.list_limits(kind="plan")).items} == {"plan"}

        responder.answers = False
        limiter._engine.admin._timeout_s = 0.2
        assert not (await limiter.set_limits(UpdateKey("client", "dora"), None)).applied


async def test_status_lists_each_node_until_it_stops(fresh_kafka: Broker, responder: Responder) -> None:
    async with ready_limiter(fresh_kafka.bootstrap, node_id="g1") as limiter:
        await until(lambda: limiter.status().store == "no_worker")
        responder.send_heartbeat()
        await until(lambda: limiter.status().store == "ok")
        await until(lambda: [n.id for n in limiter.status().nodes] == ["g1", "stand-in"])
        async with limiter_at(fresh_kafka.bootstrap, node_id="g2") as late:
            await until(lambda: [n.id for n in late.status().nodes] == ["g1", "g2", "stand-in"])
        await until(lambda: [n.id for n in limiter.status().nodes] == ["g1", "stand-in"])
        responder.send_heartbeat(stopping=True)
        await until(lambda: limiter.status().store == "no_worker")


async def test_limiter_without_broker_fails_open(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with limiter_at(f"127.0.0.1:{unused_tcp_port}", publish_timeout_ms=300) as limiter:
        assert answer_at_once(limiter.check("frank")).reason == "broker"
        ready = await limiter.ready()
        assert not ready.ready
        assert "127.0.0.1" in (ready.reason or "")
        with pytest.raises(Unavailable):
            await limiter.set_limits(UpdateKey("client", "frank"), None)
        await until(lambda: limiter.metrics.uncounted == 1)
    began, *between, stopped = warnings(caplog)
    assert "degraded" in began
    assert all("cannot be used" in one for one in between)  # after the second request that failed
    assert "stopped while degraded" in stopped


async def test_limiter_during_broker_outage_fails_open_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    with fresh_broker() as broker, Responder(broker.bootstrap) as responder:
        async with ready_limiter(broker.bootstrap, deadline_ms=SHORT_MS) as limiter:
            clients = [f"client-{i}" for i in range(40)]

            broker.pause()
            for _ in range(3):
                await asyncio.gather(*map(limiter.check, clients))
            answers = [answer_at_once(limiter.check(client)) for client in clients]
            assert {a.reason for a in answers} == {"breaker_open"}
            await until(lambda: limiter.metrics.uncounted >= 80)
            await until(lambda: limiter.status().store == "unreachable")
            broker.resume()
            await until(lambda: limiter.status().mode == "normal")
            assert not (await limiter.check("gina")).degraded
            assert len(warnings(caplog)) == 2
            lost = limiter.metrics.uncounted
            assert f"{lost} could not be published" in warnings(caplog)[1]

            broker.stop()
            await until(lambda: limiter.status().mode == "degraded")
            assert (await limiter.check("gina")).reason == "broker"
            await until(lambda: limiter.metrics.uncounted == lost + 1)
            broker.start()
            await until(lambda: limiter.status().mode == "normal")
            before = responder.spent["gina"]
            assert (await limiter.check("gina")).remaining == 100 - before - 1
            assert sum("degraded: " in line or "normal again" in line for line in warnings(caplog)) == 4
