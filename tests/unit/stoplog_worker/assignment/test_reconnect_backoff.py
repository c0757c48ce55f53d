"""aiokafka's attempts to connect: rare while a broker is away, and at once when it is back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.structs import BrokerMetadata
from stoplog_gateway.ports import free_port
from stoplog_worker.assignment import reconnect_backoff
from stoplog_worker.assignment.reconnect_backoff import ReconnectBackoff


class Client:
    """aiokafka's client of a cluster with one broker, whose address it knows; it counts its connections."""

    def __init__(self, port: int) -> None:
        self.client: Any = AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}")
        cluster = ClusterMetadata()
        cluster._brokers = {1: BrokerMetadata(1, "127.0.0.1", port, None)}
        self.client.cluster = cluster
        self.attempts = 0
        connect = self.client._get_conn

        async def counted(node: Any, **options: Any) -> Any:
            self.attempts += 1
            return await connect(node, **options)

        self.client._get_conn = counted
        ReconnectBackoff(self.client)

    async def try_for(self, seconds: float) -> None:
        """Try to connect as aiokafka's tasks do: again 10 ms after each failure."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not await self.client.ready(1):  # noqa: ASYNC110 - as they do
            await asyncio.sleep(0.01)


async def test_attempts_to_reach_a_missing_broker_become_rare() -> None:
    client = Client(free_port())
    await client.try_for(2.0)
    assert 3 <= client.attempts <= 9  # after 0.05, 0.1, 0.2, 0.4 s, and every half second from then on
    await client.client.close()


async def test_tasks_that_wait_for_the_same_broker_share_its_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect_backoff, "_FIRST_S", 60.0)
    monkeypatch.setattr(reconnect_backoff, "_MAX_S", 60.0)
    client = Client(free_port())
    assert not await client.client.ready(1)
    waiting = [asyncio.create_task(client.client.ready(1)) for _ in range(5)]
    await asyncio.sleep(0.1)
    assert client.attempts == 1
    for task in waiting:
        task.cancel()
    await client.client.close()


async def test_broker_that_is_back_is_reached_at_the_next_attempt_and_without_delay_afterwards() -> None:
    client = Client(free_port())
    assert not await client.client.ready(1)
    connection = object()

    async def connect(*_: Any, **__: Any) -> Any:
        return connection

    backoff = client.client._get_conn.__self__
    backoff._get_connection = connect
    assert await client.client._get_conn(1) is connection
    assert backoff._next_attempt == {}
    await client.client.close()
