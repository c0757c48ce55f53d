from __future__ import annotations

import asyncio

import pytest

import stoplog.client.usage_lookup
from stoplog.client.usage_lookup import MAX_WAITING, UsageLookup
from stoplog.errors import Busy, Unavailable
from stoplog.partitioning import partition_of
from stoplog.wire.checks import Check, SingleCheck, decode_checks_record
from stoplog.wire.format import ReplyTo
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import LookupReply, WindowUse

FOUND = LookupReply("g?1", 7, UpdateKey("plan", "gold"), [WindowUse("100/minute", 60, 43_000)])


class Checks:
    reply_partition = 3

    def __init__(self) -> None:
        self.sent: list[tuple[int, object]] = []

    def send_lookup(self, partition: int, value: bytes) -> None:
        self.sent.append((partition, decode_checks_record(value)))


@pytest.fixture
def checks() -> Checks:
    return Checks()


@pytest.fixture
def lookup(checks: Checks) -> UsageLookup:
    return UsageLookup(checks, partitions=4, prefix="g?")


async def asked(lookup: UsageLookup) -> asyncio.Task[LookupReply]:
    looking = asyncio.create_task(lookup.look_up("alice", "gold", "login"))
    await asyncio.sleep(0)
    return looking


async def test_look_up_sends_a_check_of_cost_0_and_takes_the_first_reply(
    checks: Checks, lookup: UsageLookup
) -> None:
    looking = await asked(lookup)
    peek = SingleCheck(Check("alice", 0, "gold", "login"), ReplyTo(3, "g?1"))
    assert checks.sent == [(partition_of("alice", 4), peek)]
    lookup.on_replies([LookupReply("g?99", 1), FOUND, FOUND])  # somebody else's, and that of a second lane
    assert await looking == FOUND
    lookup.on_replies([FOUND])  # nobody waits any more


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (LookupReply("g?1", error="belongs to partition 2"), "partition 2"),
        (LookupReply("g?1", 7), "upgrade it"),
    ],
)
async def test_look_up_without_windows_in_the_reply_raises_unavailable(
    reply: LookupReply, text: str, lookup: UsageLookup
) -> None:
    looking = await asked(lookup)
    lookup.on_replies([reply])
    with pytest.raises(Unavailable, match=text):
        await looking


async def test_too_many_lookups_raise_busy(checks: Checks, lookup: UsageLookup) -> None:
    looking = [await asked(lookup) for _ in range(MAX_WAITING)]
    with pytest.raises(Busy, match="64 lookups"):
        await lookup.look_up("alice", "gold", "login")
    assert len(checks.sent) == MAX_WAITING
    lookup.on_replies([LookupReply(f"g?{number + 1}", 7, None, []) for number in range(MAX_WAITING)])
    await asyncio.gather(*looking)
    await asked(lookup)
    assert len(checks.sent) == MAX_WAITING + 1


async def test_look_up_without_a_reply_raises_unavailable(
    lookup: UsageLookup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stoplog.client.usage_lookup, "LOOKUP_S", 0.0)
    with pytest.raises(Unavailable, match="check that it runs"):
        await lookup.look_up("alice", "", "")
