"""Waiting for limits. A store in memory grants what is free; the reservations are those of a real limiter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stoplog.client import waiting
from stoplog.client.answer import Answer
from stoplog.client.fail_open import BROKER, DEADLINE, FAIL_CLOSED
from stoplog.client.reservations import Reservation, Settled
from stoplog.client.waiting import WaitingLines
from stoplog.errors import InvalidCost, InvalidInput, WaitTimeout
from stoplog.wire.checks import Check

CHECK = Check("alice", 2)


class Store:
    """A store with ``free`` units of a limit of 10. A denial says to try again in ``retry_ms``."""

    def __init__(self, free: int = 0, retry_ms: int | None = 20) -> None:
        self.free, self.retry_ms = free, retry_ms
        self.asked: list[int] = []
        self.open: dict[str, int] = {}
        self.charged = 0
        self.degraded: Answer | None = None
        self.denied = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.lines = WaitingLines(self.open_reservation, self.settle)

    async def open_reservation(self, client: str, cost: int, **_: Any) -> Reservation:
        self.asked.append(cost)
        id_ = f"{client} {len(self.asked)}"
        try:
            await self.answers.wait()
        except asyncio.CancelledError:  # as the limiter does
            self.open.pop(id_, None)
            raise
        if self.degraded is not None:
            fields = {name: getattr(self.degraded, name) for name in Answer.__struct_fields__}
            return Reservation(**fields, id=id_)
        if cost > self.free:
            self.denied.set()
            retry_ms = None if cost > 10 else self.retry_ms
            return Reservation(False, 10, self.free, 0, retry_ms, -1, id=None)
        self.free -= cost
        self.open[id_] = cost
        return Reservation(True, 10, self.free, 0, 0, -1, id=id_, held=cost)

    async def settle(self, id_: str, used: int) -> Settled:
        held = self.open.pop(id_, 0)
        self.charged += used
        self.free += held - used if held else 0
        return Settled(id_, "settled", used)

    async def wait(self, cost: int = 2, timeout: float | None = 60) -> Answer:  # noqa: ASYNC109
        answer = await self.lines.wait(Check("alice", cost), timeout, "allow")
        await asyncio.sleep(0)  # the settlement
        return answer


class Failing(Store):
    """A store that does not answer the first attempt. The others are ready once *parties* are under way."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.parties = asyncio.Barrier(parties)
        self.answers.clear()

    async def open_reservation(self, client: str, cost: int, **options: Any) -> Reservation:
        if not self.asked:
            self.degraded = FAIL_CLOSED[DEADLINE]
            found = await super().open_reservation(client, cost, **options)
            self.degraded = None
            return found
        await self.parties.wait()
        self.parties = asyncio.Barrier(1)
        return await super().open_reservation(client, cost, **options)


async def test_free_units_are_charged_at_once() -> None:
    store = Store(10)
    assert (await store.wait()).remaining == 8
    assert (store.charged, store.asked) == (2, [2])


async def test_callers_are_served_in_order_and_only_the_first_asks() -> None:
    store, served = Store(), list[int]()

    async def caller(number: int, cost: int) -> None:
        await store.wait(cost)
        served.append(number)

    tasks = []
    for number, cost in enumerate((5, 1, 1, 1)):  # the later ones would fit before
        tasks.append(asyncio.create_task(caller(number, cost)))
        await asyncio.sleep(0)
    store.free = 4
    store.denied.clear()
    await store.denied.wait()
    assert set(store.asked) == {5}
    assert served == []
    store.free = 8
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 3]
    assert (store.charged, store.lines._lines) == (8, {})


async def test_clients_do_not_wait_for_each_other() -> None:
    store = Store()
    waiting = asyncio.create_task(store.wait(5))
    await store.denied.wait()
    store.free = 2
    assert (await store.lines.wait(Check("bob"), 60, "allow")).allowed
    waiting.cancel()


async def test_cost_above_the_limit_raises_at_once_also_behind_others() -> None:
    store = Store()
    with pytest.raises(InvalidCost, match="cost: 11 exceeds the limit of 10"):
        await store.wait(11, None)
    store.denied.clear()
    first = asyncio.create_task(store.wait(5))
    await store.denied.wait()
    asked = len(store.asked)
    with pytest.raises(InvalidCost):
        await store.wait(11, None)
    assert 11 not in store.asked[asked:]
    first.cancel()


@pytest.mark.parametrize("behind", [False, True])
async def test_timeout_raises_and_charges_nothing(behind: bool) -> None:
    store = Store(retry_ms=60_000)
    first = asyncio.create_task(store.wait(5)) if behind else None
    if behind:
        await store.denied.wait()
    with pytest.raises(WaitTimeout, match=r"'alice' did not allow it in 0\.05 s") as caught:
        await store.wait(2, 0.05)
    assert isinstance(caught.value, TimeoutError)
    assert (store.charged, store.open) == (0, {})
    if first is not None:
        first.cancel()


async def test_attempt_under_way_at_the_timeout_still_counts() -> None:
    store = Store(10)
    store.answers.clear()
    waiting = asyncio.create_task(store.wait(2, 0))
    await asyncio.sleep(0.01)
    store.answers.set()
    assert (await waiting).allowed


async def test_cancelled_caller_charges_nothing_and_lets_the_next_one_ask() -> None:
    store = Store(10)
    store.answers.clear()
    first = asyncio.create_task(store.wait(5))
    second = asyncio.create_task(store.wait(1))
    third = asyncio.create_task(store.wait(1))
    await asyncio.sleep(0.01)
    first.cancel()
    third.cancel()
    await asyncio.wait([first, third])
    store.answers.set()
    assert (await second).allowed
    assert (store.charged, store.asked) == (1, [5, 1])


async def test_degraded_answer_is_returned_at_once() -> None:
    store = Store()
    store.degraded = FAIL_CLOSED[BROKER]
    assert await store.wait() == FAIL_CLOSED[BROKER]
    assert store.charged == 0


async def test_callers_behind_a_degraded_answer_do_not_wait_for_each_other() -> None:
    store = Failing(parties=3)
    async with asyncio.timeout(60):
        calls = asyncio.gather(*(store.wait(2, None) for _ in range(4)))
        await asyncio.sleep(0)  # all of them are in line
        store.answers.set()
        await store.denied.wait()
        store.free = 6
        first, *others = await calls
    assert first == FAIL_CLOSED[DEADLINE]
    # The store denied them, and they have lined up again.
    assert {answer.remaining for answer in others} == {4, 2, 0}
    assert (store.charged, store.lines._lines) == (6, {})


async def test_limit_that_was_seen_some_time_ago_refuses_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(retry_ms=60_000)
    first = asyncio.create_task(store.wait(5))
    await store.denied.wait()
    with pytest.raises(InvalidCost):
        await store.wait(11, 0)
    monkeypatch.setattr(waiting, "FRESH_S", 0)
    with pytest.raises(WaitTimeout):
        await store.wait(11, 0)
    first.cancel()


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
async def test_invalid_timeout_is_named(timeout: float) -> None:  # noqa: ASYNC109
    with pytest.raises(InvalidInput, match="timeout"):
        await Store().wait(1, timeout)
