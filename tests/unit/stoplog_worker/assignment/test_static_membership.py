"""The requests of a member, made by aiokafka's coordinator and answered by a fake broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import KafkaError, NodeNotReadyError, RequestTimedOutError
from aiokafka.protocol.api import Response
from aiokafka.protocol.group import SyncGroupRequest
from stoplog_worker.assignment import static_membership
from stoplog_worker.assignment.static_membership import StaticMembership
from stoplog_worker.lease import Lease

HEARTBEAT, LEAVE, SYNC = 12, 13, 14
NOT_COORDINATOR = 16
ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS, FENCED = 22, 25, 27, 82


class Connection:
    """Replaces aiokafka's connection to the coordinator."""

    def __init__(self) -> None:
        self.closed = False

    def close(self, *, reason: object) -> None:
        self.closed = True


class Broker:
    """Replaces aiokafka's client: keeps the requests, and returns the next of the answers, or 0.

    ``None`` among the answers is a response that never comes.
    """

    def __init__(self) -> None:
        self.cluster = ClusterMetadata()
        self.requests: list[Any] = []
        self.answers: list[int | KafkaError | None] = []
        self.lookups = 0
        self.connection = Connection()
        self._conns = {(1, ConnectionGroup.COORDINATION): self.connection}
        self.of_member = 0
        """The error code of the leaving member in the response to LeaveGroup."""

    async def send(self, _node: int, request: Any, *, group: object) -> Response:
        struct = request.prepare({HEARTBEAT: (0, 4), LEAVE: (0, 5), SYNC: (0, 5)})
        struct.encode()
        self.requests.append(struct)
        code = self.answers.pop(0) if self.answers else 0
        if isinstance(code, KafkaError):
            raise code
        if code is None:
            await asyncio.get_running_loop().create_future()
        rest = {HEARTBEAT: [], LEAVE: [[("m1", "w1", self.of_member)]], SYNC: [b""]}[struct.API_KEY]
        answer: Response = struct.RESPONSE_TYPE(0, code, *rest)  # type: ignore[misc]
        return answer

    async def coordinator_lookup(self, _kind: object, group: str) -> int:
        assert group == "g"
        self.lookups += 1
        return 1


class Member:
    """aiokafka's coordinator of a member of generation 5, with the worker's extension."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.coordinator = GroupCoordinator(
            self.broker, SubscriptionState(), group_id="g", group_instance_id="w1"
        )
        self.coordinator.coordinator_id = 1
        self.coordinator.generation, self.coordinator.member_id = 5, "m1"
        self.lease = Lease(60_000, 1_000)
        self.fenced = 0
        StaticMembership(self.coordinator, self.lease, self._count_fencing)

    def _count_fencing(self) -> None:
        self.fenced += 1

    async def heartbeat(self, answer: int | KafkaError) -> None:
        """Send one heartbeat."""
        self.broker.answers = [answer]
        await self.coordinator._do_heartbeat()

    async def sync(self, answer: int) -> None:
        """End a rebalance."""
        self.broker.answers = [answer]
        await self.coordinator._send_req(SyncGroupRequest("g", 5, "m1", "w1", []))


@pytest.fixture
async def member() -> AsyncIterator[Member]:
    member = Member()
    yield member
    await member.coordinator.close()


async def test_send_confirmed_heartbeat_or_sync_extends_lease(member: Member) -> None:
    assert not member.lease.holds()
    await member.heartbeat(0)
    assert member.lease.holds()
    member.lease.end()
    await member.sync(0)
    assert member.lease.holds()


@pytest.mark.parametrize("answer", [REBALANCE_IN_PROGRESS, RequestTimedOutError()])
@pytest.mark.parametrize("held", [False, True])
async def test_send_unconfirmed_heartbeat_leaves_lease_unchanged(
    member: Member, answer: int | KafkaError, held: bool
) -> None:
    if held:
        await member.heartbeat(0)
    await member.heartbeat(answer)
    assert member.lease.holds() is held


async def test_send_sync_during_next_rebalance_does_not_extend_lease(member: Member) -> None:
    await member.sync(REBALANCE_IN_PROGRESS)
    assert not member.lease.holds()


@pytest.mark.parametrize("answer", [ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID])
@pytest.mark.parametrize("of", ["heartbeat", "sync"])
async def test_send_as_unknown_member_ends_lease(member: Member, of: str, answer: int) -> None:
    await member.heartbeat(0)
    await getattr(member, of)(answer)
    assert not member.lease.holds()
    assert not member.fenced


async def test_send_confirmed_heartbeat_extends_lease_from_time_of_sending(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 200.0])
    monkeypatch.setattr("stoplog_worker.assignment.static_membership.now", lambda: next(times))
    lasts: list[Any] = []
    monkeypatch.setattr(member.lease, "extend", lasts.append)
    await member.heartbeat(0)
    assert lasts == [100.0]


async def test_send_heartbeat_contains_instance_id(member: Member) -> None:
    await member.heartbeat(0)
    [sent] = member.broker.requests
    assert (sent.API_KEY, sent.group, sent.generation_id) == (HEARTBEAT, "g", 5)
    assert (sent.member_id, sent.group_instance_id) == ("m1", "w1")


@pytest.mark.parametrize("of", ["heartbeat", "sync"])
async def test_send_as_fenced_member_ends_lease_and_worker(member: Member, of: str) -> None:
    await member.heartbeat(0)
    if of == "heartbeat":
        await member.heartbeat(FENCED)
    else:
        with pytest.raises(KafkaError, match="fenced"):
            await member.sync(FENCED)
    assert member.fenced == 1
    assert not member.lease.holds()


async def test_leave_names_member_and_instance(member: Member, caplog: pytest.LogCaptureFixture) -> None:
    await member.coordinator.close()
    [sent] = member.broker.requests
    assert (sent.API_KEY, sent.group, sent.members) == (LEAVE, "g", [("m1", "w1")])
    assert member.coordinator.generation == -1
    assert member.coordinator.member_id == ""
    assert not caplog.records


async def test_leave_without_membership_sends_nothing(member: Member) -> None:
    await member.heartbeat(UNKNOWN_MEMBER_ID)
    member.broker.requests.clear()
    await member.coordinator.close()
    assert not member.broker.requests


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the membership's warnings."""
    return [record.getMessage() for record in caplog.records if record.name == "stoplog.membership"]


