"""Two lanes: the death of any worker costs no check; a new lane takes over what the first one knows."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.algorithm.state_codec import MARKER_KEY, decode_marker
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.state.store import COUNTERS, POLICIES, Record

from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import with_lanes
from stoplog.partitioning import partition_of
from stoplog.topics import REPLIES, load_topics
from stoplog.wire.checks import Batch, decode_checks_record
from stoplog.wire.replies import Decision, Reply, decode_reply, encode_reply
from tests.support.broker import fresh_broker
from tests.support.memory_store import MemoryStore, contents
from tests.support.system import Process, System, eventually, running_system
from tests.support.up import environment, stoplog, stoplog_up

PARTITIONS = 4
CLIENTS = [f"client-{number}" for number in range(200)]
DEADLINE_MS = 4_000
"""Far more than a busy machine takes, and less than a lone lane: its partitions move after 6 s."""


@pytest.fixture
def broker() -> Iterator[Broker]:
    with fresh_broker() as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        create_topics(admin, with_lanes(load_topics(), ["b"]).values())
        yield broker


def running(system: System, lane: str, partitions: int = PARTITIONS) -> bool:
    """Whether *lane* judges that many partitions and has caught up with all of them."""
    held = [
        beat
        for node in system.gateways[0].report()["nodes"]
        if node["lane"] == lane
        for beat in node["partitions"].values()
        if beat["state"] == "running" and beat["lag"] == 0
    ]
    return len(held) == partitions


def await_lane(system: System, lane: str) -> None:
    eventually(f"lane {lane} runs", lambda: running(system, lane), on_failure=system.logs)


WARM = 150
"""Lists that are answered before the kill: two seconds' worth."""


class Asked(NamedTuple):
    """A list of checks, answered: when (monotonic seconds), how long it took, and how many were degraded."""

    at: float
    took_s: float
    degraded: int


async def ask_for(
    seconds: float, url: str, *, callers: int = 4, warm: asyncio.Event | None = None
) -> list[Asked]:
    """Callers that send 8 checks 20 times a second, once at least; *warm* is set once enough are answered."""
    asked: list[Asked] = []

    async def caller(http: httpx.AsyncClient, number: int) -> None:
        turn = number * 50
        end = (at := time.monotonic()) + seconds
        while at < end:
            checks = [{"client_id": CLIENTS[(turn + i) % len(CLIENTS)]} for i in range(8)]
            turn += 8
            response = await http.post(f"{url}/v1/checks", json=checks)
            answers = response.raise_for_status().json()
            took = time.monotonic() - at
            asked.append(Asked(at, took, sum(answer["degraded"] for answer in answers)))
            if warm is not None and len(asked) == WARM:
                warm.set()
            await asyncio.sleep(max(0.0, 0.05 - took))
            at = time.monotonic()

    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        await asyncio.gather(*(caller(http, number) for number in range(callers)))
    return asked


async def kill_under_load(worker: Process, url: str) -> tuple[list[Asked], list[Asked]]:
    """Load before the kill, and after it."""
    warm = asyncio.Event()
    load = asyncio.create_task(ask_for(10.0, url, warm=warm))
    await asyncio.wait_for(warm.wait(), 9.0)
    killed = time.monotonic()
    await asyncio.to_thread(worker.kill)
    asked = await load
    # What was under way when it died is what the death could cost.
    return [a for a in asked if a.at + a.took_s < killed], [a for a in asked if a.at + a.took_s >= killed]


def p99_ms(asked: list[Asked]) -> float:
    return quantiles([a.took_s * 1_000 for a in asked], n=100)[98]


def test_worker_killed_in_either_lane_costs_no_check(broker: Broker, tmp_path: Path) -> None:
    with running_system(broker, tmp_path, deadline_ms=DEADLINE_MS) as system:
        system.add_worker(lane="b")
        gateway = system.gateways[0]
        await_lane(system, "b")
        for lane, worker in zip("ab", system.workers, strict=True):
            await_lane(system, lane)
            before, after = asyncio.run(kill_under_load(worker, gateway.url))
            degraded = sum(a.degraded for a in after)
            print(
                f"lane {lane} killed: {degraded} of {len(after) * 8} checks let through; "
                f"p99 {p99_ms(before):.1f} ms before, {p99_ms(after):.1f} ms after, "
                f"worst {max(a.took_s for a in after) * 1_000:.0f} ms"
            )
            assert degraded == sum(a.degraded for a in before) == 0
            worker.start()
            await_lane(system, lane)
        env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap)
        with ThreadPoolExecutor(1) as pool:
            verifying = pool.submit(stoplog, "verify", "--lane", "b", "--seconds", "2", "--json", env=env)
            while not verifying.done():
                asyncio.run(ask_for(1.0, gateway.url))
        verified = json.loads(verifying.result().stdout)
        assert verified["decisions"] > 0
        assert verified["differ"] == 0
        assert gateway.metric("stoplog_checks_degraded_total") == 0
        assert gateway.metric("stoplog_lane_divergence_total") == 0
        assert gateway.metric("stoplog_replies_late_total") == 0


