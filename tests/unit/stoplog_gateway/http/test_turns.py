"""A turn of the event loop accepts what it has time for, and work in slices lets others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from stoplog_gateway.http.turns import Turns

from tests.support.protocol_connection import run_event_loop


class Clock:
    """Monotonic seconds that stand still until a test advances them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> Turns:
    return Turns(deadline_s=0.4, clock=clock)


async def run_turn(turns: Turns, clock: Clock, *, each_s: float, requests: int, rest_s: float) -> int:
    """Run a turn that reads *requests* checks and then works for *rest_s*; return how many it admitted."""
    admitted = 0
    for _ in range(requests):
        admitted += turns.admits_check()
        clock.now += each_s
    await asyncio.sleep(0)
    clock.now += rest_s
    await asyncio.sleep(0)
    return admitted


async def test_turn_admits_checks_until_a_quarter_of_the_deadline_is_used(turns: Turns, clock: Clock) -> None:
    for _ in range(3):
        assert await run_turn(turns, clock, each_s=0.001, requests=300, rest_s=0.0) == 100


async def test_long_turns_admit_less_and_short_ones_more_again(turns: Turns, clock: Clock) -> None:
    admitted = [await run_turn(turns, clock, each_s=0.001, requests=150, rest_s=1.0) for _ in range(20)]
    assert admitted[:3] == sorted(admitted[:3], reverse=True)
    assert admitted[-1] == 50, "an eighth of the deadline"
    for _ in range(20):
        last = await run_turn(turns, clock, each_s=0.001, requests=150, rest_s=0.0)
    assert last == 100


@pytest.mark.parametrize(("requests", "admitted"), [(1_000, 250), (10_000, 400)])
async def test_turn_like_a_very_long_one_admits_a_quarter_of_it_for_at_most_a_deadline(
    turns: Turns, clock: Clock, requests: int, admitted: int
) -> None:
    assert await run_turn(turns, clock, each_s=0.001, requests=requests, rest_s=1.0) == 100
    for _ in range(3):
        assert await run_turn(turns, clock, each_s=0.001, requests=requests, rest_s=1.0) == admitted


async def test_turn_that_reads_much_more_than_it_admits_is_crowded_for_one_deadline(
    turns: Turns, clock: Clock
) -> None:
    await run_turn(turns, clock, each_s=0.001, requests=120, rest_s=0.0)
    assert not turns.is_crowded
    await run_turn(turns, clock, each_s=0.001, requests=130, rest_s=0.0)
    assert turns.is_crowded
    clock.now += 0.39
    assert turns.is_crowded
    clock.now += 0.02
    assert not turns.is_crowded, "the event loop may be idle"


async def test_turn_is_crowded_until_the_next_one_that_is_not(turns: Turns, clock: Clock) -> None:
    await run_turn(turns, clock, each_s=0.001, requests=130, rest_s=0.0)
    await run_turn(turns, clock, each_s=0.001, requests=1, rest_s=0.0)
    assert not turns.is_crowded


async def test_turn_with_many_more_requests_than_it_admits_is_crowded(turns: Turns, clock: Clock) -> None:
    async def turn(requests: int) -> None:
        admitted = sum(turns.admits_request() for _ in range(requests))
        await asyncio.sleep(0)
        clock.now += admitted * 0.001
        await asyncio.sleep(0)

    for _ in range(20):
        await turn(1_000)
    assert turns.is_crowded
    await turn(100)
    assert not turns.is_crowded


async def test_requests_of_the_application_are_admitted_in_proportion_to_the_time_of_a_turn(
    turns: Turns, clock: Clock
) -> None:
    async def turn(each_s: float) -> int:
        admitted = sum(turns.admits_request() for _ in range(1_000))
        await asyncio.sleep(0)
        clock.now += admitted * each_s  # the tasks of the application
        await asyncio.sleep(0)
        return admitted

    admitted = [await turn(0.001) for _ in range(30)]
    assert admitted[0] == 1_000
    assert 250 <= sum(admitted[10:]) / 20 <= 400, "a turn should take 0.8 of the deadline"
    assert [await turn(0.0) for _ in range(20)][-1] == 1_000


async def test_work_in_slices_lets_other_callbacks_run(turns: Turns) -> None:
    done: list[str] = []

    def work(name: str, slices: int) -> Callable[[], bool]:
        left = iter(range(slices, 0, -1))

        def advance() -> bool:
            done.append(name)
            return next(left) > 1

        return advance

    turns.run_in_slices(work("long", 100))
    turns.run_in_slices(work("short", 2))
    ticks = 0
    while len(done) < 102:
        await asyncio.sleep(0)
        ticks += 1
    assert done[:4] == ["long", "short"] * 2
    assert ticks > 10


async def test_slices_take_little_time_of_a_turn(turns: Turns, clock: Clock) -> None:
    done = 0

    def advance() -> bool:
        nonlocal done
        clock.now += 0.001
        done += 1
        return done < 9

    for _ in range(3):
        turns.run_in_slices(advance)
    await asyncio.sleep(0)
    assert done == 2
    await run_event_loop()
    assert done == 11, "each of the three ends"


async def test_requests_of_slices_are_admitted_because_their_time_is_bounded(
    turns: Turns, clock: Clock
) -> None:
    admitted: list[bool] = []

    def advance() -> bool:
        clock.now += 5.0
        admitted.extend((turns.admits_check(), turns.admits_request()))
        return len(admitted) < 6

    turns.run_in_slices(advance)
    await run_event_loop()
    assert len(admitted) == 6
    assert all(admitted)
    assert await run_turn(turns, clock, each_s=0.001, requests=300, rest_s=0.0) == 100
