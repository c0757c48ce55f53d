"""Two lanes: no check fails open when a worker of either lane dies, and a new lane copies all state."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.algorithm.state_codec import MARKER_KEY, decode_marker
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.state.store import COUNTERS, POLICIES, Record

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import with_lanes
from stoplog.partitioning import partition_of
from stoplog.topics import REPLIES, load_topics
from stoplog.wire.checks import Batch, decode_checks_record
from stoplog.wire.replies import Decision, Reply, decode_any_reply, encode_reply
from tests.support.broker import fresh_broker
from tests.support.memory_store import MemoryStore, contents
from tests.support.system import Gateway, Process, System, eventually, running_system
from tests.support.up import environment, stoplog, stoplog_up

PARTITIONS = 4
CLIENTS = [f"client-{number}" for number in range(200)]
DEADLINE_MS = 4_000
"""More than a busy machine needs for an answer, and less than a single lane needs for a takeover (6 s)."""


@pytest.fixture
def broker() -> Iterator[Broker]:
    with fresh_broker() as broker:
        admin = silent_admin(KafkaConnection(broker.bootstrap))
        create_topics(admin, with_lanes(load_topics(), ["b"]).values())
        yield broker


def running(system: System, lane: str, partitions: int = PARTITIONS) -> bool:
    """Return whether *lane* judges that many partitions and has caught up with all of them."""
    caught_up = [
        partition
        for node in system.gateways[0].report()["nodes"]
        if node["lane"] == lane
        for partition in node["partitions"].values()
        if partition["state"] == "running" and partition["lag"] == 0
    ]
    return len(caught_up) == partitions


def await_lane(system: System, lane: str) -> None:
    eventually(f"lane {lane} runs", lambda: running(system, lane), on_failure=system.logs)


WARM_LISTS = 150
"""Lists that are answered before the kill: two seconds' worth."""
AFTER_KILL_S = 8.0
"""Seconds of load after the kill: longer than the session timeout, after which the partitions move."""


class AnsweredList(NamedTuple):
    """A list of checks: time of its request (monotonic seconds), latency, and number of degraded answers."""

    sent_at: float
    took_s: float
    degraded: int

    @property
    def answered_at(self) -> float:
        return self.sent_at + self.took_s


async def send_until(
    enough: Callable[[list[AnsweredList]], bool], url: str, *, callers: int = 4
) -> list[AnsweredList]:
    """Send lists of 8 checks, 20 times a second from each caller, until *enough* are answered.

    Each caller sends at least one list.
    """
    answered: list[AnsweredList] = []

    async def caller(http: httpx.AsyncClient, number: int) -> None:
        turn = number * 50
        while True:
            sent_at = time.monotonic()
            checks = [{"client_id": CLIENTS[(turn + i) % len(CLIENTS)]} for i in range(8)]
            turn += 8
            response = await http.post(f"{url}/v1/checks", json=checks)
            answers = response.raise_for_status().json()
            took_s = time.monotonic() - sent_at
            answered.append(AnsweredList(sent_at, took_s, sum(answer["degraded"] for answer in answers)))
            if enough(answered):
                return
            await asyncio.sleep(max(0.0, 0.05 - took_s))

    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        await asyncio.gather(*(caller(http, number) for number in range(callers)))
    return answered


def send_lists(count: int, url: str, *, callers: int = 4) -> list[AnsweredList]:
    """Send lists until *count* are answered."""
    return asyncio.run(send_until(lambda answered: len(answered) >= count, url, callers=callers))


async def kill_under_load(worker: Process, url: str) -> tuple[list[AnsweredList], list[AnsweredList]]:
    """Kill *worker* under load; return the lists that were answered before the kill, and the others."""
    warm, finished = asyncio.Event(), asyncio.Event()

    def enough(answered: list[AnsweredList]) -> bool:
        if len(answered) >= WARM_LISTS:
            warm.set()
        return finished.is_set()

    async with asyncio.TaskGroup() as group:
        load = group.create_task(send_until(enough, url))
        await warm.wait()
        killed = time.monotonic()
        await asyncio.to_thread(worker.kill)
        await asyncio.sleep(AFTER_KILL_S)  # the fault itself: the worker stays dead for that long
        finished.set()
    answered = load.result()
    # The death can affect all lists that were not answered at the kill.
    before = [one for one in answered if one.answered_at < killed]
    return before, [one for one in answered if one.answered_at >= killed]