def records(broker: Broker, topic: str) -> dict[int, list[Any]]:
    """All records of *topic*, by partition."""
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
    """How many each batch got, by its number; there is one gateway."""
    values = (m.value() for messages in records(broker, REPLIES).values() for m in messages)
    return Counter(decode_reply(value).number for value in values if not value.startswith(b"{"))


def numbers(system: System) -> set[int]:
    """The numbers of all batches in the log."""
    values = (record.value for partition in range(PARTITIONS) for record in system.records(partition))
    contents = (decode_checks_record(value) for value in values)
    return {content.number for content in contents if isinstance(content, Batch)}


def states(broker: Broker, lane: str) -> dict[int, dict[str, Any]]:
    """What the changelogs of *lane* hold: counters as stored; of policies what is in force; the marker."""
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
            # Each lane has changelogs of its own.
            "marker": msgspec.structs.replace(decode_marker(policies.pop(MARKER_KEY)), changelog_ids={}),
            "counters": tables[COUNTERS],
            # How far a history goes back depends on when it was flushed.
            "policies": {key: msgspec.msgpack.decode(value[9:])[-1] for key, value in policies.items()},
        }
    return found


def test_new_lane_copies_state_and_answers_once_caught_up(broker: Broker, tmp_path: Path) -> None:
    with running_system(broker, tmp_path, deadline_ms=DEADLINE_MS) as system:
        gateway = system.gateways[0]
        for client in CLIENTS[:20]:
            gateway.set_limits(client, "5/hour")
        asyncio.run(ask_for(2.0, gateway.url))

        # Checks that no lane has judged when the new one comes.
        assert system.workers[0].stop() == 0
        asyncio.run(ask_for(0.1, gateway.url, callers=2))
        before, published = replies(broker), numbers(system)
        assert max(before.values()) == 1
        assert published - before.keys()

        system.add_worker(lane="b")
        await_lane(system, "b")
        # Those that the gateway sent meanwhile, to see who is there, it may have answered.
        assert {number for number in replies(broker) if number in published} == before.keys()
        # It had a policy and the counts of the lane it copied, and counted what it judged in silence.
        spent = gateway.check(CLIENTS[0], cost=0)
        assert not spent["degraded"]
        admitted = system.admitted(CLIENTS[0], partition_of(CLIENTS[0], PARTITIONS))
        assert (spent["limit"], spent["remaining"]) == (5, 5 - admitted)
        assert admitted > 0

        system.workers[0].start()
        await_lane(system, "a")
        asyncio.run(ask_for(1.0, gateway.url))
        eventually("both lanes have caught up", lambda: running(system, "a") and running(system, "b"))
        new = {number: count for number, count in replies(broker).items() if number not in before}
        assert max(new.values()) == 2
        assert gateway.metric("stoplog_lane_divergence_total") == 0
        gateway.stop()
        eventually("both lanes hold the same", lambda: states(broker, "b") == states(broker, ""))


def test_lanes_with_different_answers_are_reported(broker: Broker, tmp_path: Path) -> None:
    with running_system(broker, tmp_path, deadline_ms=DEADLINE_MS) as system:
        gateway = system.gateways[0]
        answer = gateway.check("alice")
        assert answer["allowed"]
        last = system.records(partition_of("alice", PARTITIONS))[-1]
        batch = decode_checks_record(last.value)
        assert isinstance(batch, Batch)
        denial = Decision(False, 100, 0, 60_000, 60_000, -1)
        lie = encode_reply(Reply(batch.incarnation, batch.number, last.offset, -1, [denial]))
        producer = Producer({"bootstrap.servers": broker.bootstrap})
        for _ in range(2):
            producer.produce(REPLIES, lie, partition=batch.partition)
        assert producer.flush(30) == 0
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
            nodes = http.get("/v1/status").json()["nodes"]
            return {node["lane"]: node["id"].partition("@")[0] for node in nodes if node["role"] == "worker"}

        eventually("both lanes are there", lambda: workers() == {"a": "worker-1", "b": "worker-b-1"})
        assert len(up.children()) == 4
        assert not http.post("/v1/check", json={"client_id": "alice"}).json()["degraded"]
        shown = stoplog("status", "--url", up.url, env={**up.env, "COLUMNS": "200"})
        (line,) = (line for line in shown.stdout.splitlines() if "worker-b-1" in line)
        assert "b" in [cell.strip() for cell in line.split("│")]
        assert up.stop() == 0
