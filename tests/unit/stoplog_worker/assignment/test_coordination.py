"""aiokafka's coordinator after errors that it does not expect, answered by a fake broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.protocol.api import Response
from stoplog_worker.assignment.coordination import Coordination

JOIN, HEARTBEAT, LEAVE, SYNC = 11, 12, 13, 14
UNKNOWN_SERVER_ERROR, GROUP_AUTHORIZATION_FAILED = -1, 30
_VERSIONS = {JOIN: (0, 5), HEARTBEAT: (0, 1), LEAVE: (0, 1), SYNC: (0, 3)}


class Broker:
    """Replaces aiokafka's client. It has one member, and refuses requests with the code in ``refusals``."""

    def __init__(self) -> None:
        self.cluster = ClusterMetadata()
        self.refusals: dict[int, int] = {}
        self.refused = asyncio.Event()
        self.confirmed = asyncio.Event()
        """Whether the broker has answered a heartbeat since the test cleared it."""
        self._sync_task: asyncio.Task[Any] = asyncio.create_task(asyncio.Event().wait())

    async def coordinator_lookup(self, *_: object) -> int:
        return 1

    async def ready(self, *_: object, **__: object) -> bool:
        return True

    def set_topics(self, _topics: object) -> None:
        """Know all topics."""

    async def _maybe_wait_metadata(self) -> None:
        """Know all metadata."""

    async def send(self, _node: int, request: Any, *, group: object) -> Response:
        struct = request.prepare(_VERSIONS)
        key = struct.API_KEY
        code = self.refusals.get(key, 0)
        if code:
            self.refused.set()
        elif key == HEARTBEAT:
            self.confirmed.set()
        assignment = ConsumerProtocolMemberAssignment(0, [("t", [0])], b"").encode()
        rest: dict[int, list[object]] = {
            JOIN: [5, "roundrobin", "another", "m1", []],
            HEARTBEAT: [],
            LEAVE: [],
            SYNC: [assignment],
        }
        answer: Response = struct.RESPONSE_TYPE(0, code, *rest[key])
        return answer


class Member:
    """A member that has joined the group, or tries to, with the worker's extension."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.failures: list[BaseException] = []
        subscription = SubscriptionState()
        subscription.subscribe({"t"})
        subscription.register_fetch_waiters(set())
        self.coordinator: Any = GroupCoordinator(
            broker, subscription, group_id="g", heartbeat_interval_ms=10, enable_auto_commit=False
        )
        Coordination(self.coordinator, broker, self.failures.append, retry_s=0.01)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    broker = Broker()
    yield broker
    broker._sync_task.cancel()


@pytest.mark.parametrize("key", [JOIN, SYNC, HEARTBEAT])
@pytest.mark.parametrize("code", [UNKNOWN_SERVER_ERROR, GROUP_AUTHORIZATION_FAILED])
async def test_member_that_was_refused_sends_heartbeats_again_as_soon_as_the_broker_accepts_it(
    broker: Broker, key: int, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    broker.refusals[key] = code
    member = Member(broker)
    async with asyncio.timeout(30):
        await broker.refused.wait()
        await asyncio.sleep(0.05)  # several more attempts
        broker.confirmed.clear()
        del broker.refusals[key]
        await broker.confirmed.wait()
        broker.confirmed.clear()
        await broker.confirmed.wait()  # and it goes on
    await member.coordinator.close()
    assert member.failures == []
    told = [r.getMessage() for r in caplog.records if r.name == "stoplog.membership"]
    assert len(told) == 1
    assert "coordinates the group answered with an error" in told[0]


async def test_member_that_is_refused_stops_without_waiting(broker: Broker) -> None:
    broker.refusals[JOIN] = GROUP_AUTHORIZATION_FAILED
    member = Member(broker)
    await broker.refused.wait()
    async with asyncio.timeout(30):
        await member.coordinator.close()
    assert member.failures == []


async def test_end_of_the_task_that_coordinates_is_reported(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    member = Member(broker)
    await broker.confirmed.wait()
    monkeypatch.setattr(member.coordinator, "ensure_coordinator_known", None)
    member.coordinator.request_rejoin()
    await asyncio.wait([member.coordinator._coordination_task], timeout=30)
    await asyncio.sleep(0)
    [failure] = member.failures
    assert "NoneType" in str(failure)


async def test_end_of_the_task_that_updates_metadata_is_reported(broker: Broker) -> None:
    broker._sync_task.cancel()

    async def fail() -> None:
        raise KeyError("node")

    broker._sync_task = asyncio.create_task(fail())
    member = Member(broker)
    await asyncio.wait([broker._sync_task])
    await asyncio.sleep(0)
    assert [type(failure) for failure in member.failures] == [KeyError]
    await member.coordinator.close()
