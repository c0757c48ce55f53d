"""A member's requests, as aiokafka's own coordinator makes them and a broker would get and answer them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import KafkaError, RequestTimedOutError
from aiokafka.protocol.api import Response
from aiokafka.protocol.group import SyncGroupRequest
from stoplog_worker.assignment.static_membership import Membership
from stoplog_worker.lease import Lease

HEARTBEAT, LEAVE, SYNC = 12, 13, 14
ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS, FENCED = 22, 25, 27, 82


class Broker:
    """In place of aiokafka's client: keeps what is sent, and gives the next of the answers, or 0."""

    def __init__(self) -> None:
        self.cluster = ClusterMetadata()
        self.requests: list[Any] = []
        self.answers: list[int | KafkaError] = []
        self.of_member = 0
        """What LeaveGroup says of the one member that leaves."""

    async def send(self, _node: int, request: Any, *, group: object) -> Response:
        struct = request.prepare({HEARTBEAT: (0, 4), LEAVE: (0, 5), SYNC: (0, 5)})
        struct.encode()
        self.requests.append(struct)
        code = self.answers.pop(0) if self.answers else 0
        if isinstance(code, KafkaError):
            raise code
        rest = {HEARTBEAT: [], LEAVE: [[("m1", "w1", self.of_member)]], SYNC: [b""]}[struct.API_KEY]
        answer: Response = struct.RESPONSE_TYPE(0, code, *rest)  # type: ignore[misc]
        return answer


class Member:
    """aiokafka's coordinator of a member of generation 5, and our part in it."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.coordinator = GroupCoordinator(
            self.broker, SubscriptionState(), group_id="g", group_instance_id="w1"
        )
        self.coordinator.coordinator_id = 1
        self.coordinator.generation, self.coordinator.member_id = 5, "m1"
        self.lease = Lease(60_000, 1_000)
        self.fenced = 0
        Membership(self.coordinator, self.lease, self._count_fencing)

    def _count_fencing(self) -> None:
        self.fenced += 1

    async def beat(self, answer: int | KafkaError) -> None:
        """One heartbeat."""
        self.broker.answers = [answer]
        await self.coordinator._do_heartbeat()

    async def sync(self, answer: int) -> None:
        """The end of a rebalance."""
        self.broker.answers = [answer]
        await self.coordinator._send_req(SyncGroupRequest("g", 5, "m1", "w1", []))


@pytest.fixture
async def member() -> AsyncIterator[Member]:
    member = Member()
    yield member
    await member.coordinator.close()


async def test_heartbeats_and_syncs_that_are_confirmed_extend_the_lease(member: Member) -> None:
    assert not member.lease.holds()
    await member.beat(0)
    assert member.lease.holds()
    member.lease.end()
    await member.sync(0)
    assert member.lease.holds()


@pytest.mark.parametrize("answer", [REBALANCE_IN_PROGRESS, RequestTimedOutError()])
@pytest.mark.parametrize("held", [False, True])
async def test_what_confirms_nothing_leaves_the_lease_as_it_is(
    member: Member, answer: int | KafkaError, held: bool
) -> None:
    if held:
        await member.beat(0)
    await member.beat(answer)
    assert member.lease.holds() is held


async def test_a_sync_during_the_next_rebalance_confirms_nothing(member: Member) -> None:
    await member.sync(REBALANCE_IN_PROGRESS)
    assert not member.lease.holds()


@pytest.mark.parametrize("answer", [ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID])
@pytest.mark.parametrize("of", ["beat", "sync"])
async def test_one_whom_the_group_no_longer_knows_has_no_lease(member: Member, of: str, answer: int) -> None:
    await member.beat(0)
    await getattr(member, of)(answer)
    assert not member.lease.holds()
    assert not member.fenced


async def test_the_lease_counts_from_the_sending(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 200.0])
    monkeypatch.setattr("stoplog_worker.assignment.static_membership.now", lambda: next(times))
    lasts: list[Any] = []
    monkeypatch.setattr(member.lease, "extend", lasts.append)
    await member.beat(0)
    assert lasts == [100.0]


async def test_a_heartbeat_says_whose_it_is(member: Member) -> None:
    await member.beat(0)
    [sent] = member.broker.requests
    assert (sent.API_KEY, sent.group, sent.generation_id) == (HEARTBEAT, "g", 5)
    assert (sent.member_id, sent.group_instance_id) == ("m1", "w1")


@pytest.mark.parametrize("of", ["beat", "sync"])
async def test_one_whose_place_was_taken_ends(member: Member, of: str) -> None:
    await member.beat(0)
    if of == "beat":
        await member.beat(FENCED)
    else:
        with pytest.raises(KafkaError, match="fenced"):
            await member.sync(FENCED)
    assert member.fenced == 1
    assert not member.lease.holds()


async def test_whoever_closes_leaves_by_its_name(member: Member, caplog: pytest.LogCaptureFixture) -> None:
    await member.coordinator.close()
    [sent] = member.broker.requests
    assert (sent.API_KEY, sent.group, sent.members) == (LEAVE, "g", [("m1", "w1")])
    assert member.coordinator.generation == -1
    assert member.coordinator.member_id == ""
    assert not caplog.records


async def test_whoever_has_joined_nothing_removes_nobody(member: Member) -> None:
    await member.beat(UNKNOWN_MEMBER_ID)
    member.broker.requests.clear()
    await member.coordinator.close()
    assert not member.broker.requests


@pytest.mark.parametrize(
    ("answer", "of_member", "why"),
    [
        (15, 0, "error 15"),
        (0, UNKNOWN_MEMBER_ID, "error 25"),
        (RequestTimedOutError(), 0, "RequestTimedOutError"),
    ],
)
async def test_a_leave_that_fails_is_told(
    member: Member, caplog: pytest.LogCaptureFixture, answer: int | KafkaError, of_member: int, why: str
) -> None:
    member.broker.answers, member.broker.of_member = [answer], of_member
    with caplog.at_level(logging.WARNING, "stoplog.membership"):
        await member.coordinator.close()
    [warning] = [record.getMessage() for record in caplog.records if record.name == "stoplog.membership"]
    assert why in warning
    assert member.coordinator.generation == -1
