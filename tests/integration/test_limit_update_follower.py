"""A gateway's follower of ``limit-updates``, and the proof that the deny cache needs, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

from confluent_kafka import Producer

from stoplog.client.limit_update_follower import TAIL
from stoplog.client.limiter import Limiter
from stoplog.client.settings import Settings
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.topics import UPDATES
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey, encode_update_key, encode_update_value
from stoplog.wire.replies import Decision, Reply
from tests.support.broker import fresh_broker

PARTITIONS = 4
CLIENT = "alice"
HOME = partition_of(CLIENT, PARTITIONS)
VALUE = encode_update_value(parse_policy("5/minute"))


def write(producer: Producer, client: str, *, partition: int = HOME, value: bytes | None = VALUE) -> None:
    """Write a limit of *client*; return once the broker has acknowledged it."""
    producer.produce(UPDATES, value, key=encode_update_key(UpdateKey("client", client)), partition=partition)
    assert producer.flush(10) == 0


def deny(limiter: Limiter, client: str, applied: int) -> None:
    """Let the deny cache learn a denial, as from a reply to a check just sent."""
    decision = Decision(False, 1, 0, 60_000, 60_000, 0)
    reply = Reply(0, 1, 0, applied, [decision])
    limiter._engine.denials.learn(HOME, [Check(client)], reply, limiter._engine.denials._clock())


def denied(limiter: Limiter, client: str) -> bool:
    return limiter._engine.denials.get(Check(client)) is not None


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - the other thread sets no event
            await asyncio.sleep(0.005)


async def test_follower_receives_updates_and_needs_broker_for_proof() -> None:
    at_home = (name for name in map(str, count()) if partition_of(name, PARTITIONS) == HOME)
    others = [next(at_home) for _ in range(3)]
    with fresh_broker() as broker:
        producer = Producer({"bootstrap.servers": broker.bootstrap})
        for _ in range(TAIL + 10):
            producer.produce(
                UPDATES, VALUE, key=encode_update_key(UpdateKey("client", "old")), partition=HOME
            )
        write(producer, others[0])
        last = TAIL + 10
        # Updates that no worker applies do not count. Otherwise no denial would ever be cached.
        write(producer, CLIENT, partition=(HOME + 1) % PARTITIONS)
        write(producer, CLIENT, value=b"no policy")
        async with Limiter(Settings(kafka=broker.bootstrap)) as limiter:

            def kept(client: str, applied: int) -> bool:
                deny(limiter, client, applied)
                return denied(limiter, client)

            await until(lambda: kept(CLIENT, last))
            assert not kept(others[1], last - 1), "without proof, the worker decides"

            version = last + 2
            for _ in range(5):
                await until(lambda: denied(limiter, CLIENT))
                write(producer, CLIENT)
                await until(lambda: not denied(limiter, CLIENT))
                assert not kept(CLIENT, version - 1)
                await until(lambda version=version: kept(CLIENT, version))  # type: ignore[misc]
                version += 1

            broker.pause()
            await until(lambda: not denied(limiter, CLIENT))
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert not denied(limiter, CLIENT), "no proof without a broker"
            broker.resume()
            await until(lambda: denied(limiter, CLIENT))


async def test_follower_without_deny_cache_and_leases_reads_nothing() -> None:
    with fresh_broker() as broker:
        async with Limiter(Settings(kafka=broker.bootstrap, deny_cache=0, lease_max_ms=0)) as limiter:
            assert [thread.name for thread in limiter._engine.transport._threads] == ["stoplog-replies"]