def p99_ms(answered: list[AnsweredList]) -> float:
    return quantiles([one.took_s * 1_000 for one in answered], n=100)[98]


def test_worker_killed_in_either_lane_lets_no_check_fail_open(broker: Broker, tmp_path: Path) -> None:
    # Without leases, which would answer checks whether or not the other lane does.
    with running_system(broker, tmp_path, deadline_ms=DEADLINE_MS, lease_max_ms=0) as system:
        system.add_worker(lane="b")
        gateway = system.gateways[0]
        await_lane(system, "b")
        for lane, worker in zip("ab", system.workers, strict=True):
            await_lane(system, lane)
            before, after = asyncio.run(kill_under_load(worker, gateway.url))
            degraded = sum(one.degraded for one in after)
            print(
                f"lane {lane} killed: {degraded} of {len(after) * 8} checks failed open; "
                f"p99 {p99_ms(before):.1f} ms before, {p99_ms(after):.1f} ms after, "
                f"worst {max(one.took_s for one in after) * 1_000:.0f} ms"
            )
            assert degraded == sum(one.degraded for one in before) == 0
            worker.start()
            await_lane(system, lane)
        env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap)
        with ThreadPoolExecutor(1) as pool:
            verifying = pool.submit(stoplog, "verify", "--lane", "b", "--seconds", "2", "--json", env=env)
            while not verifying.done():
                send_lists(80, gateway.url)
        verified = json.loads(verifying.result().stdout)
        assert verified["decisions"] > 0
        assert verified["differ"] == 0
        assert gateway.metric("stoplog_checks_degraded_total") == 0
        assert gateway.metric("stoplog_lane_divergence_total") == 0
        assert gateway.metric("stoplog_replies_late_total") == 0