@pytest.mark.parametrize(
    ("answers", "of_member", "why"),
    [
        ([NOT_COORDINATOR] * 3, 0, "error 16"),
        ([0], UNKNOWN_MEMBER_ID, "error 25"),
        ([RequestTimedOutError()] * 3, 0, "RequestTimedOutError"),
        ([None] * 3, 0, "no response within 0.01 s"),
    ],
)
async def test_leave_failed_logs_warning(
    member: Member,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[int | KafkaError | None],
    of_member: int,
    why: str,
) -> None:
    monkeypatch.setattr(static_membership, "_LEAVE_ATTEMPT_S", 0.01)
    asked = len(answers)
    member.broker.answers, member.broker.of_member = answers, of_member
    with caplog.at_level(logging.WARNING, "stoplog.membership"):
        await member.coordinator.close()
    [warning] = warnings(caplog)
    assert why in warning
    assert len(member.broker.requests) == asked
    assert member.coordinator.generation == -1


@pytest.mark.parametrize("lost", [NOT_COORDINATOR, RequestTimedOutError(), NodeNotReadyError()])
async def test_leave_looks_for_the_coordinator_and_tries_again(
    member: Member, caplog: pytest.LogCaptureFixture, lost: int | KafkaError
) -> None:
    member.broker.answers = [lost, lost, 0]
    await member.coordinator.close()
    assert [request.API_KEY for request in member.broker.requests] == [LEAVE] * 3
    assert member.broker.lookups == 2
    assert not warnings(caplog)


async def test_leave_with_unknown_coordinator_looks_for_it(
    member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    member.coordinator.coordinator_dead()
    await member.coordinator.close()
    assert [request.API_KEY for request in member.broker.requests] == [LEAVE]
    assert not warnings(caplog)


async def test_leave_without_response_tries_again_over_another_connection(
    member: Member, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_membership, "_LEAVE_ATTEMPT_S", 0.01)
    member.broker.answers = [None]
    member.broker.of_member = 0
    await member.coordinator.close()
    assert [request.API_KEY for request in member.broker.requests] == [LEAVE] * 2
    assert member.broker.connection.closed
    assert not warnings(caplog)


async def test_leave_whose_first_response_is_lost_has_left(
    member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    member.broker.answers, member.broker.of_member = [RequestTimedOutError()], UNKNOWN_MEMBER_ID
    await member.coordinator.close()
    assert len(member.broker.requests) == 2
    assert not warnings(caplog)