def records(broker: Broker, topic: str) -> dict[int, list[Any]]:
    """Return all records of *topic*, by partition."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test"})
    found: dict[int, list[Any]] = {}
    try:
        for partition in range(PARTITIONS):
            messages = found[partition] = []
            place = TopicPartition(topic, partition)
            place.offset, end = consumer.get_watermark_offsets(place, timeout=30)
            consumer.assign([place])
            while place.offset < end and (not messages or messages[-1].offset() < end - 1):
                message: Any = consumer.poll(30)
                assert message is not None, f"{topic}[{partition}] cannot be read"
                assert message.error() is None, message.error()
                messages.append(message)
        return found
    finally:
        consumer.close()


def replies(broker: Broker) -> Counter[int]:
    """Return the number of replies to each batch of the only gateway, by the number of the batch."""
    values = (m.value() for messages in records(broker, REPLIES).values() for m in messages)
    return Counter(decode_any_reply(value).number for value in values if not value.startswith(b"{"))


def numbers(system: System) -> set[int]:
    """Return the numbers of all batches in the log."""
    values = (record.value for partition in range(PARTITIONS) for record in system.records(partition))
    contents = (decode_checks_record(value) for value in values)
    return {content.number for content in contents if isinstance(content, Batch)}


def states(broker: Broker, lane: str) -> dict[int, dict[str, Any]]:
    """Return the counters, the policies in force and the marker in the changelogs of *lane*, by partition."""
    stores = {partition: MemoryStore(partition) for partition in range(PARTITIONS)}
    for table, topic in changelogs(lane).items():
        for partition, messages in records(broker, topic).items():
            if messages:
                stores[partition].merge(table, [Record(m.offset(), m.key(), m.value()) for m in messages])
    found: dict[int, dict[str, Any]] = {}
    for partition, store in stores.items():
        tables = contents(store)
        policies = tables[POLICIES]
        found[partition] = {
            # Each lane has its own changelogs, so these ids differ.
            "marker": msgspec.structs.replace(decode_marker(policies.pop(MARKER_KEY)), changelog_ids={}),
            "counters": tables[COUNTERS],
            # The length of a history depends on the times of the checkpoints.
            "policies": {key: msgspec.msgpack.decode(value[9:])[-1] for key, value in policies.items()},
        }
    return found


def test_new_lane_copies_state_and_answers_once_caught_up(broker: Broker, tmp_path: Path) -> None:
    with running_system(broker, tmp_path, deadline_ms=DEADLINE_MS) as system:
        gateway = system.gateways[0]
        for client in CLIENTS[:20]:
            gateway.set_limits(client, "5/hour")
        send_lists(160, gateway.url)

        # Publish checks that no lane has judged when the new one starts.
        assert system.workers[0].stop() == 0
        send_lists(2, gateway.url, callers=2)
        before, published = replies(broker), numbers(system)
        assert max(before.values()) == 1
        assert published - before.keys()

        system.add_worker(lane="b")
        await_lane(system, "b")
        # Of the batches before its start, the lane answered none. It may have answered the gateway's probes.
        assert {number for number in replies(broker) if number in published} == before.keys()
        # The new lane has the policies and counters that it copied, and it counted the unanswered checks.
        spent = gateway.check(CLIENTS[0], cost=0)
        assert not spent["degraded"]
        admitted = system.admitted(CLIENTS[0], partition_of(CLIENTS[0], PARTITIONS))
        assert (spent["limit"], spent["remaining"]) == (5, 5 - admitted)
        assert admitted > 0

        system.workers[0].start()
        await_lane(system, "a")
        send_lists(80, gateway.url)
        eventually("both lanes have caught up", lambda: running(system, "a") and running(system, "b"))
        new = {number: count for number, count in replies(broker).items() if number not in before}
        assert max(new.values()) == 2
        assert gateway.metric("stoplog_lane_divergence_total") == 0
        gateway.stop()
        eventually("both lanes have the same state", lambda: states(broker, "b") == states(broker, ""))


def forge_second_reply(broker: Broker, system: System, gateway: Gateway) -> tuple[Batch, Decision]:
    """Write another answer to a batch of *gateway* that was answered; return the batch and that answer."""
    assert gateway.check("alice")["allowed"]
    last = system.records(partition_of("alice", PARTITIONS))[-1]
    batch = decode_checks_record(last.value)
    assert isinstance(batch, Batch)
    denial = Decision(False, 100, 0, 60_000, 60_000, -1)
    forged = encode_reply(Reply(batch.incarnation, batch.number, last.offset, -1, [denial]))
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for _ in range(2):
        producer.produce(REPLIES, forged, partition=batch.partition)
    assert producer.flush(30) == 0
    return batch, denial


def test_different_answers_are_reported_as_foreign_or_with_two_lanes_as_divergence(
    broker: Broker, tmp_path: Path
) -> None:
    with running_system(broker, tmp_path, deadline_ms=DEADLINE_MS) as system:
        gateway = system.gateways[0]
        await_lane(system, "a")
        batch, denial = forge_second_reply(broker, system, gateway)
        different = 'stoplog_second_replies_total{answers="different"}'
        eventually("the reply is counted", lambda: gateway.metric(different) == 1)
        (line,) = gateway.lines("ERROR", "two different replies, although there is one lane")
        assert f"batch {batch.number} of partition {partition_of('alice', PARTITIONS)}" in line
        assert str(denial) in line
        assert gateway.metric("stoplog_lane_divergence_total") == 0

        # Another gateway, because each logs the first of such lines only.
        system.add_worker(lane="b")
        gateway = system.add_gateway(deadline_ms=DEADLINE_MS)
        await_lane(system, "b")
        system.wait_ready()
        batch, denial = forge_second_reply(broker, system, gateway)
        eventually("divergence is counted", lambda: gateway.metric("stoplog_lane_divergence_total") > 0)
        gateway.check("alice")
        assert gateway.metric("stoplog_lane_divergence_total") == 1
        (line,) = gateway.lines("ERROR", "two lanes answered differently")
        assert f"batch {batch.number} of partition {partition_of('alice', PARTITIONS)}" in line
        assert str(denial) in line
        assert gateway.metric("stoplog_replies_late_total") == 0


def test_up_with_two_lanes_runs_both(tmp_path: Path) -> None:
    with stoplog_up(tmp_path, "--lanes", "2") as up, httpx.Client(base_url=up.url, trust_env=False) as http:

        def workers() -> dict[str, str]:
            nodes = http.get("/v1/status", headers=up.authorization).json()["nodes"]
            return {node["lane"]: node["id"].partition("@")[0] for node in nodes if node["role"] == "worker"}

        eventually("both lanes have a worker", lambda: workers() == {"a": "worker-1", "b": "worker-b-1"})
        assert len(up.children()) == 4
        assert not http.post("/v1/check", json={"client_id": "alice"}).json()["degraded"]
        shown = stoplog("status", "--url", up.url, env={**up.env, "COLUMNS": "200"})
        (line,) = (line for line in shown.stdout.splitlines() if "worker-b-1" in line)
        assert "b" in [cell.strip() for cell in line.split("│")]
        assert up.stop() == 0
